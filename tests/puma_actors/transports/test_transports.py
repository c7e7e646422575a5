"""The contract that every transport keeps; add one to `networks.SCHEMES` and it is tested."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from networks import SCHEMES, Pair, connected, wait_until_quiet
from waiting import until

from protocols.errors import (
    ConfigError,
    LocalProtocolError,
    RemoteProtocolError,
    TransportError,
)
from puma_actors.transports import (
    Channel,
    ChannelEnded,
    MemoryTransport,
    Unreachable,
    connect,
    listen,
    register,
    transport_for,
)
from puma_actors.transports.frames import Frame, Kind


@pytest.fixture(params=SCHEMES)
async def pair(request: pytest.FixtureRequest, certificates: Path) -> AsyncIterator[Pair]:
    async with connected(request.param, certificates) as channels:
        yield channels


def numbered(index: int, size: int = 0) -> Frame:
    return Frame(Kind.DATA, tag=(index,), buffers=[bytes(size)])


async def test_frames_arrive_whole_and_in_order(pair: Pair) -> None:
    left, right = pair
    words = np.arange(1000, dtype=np.uint64)
    sent = [
        Frame(Kind.DATA, b"s" * 16, (1, 2**63), {"dealt": True}, [words, b"", b"abc"]),
        Frame(Kind.BATCH, b"s" * 16, (), {"tags": [[1, 2], [3]]}, []),
    ]
    for frame in sent:
        await left.send(frame)
    for frame in sent:
        got = await right.receive()
        assert (got.kind, got.session, got.tag) == (frame.kind, frame.session, frame.tag)
        assert got.header == frame.header
        assert [bytes(b) for b in got.buffers] == [bytes(b) for b in frame.buffers]


async def test_both_directions_at_once_with_many_frames(pair: Pair) -> None:
    count = 500

    async def talk(channel: Channel) -> None:
        for index in range(count):
            await channel.send(numbered(index))

    async def hear(channel: Channel) -> None:
        assert [(await channel.receive()).tag[0] for _ in range(count)] == list(range(count))

    async with anyio.create_task_group() as group:
        for channel in pair:
            group.start_soon(talk, channel)
            group.start_soon(hear, channel)


async def test_concurrent_senders_keep_their_own_order(pair: Pair) -> None:
    left, right = pair
    got: list[tuple[int, ...]] = []

    async def talk(sender: int) -> None:
        for index in range(100):
            await left.send(Frame(Kind.DATA, tag=(sender, index)))

    async with anyio.create_task_group() as group:
        for sender in range(5):
            group.start_soon(talk, sender)
        for _ in range(500):
            got.append((await right.receive()).tag)
    for sender in range(5):
        assert [tag[1] for tag in got if tag[0] == sender] == list(range(100))


async def test_slow_reader_holds_the_sender_back(pair: Pair) -> None:
    left, right = pair
    sent = 0

    async def talk() -> None:
        nonlocal sent
        for index in range(2000):
            await left.send(numbered(index, 1 << 19))
            sent += 1

    async with anyio.create_task_group() as group:
        group.start_soon(talk)
        stalled = -1
        while sent != stalled:
            stalled = sent
            await wait_until_quiet()
        assert 0 < stalled < 2000
        for _ in range(stalled):
            await right.receive()
        await until(lambda: sent > stalled)
        await wait_until_quiet()
        assert sent < 2000
        group.cancel_scope.cancel()


async def test_cancelled_receive_loses_nothing(pair: Pair) -> None:
    left, right = pair
    async with anyio.create_task_group() as group:
        group.start_soon(right.receive)
        await wait_until_quiet()
        group.cancel_scope.cancel()
    await left.send(numbered(7))
    assert (await right.receive()).tag == (7,)


async def test_cancelled_send_is_whole_or_absent(pair: Pair) -> None:
    left, right = pair
    sent = []

    async def talk() -> None:
        for index in range(2000):
            await left.send(numbered(index, 1 << 19))
            sent.append(index)

    async with anyio.create_task_group() as group:
        group.start_soon(talk)
        await wait_until_quiet()
        group.cancel_scope.cancel()
    await left.send_eof()
    got = []
    with pytest.raises(ChannelEnded):
        while True:
            got.append((await right.receive()).tag[0])
    assert got[: len(sent)] == sent
    assert len(got) - len(sent) in (0, 1)


async def test_half_close(pair: Pair) -> None:
    left, right = pair
    await left.send(numbered(1))
    await left.send_eof()
    with pytest.raises(TransportError):
        await left.send(numbered(2))
    assert (await right.receive()).tag == (1,)
    with pytest.raises(ChannelEnded):
        await right.receive()
    await right.send(numbered(3))
    assert (await left.receive()).tag == (3,)


async def test_close_delivers_what_was_sent(pair: Pair) -> None:
    left, right = pair
    await left.send(numbered(1))
    await left.aclose()
    await left.aclose()
    assert (await right.receive()).tag == (1,)
    with pytest.raises(TransportError):
        await right.receive()
    with pytest.raises(TransportError, match="closed"):
        for _ in range(1000):
            await right.send(numbered(1))
            await wait_until_quiet()


@pytest.mark.parametrize("mine", [True, False])
async def test_close_wakes_a_waiting_receive(pair: Pair, mine: bool) -> None:
    left, right = pair
    caught: list[TransportError] = []

    async def hear() -> None:
        try:
            await left.receive()
        except TransportError as error:
            caught.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(hear)
        await wait_until_quiet()
        await (left if mine else right).aclose()
    assert isinstance(caught[0], ChannelEnded) is not mine


async def test_close_wakes_a_waiting_send(pair: Pair) -> None:
    left, right = pair

    async def talk() -> None:
        with pytest.raises(TransportError, match="closed"):
            for index in range(2000):
                await left.send(numbered(index, 1 << 19))

    async with anyio.create_task_group() as group:
        group.start_soon(talk)
        await wait_until_quiet()
        await right.aclose()


async def test_oversize_frame_is_refused_and_the_channel_lives(pair: Pair) -> None:
    left, right = pair
    with pytest.raises(LocalProtocolError, match="limit is 1048576"):
        await left.send(numbered(0, (1 << 20) + 1))
    await left.send(numbered(1))
    assert (await right.receive()).tag == (1,)


async def test_pump_gives_early_and_later_frames_in_order(pair: Pair) -> None:
    left, right = pair
    got: list[int] = []
    for index in range(10):
        await left.send(numbered(index))

    async def talk() -> None:
        for index in range(10, 300):
            await left.send(numbered(index))
        await left.send_eof()

    async with anyio.create_task_group() as group:
        group.start_soon(talk)
        await right.pump(lambda frame: got.append(frame.tag[0]))
    assert got == list(range(300))


async def test_pump_raises_what_the_sink_raises(pair: Pair) -> None:
    left, right = pair

    def sink(frame: Frame) -> None:
        raise RemoteProtocolError("nonsense")

    async with anyio.create_task_group() as group:
        group.start_soon(left.send, numbered(1))
        with pytest.raises(RemoteProtocolError, match="nonsense"):
            await right.pump(sink)
    await right.aclose()
    with pytest.raises(TransportError):
        for _ in range(1000):
            await left.send(numbered(1))
            await wait_until_quiet()


async def test_cancelled_pump_leaves_later_frames_to_receive(pair: Pair) -> None:
    left, right = pair
    got: list[int] = []
    async with anyio.create_task_group() as group:
        group.start_soon(right.pump, lambda frame: got.append(frame.tag[0]))
        await left.send(numbered(1))
        while not got:
            await wait_until_quiet()
        group.cancel_scope.cancel()
    await left.send(numbered(2))
    assert (await right.receive()).tag == (2,)
    assert got == [1]


async def test_counters_and_addresses(pair: Pair) -> None:
    left, right = pair
    await left.send(numbered(1, 1000))
    assert left.sent_frames == 1
    assert left.sent_bytes >= 1000
    assert right.sent_frames == 0
    assert left.peer_address
    assert right.local_address


# -- memory and registry ---------------------------------------------------------------------------


async def test_memory_passes_references() -> None:
    words = np.arange(4)
    async with await listen("memory://reference") as listener:
        left = await connect("memory://reference")
        right = await listener.accept()
        await left.send(Frame(Kind.DATA, buffers=[words]))
        assert (await right.receive()).buffers[0] is words


@pytest.mark.parametrize("side", ["listen", "connect"])
async def test_codec_option_on_either_side(side: str) -> None:
    options = {"listen": "", "connect": "", side: "?codec=1"}
    words = np.arange(4)
    async with await listen("memory://optional" + options["listen"]) as listener:
        left = await connect("memory://optional" + options["connect"])
        right = await listener.accept()
        await left.send(Frame(Kind.DATA, buffers=[words]))
        got = (await right.receive()).buffers[0]
        assert bytes(got) == words.tobytes()
        assert not np.shares_memory(np.frombuffer(got, np.uint8), words)
        assert left.sent_bytes > words.nbytes


async def test_memory_names() -> None:
    with pytest.raises(Unreachable, match="nobody listens"):
        await connect("memory://nowhere")
    listener = await listen("memory://name")
    with pytest.raises(TransportError, match="is taken"):
        await listen("memory://name")
    await listener.aclose()
    with pytest.raises(TransportError, match="is closed"):
        await listener.accept()
    async with await listen("memory://name"):
        pass
    for bad in ("memory://", "memory://x?codec=2", "memory://x?speed=1"):
        with pytest.raises(ConfigError, match="bad address"):
            await connect(bad)


async def test_closing_a_listener_wakes_accept_and_refuses_the_waiting() -> None:
    listener = await listen("memory://closing")
    left = await connect("memory://closing")
    await listener.aclose()
    with pytest.raises(TransportError):
        await left.receive()
    listener = await listen("memory://closing")

    async def accept() -> None:
        with pytest.raises(TransportError, match="is closed"):
            await listener.accept()

    async with anyio.create_task_group() as group:
        group.start_soon(accept)
        await wait_until_quiet()
        await listener.aclose()


def test_registry() -> None:
    assert isinstance(transport_for("memory://x"), MemoryTransport)
    with pytest.raises(ConfigError, match="memory://"):
        transport_for("pigeon://x")
    with pytest.raises(ConfigError, match="is taken"):
        register("memory", lambda: MemoryTransport())
    register("memory", MemoryTransport)


async def test_a_connection_that_is_lost_as_soon_as_it_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TLS then knows no socket any more: the other side was killed after its handshake."""

    class Lost:
        def get_extra_info(self, name: str) -> None:
            return None

    async def create(factory: Any, *address: Any, **options: Any) -> Any:
        return Lost(), factory()

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", create)
    with pytest.raises(Unreachable, match="has closed the connection at once"):
        await connect("tcp://127.0.0.1:1?insecure_no_tls=1")
