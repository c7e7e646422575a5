"""Parties and owners with other parts than the usual ones."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio
import pytest
from message_samples import PLAN
from reference import leaves_nothing, save_model

from models.checkpoints.weights import open_checkpoint
from models.programs.plan import Plan
from models.programs.public import plan_digests
from protocols.base.shares import COMPUTING, Role
from puma_actors.roles.actor import Actor, connect_all
from puma_actors.roles.messages import (
    AgreeMessage,
    CloseMessage,
    EndedMessage,
    EndMessage,
    InferMessage,
    ReadyMessage,
    parse,
)
from puma_actors.roles.owner import Owner
from puma_actors.roles.party import Party
from puma_actors.roles.sending import Sending
from puma_actors.roles.upload import Model

UPLOAD = "ab" * 16
Script = Callable[[Actor], Awaitable[None]]


async def run_with(actor: Actor, scripts: dict[Role, Script]) -> None:
    """Run an actor until its end, among others that leave when their scripts have ended."""
    others = [Actor(role) for role in scripts]
    await connect_all([actor, *others])

    async def play(other: Actor) -> None:
        async with other:
            await scripts[other.role](other)

    async with leaves_nothing(), anyio.create_task_group() as group:
        group.start_soon(actor.run)
        for other in others:
            group.start_soon(play, other)


class Noting:
    """An admission that takes everything and notes it."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, int]] = []

    def check(self, request: InferMessage) -> None:
        self.notes.append(("check", request.number))

    def admit(self, request: InferMessage, plan: Plan) -> None:
        assert plan == PLAN
        self.notes.append(("admit", request.number))

    def release(self, number: int) -> None:
        self.notes.append(("release", number))


@pytest.mark.parametrize("role", COMPUTING)
async def test_a_party_with_a_model_needs_no_owner(role: Role) -> None:
    """It agrees with the others on the upload; a request is let go before its end is told."""
    admission = Noting()
    party = Party(role, model=Model(PLAN, {"norm": None}, UPLOAD), admission=admission)

    async def other(actor: Actor) -> None:
        told = parse((await actor.scheduler.control())[1])
        assert told == AgreeMessage(digest=PLAN.digest(), upload=UPLOAD, tables=plan_digests(PLAN))
        await actor.scheduler.send_control(role, told.header())
        await actor.scheduler.wait_left(role)

    async def client(actor: Actor) -> None:
        assert parse((await actor.scheduler.control())[1]) == ReadyMessage(digest=PLAN.digest())
        for message in (InferMessage(number=2, lengths=[1], steps=1), EndMessage(number=2)):
            await actor.scheduler.send_control(role, message.header())
        while not isinstance(parse((await actor.scheduler.control())[1]), EndedMessage):
            pass
        assert admission.notes == [("check", 2), ("admit", 2), ("release", 2)]
        assert party.activity >= 2
        assert not party.busy
        await actor.scheduler.send_control(role, CloseMessage().header())

    others = {each: other for each in COMPUTING if each is not role}
    await run_with(party, {Role.CLIENT: client, **others})


class Nothing:
    """A delivery that sends nothing, but sees what it could send."""

    sending: Sending | None = None
    watching: object = None

    def watched(self, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        self.watching = parameters
        return parameters

    async def deliver(self, sending: Sending) -> None:
        self.sending = sending


async def test_an_owner_does_what_its_delivery_says(tmp_path) -> None:
    delivery = Nothing()

    async def party(actor: Actor) -> None:
        await owner.delivered.wait()

    with open_checkpoint(save_model(tmp_path)) as checkpoint:
        owner = Owner(checkpoint, delivery=delivery)
        await run_with(owner, dict.fromkeys(COMPUTING, party))
    assert delivery.sending is not None
    assert delivery.sending.plan.config == checkpoint.config
    assert delivery.watching
    assert owner.seconds.keys() == {"load", "calibrate", "share"}
