"""Run the parties of a protocol in one thread without an event loop.

Each party's coroutine runs until it waits for a message that has not been sent; then the next one
runs. If all wait, the program is wrong, and the driver reports which party waits for what. Every
message can be recorded, which is how the privacy tests see a party's view.
"""

import os
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from protocols.base.cost import Cost, Traffic
from protocols.base.fields import Buffer
from protocols.base.lane import Lane, Path, Settings
from protocols.base.prf import KeyRing, Stream
from protocols.base.ring import Words
from protocols.base.shares import COMPUTING, Role, SecretTensor
from protocols.errors import LocalProtocolError

T = TypeVar("T")
Program = Callable[[Lane], Coroutine[Any, Any, Any]]


class Pause:
    """Hands control to the driver once, so that the other parties run as far as they can.

    Args:
        moved: the party has made progress since its last pause, though it may not have sent
            anything; otherwise a pass in which nothing is sent or read is a deadlock.
    """

    def __init__(self, *, moved: bool = False) -> None:
        self._moved = moved

    def __await__(self) -> Generator[bool, None, None]:
        yield self._moved


@dataclass
class Exchange:
    """The shared state of a lockstep run: message boxes, counters, and, if recorded, what each
    party received.
    """

    boxes: dict[tuple[Role, Role, Path], bytes] = field(default_factory=dict)
    views: dict[Role, list[bytes]] = field(default_factory=dict)
    traffic: Traffic = field(default_factory=Traffic)
    deferred: list[Coroutine[Any, Any, None]] = field(default_factory=list)
    waiting: dict[Role, tuple[Role, Path]] = field(default_factory=dict)
    sends: int = 0
    recorded: bool = True


class LockstepLink:
    """`Link` over an `Exchange`."""

    def __init__(self, role: Role, exchange: Exchange, keys: KeyRing, settings: Settings) -> None:
        self.role = role
        self.settings = settings
        self.traffic = exchange.traffic
        self._exchange = exchange
        self._keys = keys

    def stream(self, peer: Role, path: Path) -> Stream:
        return self._keys.stream(peer, path)

    async def send(self, to: Role, tag: Path, data: Sequence[Buffer], *, online: bool) -> int:
        message = b"".join(bytes(part) for part in data)
        key = (self.role, to, tag)
        if key in self._exchange.boxes:
            raise LocalProtocolError(f"{self.role} sent {tag} to {to} twice")
        self._exchange.boxes[key] = message
        self._exchange.sends += 1
        if self._exchange.recorded:
            self._exchange.views.setdefault(to, []).append(message)
        self.traffic.count(len(message), online=online)
        return len(message)

    async def receive(self, sender: Role, tag: Path) -> Buffer:
        key = (sender, self.role, tag)
        while key not in self._exchange.boxes:
            self._exchange.waiting[self.role] = (sender, tag)
            await Pause()
        return self._exchange.boxes.pop(key)

    async def gather(self, tasks: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
        return await interleave(tasks)

    async def defer(self, task: Coroutine[Any, Any, None]) -> None:
        self._exchange.deferred.append(task)

    async def run(self, work: int, function: Callable[..., T], *args: Any) -> T:
        return function(*args)


class _Step(Awaitable[None]):
    """A coroutine that is advanced from pause to pause."""

    def __init__(self, task: Coroutine[Any, Any, Any]) -> None:
        self.task = task
        self.done = False
        self.result: Any = None

    def advance(self) -> bool:
        """Run to the next pause. Returns whether the coroutine ended or made progress."""
        try:
            return bool(self.task.send(None))
        except StopIteration as stop:
            self.done, self.result = True, stop.value
            return True

    def __await__(self) -> Generator[None, None, None]:
        while not self.done:
            self.advance()
            if not self.done:
                yield


async def interleave(tasks: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Run tasks round by round: each until it pauses, then the next."""
    steps = [_Step(task) for task in tasks]
    try:
        while True:
            for step in steps:
                if not step.done:
                    step.advance()
            if all(step.done for step in steps):
                return [step.result for step in steps]
            await Pause()
    finally:
        for step in steps:
            step.task.close()


def pair_secrets(roles: Sequence[Role]) -> dict[Role, dict[str, bytes]]:
    """Fresh secrets for every pair of `roles`, as seen by each."""
    secrets: dict[Role, dict[str, bytes]] = {role: {} for role in roles}
    for index, one in enumerate(roles):
        for two in roles[index + 1 :]:
            secrets[one][two] = secrets[two][one] = os.urandom(32)
    return secrets


@dataclass
class Outcome:
    """The outcome of a lockstep run: results by role, the counted cost, each party's view."""

    results: dict[Role, Any]
    cost: Cost
    views: dict[Role, list[bytes]]


def run_parties(
    programs: dict[Role, Program], settings: Settings | None = None, *, record: bool = True
) -> Outcome:
    """Run one program per role to its end.

    Args:
        record: keep every party's view; without it each message is freed once it is read.

    Raises:
        LocalProtocolError: all parties wait, or messages were left unread.
    """
    exchange = Exchange(recorded=record)
    secrets = pair_secrets(list(programs))
    lanes = {
        role: Lane(
            LockstepLink(role, exchange, KeyRing(role, secrets[role]), settings or Settings())
        )
        for role in programs
    }
    steps = {role: _Step(programs[role](lanes[role])) for role in programs}
    extra: list[_Step] = []
    try:
        _drive(exchange, steps, extra)
    finally:
        for step in (*steps.values(), *extra):
            step.task.close()
        for task in exchange.deferred:
            task.close()
    if exchange.boxes:
        raise LocalProtocolError(f"messages were never read: {sorted(exchange.boxes)[:3]}")
    rounds = max(lane.clock for lane in lanes.values())
    traffic = exchange.traffic
    return Outcome(
        {role: step.result for role, step in steps.items()},
        Cost(rounds, traffic.online_bytes, traffic.offline_bytes),
        exchange.views,
    )


def _drive(exchange: Exchange, steps: dict[Role, _Step], extra: list[_Step]) -> None:
    while True:
        before = exchange.sends, len(exchange.boxes), len(exchange.deferred)
        moved = [step.advance() for step in (*steps.values(), *extra) if not step.done]
        extra.extend(_Step(task) for task in exchange.deferred)
        grown = bool(exchange.deferred)
        exchange.deferred.clear()
        if all(step.done for step in (*steps.values(), *extra)):
            return
        if not grown and not any(moved) and before == (exchange.sends, len(exchange.boxes), 0):
            raise LocalProtocolError(f"every party waits: {exchange.waiting}")


def deal(
    values: Words, width: int = 64, frac: int = 0, generator: Stream | None = None
) -> dict[Role, SecretTensor]:
    """Share a value among the three computing parties with fresh masks (tests, benchmarks,
    examples).
    """
    stream = generator or Stream(os.urandom(16))
    one, two = stream.words(values.shape, width), stream.words(values.shape, width)
    m = values + one + two
    return {
        Role.DEALER: SecretTensor(Role.DEALER, one, two, width, frac),
        Role.EVALUATOR_A: SecretTensor(Role.EVALUATOR_A, m, one, width, frac),
        Role.EVALUATOR_B: SecretTensor(Role.EVALUATOR_B, m, two, width, frac),
    }


def combine(shares: dict[Role, SecretTensor]) -> Words:
    """Rebuild a value from the shares of the three parties, which must agree with each other."""
    dealer, left, right = (shares[role] for role in COMPUTING)
    width = left.width
    mask = np.uint64((1 << width) - 1)
    for mine, theirs, name in (
        (left.a, right.a, "m"),
        (left.b, dealer.a, "lam1"),
        (right.b, dealer.b, "lam2"),
    ):
        if not np.array_equal(mine & mask, theirs & mask):
            raise LocalProtocolError(f"the parties disagree about {name}")
    if len({(s.width, s.frac, s.shape) for s in shares.values()}) != 1:
        raise LocalProtocolError("the parties disagree about width, fraction bits or shape")
    value: Words = (left.a - dealer.a - dealer.b) & mask
    return value
