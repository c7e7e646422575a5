"""A cluster that runs on an event loop in its own thread, for code without a loop.

    background = Background(cluster)             the cluster is entered when it returns
    background.call(async_function, argument)    run it there, and wait for it
    background.ask_to_stop()                     never waits: good for finalizers
    background.stop(error)                       leave the cluster, and wait

The thread is a daemon: an interpreter does not wait for it at exit, but runs the `atexit` handlers.
One of them stops all clusters that are still running, while their loops still work.
"""

import asyncio
import atexit
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Generic, TypeVar

import anyio
from anyio.from_thread import BlockingPortal

from protocols.errors import ConfigError

T = TypeVar("T")

_EXIT_SECONDS = 10.0
"""At exit, the interpreter waits at most this long for a running kernel."""


class Background:
    """See the module docstring.

    Raises:
        Any error from entering the cluster; nothing is left running in that case.
    """

    def __init__(self, cluster: AbstractAsyncContextManager[Any]) -> None:
        self._cluster = cluster
        self._error: BaseException | None = None
        self._stopping = False
        self._started: Future[BlockingPortal] = Future()
        self._scope: anyio.CancelScope | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leave: asyncio.Event | None = None
        self._failure: BaseException | None = None
        # It must not inherit "non-daemon", and neither may the worker threads that it starts.
        self._thread = threading.Thread(target=self._run, daemon=True, name="puma-cluster")
        _alive.add(self)
        self._thread.start()
        try:
            self._portal = self._started.result()
        except BaseException:  # from the cluster, or an interruption while it starts
            self.ask_to_stop()
            self._thread.join()
            raise

    @property
    def running(self) -> bool:
        """Whether it still accepts calls."""
        return not self._stopping and self._thread.is_alive()

    def call(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Run an async function in the thread, and wait for its result.

        When interrupted (Ctrl-C, or a notebook's stop button), it ends the running call before it
        raises: otherwise the next call would wait for it.

        Raises:
            ConfigError: the cluster was left. Any error from the function.
        """
        if not self.running:
            raise ConfigError("the model is closed: load it again")
        call = _Call(function, args)
        try:
            return self._portal.start_task_soon(call.run).result()
        except BaseException:  # also before the portal has said that it was started
            call.give_up(self._loop)
            raise

    def ask_to_stop(self) -> None:
        """Ask the thread to leave the cluster, from any thread and without waiting."""
        self._stopping = True
        if self._loop is None or not self._thread.is_alive():
            return
        with suppress(RuntimeError):  # the loop was closed in the meantime
            self._loop.call_soon_threadsafe(self._begin_to_stop)

    def _begin_to_stop(self) -> None:
        assert self._leave is not None and self._scope is not None
        self._leave.set()
        if not self._started.done():
            self._scope.cancel()

    def stop(self, error: BaseException | None = None) -> None:
        """Leave the cluster, and wait until the thread has ended.

        error: the reason for leaving it, as for `__aexit__`.

        Raises:
            Any error from leaving the cluster.
        """
        self._error = error
        self.ask_to_stop()
        self.join()
        failure, self._failure, self._error = self._failure, None, None
        if failure is not None:
            raise failure

    def join(self, timeout: float | None = None) -> None:
        """Wait until the thread, which was asked to stop, has ended; no-op in that thread."""
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    # -- in the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            anyio.run(self._live)
        except BaseException as error:  # a bug, but the caller must not be left waiting
            self._fail(error)
        finally:
            if not self._started.done():
                self._started.set_exception(ConfigError("the model was closed while it started"))
            _alive.discard(self)

    def _fail(self, error: BaseException) -> None:
        if self._started.done():
            self._failure = error
        else:
            self._started.set_exception(error)

    async def _live(self) -> None:
        self._leave, self._scope = asyncio.Event(), anyio.CancelScope()
        self._loop = asyncio.get_running_loop()
        if self._stopping:  # asked before there was a loop
            self._begin_to_stop()
        async with BlockingPortal() as portal:
            with self._scope:
                await self._in_cluster(portal)

    async def _in_cluster(self, portal: BlockingPortal) -> None:
        assert self._leave is not None
        try:
            await self._cluster.__aenter__()
        except Exception as error:
            self._started.set_exception(error)
            return
        self._started.set_result(portal)
        await self._leave.wait()
        given = self._error
        trace = None if given is None else given.__traceback__
        try:
            await self._cluster.__aexit__(type(given) if given else None, given, trace)
        except Exception as error:
            self._failure = error


class _Call(Generic[T]):
    """One call. Whoever waits for it may give it up at any moment: before the thread has begun it,
    it never begins, and afterwards it is cancelled.
    """

    def __init__(self, function: Callable[..., Awaitable[T]], args: tuple[Any, ...]) -> None:
        self._function, self._args = function, args
        self._lock = threading.Lock()
        self._given_up = False
        self._scope: anyio.CancelScope | None = None  # once it has begun
        self._ended = threading.Event()

    async def run(self) -> T:
        """In the thread."""
        with self._lock:
            if self._given_up:
                raise asyncio.CancelledError
            self._scope = anyio.CancelScope()
        try:
            with self._scope:
                return await self._function(*self._args)
        finally:
            self._ended.set()
        raise asyncio.CancelledError

    def give_up(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """End it, and wait until it has ended; no-op if it has."""
        with self._lock:
            self._given_up = True
        if self._scope is None or loop is None or self._ended.is_set():
            return
        with suppress(RuntimeError):  # the loop was closed in the meantime
            loop.call_soon_threadsafe(self._scope.cancel)
        self._ended.wait()


_alive: set[Background] = set()


@atexit.register
def _stop_all() -> None:
    left = list(_alive)
    for each in left:
        each.ask_to_stop()
    for each in left:
        each.join(_EXIT_SECONDS)
