"""A cluster that runs on an event loop in a thread of its own, for code that has no loop.

    background = Background(cluster)             the cluster is entered when it returns
    background.call(async_function, argument)    run there, and waited for
    background.ask_to_stop()                     never waits: good for finalizers
    background.stop(error)                       leave the cluster, and wait

The thread is a daemon: an interpreter that ends does not wait for it, but runs what `atexit` knows
of. There, whatever nobody has stopped is stopped, while its loop can still work.
"""

import asyncio
import atexit
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, TypeVar

import anyio
from anyio.from_thread import BlockingPortal

from protocols.errors import ConfigError

T = TypeVar("T")

_EXIT_SECONDS = 10.0
"""An interpreter that ends waits no longer for a kernel that is in the middle of its work."""


class Background:
    """See the module's text.

    Raises:
        Whatever entering the cluster raises; nothing is left behind then.
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
        # It must not inherit "non-daemon", nor may the worker threads that it starts.
        self._thread = threading.Thread(target=self._run, daemon=True, name="puma-cluster")
        _alive.add(self)
        self._thread.start()
        try:
            self._portal = self._started.result()
        except BaseException:  # of the cluster, or an interruption while it starts
            self.ask_to_stop()
            self._thread.join()
            raise

    @property
    def running(self) -> bool:
        """Whether it still takes calls."""
        return not self._stopping and self._thread.is_alive()

    def call(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Run an async function there, and wait for its result.

        Interrupted (Ctrl-C, or a notebook's stop button), it ends what runs before it raises: the
        next call would wait for that otherwise.

        Raises:
            ConfigError: the cluster was left. Whatever the function raises.
        """
        if not self.running:
            raise ConfigError("the model is closed: load it again")
        ended = threading.Event()

        async def run() -> T:
            try:
                return await function(*args)
            finally:
                ended.set()

        future = self._portal.start_task_soon(run)
        try:
            return future.result()
        except BaseException:
            if future.cancel():  # not what `run` raised: it still runs
                ended.wait()
            raise

    def ask_to_stop(self) -> None:
        """Let the cluster be left, from any thread, without waiting for it."""
        self._stopping = True
        if self._loop is None or not self._thread.is_alive():
            return
        with suppress(RuntimeError):  # the loop has been closed since
            self._loop.call_soon_threadsafe(self._begin_to_stop)

    def _begin_to_stop(self) -> None:
        assert self._leave is not None and self._scope is not None
        self._leave.set()
        if not self._started.done():
            self._scope.cancel()

    def stop(self, error: BaseException | None = None) -> None:
        """Leave the cluster, and wait until the thread has ended.

        error: because of which it is left, as for `__aexit__`.

        Raises:
            Whatever leaving the cluster raises.
        """
        self._error = error
        self.ask_to_stop()
        self.join()
        failure, self._failure, self._error = self._failure, None, None
        if failure is not None:
            raise failure

    def join(self, timeout: float | None = None) -> None:
        """Wait until the thread has ended, which was asked to; in that thread itself, do not."""
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    # -- in the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            anyio.run(self._live)
        except BaseException as error:  # a bug, but one that must not leave the caller waiting
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
        if self._stopping:  # before there was a loop to tell
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


_alive: set[Background] = set()


@atexit.register
def _stop_all() -> None:
    left = list(_alive)
    for each in left:
        each.ask_to_stop()
    for each in left:
        each.join(_EXIT_SECONDS)
