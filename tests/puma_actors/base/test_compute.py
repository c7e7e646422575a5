"""Where calls run."""

import sys
import threading

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from waiting import HANG, until

from puma_actors.base.compute import Compute


async def test_small_work_runs_where_it_is_asked_for():
    compute = Compute(threads=1, threshold=100)
    here = threading.get_ident()
    assert await compute.run(99, threading.get_ident) == here
    assert await compute.run(100, threading.get_ident) != here


async def test_what_is_offloaded_leaves_the_event_loop_whatever_it_takes():
    compute = Compute(threads=1, threshold=1 << 62)
    assert await compute.offload(threading.get_ident) != threading.get_ident()
    assert await compute.offload(divmod, 7, 3) == (2, 1)


class Calls:
    """Calls that begin when they get a thread, and end when they are let go."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._gates: dict[str, threading.Event] = {}

    def gate(self, name: str) -> threading.Event:
        return self._gates.setdefault(name, threading.Event())

    def run(self, name: str) -> None:
        self.begun.append(name)
        assert self.gate(name).wait(HANG)


async def begun(calls: Calls, count: int) -> None:
    await until(lambda: len(calls.begun) >= count)


async def test_sessions_get_threads_in_turn() -> None:
    """One that has queued much does not keep another waiting."""
    compute, calls = Compute(threads=1), Calls()
    busy, other = compute.share(), compute.share()
    async with anyio.create_task_group() as group:
        for name in ("busy 1", "busy 2", "busy 3"):
            group.start_soon(busy.offload, calls.run, name)
        await begun(calls, 1)
        for name in ("other 1", "other 2"):
            group.start_soon(other.offload, calls.run, name)
        await anyio.lowlevel.checkpoint()
        order = ["busy 1", "busy 2", "other 1", "busy 3", "other 2"]
        for count, name in enumerate(order, start=1):
            await begun(calls, count)
            calls.gate(name).set()
    assert calls.begun == order


async def test_one_that_gives_up_takes_no_turn() -> None:
    compute, calls = Compute(threads=1), Calls()
    scope = anyio.CancelScope()

    async def given_up() -> None:
        with scope:
            await compute.share().offload(calls.run, "never")

    async with anyio.create_task_group() as group:
        group.start_soon(compute.share().offload, calls.run, "first")
        await begun(calls, 1)
        group.start_soon(given_up)
        group.start_soon(compute.share().offload, calls.run, "last")
        await anyio.lowlevel.checkpoint()
        scope.cancel()
        for name in ("first", "last"):
            calls.gate(name).set()
    assert calls.begun == ["first", "last"]


async def test_errors_are_raised_where_the_call_was_made() -> None:
    with pytest.raises(ZeroDivisionError):
        await Compute(threads=1).offload(divmod, 7, 0)


async def test_a_cancelled_call_waits_until_the_function_returns() -> None:
    compute, calls, scope = Compute(threads=1), Calls(), anyio.CancelScope()
    over: list[bool] = []

    async def cancelled() -> None:
        with scope:
            try:
                await compute.offload(calls.run, "long")
            finally:
                over.append(calls.gate("long").is_set())

    async with anyio.create_task_group() as group:
        group.start_soon(cancelled)
        await begun(calls, 1)
        scope.cancel()
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        calls.gate("long").set()
    assert over == [True]
    assert await compute.offload(divmod, 7, 3) == (2, 1)


def test_threads_end_with_the_loop() -> None:
    compute = Compute(threads=2)
    for _ in range(2):  # one `Compute` on two loops
        thread = anyio.run(compute.offload, threading.current_thread)
        thread.join(HANG)
        assert not thread.is_alive()


async def test_a_thread_keeps_nothing_of_a_call() -> None:
    compute, held = Compute(threads=1), np.zeros(3)
    count = sys.getrefcount(held)
    assert await compute.offload(lambda array: array, held) is held
    await compute.offload(divmod, 7, 3)
    assert sys.getrefcount(held) == count
