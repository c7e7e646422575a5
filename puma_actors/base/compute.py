"""Run computations: small ones inline, large ones on a bounded pool of threads.

    compute = Compute(threads=2, threshold=2_000_000)
    await compute.run(work, function, *args)       on a thread if the work is large
    await compute.offload(function, *args)         on a thread in any case

Actors of one process share a `Compute`, so that together they use no more threads than there are
cores. Sessions that each have a `share` of it get threads in turn: one that queues much does not
keep others waiting for more than the calls that run.
"""

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio

from protocols.errors import ConfigError
from puma_actors.base.allocator import keep_freed

T = TypeVar("T")

THRESHOLD = 2_000_000
"""Multiply-adds below which a thread hop (about 0.1 ms) costs more than it gains."""


class _Threads:
    """Threads, given to those who wait in turn; to each in the order in which it asked."""

    def __init__(self, count: int) -> None:
        self.limiter = anyio.CapacityLimiter(count)
        self._free = count
        self._waiting: dict[object, deque[asyncio.Future[None]]] = {}  # whose turn comes first

    @asynccontextmanager
    async def one(self, owner: object) -> AsyncIterator[None]:
        """A thread, for the block."""
        if self._free:
            self._free -= 1
        else:
            await self._turn(owner)
        try:
            yield
        finally:
            self._next()

    async def _turn(self, owner: object) -> None:
        called = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(called)
        try:
            await called
        except asyncio.CancelledError:
            if called.done() and not called.cancelled():  # called at the same moment
                self._next()
            raise

    def _next(self) -> None:
        """Give a thread that is free now to the next one who still waits."""
        while self._waiting:
            owner, queue = next(iter(self._waiting.items()))
            del self._waiting[owner]
            called = queue.popleft()
            if queue:
                self._waiting[owner] = queue  # behind all others
            if not called.done():
                called.set_result(None)
                return
        self._free += 1


class Compute:
    """Args:
    threads: calls that may run at the same time (default: the cores this process may use).
    threshold: `run` leaves the event loop from this much work on.

    Raises:
        ConfigError: threads or threshold out of range.
    """

    def __init__(self, threads: int | None = None, threshold: int = THRESHOLD) -> None:
        self.threads = available_cores() if threads is None else threads
        self.threshold = threshold
        if self.threads < 1 or threshold < 0:
            raise ConfigError(f"threads={threads}, threshold={threshold}: use >= 1 and >= 0")
        self._threads: list[_Threads] = []  # made by the first call, for all shares
        self._owner = object()
        keep_freed()

    def share(self) -> "Compute":
        """The same threads for another session, which gets them in turn with those of others."""
        return _Share(self)

    async def run(self, work: int, function: Callable[..., T], *args: Any) -> T:
        """Call `function(*args)`, which takes about `work` multiply-adds.

        A cancelled call waits until the function returns, so that no thread outlives its caller.
        """
        if work < self.threshold:
            return function(*args)
        return await self.offload(function, *args)

    async def offload(self, function: Callable[..., T], *args: Any) -> T:
        """Call `function(*args)` on a thread, however long it takes: the event loop goes on
        meanwhile.

        A cancelled call waits until the function returns, as with `run`.
        """
        if not self._threads:
            self._threads.append(_Threads(self.threads))
        threads = self._threads[0]
        async with threads.one(self._owner):
            return await anyio.to_thread.run_sync(function, *args, limiter=threads.limiter)


class _Share(Compute):
    """The threads of another `Compute`, with turns of its own."""

    def __init__(self, whole: Compute) -> None:
        vars(self).update(vars(whole))
        self._owner = object()


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
