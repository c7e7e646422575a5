"""One model that the gateway serves: its cluster, and the order in which requests use it."""

import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskStatus

from protocols.errors import Busy, PumaError
from puma_actors.api.life import Cluster
from puma_actors.base.logs import log
from puma_actors.base.texts import printable
from puma_actors.serve.pace import Pace

MAX_WAITING = 32
"""Requests that may wait for one model; further ones are refused."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
"""Seconds before a lost cluster is opened again: twice as long each time, up to the second."""

Opener = Callable[[], Awaitable[Cluster]]
"""Opens a cluster that has not been entered yet."""


@dataclass(eq=False)
class Place:
    """A request's place in the queue.

    Attributes:
        called: set when it is its turn.
    """

    called: anyio.Event = field(default_factory=anyio.Event)


class Served:
    """A model under its public name. `run` holds the cluster open while requests take turns.

    Args:
        opener: called at the start, and again after the parties were lost.

    Attributes:
        created: when it was first offered, in seconds since 1970.
        problem: why there is no cluster now; empty while one is being opened for the first time.
    """

    def __init__(self, name: str, opener: Opener) -> None:
        self.name = name
        self.created = int(time.time())
        self.problem = ""
        self.pace = Pace()
        self._open = opener
        self._cluster: Cluster | None = None
        self._queue: deque[Place] = deque()
        self._changed = anyio.Event()
        self._closing = False

    # -- the cluster -------------------------------------------------------------------------------

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Keep a cluster open until cancelled; started when the first one is.

        Raises:
            PumaError: the first one could not be opened.
        """
        pause, first = _FIRST_PAUSE, True
        while True:
            try:
                async with await self._open() as cluster:
                    self._set(cluster, "")
                    if first:
                        task_status.started()
                    pause, first = _FIRST_PAUSE, False
                    await cluster.wait_failed()
                    self._set(None, "the parties were lost")
            except PumaError as error:
                if first:
                    raise
                self._set(None, printable(str(error)))
                log.warning("no cluster", model=self.name, kind=type(error).__name__)
            finally:
                self._set(None, self.problem)
            await anyio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _set(self, cluster: Cluster | None, problem: str) -> None:
        self._cluster, self.problem = cluster, problem
        self._changed.set()
        self._changed = anyio.Event()

    @property
    def ready(self) -> bool:
        """Whether a request could be computed now."""
        return self._cluster is not None and not self._closing

    def cluster(self) -> Cluster:
        """The running cluster, to look at: for its tokenizer and its plan.

        Raises:
            Busy: there is none now, or the gateway is ending.
        """
        if self._closing:
            raise Busy("the gateway is ending: it takes no more requests")
        if self._cluster is None:
            reason = self.problem or "it is being opened"
            raise Busy(f"model {self.name} is not available yet ({reason}): try again in a while")
        return self._cluster

    def close(self) -> None:
        """Take no more requests; those in the queue are still answered."""
        self._closing = True

    # -- turns -------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Requests in the queue, with the one that is being computed."""
        return len(self._queue)

    def ahead_of(self, place: Place) -> int:
        """How many requests come before this one."""
        return self._queue.index(place) if place in self._queue else 0

    def queue(self) -> Place:
        """Take a place in the queue; give it back with `turn` or `leave`.

        Raises:
            Busy: the queue is full.
        """
        if len(self._queue) > MAX_WAITING:
            raise Busy(f"busy: {len(self._queue)} requests are waiting: try again in a while")
        place = Place()
        self._queue.append(place)
        self._call_next()
        return place

    def leave(self, place: Place) -> None:
        """Give a place back."""
        if place in self._queue:
            self._queue.remove(place)
        self._call_next()

    @asynccontextmanager
    async def turn(self, place: Place) -> AsyncIterator[Cluster]:
        """Wait for the turn of a place; the cluster is then free for this request alone.

        Raises:
            Busy: the parties are lost, and were not back in time.
        """
        try:
            await place.called.wait()
            with anyio.move_on_after(_LONGEST_PAUSE):
                while self._cluster is None:
                    await self._changed.wait()
            if self._cluster is None:
                raise Busy(f"model {self.name} is not available now: {self.problem}")
            yield self._cluster
        finally:
            self.leave(place)

    def _call_next(self) -> None:
        if self._queue:
            self._queue[0].called.set()
