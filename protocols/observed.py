"""A lane that notes what happens on it, and where in the model: for the profiler.

A `Meter` collects the events of one party in one step. Events hold times, sizes, names and places,
never a value: what they say is what anybody learns who watches the traffic and the clock.

`ObservedLane` notes every message, call and round beside the protocol that asked for it; `Observed`
tells it the place in the model. The tasks of a lane are driven step by step (`watch`), so that the
time a party computes is known even where several parties share one event loop.
"""

import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeVar, overload

from protocols.cost import Cost
from protocols.lane import Buffer, Lane, Link, Path
from protocols.ops import Ranges
from protocols.secure import Secure
from protocols.shares import Role

T = TypeVar("T")
E = TypeVar("E")

clock = time.perf_counter


class Slice(NamedTuple):
    """A lane's code ran on the event loop."""

    start: float
    end: float
    lane: Path
    place: str
    protocol: str


class Call(NamedTuple):
    """A kernel ran: `Link.run`. `asked` is when the lane wanted it to."""

    start: float
    end: float
    lane: Path
    place: str
    protocol: str
    name: str
    threaded: bool
    asked: float


class Send(NamedTuple):
    """A message was handed to the runtime; it took until `end` where that held the lane back."""

    start: float
    end: float
    lane: Path
    place: str
    protocol: str
    peer: Role
    nbytes: int
    number: int
    online: bool


class Receive(NamedTuple):
    """A lane wanted a message at `start` and went on with it at `end`."""

    start: float
    end: float
    lane: Path
    place: str
    protocol: str
    peer: Role
    nbytes: int
    number: int


class Round(NamedTuple):
    """Rounds that followed each other at one place. `before` is the number of the entry in front of
    it on the longest chain, or `NO_ROUND`.
    """

    before: int
    rounds: int
    place: str
    protocol: str


NO_ROUND = -1


class Key(NamedTuple):
    """Where in the model, and in which protocols (outermost first, "/" between them)."""

    place: str
    protocol: str


class Log(Sequence[E]):
    """Events of one kind. They are noted flat and made when somebody reads them: thousands of small
    tuples would keep the garbage collector busy while the time is taken.
    """

    def __init__(self, kind: type[E]) -> None:
        self._kind: Any = kind
        self._flat: list[Any] = []
        self._made: list[E] = []
        self.note = self._flat.extend
        """Add one event, given as a tuple of its fields."""

    def __len__(self) -> int:
        return len(self._flat) // len(self._kind._fields)

    @overload
    def __getitem__(self, index: int) -> E: ...

    @overload
    def __getitem__(self, index: slice) -> list[E]: ...

    def __getitem__(self, index: int | slice) -> E | list[E]:
        return self._events()[index]

    def __iter__(self) -> Iterator[E]:
        return iter(self._events())

    def _events(self) -> list[E]:
        width = len(self._kind._fields)
        for start in range(len(self._made) * width, len(self._flat), width):
            first = self._flat[start : start + width]
            event = self._kind(*first)
            if not event.place:  # what has no place is named after its protocol
                event = event._replace(place=_outermost(event.protocol))
            self._made.append(event)
        return self._made


class Slices(Sequence[Slice]):
    """Slices, noted as the moments at which something else begins to run: a time and a lane, its
    place and protocol, or None thrice.
    """

    def __init__(self) -> None:
        self._flat: list[Any] = []
        self._made: list[Slice] = []
        self._seen = 0
        self.note = self._flat.extend
        """Add a moment, given as a tuple (time, lane, place, protocol)."""

    def __len__(self) -> int:
        return len(self._slices())

    @overload
    def __getitem__(self, index: int) -> Slice: ...

    @overload
    def __getitem__(self, index: slice) -> list[Slice]: ...

    def __getitem__(self, index: int | slice) -> Slice | list[Slice]:
        return self._slices()[index]

    def __iter__(self) -> Iterator[Slice]:
        return iter(self._slices())

    def _slices(self) -> list[Slice]:
        flat = self._flat
        for at in range(self._seen, len(flat) - 4, 4):  # the last moment has no end yet
            start, lane, place, protocol, end = flat[at : at + 5]
            if lane is not None:
                self._made.append(Slice(start, end, lane, place or _outermost(protocol), protocol))
            self._seen = at + 4
        return self._made


@cache
def _nested(outer: str, label: str) -> str:
    return f"{outer}/{label}" if outer else label


def _outermost(protocol: str) -> str:
    """What has no place is named after its protocol."""
    return protocol.partition("/")[0]


LEAST_WORK = 200_000
"""Multiply-adds: smaller calls run where the lane runs, and are not worth an event."""


class Meter:
    """Events of one party in one step."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.slices: Sequence[Slice] = (moments := Slices())
        self.calls = Log(Call)
        self.sends = Log(Send)
        self.receives = Log(Receive)
        self.rounds = Log(Round)
        """Of the evaluator that leads: the other's are the same."""
        self.charges: list[tuple[Key, Cost]] = []
        """Declared costs, under `TRACE`."""
        self.chain = NO_ROUND
        """The last round on the longest chain of the program's first lane."""
        self.note = moments.note
        """Add a moment; see `Slices`."""
        self.lane: ObservedLane | None = None
        """The one that computes."""

    def critical(self) -> list[tuple[Key, int]]:
        """Rounds of the longest chain, from the first to the last."""
        found, at = [], self.chain
        while at != NO_ROUND:
            entry = self.rounds[at]
            found.append((Key(entry.place, entry.protocol), entry.rounds))
            at = entry.before
        return found[::-1]


def _size(data: Buffer) -> int:
    return len(data) if isinstance(data, bytes) else data.nbytes


class Watched(Coroutine[Any, Any, T]):
    """A lane's task, driven so that its meter knows when it runs."""

    __slots__ = ("_lane", "_meter", "_note", "_send", "_task")

    def __init__(self, lane: "ObservedLane", task: Coroutine[Any, Any, T]) -> None:
        self._lane = lane
        self._meter = lane.meter
        self._note = lane.meter.note
        self._task = task
        self._send: Callable[[Any], Any] = task.send

    def send(self, value: Any) -> Any:
        meter, lane, note = self._meter, self._lane, self._note
        before, meter.lane = meter.lane, lane
        note((clock(), lane.path, lane.place, lane.protocol))
        try:
            return self._send(value)
        finally:
            meter.lane = before
            if before is None:
                note((clock(), None, None, None))
            else:  # what was computing when this task was resumed goes on
                note((clock(), before.path, before.place, before.protocol))

    def throw(self, *error: Any) -> Any:
        send, self._send = self._send, lambda value: self._task.throw(*value)
        try:
            return self.send(error)
        finally:
            self._send = send

    def close(self) -> None:
        self._task.close()

    def __await__(self) -> Generator[Any, Any, T]:
        return self  # an iterator with send, throw and close

    def __iter__(self) -> "Watched[T]":
        return self

    def __next__(self) -> Any:
        return self.send(None)


class ObservedLane(Lane):
    """A lane whose events go to a meter. See the module's text.

    Attributes:
        meter: of this party in this step; forks share it.
        place: in the model.
        protocol: the protocols that are being evaluated, outermost first, "/" between them.
    """

    meter: Meter
    place = ""
    protocol = ""
    _chain = NO_ROUND

    @classmethod
    def first(cls, link: Link, meter: Meter) -> "ObservedLane":
        """The lane a program begins on."""
        lane = cls(link)
        lane.meter = meter
        return lane

    # -- where -------------------------------------------------------------------------------------

    def fork(self, count: int) -> list[Lane]:
        lanes = super().fork(count)
        for lane in lanes:
            assert isinstance(lane, ObservedLane)
            lane.meter, lane._chain = self.meter, self._chain
            lane.place, lane.protocol = self.place, self.protocol
        return lanes

    def join(self, lanes: Sequence[Lane]) -> None:
        if not (self.leads or self.tracing):  # they alone keep count of rounds
            super().join(lanes)
            return
        longest = max((self, *lanes), key=lambda lane: lane.clock)
        if longest.clock > self.clock:
            assert isinstance(longest, ObservedLane)
            self._extend(longest._chain)
        super().join(lanes)

    def watch(self, task: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        return Watched(self, task)

    async def span(self, label: str, task: Coroutine[Any, Any, T]) -> T:
        outer, note = self.protocol, self.meter.note
        self.protocol = inner = _nested(outer, label)
        note((clock(), self.path, self.place, inner))
        try:
            return await task
        finally:
            self.protocol = outer
            note((clock(), self.path, self.place, outer))

    async def at(self, place: str, task: Coroutine[Any, Any, T]) -> T:
        """`task`, which is a part of the model."""
        outer, note = self.place, self.meter.note
        self.place = place
        note((clock(), self.path, place, self.protocol))
        try:
            return await task
        finally:
            self.place = outer
            note((clock(), self.path, outer, self.protocol))

    # -- what --------------------------------------------------------------------------------------

    def _extend(self, chain: int) -> None:
        self._chain = chain
        if not self.path:
            self.meter.chain = chain

    def _add_rounds(self, count: int) -> None:
        rounds = self.meter.rounds
        rounds.note((self._chain, count, self.place, self.protocol))
        self._extend(len(rounds) - 1)

    def charge(self, label: str, cost: Cost) -> None:
        super().charge(label, cost)
        place = self.place or self.protocol.partition("/")[0]
        self.meter.charges.append((Key(place, self.protocol), cost))
        if cost.rounds:
            self._add_rounds(cost.rounds)

    def passed(self) -> None:
        self.clock += 1
        if self.leads:
            self._add_rounds(1)

    async def _send(self, to: Role, parts: Sequence[Buffer], *, online: bool) -> None:
        start, tag = clock(), self._tag(self._sent, to)
        await self.link.send(to, tag, parts, online=online)
        nbytes = sum([_size(part) for part in parts])
        self.meter.sends.note(
            (start, clock(), self.path, self.place, self.protocol, to, nbytes, tag[-1], online)
        )

    async def _receive(self, sender: Role) -> Buffer:
        start = clock()
        buffer = await super()._receive(sender)
        end, number = clock(), self._received[sender]
        self.meter.receives.note(
            (start, end, self.path, self.place, self.protocol, sender, _size(buffer), number)
        )
        return buffer

    def run(self, work: int, function: Callable[..., T], *args: Any) -> Awaitable[T]:
        if work < LEAST_WORK:
            return self.link.run(work, function, *args)
        return self._timed(work, function, *args)

    async def _timed(self, work: int, function: Callable[..., T], *args: Any) -> T:
        asked, loop = clock(), threading.get_ident()
        ran: tuple[float, float, bool] = (asked, asked, False)

        def timed() -> T:
            nonlocal ran
            start = clock()
            result = function(*args)
            ran = (start, clock(), threading.get_ident() != loop)
            return result

        result = await self.link.run(work, timed)
        start, end, threaded = ran
        name = getattr(function, "__name__", type(function).__name__)
        where = (start, end, self.path, self.place, self.protocol)
        self.meter.calls.note((*where, name, threaded, asked))
        return result


class Observed(Secure):
    """`Secure` that tells its lane where in the model it is."""

    def __init__(self, lane: ObservedLane, ranges: Ranges) -> None:
        super().__init__(lane, ranges)
        self._at = lane.at

    async def norm(self, x: Any, name: str, *args: Any, **options: Any) -> Any:
        return await self._at(name, super().norm(x, name, *args, **options))

    async def linear(self, x: Any, weight: Any, name: str) -> Any:
        return await self._at(name, super().linear(x, weight, name))

    async def dense(self, x: Any, weight: Any, name: str, activation: str) -> Any:
        return await self._at(name, super().dense(x, weight, name, activation))

    async def gated(self, x: Any, weight: Any, name: str, activation: str) -> Any:
        return await self._at(name, super().gated(x, weight, name, activation))

    async def project(self, x: Any, weight: Any, name: str, *args: Any, **options: Any) -> Any:
        return await self._at(f"{name}.qkv", super().project(x, weight, name, *args, **options))

    async def attention(self, q: Any, k: Any, v: Any, name: str, spans: Any) -> Any:
        return await self._at(f"{name}.attention", super().attention(q, k, v, name, spans))

    async def output(self, x: Any, weight: Any, name: str, *, tied: bool = False) -> Any:
        return await self._at(name, super().output(x, weight, name, tied=tied))

    async def mean(self, x: Any, lengths: Sequence[int]) -> Any:
        return await self._at("mean", super().mean(x, lengths))

    async def argmax(self, logits: Any) -> Any:
        return await self._at("argmax", super().argmax(logits))
