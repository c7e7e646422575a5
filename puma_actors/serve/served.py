"""One model that the gateway serves: its sessions with the parties, and the requests on them."""

import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

import anyio
from anyio.abc import TaskStatus

from protocols.errors import (
    Busy,
    ConfigError,
    PeerFailed,
    PumaError,
    RemoteProtocolError,
    TransportError,
)
from puma_actors.api.life import Cluster
from puma_actors.base.concurrency import unwrap
from puma_actors.base.logs import log
from puma_actors.base.texts import printable
from puma_actors.serve.pace import Pace
from puma_actors.serve.turns.places import Place, Places

T = TypeVar("T")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
"""Seconds before a lost cluster is opened again: twice as long each time, up to the second."""
_FULL_PAUSE = 5.0
"""Seconds after which parties that had no room are asked again."""
_MOST_REFUSALS = 12
"""So often they may refuse a request while no other one of this gateway takes room."""
_KEPT = 60.0
"""Seconds for which a further session is kept without a request: others may want its place."""
_BROKEN = (PeerFailed, RemoteProtocolError, TransportError)
"""Errors after which a session computes nothing more."""

Opener = Callable[[], Awaitable[Cluster]]
"""Opens a cluster that has not been entered yet."""


class Served:
    """A model under its public name. `run` holds sessions open on which `compute` runs requests.

    One session is always held. Further ones, up to `at_once`, are opened while requests wait, so
    that one that fails takes only its own request with it. Each is a session of its own at the
    parties, with its own keys and its own limit of tokens.

    Args:
        opener: called at the start, after the parties were lost, and for each further session.
        at_once: how many requests may run at a time.

    Attributes:
        created: when it was first offered, in seconds since 1970.
        problem: why there is no session now; empty while one is being opened for the first time.
    """

    def __init__(self, name: str, opener: Opener, at_once: int = 1) -> None:
        self.name = name
        self.at_once = at_once
        self.created = int(time.time())
        self.problem = ""
        self.pace = Pace()
        self._open = opener
        self._opening = 0  # further sessions
        self._closing = False
        self._places = Places()

    # -- sessions ----------------------------------------------------------------------------------

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Keep sessions open until cancelled; started when the first one is.

        Raises:
            PumaError: the first one could not be opened.
        """
        try:
            async with anyio.create_task_group() as group:
                await group.start(self._keep)
                for _ in range(self.at_once - 1):
                    group.start_soon(self._keep_further)
                task_status.started()
        except BaseExceptionGroup as errors:
            root = unwrap(errors)
            raise root from root.__cause__

    async def _keep(self, *, task_status: TaskStatus[None]) -> None:
        """Keep one session open always."""
        pause, first = _FIRST_PAUSE, True
        while True:
            try:
                async with await self._open() as cluster, self._offered(cluster):
                    if first:
                        task_status.started()
                    pause, first = _FIRST_PAUSE, False
                    await self._until_over(cluster)
                    self.problem = "the parties were lost"
            except PumaError as error:
                if first:
                    raise
                self.problem = printable(str(error))
                log.warning("no cluster", model=self.name, kind=type(error).__name__)
            await anyio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _keep_further(self) -> None:
        """Keep a further session open while requests would wait without it."""
        while True:
            while not self._short:
                await self._places.changed.wait()
            try:
                async with AsyncExitStack() as stack:
                    self._opening += 1
                    try:
                        cluster = await stack.enter_async_context(await self._open())
                    finally:
                        self._opening -= 1
                    await stack.enter_async_context(self._offered(cluster))
                    await self._until_over(cluster, _KEPT)
            except PumaError as error:  # full, or lost: those who wait may use the other sessions
                log.info("no further session", model=self.name, kind=type(error).__name__)
                await anyio.sleep(_FULL_PAUSE)

    @property
    def _short(self) -> bool:
        """Whether more requests wait than sessions are being opened. A request that the parties had
        no room for does not fit better into one more session.
        """
        places = self._places
        return bool(places.sessions) and not places.held and places.waiting > self._opening

    @asynccontextmanager
    async def _offered(self, cluster: Cluster) -> AsyncIterator[None]:
        """Requests may use a session until the block ends."""
        self._places.add(cluster)
        try:
            yield
        finally:
            self._places.drop(cluster)

    async def _until_over(self, cluster: Cluster, kept: float = math.inf) -> None:
        """Wait until a session has failed, or was not used for `kept` seconds."""
        places = self._places

        async def watch() -> None:
            await cluster.wait_failed()
            places.drop(cluster)

        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            while cluster in places.sessions:
                if not places.free(cluster):
                    await places.changed.wait()
                    continue
                with anyio.move_on_after(kept) as unused:
                    while places.free(cluster):
                        await places.changed.wait()
                if unused.cancelled_caught and places.free(cluster):
                    places.drop(cluster)
            group.cancel_scope.cancel()

    @property
    def ready(self) -> bool:
        """Whether a request could be computed now."""
        return bool(self._places.sessions) and not self._closing

    def cluster(self) -> Cluster:
        """An open session, to look at: for its tokenizer and its plan.

        Raises:
            Busy: there is none now, or the gateway is ending.
        """
        if self._closing:
            raise Busy("the gateway is ending: it takes no more requests")
        if not self._places.sessions:
            reason = self.problem or "it is being opened"
            raise Busy(f"model {self.name} is not available yet ({reason}): try again in a while")
        return self._places.sessions[0]

    def close(self) -> None:
        """Take no more requests; those in the queue are still answered."""
        self._closing = True

    # -- requests ----------------------------------------------------------------------------------

    @property
    def sessions(self) -> int:
        """Sessions that are open."""
        return len(self._places.sessions)

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return self._places.waiting

    @property
    def running(self) -> int:
        """Requests that are being computed."""
        return self._places.running

    def ahead_of(self, place: Place) -> int:
        """How many requests come before this one, those that are being computed among them."""
        return self._places.ahead_of(place)

    def queue(self) -> Place:
        """Take a place in the queue; give it back with `compute` or `leave`.

        Raises:
            Busy: the queue is full.
        """
        return self._places.queue()

    def leave(self, place: Place) -> None:
        """Give a place back."""
        self._places.leave(place)

    async def compute(self, place: Place, work: Callable[[Cluster], Awaitable[T]]) -> T:
        """Wait for the turn of a place, and do its work on a session that no other request uses.

        Args:
            work: called again if the parties had no room for it or its session had just ended,
                unless its answer has begun.

        Raises:
            Busy: the parties are lost and were not back in time, or have no room for too long.
            Also what `work` raises.
        """
        try:
            while True:
                cluster = await self._called(place)
                try:
                    return await work(cluster)
                except _BROKEN:  # at once: the next in the queue must not get it
                    self._places.drop(cluster)
                    raise
                except ConfigError:
                    if place.begun or cluster.running:
                        raise
                    self._places.again(place)  # the session ended before it got there
                except Busy:
                    place.refusals += self._places.running == 1
                    if place.begun or place.refusals > _MOST_REFUSALS:
                        raise
                    self._places.back(place)
        finally:
            self.leave(place)

    async def _called(self, place: Place) -> Cluster:
        """Wait for the turn of a place; return its session.

        Raises:
            Busy: the parties are lost, and were not back in time.
        """
        places = self._places
        if place.held:
            with anyio.move_on_after(_FULL_PAUSE):
                while place.held:
                    await places.changed.wait()
            places.retry(place)
        while place.cluster is None:
            if places.sessions:
                await places.changed.wait()
                continue
            with anyio.move_on_after(_LONGEST_PAUSE):
                while not places.sessions:
                    await places.changed.wait()
            if not places.sessions:
                raise Busy(f"model {self.name} is not available now: {self.problem}")
        return place.cluster
