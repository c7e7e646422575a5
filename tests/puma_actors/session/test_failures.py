"""Broken rules, failing and leaving parties: all others learn of it, and nothing hangs."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import anyio
import numpy as np
import pytest
from scheduling import (
    SESSION,
    A,
    B,
    D,
    Deaf,
    Garbled,
    Unready,
    batch,
    chunk,
    circle,
    forked,
    hostile,
    listening,
    on_lane,
    run,
    schedulers,
    swaps,
)
from waiting import HANG, in_time, settled

from protocols.base.fields import Field
from protocols.base.lane import Lane
from protocols.base.shares import COMPUTING, EVALUATORS, Role
from protocols.errors import LocalProtocolError, PeerFailed, RemoteProtocolError
from puma_actors.session import port
from puma_actors.session.handshake import Peer
from puma_actors.session.mailbox import Flow
from puma_actors.session.session import RoundScheduler
from puma_actors.transports.frames import Frame, Kind
from puma_actors.transports.memory import memory_pair


async def test_failure_is_told_over_a_channel_that_is_never_ready() -> None:
    async def crash(scheduler: RoundScheduler) -> None:
        raise RuntimeError

    parties = schedulers(wrap=Unready)
    found = await run(parties, {D: on_lane(circle), A: on_lane(circle), B: crash})
    assert str(found[D]) == str(found[A]) == "evaluator-b failed: RuntimeError"


async def test_malformed_bytes_are_the_peers_fault_and_it_is_told() -> None:
    parties = schedulers(EVALUATORS)
    parties[A].ports[B].channel = Garbled(parties[A].ports[B].channel)
    found = await run(parties, dict.fromkeys(EVALUATORS, on_lane(swaps)))
    assert isinstance(found[A], RemoteProtocolError)
    assert isinstance(found[B], PeerFailed)
    assert str(found[B]) == "evaluator-b broke the protocol: not a frame"


def offer(tag: Any, total: Any) -> Frame:
    return Frame(Kind.OFFER, SESSION, tag, {"total": total})


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
    "credit from nowhere": [Frame(Kind.CREDIT, SESSION, (1,), {"bytes": 10, "dealt": True})],
    "credit for control": [Frame(Kind.CREDIT, SESSION, (), {"bytes": 10, "dealt": True})],
    "credit of text": [Frame(Kind.CREDIT, SESSION, (), {"bytes": "10", "dealt": True})],
    "credit of nothing": [Frame(Kind.CREDIT, SESSION, (1,), {"bytes": 10})],
    "credit for what was not sent": [
        Frame(Kind.CREDIT, SESSION, (1,), {"bytes": 10, "dealt": False})
    ],
    "offer of a huge message": [offer((1, 2), 1 << 50)],
    "offer of text": [offer((1, 2), "a")],
    "offer of less than nothing": [offer((1, 2), -1)],
    "offer without a place": [offer((), 10)],
    "offer that comes twice": [offer((1, 2), 10), offer((1, 2), 10)],
    "offer that was asked for": [offer((1, 1), 10), offer((1, 1), 10)],
    "offer of what has come": [batch((1, 2)), offer((1, 2), 3)],
    "message that was only offered": [offer((1, 2), 3), batch((1, 2))],
    "part of what was only offered": [offer((1, 2), 9), chunk((1, 2), 0, 9, 3)],
    "request without a word": [Frame(Kind.ASK, SESSION, (1, 1), {})],
    "request without a place": [Frame(Kind.ASK, SESSION, (), {"wanted": True})],
    "error of bytes": [Frame(Kind.ERROR, SESSION, (), {"text": b"x"})],
    "hello in the middle": [Frame(Kind.HELLO, SESSION)],
    "another session": [Frame(Kind.GOODBYE, bytes(16))],
    "empty chunk": [chunk((1, 1), 0, 10, 2), chunk((1, 1), 2, 10, 0)],
    "many inferences": [batch((number, 1)) for number in range(2, 100)],
}


@pytest.mark.parametrize("name", BAD_FRAMES)
async def test_broken_rules_are_remote_protocol_errors(name: str) -> None:
    error = await hostile(BAD_FRAMES[name], listening)
    assert isinstance(error, RemoteProtocolError)
    assert str(error).startswith("evaluator-b broke the protocol: ")


async def test_a_request_for_what_was_not_offered() -> None:
    async def program(scheduler: RoundScheduler) -> Any:
        async with scheduler.link(1) as link:
            await link.send(B, (1,), [bytes(5)], online=True)
            await link.receive(B, (1,))
            await scheduler.control()

    frames = [batch((1, 1)), Frame(Kind.ASK, SESSION, (1, 1), {"wanted": True})]
    error = await hostile(frames, program)
    assert isinstance(error, RemoteProtocolError)
    assert "requested but not offered" in str(error)


async def test_offers_without_end_are_refused() -> None:
    frames = [offer((1, number), 1000) for number in range(2, 1000)]
    error = await hostile(frames, listening, Flow(offers=100, grace=0.01))
    assert isinstance(error, RemoteProtocolError)
    assert "more than 100 messages wait to be requested" in str(error)


TALKATIVE = {
    "offers": [offer((1, number), 1000) for number in range(1, 300)],
    "dealt messages": [batch(*[(1, number)] * 30, dealt=True) for number in range(1, 10)],
}


@pytest.mark.parametrize("name", TALKATIVE)
async def test_who_is_answered_more_often_than_it_reads_is_given_up(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each message for an ended inference is answered, without waiting."""
    monkeypatch.setattr(port, "_MOST_WAITING", 100)

    async def program(scheduler: RoundScheduler) -> None:
        scheduler.end(0, 10)
        await scheduler.control()

    with in_time():
        flow = Flow(grace=0.01, farewell=0.01)
        error = await hostile(TALKATIVE[name], program, flow, Deaf)
    assert isinstance(error, RemoteProtocolError)
    assert "it causes more answers than it reads" in str(error)


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


async def test_a_leaver_is_heard_to_its_end_before_it_is_missed() -> None:
    """Its channel is closed while this side has something to send, and its goodbye is unread."""
    left, right = memory_pair()
    scheduler = RoundScheduler(A, [Peer(B, "b", SESSION, left, bytes(32))])
    async with scheduler.running(), scheduler.link(1) as link:
        for frame in (batch((1, 1)), Frame(Kind.GOODBYE, SESSION)):
            assert right.try_send(frame)
        await right.aclose()
        for number in (1, 2):
            await link.send(B, (number,), [b"late"], online=True)
            scheduler.ports[B].flush()
        assert bytes(await link.receive(B, (1,))) == b"abc"


async def test_a_peer_that_hangs_up_is_missed_although_nothing_is_read() -> None:
    left, right = memory_pair()
    scheduler = RoundScheduler(A, [Peer(B, "b", SESSION, left, bytes(32))])
    with pytest.raises(PeerFailed, match="evaluator-a lost evaluator-b"):
        async with scheduler.running(), scheduler.link(1) as link:
            await right.aclose()
            while True:
                await link.send(B, (1,), [b"late"], online=True)
                scheduler.ports[B].flush()
                await asyncio.sleep(0)


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
    parties = schedulers((D, A, B), flow=Flow(window=1000, control=1000, grace=HANG))
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
        await settled()  # all of them wait
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
                await settled()
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
