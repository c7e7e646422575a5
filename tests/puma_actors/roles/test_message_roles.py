"""What each role refuses to be told."""

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from message_samples import ANNOUNCED, CONFIG, PLAN
from reference import leaves_nothing, save_model
from waiting import settled

from models.checkpoints.weights import open_checkpoint
from models.owner.calibrate import calibrate
from models.programs.families import load_parameters, parameters_of
from models.programs.plan import Plan
from models.programs.public import plan_digests
from protocols.base.shares import COMPUTING, Role
from protocols.errors import Busy, PeerFailed, RemoteProtocolError
from puma_actors.roles.actor import Actor, ActorOptions, connect_all
from puma_actors.roles.client import Client
from puma_actors.roles.messages import (
    AgreeMessage,
    CloseMessage,
    EndedMessage,
    EndMessage,
    InferMessage,
    JoinMessage,
    NextMessage,
    PlanMessage,
    ReadyMessage,
    SeedMessage,
    StepMessage,
    TensorMessage,
    UploadedMessage,
    parse,
)
from puma_actors.roles.owner import Owner
from puma_actors.roles.party import MOST_REFUSED, Party
from puma_actors.session.mailbox import Flow

Request = tuple[dict[str, Any], Sequence[bytes]]

Script = Callable[[Actor], Awaitable[None]]


async def ends_with(actor: Actor, scripts: dict[Role, Script]) -> BaseException | None:
    """What `actor` ends with when others run these scripts and then wait for the end."""
    others = [Actor(role, ActorOptions(flow=Flow(grace=0.05))) for role in scripts]
    actor.options = ActorOptions(flow=Flow(grace=0.05))
    await connect_all([actor, *others])
    found: list[BaseException | None] = []

    async def main() -> None:
        try:
            await actor.run()
            found.append(None)
        except Exception as error:
            found.append(error)

    async def play(other: Actor) -> None:
        try:
            async with other:
                await scripts[other.role](other)
                await other.scheduler.wait_alone()
        except PeerFailed:
            pass

    async with leaves_nothing(), anyio.create_task_group() as group:
        group.start_soon(main)
        for other in others:
            group.start_soon(play, other)
    return found[0]


def sends(to: Role, *requests: Request) -> Script:
    async def script(actor: Actor) -> None:
        for header, buffers in requests:
            await actor.scheduler.send_control(to, header, buffers)

    return script


def tell(message: Any, *buffers: bytes) -> Request:
    return message.header(), buffers


def agrees(to: Role, **changes: Any) -> Script:
    """Another party's message about what it serves."""

    async def script(actor: Actor) -> None:
        session = actor.scheduler.port(to).session.hex()
        honest = {"digest": PLAN.digest(), "upload": session, "tables": plan_digests(PLAN)}
        message = AgreeMessage.model_validate({**honest, **changes})
        await actor.scheduler.send_control(to, message.header())

    return script


async def silent(actor: Actor) -> None:
    return None


SEED = bytes(32)


def tensors(skip: int | None = None) -> list[Request]:
    """A whole upload of masked tensors, all zero."""
    sent = []
    for number, parameter in enumerate(parameters_of(CONFIG).values()):
        if number == skip:
            continue
        message = TensorMessage(number=number, start=0, rows=parameter.shape[0])
        sent.append(tell(message, bytes(8 * int(np.prod(parameter.shape)))))
    return sent


def upload(role: Role) -> list[Request]:
    seeds = {Role.DEALER: (1, 2), Role.EVALUATOR_A: (1,), Role.EVALUATOR_B: (2,)}[role]
    requests = [tell(ANNOUNCED), *(tell(SeedMessage(which=which), SEED) for which in seeds)]
    return [*requests, *([] if role.is_dealer else tensors()), tell(UploadedMessage())]


def changed(**changes: Any) -> Request:
    """A plan with other contents, correctly announced."""
    public = {**PLAN.to_public(), **changes}
    return {**ANNOUNCED.header(), "plan": public}, ()


TABLE = 8 * 5 * 4
FROM_OWNER: dict[str, tuple[Role, list[Request]]] = {
    "nonsense": (Role.EVALUATOR_A, [({"do": "nonsense"}, ())]),
    "empty": (Role.DEALER, [({}, ())]),
    "seed before a plan": (Role.EVALUATOR_A, [tell(SeedMessage(which=1), SEED)]),
    "uploaded before a plan": (Role.DEALER, [tell(UploadedMessage())]),
    "two plans": (Role.EVALUATOR_B, [tell(ANNOUNCED), tell(ANNOUNCED)]),
    "a second model": (Role.DEALER, [*upload(Role.DEALER), tell(ANNOUNCED)]),
    "another digest": (
        Role.EVALUATOR_A,
        [tell(PlanMessage(plan=PLAN.to_public(), digest=hashlib.sha256().hexdigest()))],
    ),
    "a plan of a list": (Role.EVALUATOR_A, [changed(norms=[])]),
    "a plan with a text": (Role.EVALUATOR_A, [changed(attention="many")]),
    "the other's seed": (Role.EVALUATOR_A, [tell(ANNOUNCED), tell(SeedMessage(which=2), SEED)]),
    "both seeds": (Role.EVALUATOR_B, [tell(ANNOUNCED), tell(SeedMessage(which=1), SEED)]),
    "a seed twice": (
        Role.DEALER,
        [tell(ANNOUNCED), *[tell(SeedMessage(which=1), SEED)] * 2],
    ),
    "a short seed": (Role.EVALUATOR_A, [tell(ANNOUNCED), tell(SeedMessage(which=1), SEED[1:])]),
    "no seed": (Role.EVALUATOR_A, [tell(ANNOUNCED), tell(SeedMessage(which=1))]),
    "a seed missing": (
        Role.EVALUATOR_A,
        [tell(ANNOUNCED), *tensors(), tell(UploadedMessage())],
    ),
    "one seed for the dealer": (
        Role.DEALER,
        [tell(ANNOUNCED), tell(SeedMessage(which=1), SEED), tell(UploadedMessage())],
    ),
    "weights for the dealer": (Role.DEALER, [tell(ANNOUNCED), tensors()[0]]),
    "an unknown tensor": (
        Role.EVALUATOR_A,
        [tell(ANNOUNCED), tell(TensorMessage(number=99, start=0, rows=1), bytes(8))],
    ),
    "a tensor twice": (Role.EVALUATOR_A, [tell(ANNOUNCED), *[tensors()[0]] * 2]),
    "too many rows": (
        Role.EVALUATOR_A,
        [tell(ANNOUNCED), tell(TensorMessage(number=0, start=0, rows=6), bytes(8 * 6 * 4))],
    ),
    "rows out of order": (
        Role.EVALUATOR_A,
        [tell(ANNOUNCED), tell(TensorMessage(number=0, start=2, rows=1), bytes(32))],
    ),
    "too few bytes": (
        Role.EVALUATOR_A,
        [tell(ANNOUNCED), tell(TensorMessage(number=0, start=0, rows=5), bytes(TABLE - 1))],
    ),
    "too many bytes": (
        Role.EVALUATOR_A,
        [tell(ANNOUNCED), tell(TensorMessage(number=0, start=0, rows=5), bytes(TABLE + 8))],
    ),
    "two buffers": (
        Role.EVALUATOR_A,
        [tell(ANNOUNCED), tell(TensorMessage(number=0, start=0, rows=5), bytes(TABLE), b"")],
    ),
    "a tensor missing": (
        Role.EVALUATOR_B,
        [
            tell(ANNOUNCED),
            tell(SeedMessage(which=2), SEED),
            *tensors(skip=2),
            tell(UploadedMessage()),
        ],
    ),
    "half a tensor": (
        Role.EVALUATOR_B,
        [
            tell(ANNOUNCED),
            tell(SeedMessage(which=2), SEED),
            *tensors(skip=0),
            tell(TensorMessage(number=0, start=0, rows=3), bytes(96)),
            tell(UploadedMessage()),
        ],
    ),
    "a client's request": (Role.DEALER, [tell(ANNOUNCED), tell(EndMessage(number=0))]),
    "close": (Role.DEALER, [tell(ANNOUNCED), tell(CloseMessage())]),
}


@pytest.mark.parametrize("name", FROM_OWNER)
async def test_a_party_refuses_an_owner(name):
    role, requests = FROM_OWNER[name]
    party = Party(role)
    others = {other: silent for other in (Role.CLIENT, *COMPUTING) if other is not role}
    error = await ends_with(party, {Role.OWNER: sends(role, *requests), **others})
    assert isinstance(error, RemoteProtocolError)
    assert "\n" not in str(error)
    assert ("plan is unusable" in str(error)) == name.startswith("a plan")


INFER = InferMessage(number=5, lengths=[2], steps=3)
DRAFT = tell(InferMessage(number=5, lengths=[2], steps=9, draft=3))
NEXT = NextMessage(number=6, accepted=0, proposed=1).header()
FROM_CLIENT: dict[str, list[Request]] = {
    "malformed": [({"do": "infer"}, ())],
    "an owner's request": [tell(UploadedMessage())],
    "a party's report": [tell(EndedMessage(number=0))],
    "a plan": [tell(ANNOUNCED)],
    "end of nothing": [tell(EndMessage(number=0))],
    "too long": [tell(InferMessage(number=0, lengths=[16], steps=2))],
    "one of a batch too long": [tell(InferMessage(number=0, lengths=[2, 17], steps=1))],
    "a batch that goes on": [tell(InferMessage(number=0, lengths=[2, 3], steps=2))],
    "types that the model lacks": [
        tell(InferMessage(number=0, lengths=[2], steps=1, types=[0, 1]))
    ],
    "fewer types than tokens": [tell(InferMessage(number=0, lengths=[2], steps=1, types=[0]))],
    "rows that the head lacks": [tell(InferMessage(number=0, lengths=[2], steps=1, rows="mean"))],
    "far too long": [tell(InferMessage(number=0, lengths=[1 << 20], steps=1 << 20))],
    "the same number": [tell(INFER), tell(INFER)],
    "a number within": [tell(INFER), tell(InferMessage(number=7, lengths=[1], steps=1))],
    "an earlier number": [tell(INFER), tell(InferMessage(number=4, lengths=[1], steps=1))],
    "the end of another": [tell(INFER), tell(EndMessage(number=6))],
    "a step of nothing": [tell(NextMessage(number=1, accepted=0, proposed=0))],
    "a step of a request without a draft": [
        tell(INFER),
        tell(NextMessage(number=6, accepted=0, proposed=0)),
    ],
    "a step too early": [DRAFT, tell(NextMessage(number=7, accepted=0, proposed=1))],
    "the first step": [DRAFT, tell(NextMessage(number=5, accepted=0, proposed=1))],
    "a step beyond the last": [DRAFT, tell(NextMessage(number=14, accepted=0, proposed=1))],
    "more accepted than proposed": [DRAFT, tell(NextMessage(number=6, accepted=1, proposed=1))],
    "fewer than none accepted": [DRAFT, ({**NEXT, "accepted": -1}, ())],
    "fewer than none proposed": [DRAFT, ({**NEXT, "proposed": -1}, ())],
    "more proposed than asked for": [DRAFT, tell(NextMessage(number=6, accepted=0, proposed=4))],
    "far too many proposed": [DRAFT, ({**NEXT, "proposed": 65}, ())],
    "a draft of too many tokens": [({**INFER.header(), "draft": 65}, ())],
    "a step after the end": [
        DRAFT,
        tell(EndMessage(number=5)),
        tell(NextMessage(number=6, accepted=0, proposed=1)),
    ],
    "the same number again, after its end": [tell(INFER), tell(EndMessage(number=5)), tell(INFER)],
}


@pytest.mark.parametrize("name", FROM_CLIENT)
@pytest.mark.parametrize("role", COMPUTING)
async def test_a_party_refuses_a_client(name, role):
    told: list[Any] = []

    async def client(actor: Actor) -> None:
        told.append(parse((await actor.scheduler.control())[1]))
        await sends(role, *FROM_CLIENT[name])(actor)

    party = Party(role)
    others = {other: agrees(role) for other in COMPUTING if other is not role}
    scripts = {Role.OWNER: sends(role, *upload(role)), Role.CLIENT: client, **others}
    error = await ends_with(party, scripts)
    assert isinstance(error, RemoteProtocolError)
    assert told == [ReadyMessage(digest=PLAN.digest())]


class NoRoom:
    """Refuses every request."""

    def check(self, request: InferMessage) -> None:
        assert request.steps == 1

    def admit(self, request: InferMessage, plan: Plan) -> None:
        raise Busy("no room")

    def release(self, number: int) -> None:
        pytest.fail("nothing was admitted")


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("role", COMPUTING)
async def test_a_client_must_end_what_was_refused(role, ends):
    """A refused request counts against no limit, and waits for its end."""

    async def client(actor: Actor) -> None:
        await actor.scheduler.control()
        for number in range(MOST_REFUSED + 1):
            requests = [tell(InferMessage(number=number, lengths=[1], steps=1))]
            requests += [tell(EndMessage(number=number))] * ends
            await sends(role, *requests)(actor)
            while ends and not isinstance(
                parse((await actor.scheduler.control())[1]), EndedMessage
            ):
                pass
        await sends(role, ({"do": "infer"}, ()))(actor)

    others = {other: agrees(role) for other in COMPUTING if other is not role}
    scripts = {Role.OWNER: sends(role, *upload(role)), Role.CLIENT: client, **others}
    error = await ends_with(Party(role, admission=NoRoom()), scripts)
    assert isinstance(error, RemoteProtocolError)
    told = f"has not ended {MOST_REFUSED} requests that were refused" in str(error)
    assert told is not ends


DISAGREEING: dict[str, tuple[dict[str, Any], str]] = {
    "tables": ({"tables": {}}, "'s public tables differ from this side's: biases, caps, factors,"),
    "one table": (
        {"tables": {**plan_digests(PLAN), "powers": "0" * 16}},
        "'s public tables differ from this side's: powers: install the same versions",
    ),
    "plan": ({"digest": "0" * 64}, "hold different uploads of the model"),
    "session": ({"upload": "0" * 32}, "hold different uploads of the model"),
    "max_batch": ({"max_batch": 2}, "has limits.max_batch = 2 and"),
}


@pytest.mark.parametrize("name", DISAGREEING)
@pytest.mark.parametrize("role", COMPUTING)
async def test_a_party_refuses_one_that_holds_other_numbers(name, role):
    """In any order, and before the client is told that a party is ready."""
    changes, reason = DISAGREEING[name]
    told: list[Any] = []

    async def client(actor: Actor) -> None:
        told.append((await actor.scheduler.control())[1])

    one, two = (other for other in COMPUTING if other is not role)
    scripts = {Role.OWNER: sends(role, *upload(role)), Role.CLIENT: client}
    scripts |= {one: agrees(role), two: agrees(role, **changes)}
    error = await ends_with(Party(role), scripts)
    assert isinstance(error, RemoteProtocolError)
    assert reason in str(error)
    assert str(two) in str(error)
    assert told == []


@pytest.mark.parametrize("sender", COMPUTING)
async def test_a_party_refuses_to_join_where_requests_step_alone(sender):
    """Or when another party than evaluator A invites."""
    role = Role.EVALUATOR_B if sender is Role.EVALUATOR_A else Role.EVALUATOR_A
    error = await ends_with(
        Party(role), {sender: sends(role, tell(JoinMessage(session="00" * 16)))}
    )
    assert isinstance(error, RemoteProtocolError)
    invites = sender is Role.EVALUATOR_A
    assert ("joint session that cannot be" if invites else "may not send a 'join'") in str(error)


async def test_a_party_refuses_an_inference_before_the_others_agree():
    async def client(actor: Actor) -> None:
        while party._mine is None:  # its own upload is complete
            await anyio.lowlevel.checkpoint()
        await sends(party.role, tell(INFER))(actor)

    party = Party(Role.EVALUATOR_A)
    scripts = {Role.OWNER: sends(party.role, *upload(party.role)), Role.CLIENT: client}
    error = await ends_with(party, {**scripts, Role.DEALER: silent, Role.EVALUATOR_B: silent})
    assert isinstance(error, RemoteProtocolError)
    assert "before the parties agreed on the model" in str(error)


async def test_a_party_refuses_an_inference_before_the_model():
    party = Party(Role.EVALUATOR_A)
    error = await ends_with(party, {Role.CLIENT: sends(party.role, tell(INFER))})
    assert isinstance(error, RemoteProtocolError)
    assert "before the model came" in str(error)


@pytest.mark.parametrize("sender", [Role.EVALUATOR_B, Role.DEALER])
async def test_a_party_takes_no_requests_from_a_party(sender):
    party = Party(Role.EVALUATOR_A)
    for message in (ANNOUNCED, CloseMessage(), INFER):
        error = await ends_with(Party(party.role), {sender: sends(party.role, tell(message))})
        assert isinstance(error, RemoteProtocolError)
        assert f"{sender} may not send a '{message.do}' request" in str(error)


READY = ReadyMessage(digest=PLAN.digest())
OTHER = ReadyMessage(digest="0" * 64)
REPORT = StepMessage(
    number=0, rounds=0, online_bytes=0, offline_bytes=0, prepared=False, joint=True
)


@pytest.mark.parametrize(
    ("sender", "requests"),
    [
        (Role.OWNER, [tell(ANNOUNCED), tell(ANNOUNCED)]),
        (Role.OWNER, [changed(config={})]),
        (Role.OWNER, [tell(READY)]),
        (Role.OWNER, [tell(CloseMessage())]),
        (Role.DEALER, [tell(ANNOUNCED)]),
        (Role.DEALER, [tell(EndedMessage(number=0))]),
        (Role.DEALER, [tell(REPORT)]),
        (Role.EVALUATOR_A, [tell(INFER)]),
        (Role.EVALUATOR_A, [({"do": "step", "number": -1}, ())]),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_a_client_refuses(sender, requests):
    class Listening(Client):
        async def main(self) -> None:
            await self.listen()

    error = await ends_with(Listening(), {sender: sends(Role.CLIENT, *requests)})
    assert isinstance(error, RemoteProtocolError)


async def test_a_client_refuses_parties_with_another_model():
    class Listening(Client):
        async def main(self) -> None:
            await self.listen()

    for early in (False, True):  # before or after the owner's announcement

        async def party(actor: Actor, early: bool = early) -> None:
            if not early:
                await actor.scheduler.control()
            await actor.scheduler.send_control(Role.CLIENT, OTHER.header())

        async def owner(actor: Actor, early: bool = early) -> None:
            if early:  # the client has taken the party's word, and waits
                await settled()
            await actor.scheduler.send_control(Role.CLIENT, ANNOUNCED.header())
            await actor.scheduler.send_control(Role.DEALER, {})

        error = await ends_with(Listening(), {Role.DEALER: party, Role.OWNER: owner})
        assert isinstance(error, RemoteProtocolError)
        assert "another model" in str(error)


@pytest.mark.parametrize("answer", [OTHER, CloseMessage(), UploadedMessage()])
async def test_an_owner_refuses_a_party_that_did_not_accept(tmp_path, answer):
    async def party(actor: Actor) -> None:
        while (await actor.scheduler.control())[1]["do"] != "uploaded":
            pass
        await actor.scheduler.send_control(Role.OWNER, answer.header())

    save_model(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        owner = Owner(checkpoint)
        scripts = {Role.CLIENT: silent, **dict.fromkeys(COMPUTING, party)}
        error = await ends_with(owner, scripts)
    assert isinstance(error, RemoteProtocolError)
    assert "did not accept the model" in str(error)


def test_a_plan_survives_the_wire(tmp_path):
    with open_checkpoint(save_model(tmp_path)) as checkpoint:
        plan = calibrate(checkpoint.config, dict(load_parameters(checkpoint)))
    public = parse(PlanMessage(plan=plan.to_public(), digest=plan.digest()).header()).plan
    assert Plan.from_public(public) == plan
    assert Plan.from_public(public).digest() == plan.digest()
