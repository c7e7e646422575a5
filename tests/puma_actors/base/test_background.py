"""Calls into the thread of a cluster, interrupted at awkward moments."""

import threading
from concurrent.futures import CancelledError
from contextlib import asynccontextmanager, contextmanager

import anyio
import pytest
from anyio.from_thread import BlockingPortal
from waiting import HANG

from protocols.errors import ConfigError
from puma_actors.base.background import Background


@asynccontextmanager
async def nothing():
    yield


@contextmanager
def running():
    background = Background(nothing())
    try:
        yield background
    finally:
        background.stop()


async def echo(value):
    await anyio.lowlevel.checkpoint()
    return value


def test_results_and_errors_come_back():
    async def fail():
        raise ConfigError("no")

    with running() as background:
        assert background.call(echo, 3) == 3
        with pytest.raises(ConfigError, match="no"):
            background.call(fail)
    with pytest.raises(ConfigError, match="closed"):
        background.call(echo, 3)


def test_a_call_interrupted_before_it_is_known_to_have_begun_ends(monkeypatch):
    """Ctrl-C when the thread has begun it, and its future is still on the way to the caller."""
    usual, begun, ended = BlockingPortal.start_task_soon, threading.Event(), threading.Event()

    async def forever():
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    def interrupted(self, function):
        usual(self, function)
        assert begun.wait(HANG)
        raise KeyboardInterrupt

    with running() as background:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(BlockingPortal, "start_task_soon", interrupted)
            background.call(forever)
        over = ended.is_set()  # when `call` returns, not some time later
        assert background.call(echo, 1) == 1
        if not over:  # or leaving would wait for it
            background._loop.call_soon_threadsafe(
                background._portal._task_group.cancel_scope.cancel
            )
    assert over


def test_a_call_interrupted_before_it_has_begun_never_begins(monkeypatch):
    """Ctrl-C when the thread is busy, and finds the call only later."""
    usual, late, called = BlockingPortal.start_task_soon, [], []

    async def function():
        called.append(True)

    def interrupted(self, function):
        late.append(function)
        raise KeyboardInterrupt

    with running() as background:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(BlockingPortal, "start_task_soon", interrupted)
            background.call(function)
        with pytest.raises(CancelledError):
            usual(background._portal, late[0]).result(HANG)
    assert called == []
