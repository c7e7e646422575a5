"""How tests wait: for events, never for a time that should be enough.

    with in_time(): ...           a limit that only a hang reaches
    await until(condition)        something becomes true; `until_now` without an event loop
    await settled()               nothing can happen any more but by a timer
    await unless_stuck(request)   its result; raises `Stuck` if all tasks wait for each other

That something does *not* happen is shown when it could have happened: after a later event, or when
all is `settled`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, suppress
from typing import TypeVar

import anyio
from anyio._backends import _asyncio as threads
from anyio._core._eventloop import reset_current_async_library, set_current_async_library

from puma_actors.base.compute import _Pool
from puma_actors.transports.delay.alarm import Alarm

HANG = 600.0
"""Seconds after which a test has hung, on any machine; pytest shows all stacks before (see
`faulthandler_timeout` in pyproject.toml). To be used wherever something takes a limit."""
POLL = 0.005
"""Seconds between looks at something that has no event."""

T = TypeVar("T")


class Stuck(Exception):
    """No task can go on: each waits for another."""


def in_time() -> AbstractContextManager[object]:
    """A block that must not hang."""
    return anyio.fail_after(HANG)


async def until(condition: Callable[[], object]) -> None:
    """Look until a condition holds."""
    with in_time():
        while not condition():
            await anyio.sleep(POLL)


def until_now(condition: Callable[[], object], problem: Callable[[], str] = str) -> None:
    """`until` without an event loop. `problem`: said about a hang."""
    limit = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < limit, problem()
        time.sleep(POLL)


async def settled(*, landed: bool = False) -> None:
    """Wait until the tasks, threads and sockets of this event loop have done what they can: from
    then on only a timer, another process or the caller makes anything happen.

    What one end of a Unix socket writes can be read at the other at once; with TCP the kernel may
    need a moment, so there it is only a good guess. One caller at a time: two would wait for each
    other.

    Args:
        landed: also wait for frames in transit through delayed channels.
    """
    loop, quiet = asyncio.get_running_loop(), 0
    while quiet < 3:  # a turn of the loop looks at the sockets first, and then runs what is ready
        await asyncio.sleep(0)
        if busy := computing() or (landed and _flying(loop)):
            await asyncio.sleep(POLL)
        quiet = 0 if busy or loop._ready else quiet + 1  # type: ignore[attr-defined]


def computing() -> bool:
    """Whether a thread of this loop is at work, or its result has not been seen yet."""
    pool = _Pool._of_loops.get(asyncio.get_running_loop())
    if pool is not None and pool.busy:
        return True
    # Within callbacks anyio does not know what runs it where the package sniffio is installed.
    token = set_current_async_library("asyncio")
    try:
        return len(threads._threadpool_workers.get()) > len(threads._threadpool_idle_workers.get())
    except LookupError:  # none was ever needed
        return False
    finally:
        reset_current_async_library(token)


def _flying(loop: asyncio.AbstractEventLoop) -> bool:
    alarm = Alarm._of_loops.get(loop)
    return alarm is not None and bool(alarm._waiting)


async def unless_stuck(request: Awaitable[T]) -> T:
    """Wait for something that may never come.

    Raises:
        Stuck: it cannot come any more. It has been cancelled.
    """
    asked = asyncio.ensure_future(request)
    watch = asyncio.ensure_future(settled())
    try:
        with in_time():
            await asyncio.wait((asked, watch), return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            raise Stuck
        return await asked
    finally:
        for task in (asked, watch):
            task.cancel()
            with suppress(BaseException):
                await task
