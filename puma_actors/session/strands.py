"""Tasks for lanes that run at the same time, kept from one fork to the next.

A model forks and joins its lanes hundreds of times a step, for two or three rounds each time. To
start a task in a group of its own takes ten times as long as to wake one that waits.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any

import anyio

from protocols.errors import PeerFailed

if TYPE_CHECKING:
    from anyio.abc import TaskGroup


class _Fork:
    """Tasks that run until all have ended, or one has failed."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.results: list[Any] = [None] * count
        self.errors: list[Exception] = []
        self.changed = asyncio.get_running_loop().create_future()

    def ended(self) -> None:
        """Note that a task is over."""
        self.left -= 1
        if (self.errors or not self.left) and not self.changed.done():
            self.changed.set_result(None)

    @property
    def cause(self) -> Exception:
        """The error that explains the others: the first that is not just another party's."""
        return next((e for e in self.errors if not isinstance(e, PeerFailed)), self.errors[0])


class _Strand:
    """A task that runs one job after the other."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self._job: tuple[_Fork, int, Coroutine[Any, Any, Any]] | None = None
        self._called: asyncio.Future[None] | None = None

    def begin(self, fork: _Fork, index: int, task: Coroutine[Any, Any, Any]) -> None:
        """Run a task of a fork."""
        self._job = fork, index, task
        if self._called is not None and not self._called.done():
            self._called.set_result(None)

    def stop(self, fork: _Fork) -> None:
        """Cancel the task, if it is one of this fork's."""
        if self._job is not None and self._job[0] is fork:
            self.scope.cancel()

    async def serve(self, idle: list["_Strand"]) -> None:
        """Run jobs, until it is cancelled."""
        try:
            with self.scope:
                while self._job is not None:
                    fork, index, task = self._job
                    try:
                        fork.results[index] = await task
                    except Exception as error:  # the caller of `gather` raises it
                        fork.errors.append(error)
                    self._job = None
                    fork.ended()
                    self._called = asyncio.get_running_loop().create_future()
                    idle.append(self)
                    await self._called
        finally:
            if self in idle:
                idle.remove(self)
            if self._job is not None:
                fork, _, task = self._job
                task.close()  # it may have been cancelled before it began
                fork.errors.append(PeerFailed("the session ended while a lane ran"))
                fork.ended()


class Strands:
    """Args:
    group: where the tasks run, until it is cancelled.
    """

    def __init__(self, group: "TaskGroup") -> None:
        self._group = group
        self._idle: list[_Strand] = []

    async def gather(self, tasks: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
        """Run tasks concurrently and return their results in order. If one fails, the others are
        cancelled, and once they have ended its error is raised.
        """
        fork = _Fork(len(tasks))
        strands = [self._begin(fork, index, task) for index, task in enumerate(tasks)]
        try:
            if fork.left:
                await fork.changed
        finally:
            if fork.left:
                for strand in strands:
                    strand.stop(fork)
                with anyio.CancelScope(shield=True):
                    while fork.left:
                        fork.changed = asyncio.get_running_loop().create_future()
                        await fork.changed
        if fork.errors:
            raise fork.cause from fork.cause.__cause__
        return fork.results

    def _begin(self, fork: _Fork, index: int, task: Coroutine[Any, Any, Any]) -> _Strand:
        if self._idle:
            strand = self._idle.pop()
            strand.begin(fork, index, task)
        else:
            strand = _Strand()
            strand.begin(fork, index, task)
            self._group.start_soon(strand.serve, self._idle)
        return strand
