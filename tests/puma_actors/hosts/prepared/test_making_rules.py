"""Parties and callers that break the rules of a session that prepares units."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from actors import run_all, scripted
from message_samples import PLAN
from units import SHAPE, UNIT, fresh_keys, label_of

from protocols.base.shares import Role
from protocols.errors import RemoteProtocolError, StoreError
from puma_actors.hosts.prepared.incoming import Incoming
from puma_actors.hosts.prepared.making import Maker
from puma_actors.hosts.prepared.messages import (
    BeginMessage,
    HeldMessage,
    IndexMessage,
    MadeMessage,
    MakeMessage,
    ReadyMessage,
    WholeMessage,
    WordsMessage,
    parse,
)
from puma_actors.prepare.file import UnitWriter, entry_of, pack_index
from puma_actors.prepare.shelf import Shelf
from puma_actors.prepare.unit import origin_of
from puma_actors.roles.actor import Actor, ActorOptions, connect_all
from puma_actors.roles.serving.accepted import AdmitAll
from puma_actors.roles.upload import Model

A, B, D, OWNER = Role.EVALUATOR_A, Role.EVALUATOR_B, Role.DEALER, Role.OWNER
UPLOAD = "a" * 32
MAKE = MakeMessage(shape=SHAPE, count=1)
BEGIN = BeginMessage(number=0, unit=UNIT, origin=origin_of(UPLOAD, PLAN), shape=SHAPE)
NONE_HELD = HeldMessage(units=[])
WORDS = WordsMessage(number=0, step=0)


def sends(*messages: Any) -> Callable[[Actor], Awaitable[None]]:
    """A script: these requests to evaluator B; then wait for the end."""

    async def script(actor: Actor) -> None:
        for message in messages:
            words = [b"word"] if message.do in ("words", "index") else []
            await actor.scheduler.send_control(B, message.header(), words)
        await actor.scheduler.wait_alone()

    return script


async def evaluator_ends_with(
    folder: Path, **scripts: tuple[Any, ...]
) -> tuple[BaseException | None, list[Path]]:
    """The error of evaluator B, when the others send what they are given; and what it left."""
    model = Model(PLAN, {}, UPLOAD)
    shelf = Shelf(folder / "units", B, 1 << 30)
    maker = Maker(B, ActorOptions(), OWNER, model, shelf, AdmitAll(), idle=600.0)
    others = scripted({role: sends(*scripts.get(role.name.lower(), ())) for role in (A, D, OWNER)})
    await connect_all([maker, *others])
    errors = await run_all([maker, *others])  # type: ignore[list-item]
    left = list((folder / "units").iterdir()) if (folder / "units").exists() else []
    return errors[B], left


@pytest.mark.parametrize(
    ("scripts", "says"),
    [
        ({"owner": (BEGIN,)}, "owner may not send a 'begin' request now"),
        ({"owner": (MAKE, MAKE)}, "owner may not send a 'make' request now"),
        ({"evaluator_a": (MAKE,)}, "evaluator-a may not send a 'make' request now"),
        ({"dealer": (BEGIN,)}, "dealer may not begin unit 0"),
        ({"evaluator_a": (BEGIN, BEGIN)}, "evaluator-a may not begin unit 0"),
        ({"dealer": (NONE_HELD, NONE_HELD)}, "dealer may not send a 'held' request now"),
        ({"dealer": (ReadyMessage(number=2),)}, "dealer may not send a 'ready' request now"),
        ({"dealer": (MadeMessage(number=0, nbytes=1),)}, "may not send a 'made' request now"),
        ({"dealer": (WORDS,)}, "dealer sent words of a unit that has not begun"),
    ],
)
async def test_requests_out_of_turn(
    tmp_path: Path, scripts: dict[str, tuple[Any, ...]], says: str
) -> None:
    error, left = await evaluator_ends_with(tmp_path, **scripts)
    assert isinstance(error, RemoteProtocolError)
    assert says in str(error)
    assert left == []


async def test_an_evaluator_that_means_another_model(tmp_path: Path) -> None:
    other = BEGIN.model_copy(update={"origin": origin_of("b" * 32, PLAN)})
    error, left = await evaluator_ends_with(
        tmp_path, owner=(MAKE,), evaluator_a=(NONE_HELD, other), dealer=(NONE_HELD,)
    )
    assert "asked for units of different models or shapes" in str(error)
    assert left == []


def incoming_of(role: Role, folder: Path, most: int = 1000) -> tuple[Incoming, UnitWriter]:
    writer = UnitWriter(folder, label_of(role=role), fresh_keys(), 10_000)
    return Incoming(role, writer, SHAPE.steps, most), writer


def buffer(data: bytes) -> list[memoryview]:
    return [memoryview(data)]


def test_words_come_step_by_step_and_complete(tmp_path: Path) -> None:
    incoming, writer = incoming_of(A, tmp_path)
    index = pack_index([entry_of((1, 1), b"word")])
    for step in range(SHAPE.steps):
        for sender in (D, B):
            assert not incoming.complete
            incoming.words(sender, step, buffer(b"wo"))
            incoming.words(sender, step, buffer(b"rd"))
            incoming.index(sender, step, buffer(index[:3]), False)
            incoming.index(sender, step, buffer(index[3:]), True)
    assert incoming.complete
    incoming.finish()
    writer.publish()


@pytest.mark.parametrize("sender", [D, B])
def test_words_that_are_out_of_turn_or_too_many(tmp_path: Path, sender: Role) -> None:
    incoming, writer = incoming_of(A, tmp_path)
    with pytest.raises(RemoteProtocolError, match=f"{sender} sent words of step 1 of a unit out"):
        incoming.words(sender, 1, buffer(b"word"))
    with pytest.raises(RemoteProtocolError, match="out of turn"):
        incoming.words(sender, 0, [])
    incoming.index(sender, 0, buffer(b"in"), False)
    with pytest.raises(RemoteProtocolError, match="after their index"):
        incoming.words(sender, 0, buffer(b"word"))
    with pytest.raises(RemoteProtocolError, match="more than 1000 bytes besides"):
        incoming.index(sender, 0, buffer(bytes(1000)), False)
    writer.drop()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    incoming, writer = incoming_of(A, tmp_path)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.write", full)
        with pytest.raises(StoreError, match=f"unit {UNIT} cannot be written .No space left"):
            incoming.words(D, 0, buffer(b"word"))
    writer.drop()


def test_every_kind_of_request_has_a_form() -> None:
    index = IndexMessage(number=0, step=0, last=True)
    for message in (MAKE, NONE_HELD, BEGIN, WORDS, index, WholeMessage(number=0)):
        assert parse(message.header()) == message
        with pytest.raises(RemoteProtocolError, match="malformed request"):
            parse({**message.header(), "extra": 1})
