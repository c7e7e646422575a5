"""The round scheduler against the lockstep driver, and its flow control, coalescing and failures."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import numpy as np
import pytest

from protocols.cost import Cost
from protocols.errors import LocalProtocolError, PeerFailed, RemoteProtocolError, TransportError
from protocols.lane import Field, Lane, Settings
from protocols.lockstep import pair_secrets, run_parties
from protocols.ring import Words
from protocols.shares import COMPUTING, EVALUATORS, Role
from puma_actors.compute import Compute
from puma_actors.mailbox import MESSAGE_OVERHEAD, Flow
from puma_actors.rounds import RoundScheduler
from puma_actors.session import Peer
from puma_actors.transports.memory import memory_pair
from puma_actors.wire import Frame, Kind

A, B, D = Role.EVALUATOR_A, Role.EVALUATOR_B, Role.DEALER
SESSION = bytes(range(16))
Schedulers = dict[Role, RoundScheduler]
Party = Callable[[RoundScheduler], Awaitable[Any]]


def schedulers(
    roles: Sequence[Role] = COMPUTING,
    *,
    codec: bool = False,
    flow: Flow | None = None,
    **kwargs: Any,
) -> Schedulers:
    """Connected without a handshake."""
    secrets = pair_secrets(roles)
    peers: dict[Role, list[Peer]] = {role: [] for role in roles}
    for index, one in enumerate(roles):
        for two in roles[index + 1 :]:
            left, right = memory_pair(codec=codec, names=(one, two))
            peers[one].append(Peer(two, two, SESSION, left, secrets[one][two]))
            peers[two].append(Peer(one, one, SESSION, right, secrets[two][one]))
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
    assert asyncio.all_tasks() == before
    return results


def on_lane(program: Callable[[Lane], Awaitable[Any]], number: int = 1) -> Party:
    async def party(scheduler: RoundScheduler) -> Any:
        async with scheduler.link(number) as link:
            lane = Lane(link)
            result = await program(lane)
        return result, lane.clock, link.traffic

    return party


# -- programs ----------------------------------------------------------------------------------------

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
            rebuilt += await lane.open(FIELDS, halves)
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


@pytest.mark.parametrize("codec", [False, True])
@pytest.mark.parametrize("program", PROGRAMS)
async def test_same_as_lockstep(program: Callable[[Lane], Any], codec: bool) -> None:
    clocks: dict[Role, int] = {}

    async def noted(lane: Lane) -> Any:
        result = await program(lane)
        clocks[lane.role] = lane.clock
        return result

    expected = run_parties(dict.fromkeys(COMPUTING, noted))
    found = await run(schedulers(codec=codec), dict.fromkeys(COMPUTING, on_lane(program)))
    total = Cost()
    for role in COMPUTING:
        result, clock, traffic = found[role]
        assert clock == clocks[role]
        total += Cost(0, traffic.online_bytes, traffic.offline_bytes)
        if role is not D:
            assert result == expected.results[role]
    assert total == Cost(0, expected.cost.online, expected.cost.offline)
    assert max(clock for _, clock, _ in found.values()) == expected.cost.rounds


async def test_inferences_are_multiplexed() -> None:
    async def several(scheduler: RoundScheduler) -> Any:
        results: dict[int, Any] = {}

        async def one(number: int) -> None:
            results[number] = (await on_lane(forked, number)(scheduler))[0]

        async with anyio.create_task_group() as group:
            for number in (5, 2, 9):
                group.start_soon(one, number)
        assert results[5] == results[2] == results[9]
        return results[2]

    found = await run(schedulers(), dict.fromkeys(COMPUTING, several))
    assert found[A] == run_parties(dict.fromkeys(COMPUTING, forked)).results[A]


async def test_streams_differ_between_inferences_and_numbers_serve_once() -> None:
    drawn: dict[Role, list[list[int]]] = {A: [], B: []}

    async def party(scheduler: RoundScheduler) -> None:
        for number in (1, 2):
            async with scheduler.link(number) as link:
                lane = Lane(link)
                drawn[link.role].append(lane.draw(lane.peer, (4,)).tolist())
        with pytest.raises(LocalProtocolError, match="inference number 1 is used"):
            scheduler.link(1)
        with pytest.raises(LocalProtocolError, match="-1"):
            scheduler.link(-1)
        with pytest.raises(LocalProtocolError, match="no channel to owner"):
            scheduler.port(Role.OWNER)

    found = await run(schedulers(EVALUATORS), {A: party, B: party})
    assert found == {A: None, B: None}
    assert drawn[A] == drawn[B]
    assert drawn[A][0] != drawn[A][1]


async def test_settings_reach_the_link() -> None:
    settings = Settings(approximation="puma")
    scheduler = schedulers(EVALUATORS, settings=settings)[A]
    assert scheduler.link(1).settings is settings
    assert scheduler.link(2, Settings(lanes=3)).settings.lanes == 3


# -- coalescing, chunks, back-pressure ------------------------------------------------------------------


async def test_parallel_lanes_share_frames() -> None:
    lanes, rounds = 8, 10

    async def strand(lane: Lane) -> None:
        for _ in range(rounds):
            await lane.swap([Field((4,))], [np.zeros(4, dtype=np.uint64)])

    async def program(lane: Lane) -> None:
        await lane.parallel([strand] * lanes)

    parties = schedulers(EVALUATORS)
    found = await run(parties, dict.fromkeys(EVALUATORS, on_lane(program)))
    for role in EVALUATORS:
        _, clock, traffic = found[role]
        assert clock == rounds
        assert traffic.messages == lanes * rounds
        assert parties[role].wire.frames <= rounds + 2  # and a goodbye


@pytest.mark.parametrize("codec", [False, True])
async def test_large_messages_travel_in_chunks(codec: bool) -> None:
    flow = Flow(watermark=1000, chunk=3000)
    sizes = (1, 999, 1000, 3000, 3001, 100_000)

    async def program(lane: Lane) -> Any:
        got = []
        for size in sizes:
            data = np.arange(size, dtype=np.uint64).astype(np.uint8)
            await lane.send_bytes(lane.peer, data, online=True)
            got.append(await lane.receive_bytes(lane.peer, size))
            assert np.array_equal(got[-1], data)
            assert not got[-1].flags.writeable
        return len(got)

    parties = schedulers(EVALUATORS, codec=codec, flow=flow)
    found = await run(parties, dict.fromkeys(EVALUATORS, on_lane(program)))
    assert found[A][0] == found[B][0] == len(sizes)
    assert parties[A].wire.frames == 2 + 1 + 1 + 2 + 34 + 1  # ... and a goodbye


async def test_messages_in_memory_are_not_copied() -> None:
    sent: list[Any] = []

    async def program(lane: Lane) -> bool:
        data = np.zeros(1 << 20, dtype=np.uint8)
        sent.append(data)
        await lane.send_bytes(lane.peer, data, online=True)
        got = await lane.receive_bytes(lane.peer, 1 << 20)
        return any(np.shares_memory(got, other) for other in sent)

    found = await run(schedulers(EVALUATORS), dict.fromkeys(EVALUATORS, on_lane(program)))
    assert found[A][0] and found[B][0]


@pytest.mark.parametrize("codec", [False, True])
async def test_the_dealer_waits_for_a_slow_evaluator(codec: bool) -> None:
    size, count, window = 1000, 200, 16_000
    parties = schedulers((D, A), codec=codec, flow=Flow(window=window))
    ahead = 0

    async def dealer(lane: Lane) -> None:
        nonlocal ahead
        for _ in range(count):
            await lane.send_bytes(A, np.zeros(size, dtype=np.uint8), online=False)
            ahead += 1
        big = np.zeros(5 * window, dtype=np.uint8)
        await lane.send_bytes(A, big, online=False)
        await lane.send_bytes(A, big, online=False)
        assert window < parties[D].ports[A].windows[1].peak <= 6 * window + 2 * MESSAGE_OVERHEAD

    async def evaluator(lane: Lane) -> None:
        nonlocal ahead
        for taken in range(count):
            for _ in range(30):
                await asyncio.sleep(0)
            assert taken <= ahead
            assert (ahead - taken - 1) * (size + MESSAGE_OVERHEAD) <= window * 5 / 4
            if taken < count // 2:
                assert ahead < count
            await lane.receive_bytes(D, size)
        await lane.receive_bytes(D, 5 * window)
        await lane.receive_bytes(D, 5 * window)

    found = await run(parties, {D: on_lane(dealer), A: on_lane(evaluator)})
    assert found[D][2].offline_bytes == count * size + 10 * window
    assert found[A][2].offline_bytes == 0


async def test_a_dealer_that_ignores_the_window_is_caught() -> None:
    frames = [batch((1, number), dealt=True) for number in range(2, 100)]
    error = await hostile(frames, listening, Flow(window=2000))
    assert isinstance(error, RemoteProtocolError)
    assert "more than 2000 bytes sent ahead" in str(error)


async def test_dealt_and_ended_messages_free_the_window() -> None:
    """An evaluator that has ended an inference must not leave the dealer waiting for credit."""
    parties = schedulers((D, A), flow=Flow(window=4000))

    async def dealer(lane: Lane) -> None:
        for _ in range(100):
            await lane.send_bytes(A, np.zeros(1000, dtype=np.uint8), online=False)

    async def evaluator(scheduler: RoundScheduler) -> str:
        async with scheduler.link(1) as link:
            await Lane(link).receive_bytes(D, 1000)
        await scheduler.wait_alone()
        return "alone"

    found = await run(parties, {D: on_lane(dealer), A: evaluator})
    assert found[D][2].offline_bytes == 100_000
    assert found[A] == "alone"


async def test_early_messages_have_a_budget() -> None:
    parties = schedulers(EVALUATORS, flow=Flow(early=10_000))

    async def flood(lane: Lane) -> None:
        for _ in range(20):
            await lane.send_bytes(B, np.zeros(1000, dtype=np.uint8), online=True)
        await lane.receive_bytes(B, 1)

    async def patient(scheduler: RoundScheduler) -> None:
        scheduler.link(1)
        await scheduler.control()

    found = await run(parties, {A: on_lane(flood), B: patient})
    assert isinstance(found[B], RemoteProtocolError)
    assert "10000 bytes came before anybody asked" in str(found[B])
    assert isinstance(found[A], PeerFailed)
    assert "evaluator-a broke the protocol" in str(found[A])


# -- rules ------------------------------------------------------------------------------------------------


async def hostile(frames: Sequence[Frame], program: Party, flow: Flow | None = None) -> Any:
    """Evaluator A runs `program` against a peer that sends `frames`; what A ends with."""
    left, right = memory_pair()
    peer = Peer(B, "b", SESSION, left, bytes(32))
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


BAD_FRAMES = {
    "replay while unread": [batch((1, 2)), batch((1, 2))],
    "replay after it was read": [batch((1, 1)), batch((1, 1))],
    "replay in one batch": [batch((1, 5), (1, 5))],
    "replay as a chunk": [batch((1, 2)), chunk((1, 2), 0, 10, 5)],
    "chunk after gap": [chunk((1, 1), 0, 10, 2), chunk((1, 1), 4, 10, 2)],
    "chunk too long": [chunk((1, 1), 0, 10, 11)],
    "chunks disagree": [chunk((1, 1), 0, 10, 2), chunk((1, 1), 2, 11, 2)],
    "chunk of a huge message": [chunk((1, 1), 0, 1 << 50, 2)],
    "chunk beyond its total": [chunk((1, 1), 5, 3, 1)],
    "chunk with text": [chunk((1, 1), "a", 3, 1)],
    "tag too short": [batch([1])],
    "tag of text": [batch([1, "a"])],
    "tag negative": [batch([1, -1])],
    "tag a number": [batch(3)],
    "tags missing": [Frame(Kind.BATCH, SESSION, (), {"dealt": False}, [])],
    "dealt missing": [batch((1, 1), dealt=None)],
    "buffers missing": [Frame(Kind.BATCH, SESSION, (), {"tags": [(1, 1)], "dealt": False}, [])],
    "credit from nowhere": [Frame(Kind.CREDIT, SESSION, (1,), {"bytes": 10})],
    "credit for control": [Frame(Kind.CREDIT, SESSION, (), {"bytes": 10})],
    "credit of text": [Frame(Kind.CREDIT, SESSION, (), {"bytes": "10"})],
    "error of bytes": [Frame(Kind.ERROR, SESSION, (), {"text": b"x"})],
    "hello in the middle": [Frame(Kind.HELLO, SESSION)],
    "another session": [Frame(Kind.GOODBYE, bytes(16))],
    "many inferences": [batch((number, 1)) for number in range(2, 100)],
}


@pytest.mark.parametrize("name", BAD_FRAMES)
async def test_broken_rules_are_remote_protocol_errors(name: str) -> None:
    error = await hostile(BAD_FRAMES[name], listening)
    assert isinstance(error, RemoteProtocolError)
    assert str(error).startswith("evaluator-b broke the protocol: ")


async def test_late_messages_of_ended_inferences_are_ignored() -> None:
    async def program(scheduler: RoundScheduler) -> Any:
        async with scheduler.link(1) as link:
            await link.receive(B, (1,))
        async with scheduler.link(2) as link:
            return bytes(await link.receive(B, (1,)))

    frames = [batch((1, 1)), batch((1, 2)), batch((1, 3)), batch((2, 1)), batch((1, 9))]
    assert await hostile(frames, program) == b"abc"


async def test_messages_of_a_lane_are_taken_in_order() -> None:
    async def program(scheduler: RoundScheduler) -> None:
        async with scheduler.link(1) as link:
            await link.receive(B, (2,))

    error = await hostile([], program)
    assert isinstance(error, LocalProtocolError)
    assert "out of order" in str(error)


# -- failure, cancellation, leaving -----------------------------------------------------------------------


@pytest.mark.parametrize("codec", [False, True])
async def test_failure_of_one_is_peer_failed_everywhere(codec: bool) -> None:
    async def failing(lane: Lane) -> None:
        await lane.swap([Field((1,))], [np.zeros(1, dtype=np.uint64)])
        raise ValueError("the secret is 42")

    async def evaluator(lane: Lane) -> None:
        await lane.swap([Field((1,))], [np.zeros(1, dtype=np.uint64)])
        await lane.parallel([swaps, swaps])

    async def dealer(lane: Lane) -> None:
        while True:
            await lane.send_bytes(B, np.zeros(1000, dtype=np.uint8), online=False)

    found = await run(
        schedulers(codec=codec, flow=Flow(window=10_000)),
        {D: on_lane(dealer), A: on_lane(failing), B: on_lane(evaluator)},
    )
    assert isinstance(found[A], ValueError)
    for role in (D, B):
        assert isinstance(found[role], PeerFailed)
        assert str(found[role]) == "evaluator-a failed: ValueError"


async def test_a_lost_connection_is_peer_failed_everywhere() -> None:
    parties = schedulers()

    async def cut(lane: Lane) -> None:
        await lane.swap([Field((1,))], [np.zeros(1, dtype=np.uint64)])
        await parties[A].ports[B].channel.aclose()
        await lane.receive_bytes(B, 1)

    async def evaluator(lane: Lane) -> None:
        await lane.swap([Field((1,))], [np.zeros(1, dtype=np.uint64)])
        await lane.receive_bytes(A, 1)

    async def dealer(lane: Lane) -> None:
        await lane.receive_bytes(A, 1)

    found = await run(parties, {D: on_lane(dealer), A: on_lane(cut), B: on_lane(evaluator)})
    assert all(isinstance(found[role], PeerFailed) for role in COMPUTING)
    assert "lost evaluator-" in str(found[D])


async def test_every_kind_of_waiter_wakes() -> None:
    parties = schedulers((D, A, B), flow=Flow(window=1000, control=1000))
    woken: list[str] = []

    async def noting(name: str, awaitable: Awaitable[Any]) -> None:
        try:
            await awaitable
        except PeerFailed:
            woken.append(name)

    async def waiting(scheduler: RoundScheduler) -> None:
        async with scheduler.link(1) as link:
            lane = Lane(link)
            credit, receive, online = lane.fork(3)

            async def deal_for_ever() -> None:
                while True:
                    await credit.send_bytes(A, np.zeros(900, dtype=np.uint8), online=False)

            async def upload_for_ever() -> None:
                while True:
                    await scheduler.send_control(A, {}, [bytes(900)])

            async with anyio.create_task_group() as group:
                group.start_soon(noting, "credit", deal_for_ever())
                group.start_soon(noting, "receive", receive.receive_bytes(A, 1))
                group.start_soon(noting, "gather", online.parallel([swapless, swapless]))
                group.start_soon(noting, "upload", upload_for_ever())
                group.start_soon(noting, "control", scheduler.control())
                group.start_soon(noting, "alone", scheduler.wait_alone())

    async def swapless(lane: Lane) -> None:
        await lane.receive_bytes(B, 1)

    async def crash(scheduler: RoundScheduler) -> None:
        await anyio.sleep(0.02)
        raise RuntimeError

    async def idle(scheduler: RoundScheduler) -> None:
        await scheduler.wait_alone()

    found = await run(parties, {D: waiting, A: crash, B: idle})
    assert sorted(woken) == ["alone", "control", "credit", "gather", "receive", "upload"]
    assert isinstance(found[B], PeerFailed)


async def test_code_that_does_not_listen_is_cancelled() -> None:
    async def deaf(scheduler: RoundScheduler) -> None:
        await anyio.sleep_forever()

    async def crash(scheduler: RoundScheduler) -> None:
        raise RuntimeError

    found = await run(schedulers(EVALUATORS, flow=Flow(grace=0.01)), {A: deaf, B: crash})
    assert isinstance(found[A], PeerFailed)


async def test_cancellation_tells_the_others() -> None:
    before = asyncio.all_tasks()
    parties = schedulers()
    errors: dict[Role, BaseException] = {}

    async def party(role: Role) -> None:
        try:
            async with parties[role].running() as scheduler:
                await on_lane(forked)(scheduler)
                await scheduler.control()
        except PeerFailed as error:
            errors[role] = error

    async with anyio.create_task_group() as group:
        for role in (D, A):
            group.start_soon(party, role)
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as inner:
                inner.start_soon(party, B)
                await anyio.sleep(0.005)
                scope.cancel()
    assert {str(error) for error in errors.values()} == {"evaluator-b failed: it was cancelled"}
    assert set(errors) == {D, A}
    assert asyncio.all_tasks() == before


async def test_leaving_in_good_order_hurts_only_who_needs_the_leaver() -> None:
    async def brief(scheduler: RoundScheduler) -> str:
        async with scheduler.link(1) as link:
            await link.send(B, (1,), [b"last words"], online=True)
        return "left"

    async def needy(scheduler: RoundScheduler) -> str:
        async with scheduler.link(1) as link:
            while not scheduler.ports[A].left:
                await asyncio.sleep(0)
            assert bytes(await link.receive(A, (1,))) == b"last words"
            with pytest.raises(PeerFailed, match="evaluator-a has left"):
                await link.receive(A, (2,))
            with pytest.raises(PeerFailed, match="evaluator-a has left"):
                await link.send(A, (1,), [b"x"], online=True)
            await link.send(D, (1,), [b"still here"], online=True)
        return "done"

    async def dealer(scheduler: RoundScheduler) -> Any:
        async with scheduler.link(1) as link:
            got = bytes(await link.receive(B, (1,)))
        with pytest.raises(PeerFailed, match="all other parties have left"):
            await scheduler.control()
        return got

    found = await run(schedulers(), {A: brief, B: needy, D: dealer})
    assert found == {A: "left", B: "done", D: b"still here"}


# -- gather, defer, run -----------------------------------------------------------------------------------


async def test_gather_raises_the_error_itself_and_cancels_the_others() -> None:
    cancelled = []

    async def fails(lane: Lane) -> None:
        await asyncio.sleep(0)
        raise KeyError("mine")

    async def waits(lane: Lane) -> None:
        try:
            await lane.receive_bytes(B, 1)
        except asyncio.CancelledError:
            cancelled.append(lane.path)
            raise

    async def program(scheduler: RoundScheduler) -> None:
        async with scheduler.link(1) as link:
            with pytest.raises(KeyError, match="mine"):
                await Lane(link).parallel([waits, fails, waits])
            assert len(cancelled) == 2
            assert await link.gather([]) == []

    assert await hostile([], program) is None


async def test_deferred_work_is_awaited_and_its_failure_cancels_the_inference() -> None:
    done = []

    async def later() -> None:
        await asyncio.sleep(0)
        done.append(1)

    async def breaks() -> None:
        await asyncio.sleep(0)
        raise KeyError("deferred")

    async def program(scheduler: RoundScheduler) -> None:
        async with scheduler.link(1) as link:
            link.defer(later())
        assert done == [1]
        with pytest.raises(KeyError, match="deferred"):
            async with scheduler.link(2) as link:
                link.defer(breaks())
                await link.receive(B, (1,))
        with pytest.raises(ValueError, match="before it began"):
            async with scheduler.link(3) as link:
                link.defer(later())
                raise ValueError("before it began")
        with pytest.raises(LocalProtocolError, match="async with"):
            scheduler.link(4).defer(later())

    assert await hostile([], program) is None


async def test_small_work_runs_inline_and_large_work_on_few_threads() -> None:
    running, most = 0, 0
    lock = threading.Lock()

    def work(gate: threading.Event) -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        gate.wait(0.01)
        with lock:
            running -= 1
        return threading.current_thread().name

    compute = Compute(threads=2, threshold=100)
    main = threading.current_thread().name

    async def program(scheduler: RoundScheduler) -> None:
        async with scheduler.link(1) as link:
            gate = threading.Event()
            assert await link.run(99, work, gate) == main
            names = await link.gather([link.run(100, work, gate) for _ in range(8)])
            assert main not in names

    scheduler = schedulers((A, B), compute=compute)[A]
    async with scheduler.link(1) as link:
        assert await link.run(5, sum, (1, 2)) == 3
    left, _ = memory_pair()
    alone = RoundScheduler(A, [Peer(B, "b", SESSION, left, bytes(32))], compute=compute)
    async with alone.running():
        await program(alone)
    assert most == 2


# -- control ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [False, True])
async def test_control_messages_are_ordered_and_held_back(codec: bool) -> None:
    count, size, control = 50, 1000, 8000
    sent = 0

    async def owner(scheduler: RoundScheduler) -> None:
        nonlocal sent
        for index in range(count):
            await scheduler.send_control(A, {"chunk": index}, [bytes(size), b"tail"])
            sent += 1
        await scheduler.control()

    async def evaluator(scheduler: RoundScheduler) -> list[int]:
        got = []
        for index in range(count):
            for _ in range(20):
                await asyncio.sleep(0)
            assert (sent - index - 1) * size <= control * 5 / 4
            role, header, buffers = await scheduler.control()
            assert role is Role.OWNER
            assert [bytes(b) for b in buffers] == [bytes(size), b"tail"]
            got.append(header["chunk"])
        await scheduler.send_control(Role.OWNER, {"done": True})
        return got

    parties = schedulers((Role.OWNER, A), codec=codec, flow=Flow(control=control))
    found = await run(parties, {Role.OWNER: owner, A: evaluator})
    assert found[A] == list(range(count))
    assert found[Role.OWNER] is None
