"""A lane that notes what happens on it, and where in the model: for the profiler.

Its events go to a `Meter` (see `protocols.meter`).

`ObservedLane` notes every message, call and round beside the protocol that asked for it; `Observed`
tells it the place in the model. The tasks of a lane are driven step by step (`watch`), so that the
time a party computes is known even where several parties share one event loop.
"""

import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from functools import cache
from typing import Any, TypeVar

from protocols.cost import Cost
from protocols.fields import Buffer
from protocols.lane import Lane, Link
from protocols.meter import NO_ROUND, Key, Meter, outermost
from protocols.ops import Ranges
from protocols.secure import Secure
from protocols.shares import Role

T = TypeVar("T")

clock = time.perf_counter


@cache
def _nested(outer: str, label: str) -> str:
    return f"{outer}/{label}" if outer else label


LEAST_WORK = 500_000
"""Multiply-adds: smaller calls run where the lane runs, and are not worth an event."""


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
            if not outer:  # or else the next event says what goes on
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
        place = self.place or outermost(self.protocol)
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
