"""A lane that records what happens on it, and where in the model, for the profiler.

Its events go to a `Meter` (see `protocols.base.meter`).

`ObservedLane` records every message, call and round with the protocol that asked for it; `Observed`
tells it the place in the model. A task counts as computing from its start, or from the moment it
gets what it waited for, until it waits again: so a party's computing time is known even where
several parties share one event loop.
"""

import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeAlias, TypeVar

from protocols.base.cost import Cost
from protocols.base.fields import Buffer
from protocols.base.lane import Lane, Link
from protocols.base.meter import (
    CALLED,
    CHARGED,
    ENTER,
    EXCHANGED,
    FORKED,
    GO,
    JOINED,
    LEAVE,
    RECEIVED,
    SENT,
    STOP,
    Meter,
    Tape,
)
from protocols.base.shares import Role, SecretTensor
from protocols.drivers.ops import Heads, Ranges, Rotation
from protocols.drivers.secure import Secure
from protocols.functions.late import LateRange
from protocols.functions.normalize import Norm
from protocols.functions.softcap import Cap
from protocols.linear import AnyWeight

T = TypeVar("T")
Task: TypeAlias = Coroutine[Any, Any, Any]

clock = time.perf_counter

LEAST_WORK = 500_000
"""Multiply-adds: smaller calls run in the lane's own thread, and are not worth an event."""


class ObservedLane(Lane):
    """A lane whose events go to a meter. See the module docstring.

    Attributes:
        meter: this party's meter for this step; forks share it.
        tape: the tape of the task that this lane's code runs in.
    """

    observed = True
    meter: Meter
    tape: Tape

    @classmethod
    def first(cls, link: Link, meter: Meter) -> "ObservedLane":
        """The lane on which a program begins."""
        lane = cls(link)
        lane.meter, lane.tape = meter, meter.first
        return lane

    # -- tasks -------------------------------------------------------------------------------------

    def fork(self, count: int) -> list[Lane]:
        lanes = super().fork(count)
        for lane in lanes:
            assert isinstance(lane, ObservedLane)
            lane.meter, lane.tape = self.meter, self.tape
        return lanes

    def branches(self, count: int) -> list[Lane]:
        lanes = super().branches(count)
        for lane in lanes:
            assert isinstance(lane, ObservedLane)
            lane.tape = self.tape
        return lanes

    def join(self, lanes: Sequence[Lane]) -> None:
        super().join(lanes)
        if not self.is_dealer:
            tapes = [lane.tape for lane in lanes if isinstance(lane, ObservedLane)]
            self.tape.extend((JOINED, clock(), tapes))

    def watch(self, task: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        if self.is_dealer and self.path:  # the dealer runs its lanes in turn: they are one task
            return task
        return self._own(task)

    async def defer(self, task: Coroutine[Any, Any, None], *others: Lane) -> None:
        await self.link.defer(self._own(task, *others))

    def _own(self, task: Coroutine[Any, Any, T], *others: Lane) -> Coroutine[Any, Any, T]:
        """`task` with its own tape."""
        tape = self.meter.tape()
        self.tape.extend((FORKED, tape))
        for lane in (self, *others):
            assert isinstance(lane, ObservedLane)
            lane.tape = tape
        return self._noted(task)

    async def _noted(self, task: Coroutine[Any, Any, T]) -> T:
        note = self.tape.extend
        note((GO, clock(), self.path))
        try:
            return await task
        finally:
            note((STOP, clock()))

    # -- where -------------------------------------------------------------------------------------

    async def span(self, label: str, task: Coroutine[Any, Any, T]) -> T:
        note = self.tape.extend
        note((ENTER, clock(), None, label))
        try:
            return await task
        finally:
            note((LEAVE, clock()))

    async def at(self, place: str, task: Coroutine[Any, Any, T]) -> T:
        """`task`, which is a part of the model."""
        note = self.tape.extend
        note((ENTER, clock(), place, None))
        try:
            return await task
        finally:
            note((LEAVE, clock()))

    # -- events-------------------------------------------------------------------------------------

    def charge(self, label: str, cost: Cost) -> None:
        super().charge(label, cost)
        self.tape.extend((CHARGED, cost))

    async def _send(self, to: Role, parts: Sequence[Buffer], *, online: bool) -> None:
        tag = self._tag(self._sent, to)
        start = clock()
        nbytes = await self.link.send(to, tag, parts, online=online)
        self.tape.extend((SENT, start, clock(), self.path, tag[-1], to, nbytes, online))

    async def _receive(self, sender: Role) -> Buffer:
        tag = self._expect(sender)
        start = clock()
        try:
            buffer = await self.link.receive(sender, tag)
        finally:
            self._busy = False
        self.tape.extend((RECEIVED, start, clock(), self.path, tag[-1], sender, len(buffer)))
        return buffer

    async def _exchange(self, parts: Sequence[Buffer]) -> Buffer:
        path, peer = self.path, self.peer
        tag = self._tag(self._sent, peer)
        start = clock()
        sent = await self.link.send(peer, tag, parts, online=True)
        wanted = self._expect(peer)
        middle = clock()
        try:
            data = await self.link.receive(peer, wanted)
        finally:
            self._busy = False
        self.tape.extend(
            (EXCHANGED, start, middle, clock(), path, tag[-1], wanted[-1], peer, sent, len(data))
        )
        self.clock += 1
        return data

    async def run(self, work: int, function: Callable[..., T], *args: Any) -> T:
        if work < LEAST_WORK or self.tracing:
            return await super().run(work, function, *args)
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
        self.tape.extend((CALLED, asked, start, end, clock(), name, threaded))
        return result


class Observed(Secure):
    """`Secure` that tells its lane where in the model it is."""

    def __init__(self, lane: ObservedLane, ranges: Ranges) -> None:
        super().__init__(lane, ranges)
        self._at = lane.at

    def norm(
        self,
        x: SecretTensor,
        name: str,
        norm: Norm,
        gain: SecretTensor | None = None,
        shift: SecretTensor | None = None,
        *,
        unit: bool = False,
        residual: bool = False,
    ) -> Task:
        asked = super().norm(x, name, norm, gain, shift, unit=unit, residual=residual)
        return self._at(name, asked)

    def scaled(self, x: Any, factor: float) -> Task:
        return self._at("embedding", super().scaled(x, factor))

    def capped(self, x: Any, name: str, cap: Cap) -> Task:
        return self._at(name, super().capped(x, name, cap))

    def linear(self, x: Any, weight: Any, name: str) -> Task:
        return self._at(name, super().linear(x, weight, name))

    def residual(self, reader: str, norm: Norm, x: Any, *parts: Any) -> Task:
        return self._at(reader or "residual", super().residual(reader, norm, x, *parts))

    def dense(self, x: Any, weight: Any, name: str, activation: str) -> Task:
        return self._at(name, super().dense(x, weight, name, activation))

    def gated(self, x: Any, weight: Any, name: str, activation: str) -> Task:
        return self._at(name, super().gated(x, weight, name, activation))

    def late_gated(
        self,
        x: Any,
        before: str,
        norm: Norm,
        weight: Any,
        late: LateRange,
        name: str,
        activation: str,
    ) -> Task:
        asked = super().late_gated(x, before, norm, weight, late, name, activation)
        return self._at(name, asked)

    def late_project(
        self,
        x: Any,
        before: str,
        norm: Norm,
        weight: Any,
        late: LateRange,
        name: str,
        heads: Heads,
        rotation: Rotation | None,
    ) -> Task:
        asked = super().late_project(x, before, norm, weight, late, name, heads, rotation)
        return self._at(f"{name}.qkv", asked)

    def project(
        self,
        x: SecretTensor,
        weight: AnyWeight,
        name: str,
        heads: Heads,
        rotation: Rotation | None = None,
        norm: Norm | None = None,
        gains: tuple[SecretTensor, SecretTensor] | None = None,
    ) -> Task:
        asked = super().project(x, weight, name, heads, rotation, norm, gains)
        return self._at(f"{name}.qkv", asked)

    def attention(self, q: Any, k: Any, v: Any, name: str, spans: Any) -> Task:
        return self._at(f"{name}.attention", super().attention(q, k, v, name, spans))

    def output(self, x: Any, weight: Any, name: str, *, tied: bool = False) -> Task:
        return self._at(name, super().output(x, weight, name, tied=tied))

    def mean(self, x: Any, lengths: Sequence[int], *, inner: bool = False) -> Task:
        return self._at("mean", super().mean(x, lengths, inner=inner))

    def argmax(self, logits: Any) -> Task:
        return self._at("argmax", super().argmax(logits))
