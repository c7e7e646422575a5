"""The handshake: agreement, and everything it must refuse."""

import asyncio
from collections.abc import Callable
from contextvars import ContextVar

import anyio
import pytest
from waiting import HANG

from protocols.base.prf import KeyRing
from protocols.base.shares import Role
from protocols.drivers.public import table_digests
from protocols.errors import LocalProtocolError, RemoteProtocolError, TransportError
from puma_actors.session import handshake as session
from puma_actors.session.handshake import Identity, Peer, handshake
from puma_actors.transports import Channel
from puma_actors.transports.frames import Frame, Kind
from puma_actors.transports.memory import memory_pair

SESSION = bytes(range(16))
DEALER = Identity(Role.DEALER, "dora", SESSION)
EVALUATOR = Identity(Role.EVALUATOR_A, "anna", SESSION)


async def shake(one: Identity = DEALER, two: Identity = EVALUATOR) -> tuple[Peer, Peer]:
    left, right = memory_pair()
    found: dict[str, Peer] = {}

    async def side(key: str, channel: Channel, me: Identity, other: Identity) -> None:
        found[key] = await handshake(channel, me, {other.role})

    async with anyio.create_task_group() as group:
        group.start_soon(side, "one", left, one, two)
        group.start_soon(side, "two", right, two, one)
    return found["one"], found["two"]


async def against(
    answers: Callable[[Channel], "asyncio.Future[None]"] | object, **kwargs: object
) -> BaseException:
    """Run the dealer's handshake against a scripted other side; return what it raises."""
    left, right = memory_pair()
    caught: list[BaseException] = []

    async def dealer() -> None:
        try:
            await handshake(left, DEALER, {Role.EVALUATOR_A}, **kwargs)  # type: ignore[arg-type]
        except (RemoteProtocolError, TransportError) as error:
            caught.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(dealer)
        await answers(right)  # type: ignore[operator]
    with pytest.raises(TransportError):
        left.try_send(Frame(Kind.DATA))
    return caught[0]


async def genuine_hello() -> Frame:
    """What evaluator A once said, as an eavesdropper would have it."""
    left, right = memory_pair()
    async with anyio.create_task_group() as group:
        group.start_soon(handshake, left, EVALUATOR, {Role.DEALER})
        hello = await right.receive()
        group.cancel_scope.cancel()
    return hello


async def test_both_sides_agree_and_each_session_is_fresh() -> None:
    one, two = await shake()
    assert one.role is Role.EVALUATOR_A
    assert one.name == "anna"
    assert two.role is Role.DEALER
    assert one.secret == two.secret
    assert len(one.secret) == 32
    again, _ = await shake()
    assert again.secret != one.secret


async def test_secrets_serve_a_key_ring_and_stay_out_of_repr() -> None:
    one, two = await shake()
    rings = KeyRing(Role.DEALER, {one.role: one.secret}), KeyRing(two.role, {two.role: two.secret})
    mine = rings[0].stream(Role.EVALUATOR_A, (1, 2)).words((4,))
    theirs = rings[1].stream(Role.DEALER, (1, 2)).words((4,))
    assert mine.tolist() == theirs.tolist()
    assert "secret" not in repr(one)
    assert one.secret.hex() not in repr(one)
    assert str(one.secret) not in repr(one)


async def test_replayed_hello_fails_the_confirmation() -> None:
    replay = await genuine_hello()

    async def script(channel: Channel) -> None:
        await channel.receive()
        await channel.send(replay)
        await channel.receive()
        await channel.send(Frame(Kind.CONFIRM, SESSION, (), {}, [bytes(32)]))

    error = await against(script)
    assert isinstance(error, RemoteProtocolError)
    assert "could not prove" in str(error)


async def test_reflected_confirmation_fails() -> None:
    replay = await genuine_hello()

    async def script(channel: Channel) -> None:
        await channel.receive()
        await channel.send(replay)
        await channel.send(await channel.receive())

    assert "could not prove" in str(await against(script))


@pytest.mark.parametrize("field", ["name", "nonce", "key"])
async def test_changed_hello_fails_on_both_sides(field: str) -> None:
    (one, left), (right, two) = memory_pair(), memory_pair()
    caught: list[str] = []

    async def side(channel: Channel, me: Identity, other: Role) -> None:
        try:
            await handshake(channel, me, {other}, timeout=HANG)
        except (RemoteProtocolError, TransportError) as error:
            caught.append(str(error))

    def change(frame: Frame) -> Frame:
        if field == "name":
            frame.header["name"] = "mallory"
        elif field == "nonce":
            frame.header["nonce"] = bytes(32)
        else:
            frame.buffers = [bytes([9]) + bytes(31)]
        return frame

    async with anyio.create_task_group() as group:
        group.start_soon(side, one, DEALER, Role.EVALUATOR_A)
        group.start_soon(side, two, EVALUATOR, Role.DEALER)
        await right.send(change(await left.receive()))
        await left.send(await right.receive())
        for source, target in ((left, right), (right, left)):
            await target.send(await source.receive())
    assert len(caught) == 2
    assert all("could not prove" in text or "closed" in text for text in caught)
    assert any("could not prove" in text for text in caught)


async def test_a_lie_about_the_program_fails_the_confirmation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A man in the middle makes two different builds believe that they are equal."""
    build: ContextVar[str] = ContextVar("build")
    monkeypatch.setattr(session, "program_digest", build.get)
    (one, left), (right, two) = memory_pair(), memory_pair()
    caught: list[str] = []

    async def side(channel: Channel, me: Identity, other: Role, own: str) -> None:
        build.set(own)
        try:
            await handshake(channel, me, {other}, timeout=HANG)
        except (RemoteProtocolError, TransportError) as error:
            caught.append(str(error))

    async with anyio.create_task_group() as group:
        group.start_soon(side, one, DEALER, Role.EVALUATOR_A, "1" * 16)
        group.start_soon(side, two, EVALUATOR, Role.DEALER, "2" * 16)
        await right.send(altered(await left.receive(), build="2" * 16))
        await left.send(altered(await right.receive(), build="1" * 16))
        for source, target in ((left, right), (right, left)):
            await target.send(await source.receive())
    assert len(caught) == 2
    assert any("could not prove" in text for text in caught)


@pytest.mark.parametrize("other", [Role.EVALUATOR_A, Role.EVALUATOR_B])
async def test_parties_with_other_tables_refuse_each_other(
    other: Role, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: ContextVar[dict[str, str]] = ContextVar("held")
    monkeypatch.setattr(session, "table_digests", held.get)
    left, right = memory_pair()
    me = Identity(other, "anna", SESSION)
    caught: dict[Role, str] = {}

    async def side(channel: Channel, own: Identity, peer: Role, waves: str) -> None:
        held.set({"exp": "1" * 16, "waves": waves})
        with pytest.raises(RemoteProtocolError) as refused:
            await handshake(channel, own, {peer}, timeout=HANG)
        caught[own.role] = str(refused.value)

    async with anyio.create_task_group() as group:
        group.start_soon(side, left, DEALER, other, "2" * 16)
        group.start_soon(side, right, me, Role.DEALER, "3" * 16)
    for role, peer in ((Role.DEALER, other), (other, Role.DEALER)):
        assert f"{peer}'s public tables differ from this side's: waves: " in caught[role]


async def test_a_lie_about_the_tables_fails_the_confirmation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A man in the middle makes two parties believe that their tables are equal."""
    held: ContextVar[dict[str, str]] = ContextVar("held")
    monkeypatch.setattr(session, "table_digests", held.get)
    (one, left), (right, two) = memory_pair(), memory_pair()
    caught: list[str] = []

    async def side(channel: Channel, me: Identity, other: Role, waves: str) -> None:
        held.set({"waves": waves})
        try:
            await handshake(channel, me, {other}, timeout=HANG)
        except (RemoteProtocolError, TransportError) as error:
            caught.append(str(error))

    async with anyio.create_task_group() as group:
        group.start_soon(side, one, DEALER, Role.EVALUATOR_A, "1" * 16)
        group.start_soon(side, two, EVALUATOR, Role.DEALER, "2" * 16)
        await right.send(altered(await left.receive(), tables={"waves": "2" * 16}))
        await left.send(altered(await right.receive(), tables={"waves": "1" * 16}))
        for source, target in ((left, right), (right, left)):
            await target.send(await source.receive())
    assert len(caught) == 2
    assert any("could not prove" in text for text in caught)


async def test_a_client_has_no_tables_and_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no tables, so its processor does not matter."""
    asked: list[None] = []

    def digests() -> dict[str, str]:
        asked.append(None)
        return {"waves": "1" * 16}

    monkeypatch.setattr(session, "table_digests", digests)
    client = Identity(Role.CLIENT, "carl", SESSION)
    one, two = await shake(DEALER, client)
    assert one.secret == two.secret
    assert len(asked) == 1


async def test_reasons_come_without_escape_sequences() -> None:
    text = "no\x1b[31m\r\nINFO forged line\u202e"
    refusal = Frame(Kind.ERROR, SESSION, (), {"text": text})
    told = str(await against(lambda channel: channel.send(refusal)))
    assert told.endswith("no?[31m??INFO forged line?")
    assert told.isprintable()


def altered(frame: Frame, **header: object) -> Frame:
    return Frame(frame.kind, frame.session, (), {**frame.header, **header}, frame.buffers)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"version": 7}, "version 7, this side's 2"),
        ({"build": "0" * 16}, "runs a different program"),
        ({"tables": None}, "public tables must be names with digests"),
        (
            {"tables": {}},
            "evaluator-a's public tables differ from this side's: buckets, cosines, exp,",
        ),
        ({"tables": {**table_digests(), "exp": 0}}, "tables differ from this side's: exp: install"),
        ({"role": "dealer"}, "own role, dealer"),
        ({"role": "client"}, "client connected where evaluator-a was expected"),
        ({"role": "emperor"}, "role is unknown"),
        ({"role": 3}, "role is unknown"),
        ({"name": "x" * 65}, "name must be text"),
        ({"name": None}, "name must be text"),
        ({"nonce": b"short"}, "nonce must be 32 bytes"),
        ({"nonce": None}, "nonce must be 32 bytes"),
    ],
)
async def test_wrong_hello_is_refused(change: dict[str, object], text: str) -> None:
    hello = await genuine_hello()
    error = await against(lambda channel: channel.send(altered(hello, **change)))
    assert isinstance(error, RemoteProtocolError)
    assert text in str(error)


async def test_reflected_hello_is_refused() -> None:
    async def script(channel: Channel) -> None:
        await channel.send(await channel.receive())

    assert "own role" in str(await against(script))


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31)])
async def test_public_key_of_low_order_is_refused(point: bytes) -> None:
    hello = await genuine_hello()
    hello.buffers = [point]
    error = await against(lambda channel: channel.send(hello))
    assert isinstance(error, RemoteProtocolError)
    assert "low order" in str(error)


async def test_other_session_and_other_frames_are_refused() -> None:
    hello = await genuine_hello()
    hello.session = bytes(16)
    assert "start both with one session id" in str(await against(lambda c: c.send(hello)))
    wrong = Frame(Kind.CONTROL, SESSION)
    assert "CONTROL during the handshake" in str(await against(lambda c: c.send(wrong)))
    empty = Frame(Kind.HELLO, SESSION)
    assert "one buffer of 32 bytes" in str(await against(lambda c: c.send(empty)))


async def test_silence_times_out() -> None:
    async def silent(channel: Channel) -> None:
        await channel.receive()

    error = await against(silent, timeout=0.05)
    assert isinstance(error, TransportError)
    assert "no handshake" in str(error)


async def test_hang_up_is_a_transport_error() -> None:
    error = await against(lambda channel: channel.aclose())
    assert isinstance(error, TransportError)


def test_identity_is_checked() -> None:
    with pytest.raises(LocalProtocolError, match="5 bytes"):
        Identity(Role.DEALER, "dora", b"short")
    with pytest.raises(LocalProtocolError, match="64 characters"):
        Identity(Role.DEALER, "x" * 65, SESSION)
