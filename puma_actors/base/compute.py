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
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, ClassVar, TypeVar

import anyio

from protocols.errors import ConfigError
from puma_actors.base.allocator import keep_freed

T = TypeVar("T")

THRESHOLD = 1_200_000
"""Multiply-adds below which a thread hop (about 0.05 ms) costs more than it gains. Medians of a
LayerNorm of 10^5 elements: 33 ms with 500,000, 31 with 1,000,000, 28 with 1,500,000 and 29 with
twice as many (2026-11-29, two cores with AVX2); prompts of 32 tokens showed no clear difference."""


class _Call:
    """A call on a thread, awaited by a task."""

    __slots__ = ("_args", "_ended", "_error", "_function", "_loop", "_pool", "_result", "_waiter")

    def __init__(self, pool: "_Pool", function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._pool = pool
        self._function: Callable[..., Any] | None = function
        self._args = args
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] = self._loop.create_future()
        self._ended = False
        self._result: Any = None
        self._error: BaseException | None = None

    def work(self) -> None:
        """Call the function: on the thread."""
        assert self._function is not None
        try:
            self._result = self._function(*self._args)
        except BaseException as error:  # the waiting task raises it
            self._error = error
        self._function, self._args = None, ()
        with suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits
            self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self._ended = True
        self._pool.busy -= 1
        if not self._waiter.done():
            self._waiter.set_result(None)

    async def result(self) -> Any:
        """Wait until the function has returned, also if this task is cancelled meanwhile."""
        try:
            await self._waiter
        except asyncio.CancelledError:
            with anyio.CancelScope(shield=True):
                while not self._ended:
                    self._waiter = self._loop.create_future()
                    await self._waiter
            raise
        if (error := self._error) is not None:
            self._error = None  # its traceback leads here
            raise error
        return self._result


class _Pool:
    """The threads of an event loop, started when they are needed; they end with the loop.

    Attributes:
        busy: calls whose end the loop has not seen yet.
        life: ends with the loop.
    """

    _of_loops: ClassVar[dict[asyncio.AbstractEventLoop, "_Pool"]] = {}

    def __init__(self) -> None:
        self.busy = 0
        self._count = 0
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self.life = self._live(asyncio.get_running_loop())

    @classmethod
    async def here(cls) -> "_Pool":
        """The pool of the running loop."""
        loop = asyncio.get_running_loop()
        if (pool := cls._of_loops.get(loop)) is None:
            pool = cls._of_loops[loop] = cls()
            await anext(pool.life)
        return pool

    async def _live(self, loop: asyncio.AbstractEventLoop) -> AsyncIterator[None]:
        """A loop that ends closes the generators that were begun on it, and so this one."""
        try:
            yield
        finally:
            del self._of_loops[loop]
            self._calls.put(None)

    async def call(self, function: Callable[..., T], args: tuple[Any, ...]) -> T:
        """Call the function on a thread."""
        self.busy += 1
        call = _Call(self, function, args)
        if self.busy > self._count:
            self._count += 1
            serve = partial(_serve, self._calls)
            threading.Thread(target=serve, daemon=True, name="puma-compute").start()
        self._calls.put(call)
        result: T = await call.result()
        return result


def _serve(calls: "SimpleQueue[_Call | None]") -> None:
    while (call := calls.get()) is not None:
        call.work()
        del call  # and what it returned
    calls.put(None)  # for the next thread


class _Threads:
    """Threads, given to those who wait in turn; to each in the order in which it asked."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: dict[object, deque[asyncio.Future[None]]] = {}  # whose turn comes first

    async def run(self, owner: object, function: Callable[..., T], args: tuple[Any, ...]) -> T:
        """Call the function on a thread, when it is the owner's turn."""
        if self._free:
            self._free -= 1
        else:
            await self._turn(owner)
        try:
            return await (await _Pool.here()).call(function, args)
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
        return await self._threads[0].run(self._owner, function, args)


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
