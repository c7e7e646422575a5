"""What a peer can make a party hold: headers, tags, chunks, messages, connections."""

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import anyio
import msgpack
import pytest
from hosts import hosts
from waiting import in_time, until

from protocols.base.shares import COMPUTING, Role
from protocols.errors import LocalProtocolError, RemoteProtocolError, TransportError
from puma_actors.hosts import server
from puma_actors.hosts.config import _STRANGER
from puma_actors.hosts.server import PartyServer
from puma_actors.session.mailbox import GUEST_OFFERS, Flow, Mailbox
from puma_actors.transports import TlsTransport
from puma_actors.transports.frames import (
    HEAD_WEIGHT,
    Decoder,
    Frame,
    Kind,
    Limits,
    State,
    encode,
    message_tag,
)
from puma_actors.transports.inbox import MAX_BYTES, Inbox
from puma_actors.transports.msgpack_guard import suspicious
from puma_actors.transports.multiplexer import _REMEMBERED, FairQueue, QueuedFrame
from puma_actors.transports.sockets import _BACKLOG
from puma_actors.transports.tls import Credentials


def prelude(head: int, payload: int = 0, count: int = 0) -> bytes:
    return struct.pack("<4sBBHIQ16s", b"PUMA", 1, Kind.CONTROL, count, head, payload, bytes(16))


def bomb(items: int, item: bytes) -> bytes:
    """A frame whose header is one list."""
    head = b"\x93\x90\x90\x81\xa1x\xdd" + struct.pack(">I", items) + item * items
    return prelude(len(head)) + head


def peak(work: Callable[[], object]) -> int:
    """Bytes that were in use beside each other, at most."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# -- headers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("item", [b"\x80", b"\x90", b"\xc0", b"\xa1x"])
def test_a_header_of_a_million_little_things(item: bytes) -> None:
    """A megabyte of empty maps would be 76 MB."""
    stream = bomb(500_000, item)

    def refused() -> None:
        with pytest.raises(RemoteProtocolError, match="more than 131072 elements"):
            Decoder().feed(stream)

    assert peak(refused) < 2 * len(stream) + (1 << 20)


def test_elements_are_counted_in_all_containers_together() -> None:
    limits = Limits(items=100)
    fits = {"a": [0] * 30, "b": [[0] * 20, [0] * 20]}
    (frame,) = Decoder(limits).feed(b"".join(encode(Frame(Kind.CONTROL, header=fits), limits)))
    assert frame.header == fits
    many = Frame(Kind.CONTROL, header={**fits, "c": [0] * 30})
    with pytest.raises(LocalProtocolError, match="more than 100 elements"):
        encode(many, limits)
    with pytest.raises(RemoteProtocolError, match="more than 100 elements"):
        Decoder(limits).feed(b"".join(encode(many)))


def test_what_the_glance_lets_through_is_small() -> None:
    """`suspicious` saves the walk; what passes it cannot have many elements."""
    deepest: object = [0] * 15
    for _ in range(3):
        deepest = [deepest] + [0] * 14
    head = msgpack.packb([[], [], {"x": deepest}])
    assert not suspicious(head, _STRANGER.nesting)
    assert suspicious(msgpack.packb([[], [], {"x": [deepest]}]), _STRANGER.nesting)
    Decoder(_STRANGER).feed(prelude(len(head)) + head)
    assert _STRANGER.items < 1 << 10


def test_a_stranger_has_a_few_elements() -> None:
    with pytest.raises(RemoteProtocolError, match="more than 256 elements"):
        Decoder(_STRANGER).feed(bomb(1000, b"\x80"))


class _Transport:
    paused = False

    def pause_reading(self) -> None:
        self.paused = True


def test_headers_that_wait_to_be_read_are_counted() -> None:
    """64 frames may wait; of those with large headers far fewer."""
    inbox, transport = Inbox(Limits()), _Transport()
    inbox.attach(transport)  # type: ignore[arg-type]
    stream, fed = bomb(100_000, b"\x80"), 0
    while not transport.paused:
        for start in range(0, len(stream), 4096):
            piece = stream[start : start + 4096]
            inbox.buffer()[: len(piece)] = piece
            inbox.received(len(piece))
        fed += 1
    assert fed == -(-MAX_BYTES // (HEAD_WEIGHT * (len(stream) - 36)))
    assert fed < 5


def test_both_ends_weigh_a_request_alike() -> None:
    sent = Frame(Kind.CONTROL, header={"do": "x", "list": list(range(1000))}, buffers=[b"abc"])
    (got,) = Decoder().feed(b"".join(encode(sent)))
    assert got.head > 0 == sent.head
    assert got.weight == sent.weight > 3 + 16 * 1000


def test_the_tag_of_a_message_is_short() -> None:
    assert message_tag(list(range(64))) == tuple(range(64))
    for tag in ([1], [0] * 65, [0] * 100_000):
        with pytest.raises(RemoteProtocolError, match="2 to 64 numbers"):
            message_tag(tag)


# -- payloads --------------------------------------------------------------------------------------


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_an_announced_payload_takes_no_memory_before_it_comes() -> None:
    size = 256 << 20
    head = msgpack.packb([[], [size], {}])
    decoder = Decoder(Limits(frame=size))
    before = _resident()
    decoder.feed(prelude(len(head), size, 1) + head + bytes(1000))
    assert decoder.state is State.PAYLOAD
    assert _resident() - before < 32 << 20


def _mailbox(flow: Flow) -> Mailbox:
    return Mailbox(flow, lambda size: None, lambda: None)


def test_chunks_of_a_byte_take_a_byte() -> None:
    box, count = _mailbox(Flow()), 100_000

    def fill() -> None:
        for at in range(count):
            box.put_chunk((0, 1), at, count, memoryview(bytearray([at & 255])), False)

    assert peak(fill) < 8 * count


async def test_what_comes_in_chunks_is_whole_and_read_only() -> None:
    box = _mailbox(Flow())
    for at in range(0, 10, 3):
        part = memoryview(bytes(range(10)))[at : at + 3]
        box.put_chunk((0, 1), at, 10, part, False)
    message = await box.take((0, 1))
    assert bytes(message) == bytes(range(10))
    assert message.readonly


@pytest.mark.parametrize("guest", [Role.CLIENT, Role.OWNER])
@pytest.mark.parametrize("dealt", [False, True])
async def test_guests_have_less_to_send_than_parties(guest: Role, dealt: bool) -> None:
    flow, size = Flow(), Flow().guest
    part = memoryview(bytes(1 << 20))
    for receiver in COMPUTING:
        box = _mailbox(flow.incoming(receiver, guest))
        with pytest.raises(RemoteProtocolError, match="the limit is 8388608"):
            box.put_chunk((0, 1), 0, size + 1, part, dealt)  # also where it is awaited
        with pytest.raises(RemoteProtocolError, match=r"bytes (sent ahead|came before)"):
            for number in range(1, 12):
                box.put((0, number), part, dealt)
        for sender in COMPUTING:
            assert flow.incoming(receiver, sender) is flow
            assert flow.incoming(guest, sender) is flow


@pytest.mark.parametrize("guest", [Role.CLIENT, Role.OWNER])
async def test_guests_have_few_messages_to_offer(guest: Role) -> None:
    """Offers count against no budget of bytes, and a tag may be long."""
    for receiver in COMPUTING:
        box = _mailbox(Flow().incoming(receiver, guest))
        for number in range(1, 1 + GUEST_OFFERS):
            box.offer((0, number), 1)
        with pytest.raises(RemoteProtocolError, match=f"more than {GUEST_OFFERS} messages wait"):
            box.offer((0, 1 + GUEST_OFFERS), 1)


async def test_an_awaited_message_of_a_guest_is_limited_too() -> None:
    box = _mailbox(Flow().incoming(Role.DEALER, Role.CLIENT))
    async with anyio.create_task_group() as group:
        group.start_soon(box.take, (0, 1))
        await anyio.sleep(0)
        with pytest.raises(RemoteProtocolError, match="the limit is 8388608"):
            box.put_chunk((0, 1), 0, 1 << 32, memoryview(b"x"), False)
        group.cancel_scope.cancel()


def test_sessions_that_nobody_opened_leave_nothing_in_the_queue() -> None:
    queue = FairQueue()
    for number in range(3 * _REMEMBERED):
        frame = Frame(Kind.LINK, number.to_bytes(16, "little"))
        queue.push(QueuedFrame(frame))
        queue.push(QueuedFrame(frame))
        queue.pop()
        queue.pop()
    assert len(queue._finish) <= _REMEMBERED + 1


# -- connections -----------------------------------------------------------------------------------


async def test_stalled_handshakes_keep_nobody_out(certificates: Path) -> None:
    here, there = (Credentials(certificates, role) for role in (Role.DEALER, Role.CLIENT))
    async with await TlsTransport(here).listen("tls://localhost:0") as listener:
        port = int(listener.address.rpartition(":")[2])
        stalled = [await anyio.connect_tcp("localhost", port) for _ in range(_BACKLOG + 10)]
        try:
            with in_time():
                async with await TlsTransport(there).connect(listener.address):
                    found = await listener.accept()
                    assert found.peer_identity is not None
                    await found.aclose()
        finally:
            for each in stalled:
                await each.aclose()


async def test_guests_leave_places_for_the_parties(
    tmp_path: Path, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_MOST_CONNECTIONS", 20)
    async with hosts(tmp_path, certificates) as cluster:
        dealer = cluster.servers[Role.DEALER]
        assert isinstance(dealer, PartyServer)
        where, config = cluster.addresses[Role.DEALER], cluster.client
        guests = []
        for _ in range(6):
            guests.append(await config.transport(where, Role.CLIENT).connect(where))
        await until(lambda: dealer._connections == 20 - server._KEPT_FOR_PARTIES)
        with pytest.raises(TransportError):
            await guests[-1].receive()
        for guest in guests[:-1]:
            assert guest.peer_identity is not None
        party = await config.transport(where, Role.EVALUATOR_A).connect(where)
        await until(lambda: dealer._connections == 21 - server._KEPT_FOR_PARTIES)
        for channel in (*guests, party):
            await channel.aclose()
