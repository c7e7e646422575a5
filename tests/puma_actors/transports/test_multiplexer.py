"""Sessions that share a connection: fair, apart from each other, and told when it is lost."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path

import anyio
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import multiplexed, wait_until_quiet
from waiting import HANG, Stuck, in_time, unless_stuck, until

from protocols.base.shares import Role
from protocols.errors import (
    ConnectionLostError,
    LocalProtocolError,
    PeerFailed,
    RemoteProtocolError,
    TransportError,
)
from puma_actors.session.handshake import Identity, handshake
from puma_actors.session.session import RoundScheduler
from puma_actors.transports import ChannelEnded
from puma_actors.transports.frames import NO_SESSION, Frame, Kind
from puma_actors.transports.multiplexed import MuxChannel
from puma_actors.transports.multiplexer import WINDOW, FairQueue, Mux, QueuedFrame

ONE, TWO, THREE = (bytes([index]) * 16 for index in (1, 2, 3))
LARGE = 256 << 10
Muxes = tuple[Mux, Mux]


@pytest.fixture(params=["unix", "memory"])
async def muxes(request: pytest.FixtureRequest, certificates: Path) -> AsyncIterator[Muxes]:
    async with multiplexed(certificates, scheme=request.param) as both:
        yield both


@pytest.fixture
async def sockets(certificates: Path) -> AsyncIterator[Muxes]:
    async with multiplexed(certificates) as both:
        yield both


def both(muxes: Muxes, session: bytes) -> tuple[MuxChannel, MuxChannel]:
    return muxes[0].open(session), muxes[1].open(session)


def frame(session: bytes, index: int = 0, size: int = 0) -> Frame:
    return Frame(Kind.DATA, session, (index,), {}, [bytes(size)])


async def fill(channel: MuxChannel) -> int:
    """Send until nothing more is taken; how many bytes that were."""
    sent = 0

    async def send_for_ever() -> None:
        nonlocal sent
        while True:
            await channel.send(frame(channel.session, size=LARGE))
            sent += LARGE

    with suppress(Stuck):
        await unless_stuck(send_for_ever())
    return sent


# -- whole sessions --------------------------------------------------------------------------------


async def test_two_sessions_with_keys_of_their_own(muxes: Muxes) -> None:
    secrets = set()

    async def party(mux: Mux, session: bytes, role: Role, other: Role) -> None:
        channel = mux.open(session)
        peer = await handshake(channel, Identity(role, str(role), session), {other})
        secrets.add(peer.secret)
        scheduler = RoundScheduler(role, [peer])
        async with scheduler.running(), scheduler.link(1) as link:
            mine = np.full(100_000, session[0] + (role is Role.DEALER), dtype=np.uint64)
            await link.send(other, (1,), [mine], online=True)
            got = np.frombuffer(await link.receive(other, (1,)), dtype=np.uint64)
            assert (got == session[0] + (other is Role.DEALER)).all()
            assert len(got) == len(mine)

    async with anyio.create_task_group() as group:
        for session in (ONE, TWO):
            roles = (Role.DEALER, Role.EVALUATOR_A)
            group.start_soon(party, muxes[0], session, *roles)
            group.start_soon(party, muxes[1], session, *roles[::-1])
    assert len(secrets) == 2
    await until(lambda: [mux.sessions for mux in muxes] == [0, 0])


async def test_a_failing_session_leaves_the_other_alone(muxes: Muxes) -> None:
    healthy = both(muxes, TWO)

    async def fail(channel: MuxChannel) -> None:
        peer = await handshake(channel, Identity(Role.DEALER, "", ONE), {Role.CLIENT})
        async with RoundScheduler(Role.DEALER, [peer]).running():
            raise ValueError("a share")

    async def suffer(channel: MuxChannel) -> None:
        peer = await handshake(channel, Identity(Role.CLIENT, "", ONE), {Role.DEALER})
        scheduler = RoundScheduler(Role.CLIENT, [peer])
        with pytest.raises(PeerFailed, match="dealer failed: ValueError"):
            async with scheduler.running():
                await scheduler.control()

    broken = both(muxes, ONE)
    results = await asyncio.gather(fail(broken[0]), suffer(broken[1]), return_exceptions=True)
    assert isinstance(results[0], ValueError)
    assert results[1] is None
    await healthy[0].send(frame(TWO, 5))
    assert (await healthy[1].receive()).tag == (5,)


# -- fairness --------------------------------------------------------------------------------------


def queued(session: bytes, size: int) -> QueuedFrame:
    return QueuedFrame(frame(session, size=size))


def test_a_quiet_session_goes_before_the_backlog_of_others() -> None:
    queue = FairQueue()
    for _ in range(50):
        queue.push(queued(ONE, LARGE))
        queue.push(queued(TWO, LARGE))
    for _ in range(10):
        queue.pop()
    small = queued(THREE, 8)
    queue.push(small)
    assert small in [queue.pop(), queue.pop()]  # another may have the very same start


@given(st.lists(st.integers(1, 1 << 18), min_size=30, max_size=60), st.integers(1, 1 << 18))
def test_busy_sessions_get_equal_shares_and_keep_their_order(sizes: list[int], other: int) -> None:
    queue = FairQueue()
    mine = [queued(ONE, size) for size in sizes]
    theirs = [queued(TWO, other) for _ in range(200)]
    for entry in mine + theirs:
        queue.push(entry)
    sent = {ONE: 0, TWO: 0}
    order: dict[bytes, list[QueuedFrame]] = {ONE: [], TWO: []}
    while len(order[ONE]) < len(mine) and len(order[TWO]) < len(theirs):
        entry = queue.pop()
        session = entry.frame.session
        order[session].append(entry)
        sent[session] += entry.frame.nbytes + 256
        assert abs(sent[ONE] - sent[TWO]) <= 2 * (max(*sizes, other) + 256)
    assert order[ONE] == mine[: len(order[ONE])]
    assert order[TWO] == theirs[: len(order[TWO])]


async def test_a_small_frame_overtakes_the_large_ones_of_another_session(sockets: Muxes) -> None:
    bulk, quick = both(sockets, ONE), both(sockets, TWO)
    count, got = 24, []

    async def send_all() -> None:
        async with anyio.create_task_group() as group:
            for index in range(count):
                group.start_soon(bulk[0].send, frame(ONE, index, LARGE))

    async def read(channel: MuxChannel, wanted: int) -> None:
        for _ in range(wanted):
            got.append((await channel.receive()).session)

    async with anyio.create_task_group() as group:
        group.start_soon(send_all)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        group.start_soon(quick[0].send, frame(TWO, 0, 8))
        group.start_soon(read, bulk[1], count)
        group.start_soon(read, quick[1], 1)
    assert got.index(TWO) < count - 6  # except frames already sent


# -- back-pressure ---------------------------------------------------------------------------------


async def test_frames_that_wait_together_leave_in_one_write(
    sockets: Muxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all sessions, except large ones. One that cannot be sent keeps no other from leaving."""
    mux = sockets[0]
    ends = [both(sockets, session) for session in (ONE, TWO, THREE)]
    writes: list[list[int]] = []
    send = mux.channel.send_all

    async def noted(frames: Sequence[Frame]) -> None:
        writes.append([each.tag[0] for each in frames])
        await send(frames)

    monkeypatch.setattr(mux.channel, "send_all", noted)
    entries = [mux.queue(frame(session, index)) for index, session in enumerate((ONE, TWO, THREE))]
    entries += [mux.queue(frame(ONE, 3, LARGE)), mux.queue(frame(TWO, 4))]
    with in_time():
        for entry in entries:
            await entry.settled()
        assert writes == [[0, 1, 2], [3], [4]]
        for (_, end), wanted in zip(ends, ([0, 3], [1, 4], [2]), strict=True):
            assert [(await end.receive()).tag[0] for _ in wanted] == wanted
        bad = mux.queue(Frame(Kind.ALIVE, ONE, (5,)))
        good = mux.queue(frame(TWO, 6))
        with pytest.raises(LocalProtocolError):
            await bad.settled()
        await good.settled()
        assert sorted(writes[3]) == [5, 6]  # and then one by one
        assert (await ends[1][1].receive()).tag == (6,)


async def test_a_session_that_does_not_read_stops_itself_alone(muxes: Muxes) -> None:
    stuck, flowing = both(muxes, ONE), both(muxes, TWO)
    sent = await fill(stuck[0])
    assert WINDOW - LARGE <= sent <= WINDOW + 2 * LARGE
    assert not stuck[0].try_send(frame(ONE))
    for index in range(200):
        await flowing[0].send(frame(TWO, index, LARGE))
        assert (await flowing[1].receive()).tag == (index,)
    for _ in range(sent // LARGE):
        await stuck[1].receive()
    await stuck[0].send(frame(ONE, 9))


async def test_a_peer_that_ignores_the_window_loses_that_session(muxes: Muxes) -> None:
    cheat, honest = both(muxes, ONE), both(muxes, TWO)
    for _ in range(WINDOW // LARGE + 4):
        await muxes[0].send(frame(ONE, size=LARGE))  # around its channel's count
    await wait_until_quiet()
    with pytest.raises(RemoteProtocolError, match="beyond the window"):
        await cheat[1].receive()
    await honest[0].send(frame(TWO, 1))
    assert (await honest[1].receive()).tag == (1,)


async def test_a_cancelled_send_gives_its_room_back(sockets: Muxes) -> None:
    left, right = both(sockets, ONE)
    for _ in range(20):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await left.send(frame(ONE, size=WINDOW // 2))
    await left.send(frame(ONE, 7))
    assert (await right.receive()).tag == (7,)


@pytest.mark.parametrize(
    "header",
    [
        {"do": "window", "bytes": 1},
        {"do": "window"},
        {"do": "window", "bytes": -1},
        {"do": "x"},
        {},
    ],
)
async def test_false_news_break_one_session(muxes: Muxes, header: dict[str, object]) -> None:
    broken, honest = both(muxes, ONE), both(muxes, TWO)
    await muxes[0].send(Frame(Kind.LINK, ONE, (), header))
    with pytest.raises(RemoteProtocolError, match="session"):
        await broken[1].receive()
    await honest[0].send(frame(TWO, 1))
    assert (await honest[1].receive()).tag == (1,)


# -- ends ------------------------------------------------------------------------------------------


async def test_closing_a_session_leaves_the_connection(muxes: Muxes) -> None:
    closing, staying = both(muxes, ONE), both(muxes, TWO)
    await closing[0].send(frame(ONE, 3))
    await closing[0].aclose()
    assert (await closing[1].receive()).tag == (3,)
    with pytest.raises(ChannelEnded):
        await closing[1].receive()
    with pytest.raises(TransportError, match="other side has closed"):
        await closing[1].send(frame(ONE))
    await closing[1].aclose()
    await staying[1].send(frame(TWO, 4))
    assert (await staying[0].receive()).tag == (4,)
    assert [mux.sessions for mux in muxes] == [1, 1]


async def test_a_session_id_is_good_once(muxes: Muxes) -> None:
    await muxes[0].open(ONE).aclose()
    for session in (ONE, NO_SESSION):
        with pytest.raises(LocalProtocolError, match="draw a new one"):
            muxes[0].open(session)
    muxes[0].open(TWO)
    with pytest.raises(LocalProtocolError, match="used before"):
        muxes[0].open(TWO)


async def test_a_session_that_the_other_side_does_not_know(muxes: Muxes) -> None:
    lonely = muxes[0].open(ONE)
    await lonely.send(frame(ONE))
    with pytest.raises(TransportError, match="not open at the other side"):
        await lonely.receive()


async def test_frames_of_another_session_are_refused(muxes: Muxes) -> None:
    channel = muxes[0].open(ONE)
    for wrong in (frame(TWO), Frame(Kind.LINK, ONE)):
        with pytest.raises(LocalProtocolError, match="that session alone"):
            await channel.send(wrong)


async def test_losing_the_connection_fails_every_session(sockets: Muxes) -> None:
    mine = [both(sockets, session)[1] for session in (ONE, TWO)]
    await fill(mine[0])
    blocked = asyncio.create_task(mine[0].send(frame(ONE, size=LARGE)))
    await wait_until_quiet()
    sockets[0].channel.abort()  # type: ignore[attr-defined]
    with in_time():
        for channel in mine:
            with pytest.raises(ConnectionLostError, match="the connection to left was lost"):
                await channel.receive()
            with pytest.raises(ConnectionLostError, match="was lost"):
                await channel.send(frame(channel.session))
        with pytest.raises(ConnectionLostError, match="was lost"):
            await blocked
        await sockets[1].lost.wait()
    with pytest.raises(ConnectionLostError, match="was lost"):
        sockets[1].open(THREE)
    with pytest.raises(TransportError):
        await sockets[1].ping()
    assert "left" in sockets[1].reason


async def test_what_came_before_the_loss_can_be_read(sockets: Muxes) -> None:
    left, right = both(sockets, ONE)
    await left.send(frame(ONE, 6))
    await wait_until_quiet()
    sockets[0].channel.abort()  # type: ignore[attr-defined]
    await sockets[1].lost.wait()
    assert (await right.receive()).tag == (6,)
    with pytest.raises(TransportError):
        await right.receive()


async def test_a_malformed_measurement_ends_the_connection(muxes: Muxes) -> None:
    await muxes[0].channel.send(Frame(Kind.LINK, NO_SESSION, (), {"do": "ping"}))
    with in_time():
        await muxes[1].lost.wait()
    assert "unusable" in muxes[1].reason


async def test_measurements(muxes: Muxes) -> None:
    assert 0 < await muxes[0].ping() < HANG
    assert await muxes[1].throughput(2 << 20) > (2 << 20) / HANG
