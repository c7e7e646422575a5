"""The queue of one model, and which of its sessions each request uses.

    places.add(session)                     a session was opened
    place = places.queue()                  a request takes its place; `place.cluster` when called
    places.back(place)                      the parties had no room for it: it waits again
    places.again(place)                     its session had ended: it is called for another one
    places.leave(place)                     it has ended

A session computes one request at a time. Requests are called in the order in which they came. One
that the parties had no room for keeps its place, and nobody overtakes it: a large request is not
starved by small ones.
"""

import time
from dataclasses import dataclass, field

from protocols.errors import Busy
from puma_actors.api.life import Cluster
from puma_actors.base.concurrency import Signal
from puma_actors.serve.errors import ApiError

MAX_WAITING = 32
"""Requests that may wait for one model; further ones are refused."""


@dataclass(eq=False)
class Place:
    """A request's place in the queue.

    Attributes:
        cluster: the session that it uses now; None while it waits.
        begun: whether a part of its answer has been given away, so that it cannot begin again.
        held: whether it was refused for lack of room, and waits for more.
        refusals: how often it was refused while no other request of this gateway took room.
        since: when it came, by `time.monotonic`.
    """

    cluster: Cluster | None = None
    begun: bool = False
    held: bool = False
    refusals: int = 0
    since: float = field(default_factory=time.monotonic)


def check_plan(session: Cluster, plan: str) -> None:
    """Refuse to compute a request that was checked for another model of the same name.

    Args:
        plan: the digest of the plan that it was checked for.

    Raises:
        ApiError: the session's model has another one.
    """
    if session.plan.digest() != plan:
        text = "the model was replaced after this request was checked: send it again"
        raise ApiError(503, text, code="model_replaced", retry=True)


class Places:
    """See the module docstring.

    Attributes:
        sessions: those that are open, the first one first.
        changed: notified after every change.
    """

    def __init__(self) -> None:
        self.sessions: list[Cluster] = []
        self.changed = Signal()
        self._places: list[Place] = []

    # -- sessions ----------------------------------------------------------------------------------

    def add(self, session: Cluster) -> None:
        """A session was opened."""
        self.sessions.append(session)
        self._call()

    def drop(self, session: Cluster) -> None:
        """Give a session to no further request."""
        if session in self.sessions:
            self.sessions.remove(session)
        self._call()

    def free(self, session: Cluster) -> bool:
        """Whether a session is open and no request uses it."""
        return session in self.sessions and all(p.cluster is not session for p in self._places)

    # -- requests ----------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._places)

    @property
    def running(self) -> int:
        """Requests that are being computed."""
        return sum(place.cluster is not None for place in self._places)

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._places) - self.running

    @property
    def held(self) -> bool:
        """Whether a request waits for more room at the parties."""
        return any(place.held for place in self._places)

    def ahead_of(self, place: Place) -> int:
        """How many requests came before this one and have not ended."""
        return self._places.index(place) if place in self._places else 0

    def queue(self) -> Place:
        """Take a place; give it back with `leave`.

        Raises:
            Busy: the queue is full.
        """
        if self.waiting >= MAX_WAITING:
            raise Busy(f"busy: {self.waiting} requests are waiting: try again in a while")
        place = Place()
        self._places.append(place)
        self._call()
        return place

    def leave(self, place: Place) -> None:
        """A request has ended, or was given up. What it needed is free for those that are held."""
        if place not in self._places:
            return
        self._places.remove(place)
        place.cluster = None
        for other in self._places:
            other.held = False
        self._call()

    def back(self, place: Place) -> None:
        """Take a request's session away, and hold it until another one leaves or `retry`."""
        place.cluster, place.held = None, True
        self._call()

    def again(self, place: Place) -> None:
        """A request's session has ended before it was used: it is the next one to be called."""
        if place.cluster in self.sessions:
            self.sessions.remove(place.cluster)
        place.cluster = None
        self._call()

    def retry(self, place: Place) -> None:
        """A request that is held may be called again."""
        place.held = False
        self._call()

    def _call(self) -> None:
        """Give the free sessions to those who wait."""
        free = [session for session in self.sessions if self.free(session)]
        for place in self._places:
            if place.held or not free:
                break
            if place.cluster is None:
                place.cluster = free.pop(0)
        self.changed.notify()
