"""The steps of one client's session that wait to be taken together with others.

seat = Seat(session)                         from the session's begin to its end, at each party
with seat.place(number, settings, context, last):  a step, once `seat.joint` is set
place = await arrive(seat, member)           the joint step's side: waits until the step is there
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from protocols.base.lane import Settings
from protocols.base.shares import SecretTensor
from protocols.drivers.together import Part
from protocols.errors import LocalProtocolError, PumaError
from puma_actors.base.concurrency import Signal
from puma_actors.hosts.together.messages import MemberMessage


class Host(Protocol):
    """The joint session, as a seat sees it."""

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The model's shares."""

    def expect(self, place: "Place") -> None:
        """A step has begun to look up its input.

        Raises:
            PeerFailed: the joint session has failed.
        """

    def ready(self, place: "Place") -> None:
        """A step has its input."""

    def leave(self, place: "Place") -> None:
        """A step has its result, or was given up."""

    def note(self) -> None:
        """A request is over."""


class Coming(NamedTuple):
    """A step that may be taken soon: whose it is, and what would be announced of it."""

    seat: "Seat"
    member: MemberMessage

    @property
    def key(self) -> tuple[str, int]:
        """What no other step has."""
        return self.member.session, self.member.number

    @property
    def gone(self) -> bool:
        """Whether it will not be taken any more."""
        return self.seat.ended or self.seat.over(self.member.number)


class Place:
    """A step's place in a joint step: `Place` of `puma_actors.roles.serving.company`.

    Attributes:
        part: what it waits with, until a joint step takes it.
        waits: whether it has its input.
    """

    def __init__(
        self, seat: "Seat", number: int, settings: Settings, context: int, last: bool = False
    ) -> None:
        self.seat = seat
        self.settings = settings
        self.member = MemberMessage(session=seat.session.hex(), number=number, context=context)
        self._last = last
        self.part: Part | None = None
        self.waits = False
        self._result: SecretTensor | None = None
        self._error: PumaError | None = None
        self._changed = Signal()

    @property
    def continues(self) -> bool:
        """Whether the request's next step may follow."""
        return self._result is not None and self.following is not None

    @property
    def coming(self) -> Coming:
        """The step itself."""
        return Coming(self.seat, self.member)

    @property
    def following(self) -> Coming | None:
        """The request's next step; None if there is none."""
        if self._last:
            return None
        number, context = self.member.number + 1, self.member.context + 1
        step = self.member.model_copy(update={"number": number, "context": context})
        coming = Coming(self.seat, step)
        return None if coming.gone else coming

    def precedes(self, other: "Place") -> bool:
        """Whether the other is the request's next step."""
        return self.seat is other.seat and self.member.number + 1 == other.member.number

    async def result(self, part: Part) -> SecretTensor:
        """As the protocol."""
        self.part, self.waits = part, True
        self.seat.host.ready(self)
        self.seat.changed.notify()
        while self._result is None:
            if self._error is not None:
                raise type(self._error)(str(self._error))
            await self._changed.wait()
        return self._result

    def take(self) -> Part:
        """The part, for a joint step, which runs it once."""
        part, self.part = self.part, None
        if part is None:
            raise LocalProtocolError(f"step {self.member.number} was taken before")
        return part

    def put_back(self, part: Part) -> None:
        """Wait again, with a part that a joint step took and did not end: for another one."""
        if self.seat.places.get(self.member.number) is self:
            self.part = part.again()
            self.seat.changed.notify()

    def finish(self, result: SecretTensor) -> None:
        """The joint step's result for this place."""
        self._result = result
        self._changed.notify()

    def fail(self, error: PumaError) -> None:
        """The joint session failed."""
        self._error = error
        self._changed.notify()


class Seat:
    """A client's session at one party: `Seat` of `puma_actors.roles.serving.company`.

    Attributes:
        session: its id.
        places: its steps, by number.
        ended: whether the session has ended here.
        over: whether a step's number is over.
    """

    def __init__(self, session: bytes) -> None:
        self.session = session
        self.places: dict[int, Place] = {}
        self.ended = False
        self.over: Callable[[int], bool] = lambda number: False
        self.changed = Signal()
        self._host: Host | None = None

    @property
    def host(self) -> Host:
        """The joint session that it takes part in."""
        if self._host is None:
            raise LocalProtocolError("the session has no joint session yet")
        return self._host

    def sit(self, host: Host, over: Callable[[int], bool]) -> None:
        """Take part in a joint session."""
        self._host, self.over = host, over

    @property
    def parameters(self) -> Mapping[str, Any]:
        """As the protocol."""
        return self.host.parameters

    @property
    def busy(self) -> bool:
        """As the protocol."""
        return any(place.waits for place in self.places.values())

    @contextmanager
    def place(self, number: int, settings: Settings, context: int, last: bool) -> Iterator[Place]:
        """As the protocol."""
        place = Place(self, number, settings, context, last)
        self.host.expect(place)
        self.places[number] = place
        try:
            yield place
        finally:
            del self.places[number]
            if place.part is not None:
                place.part.close()
                place.part = None
            self.host.leave(place)
            self.changed.notify()

    def forgot(self) -> None:
        """As the protocol."""
        self.changed.notify()
        if self._host is not None:
            self._host.note()

    def end(self) -> None:
        """The session has ended at this party."""
        self.ended = True
        self.forgot()


async def arrive(seat: Seat | None, number: int) -> Place | None:
    """The place of a step, once it has its input; None if the step will not come any more."""
    while seat is not None and not seat.ended:
        place = seat.places.get(number)
        if place is not None and place.part is not None:
            return place
        if place is None and seat.over(number):
            return None
        await seat.changed.wait()
    return None
