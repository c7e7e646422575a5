"""Coalescing, chunks, windows, budgets and control messages of the round scheduler."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from reference import save_model
from scheduling import (
    A,
    B,
    D,
    Unready,
    batch,
    circle,
    forked,
    hostile,
    listening,
    on_lane,
    run,
    schedulers,
    uneven,
)

from protocols.base.fields import Field
from protocols.base.lane import Lane
from protocols.base.shares import COMPUTING, EVALUATORS, Role
from protocols.drivers.lockstep import run_parties
from protocols.errors import RemoteProtocolError
from puma_actors.api import local
from puma_actors.api.local import LocalCluster
from puma_actors.session import session as rounds
from puma_actors.session.credit import MESSAGE_OVERHEAD
from puma_actors.session.handshake import Peer
from puma_actors.session.mailbox import Flow, Mailbox
from puma_actors.session.port import Port
from puma_actors.session.session import RoundScheduler
from puma_actors.transports.frames import Frame, Kind


@pytest.mark.in_order
async def test_parallel_lanes_share_frames() -> None:
    lanes, rounds = 8, 10

    async def strand(lane: Lane) -> None:
        for _ in range(rounds):
            await lane.swap([Field((4,))], [np.zeros(4, dtype=np.uint64)])

    async def program(lane: Lane) -> None:
        await lane.parallel([strand] * lanes)

    parties = schedulers(EVALUATORS, codec=True)  # by reference, a frame costs nothing
    found = await run(parties, dict.fromkeys(EVALUATORS, on_lane(program)))
    for role in EVALUATORS:
        _, clock, traffic = found[role]
        assert clock == rounds
        assert traffic.messages == lanes * rounds
        assert parties[role].wire.frames <= rounds + 2  # and a goodbye


@pytest.mark.in_order
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
    frames = 2 + 1 + 1 + 2 + 34
    assert parties[A].wire.frames - frames in (0, 1)  # a goodbye, unless the peer has left


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
    """A sender that sends more than any correct party would."""
    frames = [batch((1, number)) for number in range(2, 100)]
    error = await hostile(frames, listening, Flow(early=10_000))
    assert isinstance(error, RemoteProtocolError)
    assert "evaluator-b broke the protocol" in str(error)
    assert "10000 bytes came before any task waited" in str(error)


# -- messages that would be too much ---------------------------------------------------------------

EARLY = 3000
SMALL = Flow(early=EARLY, chunk=700, watermark=500)


async def exchange(lane: Lane, size: int) -> bool:
    """A round in which either evaluator sends before it receives."""
    mine = np.full(size, 1 + lane.leads, dtype=np.uint8)
    await lane.send_bytes(lane.peer, mine, online=True)
    theirs = await lane.receive_bytes(lane.peer, size)
    return bool((theirs == 2 - lane.leads).all())


@pytest.mark.parametrize("codec", [False, True])
@pytest.mark.parametrize("wrap", [lambda channel: channel, Unready])
async def test_a_message_larger_than_the_budget_gets_through(
    codec: bool, wrap: Callable[[Any], Any]
) -> None:
    async def program(lane: Lane) -> list[bool]:
        return [await exchange(lane, size) for size in (10, EARLY, 20 * EARLY, 1, 3 * EARLY)]

    parties = schedulers(EVALUATORS, codec=codec, flow=SMALL, wrap=wrap)
    found = await run(parties, dict.fromkeys(EVALUATORS, on_lane(program)))
    assert found[A][0] == found[B][0] == [True] * 5


async def test_many_lanes_send_more_than_the_budget_at_once() -> None:
    """None of the messages is awaited when it is sent: the peer is still busy with an earlier lane
    of its own, and comes to the lanes in another order.
    """
    lanes = 30
    most = dict.fromkeys(EVALUATORS, 0)

    async def program(lane: Lane) -> bool:
        strands = lane.fork(lanes)
        for strand in strands:
            await strand.send_bytes(strand.peer, np.full(1000, 7, dtype=np.uint8), online=True)
        order = strands if lane.leads else strands[::-1]
        good = True
        for strand in order:
            good &= bool((await strand.receive_bytes(strand.peer, 1000) == 7).all())
            box = parties[lane.role].ports[lane.peer].mailboxes[1]
            most[lane.role] = max(most[lane.role], box._early)
        return good

    parties = schedulers(EVALUATORS, flow=SMALL)
    found = await run(parties, dict.fromkeys(EVALUATORS, on_lane(program)))
    assert found[A][0] and found[B][0]
    assert 0 < max(most.values()) <= EARLY


@pytest.mark.parametrize("early", [0, 300, 1000])
@pytest.mark.parametrize("program", [forked, circle, uneven])
async def test_programs_run_within_the_smallest_budgets(
    program: Callable[[Lane], Any], early: int
) -> None:
    expected = run_parties(dict.fromkeys(COMPUTING, program))
    parties = schedulers(flow=Flow(early=early))
    found = await run(parties, dict.fromkeys(COMPUTING, on_lane(program)))
    for role in EVALUATORS:
        assert found[role][0] == expected.results[role]


async def test_who_runs_ahead_is_held_back_by_credit() -> None:
    """All that is sent comes, in the end; no more than the budget before it is taken."""
    count, size = 50, 1000

    async def ahead(lane: Lane) -> None:
        for _ in range(count):
            await lane.send_bytes(B, np.zeros(size, dtype=np.uint8), online=True)

    async def slow(lane: Lane) -> int:
        taken = 0
        for _ in range(count):
            for _ in range(10):
                await asyncio.sleep(0)
            assert parties[B].ports[A].mailboxes[1]._early <= EARLY
            taken += (await lane.receive_bytes(A, size)).size
        return taken

    parties = schedulers(EVALUATORS, flow=SMALL)
    found = await run(parties, {A: on_lane(ahead), B: on_lane(slow)})
    assert found[B][0] == count * size
    assert found[A][2].online_bytes == count * size


@pytest.mark.in_order
async def test_credit_lets_messages_go_unasked_again() -> None:
    async def program(lane: Lane) -> bool:
        return all([await exchange(lane, 300) for _ in range(40)])

    parties = schedulers(EVALUATORS, flow=SMALL)
    found = await run(parties, dict.fromkeys(EVALUATORS, on_lane(program)))
    assert found[A][0] and found[B][0]
    # 40 messages and a goodbye; credit after two of them; no offer and no request.
    assert parties[A].wire.frames <= 41 + 20


async def test_a_sender_stays_until_its_last_message_was_asked_for() -> None:
    async def sender(lane: Lane) -> None:
        await lane.send_bytes(B, np.ones(5 * EARLY, dtype=np.uint8), online=True)

    async def receiver(lane: Lane) -> int:
        for _ in range(50):
            await asyncio.sleep(0)
        return int((await lane.receive_bytes(A, 5 * EARLY)).sum())

    found = await run(
        schedulers(EVALUATORS, flow=SMALL), {A: on_lane(sender), B: on_lane(receiver)}
    )
    assert found[B][0] == 5 * EARLY
    assert found[A][0] is None


async def test_offers_of_ended_inferences_are_declined() -> None:
    async def sender(lane: Lane) -> str:
        await lane.receive_bytes(B, 1)  # from now on nothing listens there
        await lane.send_bytes(B, np.ones(5 * EARLY, dtype=np.uint8), online=True)
        return "sent"

    async def receiver(scheduler: RoundScheduler) -> str:
        async with scheduler.link(1) as link:
            await Lane(link).send_bytes(A, np.ones(1, dtype=np.uint8), online=True)
        await scheduler.wait_alone()
        return "alone"

    found = await run(schedulers(EVALUATORS, flow=SMALL), {A: on_lane(sender), B: receiver})
    assert found[A][0] == "sent"
    assert found[B] == "alone"


async def test_a_lane_that_gives_up_after_it_asked_blames_nobody() -> None:
    """Requested messages still arrive, whole or in parts, and count against no budget."""
    asked: list[tuple[Any, bool]] = []
    box = Mailbox(
        SMALL, lambda size: None, lambda: None, ask=lambda tag, wanted: asked.append((tag, wanted))
    )
    size = 5 * EARLY
    for number in (1, 2):
        box.offer((1, number), size)
    assert asked == []
    for number in (1, 2):
        with anyio.move_on_after(0):
            await box.take((1, number))
        box._taken[(1,)] = number
    assert asked == [((1, 1), True), ((1, 2), True)]
    box._taken[(1,)] = 0
    box.put((1, 1), memoryview(bytes(size)), False)
    for start in (0, EARLY):
        end = EARLY if start == 0 else size
        box.put_chunk((1, 2), start, size, memoryview(bytes(end - start)), False)
    assert box._early == 0
    for number in (1, 2):
        assert (await box.take((1, number))).nbytes == size
    assert box._early == 0


@pytest.mark.parametrize("program", [forked, circle, uneven])
async def test_over_a_channel_that_is_never_ready(program: Callable[[Lane], Any]) -> None:
    expected = run_parties(dict.fromkeys(COMPUTING, program))
    parties = schedulers(wrap=Unready, flow=Flow(watermark=100, backlog=50, window=1000))
    found = await run(parties, dict.fromkeys(COMPUTING, on_lane(program)))
    for role in EVALUATORS:
        assert found[role][0] == expected.results[role]


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


async def test_a_model_runs_within_the_smallest_budgets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores, logits for a slow client, embeddings from the dealer: all are larger than what may
    come unasked.
    """
    ids = [1, 7, 30, 4, 4, 22, 9, 3]
    model = save_model(tmp_path)
    async with LocalCluster.from_pretrained(model) as cluster:
        wanted = await cluster.forward(ids)
    offered: list[int] = []
    read = rounds.read_offer

    def noted(frame: Frame) -> tuple[Any, int]:
        offered.append(frame.header["total"])
        return read(frame)

    monkeypatch.setattr(rounds, "read_offer", noted)
    tiny = Flow(early=600, guest=4000, window=20_000)
    monkeypatch.setattr(local, "Flow", lambda window: tiny)
    for codec in (False, True):
        async with LocalCluster.from_pretrained(model, codec=codec) as cluster:
            assert np.abs(await cluster.forward(ids) - wanted).max() < 0.05
            tokens = [token async for token in cluster.generate(ids, max_new_tokens=3)]
            assert len(tokens) == 3
    assert len(offered) > 100
    assert max(offered) > 2 * tiny.early


class Shut:
    """A channel that takes nothing."""

    instant = False
    chunk_bytes = 100

    def try_send(self, frame: Frame) -> bool:
        return False


async def test_what_waits_of_an_inference_that_was_given_up_is_not_sent() -> None:
    peer = Peer(B, "", bytes(16), Shut(), bytes(32))  # type: ignore[arg-type]
    port = Port(D, peer, Flow(watermark=200), lambda *_: None, lambda _: None)
    for number in (1, 2, 1):
        port.put((number, 0, 1), memoryview(bytes(300)), True)
        port.put((number, 0, 2), memoryview(bytes(10)), True)
        port.flush()
    port._broken = True  # the first frame is being sent
    port.withdraw(range(1, 2))
    waits = [(f.kind, f.tag or f.header["tags"][0]) for f in port._pending]
    assert waits == [
        (Kind.DATA, (1, 0, 1)),
        *[(Kind.DATA, (2, 0, 1))] * 3,
        (Kind.BATCH, (2, 0, 2)),
    ]
    assert port._pending_bytes == sum(frame.nbytes for frame in port._pending)
