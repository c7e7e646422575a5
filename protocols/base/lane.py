"""A lane: the only way for a protocol to draw masks, deal, and communicate.

A lane is a place in the program (its `path`) with its own random streams and its own message
counters, so that lanes which run at the same time cannot fall out of step with each other. Within a
lane everything happens in program order. A `Link`, supplied by the runtime or by the lockstep
driver, carries the messages.
"""

from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, get_args

import numpy as np

from protocols.base.blank import blank
from protocols.base.cost import Cost, Traffic
from protocols.base.fields import Buffer, Field, join, layout, split, sums
from protocols.base.prf import Stream
from protocols.base.ring import RING_BITS, Bytes, Words
from protocols.base.shares import EVALUATORS, Role, SecretBits, SecretTensor
from protocols.errors import LocalProtocolError, RemoteProtocolError

T = TypeVar("T")
U = TypeVar("U")
Path: TypeAlias = tuple[int, ...]

_LITTLE = 1 << 16
"""Work below which a function runs in place: asking the runtime would cost more than a thread
gains.
"""

Approximation: TypeAlias = Literal["tight", "fast", "puma"]
APPROXIMATIONS: tuple[Approximation, ...] = get_args(Approximation)
"""Sets of approximations. "tight" (the default): within 2.5e-4 of the function; "fast": least
traffic, no less accurate than "puma": the paper's own formulas.
"""
Tree: TypeAlias = Literal["rounds", "balanced", "traffic"]
TREES: tuple[Tree, ...] = get_args(Tree)
"""What a step keeps to a minimum: its rounds, its bytes, or neither at the other's expense."""
Reveal: TypeAlias = Literal["logits", "argmax"]
"""What the client learns: the logits, or only the best token."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Public choices that all parties of a session share.

    Attributes:
        approximation: one of `APPROXIMATIONS`, see `protocols.functions.activations`.
        tree: one of `TREES`: the fewest "rounds", whatever is dealt for them; few rounds at a
            moderate price ("balanced"); or the least "traffic".
        lanes: groups of attention heads that run as concurrent lanes.
        reveal: "logits" (the client samples) or "argmax" (the client learns only the token).
        block: entries of a nonlinear function (scores of attention, say) that are worked on at a
            time; see `protocols.base.blocks`. Twice as many take twice the memory and half the
            rounds of long texts.
        prepared: what is dealt is dealt before the client comes, see `protocols.embedding`.
    """

    approximation: Approximation = APPROXIMATIONS[0]
    tree: Tree = "rounds"
    lanes: int = 1
    reveal: Reveal = "logits"
    block: int = 1 << 21
    prepared: bool = False


class Link(Protocol):
    """What a runtime supplies to the lanes of one party for one inference.

    Messages of one (sender, receiver, tag) are delivered once; a tag is never used twice. `receive`
    gives a buffer that the receiver may read but not write.
    """

    role: Role
    settings: Settings
    traffic: Traffic

    def stream(self, peer: Role, path: Path) -> Stream:
        """The random stream shared with `peer` (or private, if `peer` is this party) at `path`."""

    async def send(self, to: Role, tag: Path, data: Sequence[Buffer], *, online: bool) -> int:
        """Send the concatenation of `data`; may wait for back-pressure. Returns its bytes."""

    async def receive(self, sender: Role, tag: Path) -> Buffer:
        """Wait for the message that `sender` sent under `tag`."""

    async def gather(self, tasks: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
        """Run concurrently; if one fails the others are cancelled and its error is raised."""

    async def defer(self, task: Coroutine[Any, Any, None]) -> None:
        """Run beside the program, or at once if it need not wait; its failure is the program's."""

    def run(self, work: int, function: Callable[..., T], *args: Any) -> Coroutine[Any, Any, T]:
        """Call a function that takes about `work` multiply-adds, off the loop if that is many."""


class _Streams(dict[Role, Stream]):
    """A lane's streams by peer, each opened when it is first read."""

    def __init__(self, link: Link, path: Path) -> None:
        self._link = link
        self._path = path

    def __missing__(self, peer: Role) -> Stream:
        stream = self[peer] = self._link.stream(peer, self._path)
        return stream


class Lane:
    """One sequential strand of a program at one party. See the module docstring.

    Attributes:
        observed: calls of protocols are told to `span`.
    """

    observed = False

    def __init__(self, link: Link, path: Path = (), clock: int = 0) -> None:
        self.link = link
        self.role = link.role
        self.settings = link.settings
        self.path = path
        self.clock = clock
        """Rounds on the longest chain of exchanges up to here."""
        self._forks = 0
        self._free: list[Lane] = []
        self._shares = 0
        self._streams = _Streams(link, path)
        self._sent: defaultdict[Role, int] = defaultdict(int)
        self._received: defaultdict[Role, int] = defaultdict(int)
        self._busy = False
        # Who am I? Read too often for properties.
        self.is_dealer = self.role is Role.DEALER
        self.tracing = self.role is Role.TRACE
        self.leads = self.role is Role.EVALUATOR_A
        """True at evaluator A, which adds the terms that only one evaluator may add."""
        self.peer = Role.EVALUATOR_B if self.leads else Role.EVALUATOR_A
        """The other evaluator."""

    # -- cost --------------------------------------------------------------------------------------

    def charge(self, label: str, cost: Cost) -> None:
        """Account for a declared cost; under `TRACE` nothing else happens."""
        self.clock += cost.rounds
        traffic = self.link.traffic
        traffic.online_bytes += cost.online
        traffic.offline_bytes += cost.offline
        traffic.note(label, cost)

    def blank(self, shape: tuple[int, ...], width: int = RING_BITS, frac: int = 0) -> SecretTensor:
        """A sharing with a shape and no content, for `TRACE`."""
        zeros = blank(shape)
        return SecretTensor(self.role, zeros, zeros, width, frac)

    def blank_bits(self, shape: tuple[int, ...]) -> SecretBits:
        """Bits with a shape and no content, for `TRACE`."""
        zeros = blank(shape, np.uint8)
        return SecretBits(self.role, zeros, zeros)

    # -- randomness --------------------------------------------------------------------------------

    def stream(self, peer: Role) -> Stream:
        """This lane's stream with `peer`, opened when first used."""
        return self._streams[peer]

    def draw(self, peer: Role, shape: tuple[int, ...], width: int = RING_BITS) -> Words:
        """Uniform words that `peer` draws too, in the same order, unknown to the third party."""
        return self._streams[peer].words(shape, width)

    def private(self, shape: tuple[int, ...], width: int = RING_BITS) -> Words:
        """Uniform words that no other party knows."""
        return self._streams[self.role].words(shape, width)

    def mask(self, shape: tuple[int, ...], width: int = RING_BITS) -> Words:
        """An evaluator's half of an output mask, shared with the dealer."""
        return self._streams[Role.DEALER].words(shape, width)

    def masks(self, shape: tuple[int, ...], width: int = RING_BITS) -> tuple[Words, Words]:
        """The dealer's view of an output mask: evaluator A's half and B's."""
        streams = self._streams
        return (
            streams[Role.EVALUATOR_A].words(shape, width),
            streams[Role.EVALUATOR_B].words(shape, width),
        )

    # -- dealing -----------------------------------------------------------------------------------

    async def share(self, fields: Sequence[Field], values: Sequence[Words] = ()) -> list[Words]:
        """The dealer splits `values` between the evaluators; each evaluator gets its halves.

        One half is drawn, the other sent; which evaluator is sent to alternates, so that both links
        carry the dealer's traffic. Offline bytes: `fields_bytes(fields)`.

        Returns:
            An evaluator's halves (they add up, or XOR, to the values); nothing at the dealer.
        """
        self._shares += 1
        receiver, work = EVALUATORS[self._shares & 1], layout(tuple(fields)).work
        if self.is_dealer:
            drawer, rests = EVALUATORS[1 - (self._shares & 1)], self._rests
            parts = (
                await self.run(work, rests, drawer, fields, values)
                if work
                else rests(drawer, fields, values)
            )
            await self._send(receiver, parts, online=False)
            return []
        if self.role is receiver:
            dealt = await self._receive(Role.DEALER)
            return await self.run(work, split, dealt, fields) if work else split(dealt, fields)
        if work:
            return await self.run(work, self._draw_fields, Role.DEALER, fields)
        return self._draw_fields(Role.DEALER, fields)

    def _rests(self, drawer: Role, fields: Sequence[Field], values: Sequence[Words]) -> list[Bytes]:
        """The halves that complete the values, given those that the drawer draws; packed."""
        rest = self._streams[drawer].rest
        return [
            rest(value, item.width, xor=item.xor)
            for item, value in zip(fields, values, strict=True)
        ]

    def _draw_fields(self, peer: Role, fields: Sequence[Field]) -> list[Words]:
        stream = self._streams[peer]
        return [stream.words(item.shape, item.width) for item in fields]

    async def broadcast(self, nbytes: int, value: Bytes | None = None) -> Bytes:
        """The dealer sends the same `nbytes` to both evaluators. Offline bytes: twice that."""
        if self.is_dealer:
            if value is None or value.size != nbytes:
                raise LocalProtocolError(f"the dealer must broadcast exactly {nbytes} bytes")
            for evaluator in EVALUATORS:
                await self._send(evaluator, [value], online=False)
            return value
        return await self.receive_bytes(Role.DEALER, nbytes)

    # -- talking -----------------------------------------------------------------------------------

    async def swap(self, fields: Sequence[Field], values: Sequence[Words]) -> list[Words]:
        """A round: the evaluators send each other their `values`.

        Online bytes: `2 * fields_bytes(fields)`.
        """
        if work := layout(tuple(fields)).work:
            theirs = await self._exchange(await self.run(work, join, fields, values))
            return await self.run(work, split, theirs, fields)
        return split(await self._exchange(join(fields, values)), fields)

    async def open(self, fields: Sequence[Field], values: Sequence[Words]) -> list[Words]:
        """A round after which both evaluators know the sums (or XORs) of their `values`."""
        if work := layout(tuple(fields)).work:
            theirs = await self._exchange(await self.run(work, join, fields, values))
            return await self.run(work, sums, theirs, fields, values)
        return sums(await self._exchange(join(fields, values)), fields, values)

    async def send_words(
        self, to: Role, fields: Sequence[Field], values: Sequence[Words], *, online: bool = True
    ) -> None:
        """Send packed words to one party."""
        await self._send(to, join(fields, values), online=online)

    async def receive_words(self, sender: Role, fields: Sequence[Field]) -> list[Words]:
        """Words that `sender` sent with `send_words`."""
        return split(await self._receive(sender), fields)

    async def send_bytes(self, to: Role, data: Bytes, *, online: bool) -> None:
        """Send raw bytes to one party."""
        await self._send(to, [data], online=online)

    async def receive_bytes(self, sender: Role, nbytes: int) -> Bytes:
        """Raw bytes from `sender`.

        Raises:
            RemoteProtocolError: it sent another number of bytes.
        """
        data = np.frombuffer(await self._receive(sender), dtype=np.uint8)
        if data.size != nbytes:
            raise RemoteProtocolError(
                f"{sender} sent {data.size} bytes, expected {nbytes}: do both run the same version?"
            )
        return data

    def _tag(self, counts: defaultdict[Role, int], peer: Role) -> Path:
        """The tag of the next message to or from a peer."""
        counts[peer] += 1
        return (*self.path, counts[peer])

    async def _send(self, to: Role, parts: Sequence[Buffer], *, online: bool) -> None:
        await self.link.send(to, self._tag(self._sent, to), parts, online=online)

    def _expect(self, sender: Role) -> Path:
        """The tag of the next message from a peer; this lane waits for it from now on."""
        if self._busy:
            raise LocalProtocolError("two tasks wait on one lane: fork it")
        self._busy = True
        self._received[sender] += 1
        return (*self.path, self._received[sender])

    async def _receive(self, sender: Role) -> Buffer:
        tag = self._expect(sender)
        try:
            return await self.link.receive(sender, tag)
        finally:
            self._busy = False

    async def _exchange(self, parts: Sequence[Buffer]) -> Buffer:
        """A round: send the other evaluator the parts, and get its message."""
        peer, sent = self.peer, self._sent
        sent[peer] += 1
        await self.link.send(peer, (*self.path, sent[peer]), parts, online=True)
        tag = self._expect(peer)
        try:
            theirs = await self.link.receive(peer, tag)
        finally:
            self._busy = False
        self.clock += 1
        return theirs

    # -- concurrency and computation ---------------------------------------------------------------

    def fork(self, count: int) -> list["Lane"]:
        """`count` lanes that start at this point of the program and may run at the same time."""
        self._forks += 1
        return [
            type(self)(self.link, (*self.path, self._forks, index), self.clock)
            for index in range(count)
        ]

    def branches(self, count: int) -> list["Lane"]:
        """As `fork`, with lanes that earlier tasks of this lane have left: a new lane costs
        deriving the keys of its streams. Program order alone decides which, so that all parties
        take the same.
        """
        free = self._free
        lanes = [free.pop() if free else self.fork(1)[0] for _ in range(count)]
        for lane in lanes:
            lane.clock = self.clock
        return lanes

    def join(self, lanes: Sequence["Lane"]) -> None:
        """Continue after `lanes`."""
        for lane in lanes:
            if lane.clock > self.clock:
                self.clock = lane.clock

    async def parallel(
        self, tasks: Sequence[Callable[["Lane"], Coroutine[Any, Any, T]]]
    ) -> list[T]:
        """Run each task on its own lane; rounds of different tasks overlap.

        The first task stays on this lane, which is otherwise idle.
        """
        first, *rest = tasks
        lanes = self.branches(len(rest))
        results: list[T] = await self.link.gather(
            [first(self), *(lane.watch(task(lane)) for task, lane in zip(rest, lanes, strict=True))]
        )
        self.join(lanes)
        self._free += reversed(lanes)
        return results

    async def both(
        self,
        first: Callable[["Lane"], Coroutine[Any, Any, T]],
        second: Callable[["Lane"], Coroutine[Any, Any, U]],
    ) -> tuple[T, U]:
        """`parallel` for two tasks with results of different types."""
        tasks: list[Callable[[Lane], Coroutine[Any, Any, Any]]] = [first, second]
        one, two = await self.parallel(tasks)
        return one, two

    async def run(self, work: int, function: Callable[..., T], *args: Any) -> T:
        """Call `function(*args)`, about `work` multiply-adds, where the runtime decides."""
        if work < _LITTLE or self.tracing:
            return function(*args)
        return await self.link.run(work, function, *args)

    async def defer(self, task: Coroutine[Any, Any, None], *others: "Lane") -> None:
        """As `Link.defer`, for a task on this lane and the others."""
        del others  # observed lanes use it
        await self.link.defer(task)

    # -- observation: nothing here, see `protocols.drivers.observed` -------------------------------

    def watch(self, task: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """Return `task`, which will run on this lane; observed lanes wrap it."""
        return task

    def span(self, label: str, task: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """Return `task`, a call of the protocol `label` on this lane; observed lanes wrap it."""
        return task
