"""What a byte stream can do to a channel that memory cannot: garbage, loss, silence, distance."""

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from networks import OPTIONS, STREAMS, address_of, connected, transport_of, wait_until_quiet
from ports import free_port
from waiting import HANG, in_time, until

from protocols.base.shares import Role
from protocols.errors import (
    ConfigError,
    ConnectError,
    ConnectionLostError,
    LocalProtocolError,
    NoAnswerError,
    RemoteProtocolError,
    TransportError,
)
from puma_actors.base.certs import load_context
from puma_actors.base.identity import PeerIdentity
from puma_actors.session.handshake import Peer
from puma_actors.session.mailbox import Flow
from puma_actors.session.port import Port
from puma_actors.transports import Channel, ChannelEnded, TcpTransport, Unreachable, connect
from puma_actors.transports.base import connect_patiently
from puma_actors.transports.frames import (
    _PRELUDE,
    MAGIC,
    NO_SESSION,
    VERSION,
    Decoder,
    Frame,
    Kind,
    encode,
)
from puma_actors.transports.stream import CHUNK_BYTES, StreamChannel, StreamOptions

pytestmark = pytest.mark.parametrize("scheme", STREAMS)
SHORT = replace(OPTIONS, silence=0.3)


def wire(frame: Frame) -> bytes:
    return b"".join(encode(frame))


def numbered(index: int, size: int = 0) -> Frame:
    return Frame(Kind.DATA, tag=(index,), buffers=[bytes(size)])


@asynccontextmanager
async def stranger(
    scheme: str, certificates: Path, options: StreamOptions = OPTIONS
) -> AsyncIterator[tuple[Channel, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A channel, and bare bytes at its other end."""
    transport = transport_of(scheme, certificates, options)
    async with address_of(scheme) as address, await transport.listen(address) as listener:
        where: dict[str, Any] = {}
        if scheme == "tls":
            me = PeerIdentity(Role.CLIENT, "client")
            where = {"ssl": load_context(certificates, me, server=False)}
        if scheme == "unix":
            path = listener.address.removeprefix("unix://")
            reader, writer = await asyncio.open_unix_connection(path)
        else:
            port = int(listener.address.rpartition(":")[2])
            reader, writer = await asyncio.open_connection("127.0.0.1", port, **where)
        async with await listener.accept() as channel:
            try:
                yield channel, reader, writer
            finally:
                writer.transport.abort()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"GET / HTTP/1.1\r\nHost: example.org\r\nAccept: *\r\n\r\n", "not a frame"),
        (bytes(1000), "not a frame"),
        (_PRELUDE.pack(MAGIC, VERSION, 3, 1, 10, 1 << 40, NO_SESSION), "payload bytes, the limit"),
        (_PRELUDE.pack(MAGIC, VERSION, 3, 1, 1 << 31, 10, NO_SESSION), "header bytes, the limit"),
        (_PRELUDE.pack(MAGIC, VERSION, 99, 1, 10, 10, NO_SESSION), "unknown kind"),
        (wire(Frame(Kind.END)) + wire(numbered(1)), "after the last one"),
    ],
)
async def test_garbage_and_oversize_are_refused_and_told(
    scheme: str, certificates: Path, data: bytes, text: str
) -> None:
    async with stranger(scheme, certificates) as (channel, reader, writer):
        writer.write(data)
        with pytest.raises(RemoteProtocolError, match=text):
            await channel.receive()
        with pytest.raises(RemoteProtocolError, match=text):
            await channel.pump(lambda frame: None)
        assert channel.try_send(Frame(Kind.ERROR, header={"text": "nonsense"}))
        kinds: list[Kind] = []
        decoder = Decoder()
        while Kind.ERROR not in kinds:
            kinds += [frame.kind for frame in decoder.feed(await reader.read(1000))]


@pytest.mark.parametrize(("cut", "text"), [(0, "was lost"), (20, "inside a frame")])
async def test_loss_is_no_end(scheme: str, certificates: Path, cut: int, text: str) -> None:
    async with stranger(scheme, certificates) as (channel, _, writer):
        writer.write(wire(numbered(1)) + wire(numbered(2, 5000))[:cut])
        await writer.drain()
        writer.close()
        assert (await channel.receive()).tag == (1,)
        with pytest.raises(ConnectionLostError, match=text) as caught:
            await channel.receive()
        assert not isinstance(caught.value, ChannelEnded)
        with pytest.raises(ConnectionLostError, match="was lost"):
            await channel.send(numbered(1))


async def test_bytes_one_by_one(scheme: str, certificates: Path) -> None:
    async with stranger(scheme, certificates) as (channel, _, writer):
        data = wire(numbered(5, 9)) + wire(Frame(Kind.END))
        for index in range(len(data)):
            writer.write(data[index : index + 1])
            await asyncio.sleep(0)
        assert (await channel.receive()).tag == (5,)
        with pytest.raises(ChannelEnded):
            await channel.receive()


async def test_silence_is_death(scheme: str, certificates: Path) -> None:
    async with stranger(scheme, certificates, SHORT) as (channel, _, _writer):
        with in_time(), pytest.raises(NoAnswerError, match=r"silent for 0\.3 s"):
            await channel.receive()
        with pytest.raises(NoAnswerError, match="silent"):
            await channel.send(numbered(1))


@pytest.fixture
def silences(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Awaitable[None]]:
    """Waits until every channel could twice have noticed that nothing comes."""
    ticks: Counter[StreamChannel] = Counter()
    usual = StreamChannel._tick

    def tick(self: StreamChannel) -> None:
        ticks[self] += 1
        usual(self)

    async def pass_by() -> None:
        for channel in ticks:
            ticks[channel] = 0
        await until(lambda: min(ticks.values()) > 10)  # of which there are four in a silence

    monkeypatch.setattr(StreamChannel, "_tick", tick)
    return pass_by


async def test_idle_peers_live(
    scheme: str, certificates: Path, silences: Callable[[], Awaitable[None]]
) -> None:
    async with connected(scheme, certificates, SHORT) as (left, right):
        await silences()
        await left.send(numbered(1))
        assert (await right.receive()).tag == (1,)
        await left.send_eof()
        await silences()
        await right.send(numbered(2))
        assert (await left.receive()).tag == (2,)
        assert (left.sent_frames, right.sent_frames) == (1, 1)


async def test_a_slow_reader_is_not_dead(
    scheme: str, certificates: Path, silences: Callable[[], Awaitable[None]]
) -> None:
    async def talk(channel: Channel) -> None:
        for index in range(60):
            await channel.send(numbered(index, 1 << 19))

    async with (
        connected(scheme, certificates, SHORT) as (left, right),
        anyio.create_task_group() as group,
    ):
        group.start_soon(talk, left)
        await silences()
        for index in range(60):
            assert (await right.receive()).tag == (index,)


async def test_large_frames_of_every_shape(scheme: str, certificates: Path) -> None:
    options = StreamOptions()
    buffers = [bytes([n]) * size for n, size in enumerate((3, 100_001, 0, 5_000_000, 7, 300_000))]
    async with connected(scheme, certificates, options) as (left, right):
        async with anyio.create_task_group() as group:
            group.start_soon(left.send, Frame(Kind.CONTROL, buffers=buffers))
            group.start_soon(left.send, numbered(2))
            got = await right.receive()
        assert [bytes(buffer) for buffer in got.buffers] == buffers
        assert (await right.receive()).tag == (2,)
        assert not left.try_send(Frame(Kind.CONTROL, buffers=buffers))


async def test_a_cancelled_send_of_a_large_frame_is_whole(scheme: str, certificates: Path) -> None:
    async with connected(scheme, certificates, StreamOptions()) as (left, right):
        size = 24 << 20
        async with anyio.create_task_group() as group:
            group.start_soon(left.send, numbered(1, size))
            await wait_until_quiet()
            group.cancel_scope.cancel()
        assert left.sent_frames == 1  # it had begun
        await left.send_eof()
        assert (await right.receive()).nbytes == size
        with pytest.raises(ChannelEnded):
            await right.receive()


async def test_small_messages_overtake_the_parts_of_a_large_one(
    scheme: str, certificates: Path
) -> None:
    async with connected(scheme, certificates, StreamOptions()) as (left, right):
        assert left.chunk_bytes == CHUNK_BYTES <= 1 << 20
        peer = Peer(Role.DEALER, "dora", NO_SESSION, left, b"")
        lost: list[Exception] = []
        port = Port(
            Role.EVALUATOR_B, peer, Flow(), lambda _, error: lost.append(error), lambda _: None
        )
        parts = 200
        port.put((1, 1), memoryview(bytes(parts * CHUNK_BYTES)), True)
        port.put((1, 2), memoryview(b"small"), False)
        port.flush()
        port.post(Frame(Kind.GOODBYE))
        frames: list[Frame] = []
        async with anyio.create_task_group() as group:
            group.start_soon(port.write)
            while not frames or frames[-1].kind is not Kind.GOODBYE:
                frames.append(await right.receive())
            group.cancel_scope.cancel()
        kinds = [frame.kind for frame in frames]
        offsets = [frame.header["offset"] for frame in frames if frame.kind is Kind.DATA]
        assert offsets == [index * CHUNK_BYTES for index in range(parts)]
        assert kinds.index(Kind.BATCH) < parts // 2
        assert not lost


async def test_the_channels_own_frames_cannot_be_sent(scheme: str, certificates: Path) -> None:
    async with connected(scheme, certificates) as (left, _):
        with pytest.raises(LocalProtocolError, match="CLOSE frames are the channel's own"):
            await left.send(Frame(Kind.CLOSE))


async def test_closing_waits_for_what_is_under_way(scheme: str, certificates: Path) -> None:
    async with connected(scheme, certificates) as (left, right):
        got: list[int] = []

        async def hear() -> None:
            with pytest.raises(ChannelEnded):
                while True:
                    got.append((await right.receive()).tag[0])

        async with anyio.create_task_group() as group:
            group.start_soon(hear)
            for index in range(40):
                await left.send(numbered(index, 1 << 19))
                await right.send(numbered(0))  # unread bytes must not turn the end into a reset
            await left.aclose()
        assert got == list(range(40))


async def test_closing_in_a_cancelled_scope_is_quick(scheme: str, certificates: Path) -> None:
    async with stranger(scheme, certificates) as (channel, _, _writer):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await channel.aclose()
        with pytest.raises(TransportError, match="this side has closed"):
            await channel.receive()


async def test_connecting_waits_for_the_listener(
    scheme: str, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = transport_of(scheme, certificates)
    usual, refusals = transport.connect, 0

    async def connecting(address: str) -> Channel:
        nonlocal refusals
        try:
            return await usual(address)
        except Unreachable:
            refusals += 1
            raise

    monkeypatch.setattr(transport, "connect", connecting)
    async with address_of(scheme) as address:
        if scheme != "unix":
            address = f"{scheme}://127.0.0.1:{free_port()}"
        with pytest.raises(Unreachable, match="nobody listens"):
            await connect_patiently(transport, address, 0.0)
        found: list[Channel] = []

        async def call() -> None:
            found.append(await connect_patiently(transport, address, HANG))

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await until(lambda: refusals > 3)
            assert not found
            async with (
                await transport.listen(address) as listener,
                await listener.accept() as channel,
            ):
                while not found:
                    await wait_until_quiet()
                await found[0].aclose()
                with pytest.raises(ChannelEnded):
                    await channel.receive()


async def test_listeners(scheme: str, certificates: Path) -> None:
    transport = transport_of(scheme, certificates)
    async with address_of(scheme) as address:
        async with await transport.listen(address) as listener:
            assert not listener.address.endswith(":0")
        if scheme != "unix":
            address = f"{scheme}://127.0.0.1:{free_port()}"
        listener = await transport.listen(address)
        with pytest.raises(ConnectError, match="cannot listen"):
            await transport.listen(listener.address)
        waiting = await transport.connect(listener.address)
        await wait_until_quiet()
        await listener.aclose()
        with pytest.raises(TransportError):
            await waiting.receive()
        await waiting.aclose()
        with pytest.raises(TransportError, match="is closed"):
            await listener.accept()
        async with await transport.listen(listener.address):
            pass


async def test_bad_addresses(scheme: str, certificates: Path) -> None:
    transport = transport_of(scheme, certificates)
    good = "/tmp/x" if scheme == "unix" else "localhost:1"
    bad = [f"{scheme}://", f"{scheme}://{good}?speed=1", f"{scheme}://{good}?silence=soon"]
    bad += [f"{scheme}://{good}?silence=0", f"{scheme}://{good}?silence=nan"]
    bad += ["unix://" + "/x" * 60, "unix://x"] if scheme == "unix" else [f"{scheme}://host"]
    for address in bad:
        with pytest.raises(ConfigError):
            await transport.connect(address)
        with pytest.raises(ConfigError):
            await transport.listen(address)


async def test_a_name_service_that_is_away_may_come_back(
    scheme: str, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if scheme == "unix":
        return
    transport, asked = transport_of(scheme, certificates, OPTIONS), 0
    usual = socket.getaddrinfo

    def look_up(*args: Any, **options: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return usual(*args, **options)

    async with address_of(scheme) as address, await transport.listen(address) as listener:
        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        where = listener.address.replace("127.0.0.1", "localhost")
        with pytest.raises(Unreachable, match="cannot be looked up now"):
            await transport.connect(where)
        async with (
            await connect_patiently(transport, where, HANG),
            await listener.accept(),
        ):
            assert asked >= 3


async def test_plain_tcp_must_be_asked_for(
    scheme: str, certificates: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if scheme == "tcp":
        with pytest.raises(ConfigError, match="in the clear: use tls://"):
            await connect("tcp://localhost:1")
        with pytest.raises(ConfigError, match="insecure_no_tls='yes'"):
            await connect("tcp://localhost:1?insecure_no_tls=yes")
        async with await TcpTransport().listen("tcp://localhost:0?insecure_no_tls=1"):
            assert "no encryption" in caplog.text
    else:
        async with connected(scheme, certificates):
            assert "no encryption" not in caplog.text
