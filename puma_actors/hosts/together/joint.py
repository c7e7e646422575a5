"""A joint session: the three parties alone, taking the steps of several clients' sessions as one.

    joint = Joint(role, options, model, most, seat_of)
    joint.attach(peers)                        of a session of its own, with keys of its own
    await joint.run()                          until evaluator A has no session left on it

Evaluator A announces each joint step: its number, its settings and its members in order. Each party
waits for its own part of every member's step, and puts zero words in place of one that will not
come: a member that is gone is no reason for the others to stop. Its result is nobody's.

The dealer is told beforehand which step will probably be next, deals for it, and keeps the results
until the step is announced. If another one is announced, it drops what it has dealt, and begins
again under the other's number, so with other masks.

When all members of a running step are gone at A, A drops it as well, and the others with it: nobody
wants its result. Their clients have told every party that they are gone, or have left.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio.abc import TaskGroup

from models.programs.joint.parts import evaluate_together, stand_in
from protocols.base.lane import Lane, Settings
from protocols.base.shares import COMPUTING, Role
from protocols.drivers.together import Part
from protocols.errors import PeerFailed, PumaError, RemoteProtocolError
from puma_actors.base.concurrency import Signal, unwrap
from puma_actors.base.logs import log
from puma_actors.hosts.together.conductor import Conductor
from puma_actors.hosts.together.messages import (
    AheadMessage,
    DropMessage,
    JointMessage,
    MemberMessage,
    Message,
    parse,
)
from puma_actors.hosts.together.seats import Coming, Place, Seat, arrive
from puma_actors.roles.actor import Actor, ActorOptions
from puma_actors.roles.upload import Model
from puma_actors.session.inference import InferenceLink

_MOST_RUNNING = 64
"""Joint steps that evaluator A may have announced or foretold before their end here."""


@dataclass(frozen=True, slots=True)
class _Told:
    """A joint step. `announced`: it is taken, which the dealer may learn later. `ended`: its
    members have their results. `scope`: to drop it.
    """

    message: JointMessage
    link: InferenceLink
    announced: anyio.Event = field(default_factory=anyio.Event)
    ended: anyio.Event = field(default_factory=anyio.Event)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)


class Joint(Actor):
    """See the module docstring.

    Args:
        model: what all its members run; its parameters are not changed.
        most: members of a step, at most.
        seat_of: the seat of a client's session that this party has now, or None.

    Attributes:
        open: whether more sessions may take part.
    """

    def __init__(
        self,
        role: Role,
        options: ActorOptions,
        model: Model,
        most: int,
        seat_of: Callable[[bytes], Seat | None],
    ) -> None:
        super().__init__(role, options)
        self.model = model
        self.most = most
        self.open = True
        self._seat_of = seat_of
        self._seats: set[Seat] = set()
        self._places: set[Place] = set()
        self._failure: PumaError | None = None
        self._steps = 0
        self._foretold: dict[int, _Told] = {}
        self._begun: dict[int, _Told] = {}  # the foretold ones too
        self._over = Signal()  # a client's request, or its session
        self._telling = anyio.Lock()
        self._changed = Signal()
        self._conductor = Conductor(most, self) if role is Role.EVALUATOR_A else None

    # -- seats ------------------------------------------------------------------------------------

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The model's shares."""
        return self.model.parameters

    def seat(self, seat: Seat, over: Callable[[int], bool]) -> None:
        """A client's session takes part."""
        self._seats.add(seat)
        seat.sit(self, over)

    def unseat(self, seat: Seat) -> None:
        """A client's session has ended."""
        self._seats.discard(seat)
        self.open = self.open and bool(self._seats)
        self._changed.notify()

    def expect(self, place: Place) -> None:
        """As `Host`."""
        if self._failure is not None:
            raise type(self._failure)(str(self._failure))
        self._places.add(place)
        if self._conductor is not None:
            self._conductor.expect(place)

    def ready(self, place: Place) -> None:
        """As `Host`."""
        if self._conductor is not None:
            self._conductor.ready(place)

    def leave(self, place: Place) -> None:
        """As `Host`."""
        self._places.discard(place)
        if self._conductor is not None:
            self._conductor.leave(place)

    def note(self) -> None:
        """As `Host`."""
        self._over.notify()
        if self._conductor is not None:
            self._conductor.note()

    def end(self, failure: PumaError) -> None:
        """Nothing more comes of it: tell every step that waits why."""
        self.open, self._failure = False, self._failure or failure
        for place in self._places:
            place.fail(self._failure)

    # -- life -------------------------------------------------------------------------------------

    async def main(self) -> None:
        """Take joint steps until evaluator A has left, or has no session left."""
        try:
            async with anyio.create_task_group() as group:
                if self._conductor is not None:
                    group.start_soon(self._conductor.run)
                    while self.open:
                        await self._changed.wait()
                    await self._conductor.close()
                else:
                    group.start_soon(self._listen, group)
                    await self.scheduler.wait_left(Role.EVALUATOR_A)
                while self._steps:  # the others need what this party sends
                    await self._changed.wait()
                group.cancel_scope.cancel()
        except BaseExceptionGroup as errors:
            root = unwrap(errors)
            raise root from root.__cause__

    async def _listen(self, group: TaskGroup) -> None:
        """Take the steps that evaluator A announces."""
        while True:
            try:
                role, header, _ = await self.scheduler.control()
            except PeerFailed:
                if self.scheduler.port(Role.EVALUATOR_A).left:
                    return  # and all others
                raise
            message = parse(header)
            if role is not Role.EVALUATOR_A:
                raise RemoteProtocolError(f"{role} announced a joint step")
            if isinstance(message, DropMessage):
                self._drop(message.number)
            elif isinstance(message, AheadMessage):
                if self.role is not Role.DEALER:
                    raise RemoteProtocolError(f"{role} may foretell steps to the dealer only")
                self._begin(message.step, group, ahead=True)
            elif message.number in self._foretold:
                told = self._foretold.pop(message.number)
                if told.message.binding() != message.binding():
                    raise RemoteProtocolError(f"{role} announced another step than it foretold")
                told.announced.set()
            else:
                self._begin(message, group)

    def _begin(self, message: JointMessage, group: TaskGroup, *, ahead: bool = False) -> None:
        """Take a step, or prepare for it."""
        self._check(message)
        number, numbers = message.number, self.scheduler.numbers
        if number in numbers.open or numbers.over(number):
            raise RemoteProtocolError(f"{Role.EVALUATOR_A} announced joint step {number} again")
        if self._steps >= _MOST_RUNNING:
            raise RemoteProtocolError(f"{_MOST_RUNNING} joint steps were announced at once")
        told = self._told(message)
        if ahead:
            self._foretold[message.number] = told
        else:
            told.announced.set()
        self._steps += 1
        group.start_soon(self._take, told)

    def _told(self, message: JointMessage) -> _Told:
        link = self.scheduler.link(message.number, message.settings(), message.binding())
        told = self._begun[message.number] = _Told(message, link)
        return told

    def _drop(self, number: int) -> None:
        """Forget a step that was foretold or announced. It may have ended here already."""
        self._foretold.pop(number, None)
        told = self._begun.get(number)
        if told is not None:
            told.scope.cancel()
        elif self.role is Role.DEALER and not self.scheduler.numbers.over(number):
            raise RemoteProtocolError(f"joint step {number} is dropped, but was not foretold")
        else:
            self.give_up(number)

    def _check(self, message: JointMessage) -> None:
        """Check sizes before memory is allocated."""
        if len(message.members) > self.most:
            raise RemoteProtocolError(
                f"a joint step of {len(message.members)} requests, the limit is {self.most}"
            )
        longest, limit = max(m.context for m in message.members), self._limit
        if longest >= limit:
            raise RemoteProtocolError(f"a joint step after {longest} of {limit} positions")

    @property
    def _limit(self) -> int:
        return self.model.plan.config.max_positions

    # -- steps ------------------------------------------------------------------------------------

    async def announce(self, message: JointMessage) -> bool:
        """As `Parties`."""
        self._steps += 1
        await self._tell(message, *self._others)
        told = self._told(message)
        told.announced.set()
        async with anyio.create_task_group() as group:
            group.start_soon(self._drop_useless, told)
            await self._take(told)
            group.cancel_scope.cancel()
        return told.ended.is_set()

    async def _drop_useless(self, told: _Told) -> None:
        """Drop a step as soon as all its members are gone, unless it has ended before."""
        coming = [self._coming(member) for member in told.message.members]
        while not all(each is None or each.gone for each in coming):
            await self._over.wait()
        if not told.ended.is_set():
            told.scope.cancel()
            with anyio.CancelScope(shield=True):
                await self._tell(DropMessage(number=told.message.number), *self._others)

    def _coming(self, member: MemberMessage) -> Coming | None:
        seat = self._seat_of(bytes.fromhex(member.session))
        return None if seat is None else Coming(seat, member)

    async def foretell(self, message: JointMessage) -> None:
        """As `Parties`."""
        await self._tell(AheadMessage(step=message), Role.DEALER)

    async def withdraw(self, number: int) -> None:
        """As `Parties`."""
        self.scheduler.end(number)
        await self._tell(DropMessage(number=number), *self._others)

    @property
    def _others(self) -> list[Role]:
        return [role for role in COMPUTING if role is not self.role]

    async def _tell(self, message: Message, *roles: Role) -> None:
        async with self._telling:  # in the order of the calls
            for role in roles:
                await self.scheduler.send_control(role, message.header())

    async def _take(self, told: _Told) -> None:
        """Take a joint step to its end, as long as any of its members is there; or drop it."""
        message, link = told.message, told.link
        lane, taken = Lane(link), list[tuple[Place, Part]]()
        with told.scope:
            try:
                async with link:
                    await self._run(told, lane, taken)
            except PeerFailed:  # others have left: it will be dropped, if that is said at all
                if told.announced.is_set() or self.scheduler.over:
                    raise
        del self._begun[message.number]
        dropped = not told.ended.is_set()
        if dropped or told.scope.cancel_called:
            self.give_up(message.number)
        if dropped:
            for place, part in taken:
                place.put_back(part)
        self._steps -= 1
        self._changed.notify()
        log.info(
            "joint step dropped" if dropped else "joint step done",
            role=str(self.role),
            number=message.number,
            members=len(message.members),
            rounds=lane.clock,
            online_bytes=link.traffic.online_bytes,
            offline_bytes=link.traffic.offline_bytes,
        )

    async def _run(self, told: _Told, lane: Lane, taken: list[tuple[Place, Part]]) -> None:
        """Take a step. `taken`: the parts that it takes from their places are added."""
        message, plan = told.message, self.model.plan
        places = [
            None if index in message.gone else await self._arrived(member, message.settings())
            for index, member in enumerate(message.members)
        ]
        parts: list[Part] = []
        for place, member in zip(places, message.members, strict=True):
            if place is None or place.part is None:  # gone while others arrived
                parts.append(stand_in(lane, plan, self.parameters, member.context))
            else:
                parts.append(place.take())
                taken.append((place, parts[-1]))
        results = await evaluate_together(lane, plan, parts)
        await told.announced.wait()
        for place, result in zip(places, results, strict=True):
            if place is not None:
                place.finish(result)
        told.ended.set()

    async def _arrived(self, member: MemberMessage, settings: Settings) -> Place | None:
        place = await arrive(self._seat_of(bytes.fromhex(member.session)), member.number)
        if place is None:
            return None
        if place.seat.host is not self:
            raise RemoteProtocolError("a joint step has a member that does not take part")
        if (place.member, place.settings) != (member, settings):
            raise RemoteProtocolError("a joint step has a member with other settings or tokens")
        return place


def ended(reason: str) -> PumaError:
    """The error of sessions whose joint session has ended."""
    return PeerFailed(f"the parties' joint session ended: {reason}; open a new session")
