"""Connected schedulers, programs to run on them, and a hostile peer: for several test files."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import anyio
import numpy as np
from waiting import HANG

from protocols.base.fields import Field
from protocols.base.lane import Lane
from protocols.base.ring import Words, canonical
from protocols.base.shares import COMPUTING, Role
from protocols.drivers.lockstep import pair_secrets
from protocols.errors import RemoteProtocolError, TransportError
from puma_actors.session.handshake import Peer
from puma_actors.session.mailbox import Flow
from puma_actors.session.session import RoundScheduler
from puma_actors.transports import Channel
from puma_actors.transports.frames import Frame, Kind
from puma_actors.transports.memory import memory_pair

A, B, D = Role.EVALUATOR_A, Role.EVALUATOR_B, Role.DEALER
SESSION = bytes(range(16))
Schedulers = dict[Role, RoundScheduler]
Party = Callable[[RoundScheduler], Awaitable[Any]]


def schedulers(
    roles: Sequence[Role] = COMPUTING,
    *,
    codec: bool = False,
    flow: Flow | None = None,
    wrap: Callable[[Channel], Channel] = lambda channel: channel,
    **kwargs: Any,
) -> Schedulers:
    """Connected without a handshake. They may take as long as they need to say their last words."""
    flow = replace(flow or Flow(), farewell=HANG)
    secrets = pair_secrets(roles)
    peers: dict[Role, list[Peer]] = {role: [] for role in roles}
    for index, one in enumerate(roles):
        for two in roles[index + 1 :]:
            left, right = memory_pair(codec=codec, names=(one, two))
            peers[one].append(Peer(two, two, SESSION, wrap(left), secrets[one][two]))
            peers[two].append(Peer(one, one, SESSION, wrap(right), secrets[two][one]))
    return {role: RoundScheduler(role, peers[role], flow=flow, **kwargs) for role in roles}


async def run(parties: Schedulers, programs: dict[Role, Party]) -> dict[Role, Any]:
    """Run one function a role; results or errors by role. Nothing may be left behind."""
    before = asyncio.all_tasks()
    results: dict[Role, Any] = {}

    async def party(role: Role) -> None:
        try:
            async with parties[role].running() as scheduler:
                results[role] = await programs[role](scheduler)
        except Exception as error:
            results[role] = error

    async with anyio.create_task_group() as group:
        for role in parties:
            group.start_soon(party, role)
    assert asyncio.all_tasks() <= before  # readers of channels may have ended
    return results


def on_lane(program: Callable[[Lane], Awaitable[Any]], number: int = 1) -> Party:
    async def party(scheduler: RoundScheduler) -> Any:
        async with scheduler.link(number) as link:
            lane = Lane(link)
            result = await program(lane)
        return result, lane.clock, link.traffic

    return party


FIELDS = [Field((3, 5)), Field((7,), width=20), Field((9,), width=1, xor=True)]


SECRETS: list[Words] = [
    np.arange(15, dtype=np.uint64).reshape(3, 5),
    np.arange(7, dtype=np.uint64),
    np.arange(9, dtype=np.uint64) % np.uint64(2),
]


async def swaps(lane: Lane) -> Any:
    if lane.is_dealer:
        return None
    total = 0
    for step in range(5):
        mine = np.full(4, 10 * step + lane.leads, dtype=np.uint64)
        (theirs,) = await lane.swap([Field((4,))], [mine])
        total += int(theirs.sum())
    return total


async def shares(lane: Lane) -> Any:
    rebuilt = []
    for _ in range(4):
        halves = await lane.share(FIELDS, SECRETS if lane.is_dealer else ())
        if not lane.is_dealer:
            opened = await lane.open(FIELDS, halves)
            rebuilt += [canonical(o, f.width) for o, f in zip(opened, FIELDS, strict=True)]
    return [value.tolist() for value in rebuilt]


async def dealt_bytes(lane: Lane) -> Any:
    value = np.arange(100, dtype=np.uint8)
    return (await lane.broadcast(100, value if lane.is_dealer else None)).tolist()


async def forked(lane: Lane, depth: int = 3) -> Any:
    if depth == 0:
        return [await shares(lane), await swaps(lane)]

    async def branch(inner: Lane) -> Any:
        return await forked(inner, depth - 1)

    first = await swaps(lane)
    return [first, await lane.parallel([branch] * 3), await dealt_bytes(lane)]


async def circle(lane: Lane) -> Any:
    """Every direction: A -> D -> B -> A."""
    following = {A: D, D: B, B: A}
    preceding = {value: key for key, value in following.items()}
    data = np.arange(50, dtype=np.uint8)
    await lane.send_bytes(following[lane.role], data, online=True)
    return (await lane.receive_bytes(preceding[lane.role], 50)).tolist()


async def uneven(lane: Lane) -> Any:
    """Lanes of different lengths, whose messages overtake each other."""

    def of(steps: int) -> Any:
        async def work(inner: Lane) -> Any:
            return [await dealt_bytes(inner)] + [await swaps(inner) for _ in range(steps)]

        return work

    return await lane.parallel([of(3), of(0), of(1)])


PROGRAMS = [swaps, shares, dealt_bytes, forked, circle, uneven]


class Unready(Channel):
    """Forwards to another channel, some turns of the loop later."""

    def __init__(self, inner: Channel) -> None:
        self.inner = inner
        self.waiting = 0

    async def send(self, frame: Frame) -> None:
        self.waiting += 1
        assert self.waiting == 1
        for _ in range(3):
            await asyncio.sleep(0)
        await self.inner.send(frame)
        self.sent_frames += 1
        self.waiting -= 1

    async def receive(self) -> Frame:
        return await self.inner.receive()

    async def send_eof(self) -> None:
        await self.inner.send_eof()

    async def aclose(self) -> None:
        await self.inner.aclose()


class Deaf(Unready):
    """The other end reads nothing."""

    async def send(self, frame: Frame) -> None:
        await asyncio.Event().wait()


class Garbled(Unready):
    """Receives nonsense."""

    async def receive(self) -> Frame:
        await asyncio.sleep(0)
        raise RemoteProtocolError("not a frame")


async def hostile(
    frames: Sequence[Frame],
    program: Party,
    flow: Flow | None = None,
    wrap: Callable[[Channel], Channel] = lambda channel: channel,
) -> Any:
    """Evaluator A runs `program` against a peer that sends `frames`; what A ends with."""
    left, right = memory_pair()
    peer = Peer(B, "b", SESSION, wrap(left), bytes(32))
    scheduler = RoundScheduler(A, [peer], flow=flow or Flow(grace=0.01))
    result: Any = None

    async def party() -> None:
        nonlocal result
        try:
            async with scheduler.running():
                result = await program(scheduler)
        except Exception as error:
            result = error

    async with anyio.create_task_group() as group:
        group.start_soon(party)
        with contextlib.suppress(TransportError):  # it may well hang up on us
            for frame in frames:
                await right.send(frame)
    return result


def batch(*tags: Any, dealt: Any = False) -> Frame:
    return Frame(
        Kind.BATCH,
        SESSION,
        (),
        {"tags": list(tags), "dealt": dealt},
        [memoryview(b"abc")] * len(tags),
    )


def chunk(tag: Any, offset: Any, total: Any, size: int, dealt: Any = False) -> Frame:
    header = {"offset": offset, "total": total, "dealt": dealt}
    return Frame(Kind.DATA, SESSION, tag, header, [memoryview(bytes(size))])


async def listening(scheduler: RoundScheduler) -> Any:
    async with scheduler.link(1) as link:
        got = bytes(await link.receive(B, (1,)))
        await scheduler.control()
        return got
