"""What a party in a joint session refuses, and who may say what."""

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from actors import Scripted, scripted
from message_samples import PLAN
from waiting import in_time

from protocols.base.lane import Settings
from protocols.base.shares import COMPUTING, Role
from protocols.errors import PeerFailed, PumaError, RemoteProtocolError
from puma_actors.hosts.together.joint import Joint
from puma_actors.hosts.together.seats import Seat
from puma_actors.roles.actor import Actor, ActorOptions, connect_all
from puma_actors.roles.upload import Model

SESSION = bytes(range(16))
MODEL = Model(PLAN, {}, "00" * 16)
MEMBER = {"session": SESSION.hex(), "number": 1, "context": 3}
HONEST = {"do": "joint", "number": 0, "members": [MEMBER]}


def sends(to: Role, *headers: dict[str, Any]) -> Callable[[Actor], Any]:
    async def script(actor: Actor) -> None:
        for header in headers:
            await actor.scheduler.send_control(to, header)
        await actor.scheduler.wait_alone()

    return script


async def stays(actor: Actor) -> None:
    await actor.scheduler.wait_alone()


async def ends_with(
    *headers: dict[str, Any],
    sender: Role = Role.EVALUATOR_A,
    seat: Seat | None = None,
    other_joint: bool = False,
    at: Role = Role.EVALUATOR_B,
) -> BaseException:
    """The error with which a party's joint session ends when it is told this."""
    joint = Joint(at, ActorOptions(), MODEL, 2, lambda session: seat)
    if seat is not None:
        host = Joint(at, ActorOptions(), MODEL, 2, lambda session: seat)
        (host if other_joint else joint).seat(seat, lambda number: False)
    others: list[Scripted] = scripted(
        {
            role: sends(joint.role, *headers) if role is sender else stays
            for role in COMPUTING
            if role is not joint.role
        }
    )
    await connect_all([joint, *others])
    found: list[BaseException] = []

    async def run(actor: Actor) -> None:
        try:
            await actor.run()
        except PumaError as error:
            if actor is joint:
                found.append(error)

    with in_time():
        async with anyio.create_task_group() as group:
            for actor in (joint, *others):
                group.start_soon(run, actor)
    return found[0]


@pytest.mark.parametrize(
    ("header", "sender", "reason"),
    [
        (HONEST, Role.DEALER, "dealer announced a joint step"),
        ({**HONEST, "do": "step"}, Role.EVALUATOR_A, "malformed joint step, do"),
        (
            {**HONEST, "members": [{**MEMBER, "number": n} for n in range(3)]},
            Role.EVALUATOR_A,
            "a joint step of 3 requests, the limit is 2",
        ),
        (
            {**HONEST, "members": [{**MEMBER, "context": 16}]},
            Role.EVALUATOR_A,
            "a joint step after 16 of 16 positions",
        ),
    ],
)
async def test_what_is_refused(header: dict[str, Any], sender: Role, reason: str) -> None:
    error = await ends_with(header, sender=sender)
    assert isinstance(error, RemoteProtocolError)
    assert reason in str(error)


AHEAD = {"do": "ahead", "step": HONEST}
AGAIN = "evaluator-a announced joint step 0 again"


@pytest.mark.parametrize(
    ("headers", "at", "reason"),
    [
        ([AHEAD], Role.EVALUATOR_B, "may foretell steps to the dealer only"),
        ([AHEAD, AHEAD], Role.DEALER, AGAIN),
        ([AHEAD, {**HONEST, "lanes": 2}], Role.DEALER, "announced another step than it foretold"),
        ([{"do": "drop", "number": 3}], Role.DEALER, "joint step 3 is dropped, but was not"),
        ([HONEST, {"do": "drop", "number": 0}, HONEST], Role.EVALUATOR_B, AGAIN),
        ([AHEAD, {"do": "drop", "number": 0}, AHEAD], Role.DEALER, AGAIN),
        ([{"do": "drop", "number": 0}, HONEST], Role.EVALUATOR_B, AGAIN),
    ],
)
async def test_what_is_foretold_is_what_is_announced_or_dropped(
    headers: list[dict[str, Any]], at: Role, reason: str
) -> None:
    assert reason in str(await ends_with(*headers, at=at, seat=Seat(SESSION)))


class _Ready:
    """A part that is never run."""

    def close(self) -> None:
        return None


@pytest.mark.parametrize(
    ("changes", "settings", "elsewhere", "reason"),
    [
        ({"context": 4}, Settings(), False, "a member with other settings or tokens"),
        ({}, Settings(lanes=2), False, "a member with other settings or tokens"),
        ({}, Settings(), True, "a member that does not take part"),
    ],
)
async def test_a_member_must_be_what_it_is_here(
    changes: dict[str, Any], settings: Settings, elsewhere: bool, reason: str
) -> None:
    seat = Seat(SESSION)
    header = {**HONEST, "members": [{**MEMBER, **changes}]}
    error: list[BaseException] = []

    async def check() -> None:
        error.append(await ends_with(header, seat=seat, other_joint=elsewhere))

    async with anyio.create_task_group() as group:
        group.start_soon(check)
        while seat._host is None:
            await anyio.lowlevel.checkpoint()
        with seat.place(1, settings, 3, False) as place:
            place.part = _Ready()  # type: ignore[assignment]
            seat.changed.notify()
            while not error:
                await anyio.lowlevel.checkpoint()
    assert reason in str(error[0])


async def test_a_step_after_the_end_is_told_why() -> None:
    joint = Joint(Role.EVALUATOR_B, ActorOptions(), MODEL, 2, lambda session: None)
    seat = Seat(SESSION)
    joint.seat(seat, lambda number: False)
    with pytest.raises(PeerFailed, match="the line is down"), seat.place(1, Settings(), 3, False):
        joint.end(PeerFailed("the line is down"))
        with seat.place(2, Settings(), 3, False):
            pass
    assert not joint.open


def test_one_who_has_left_has_no_seat_to_wait_for() -> None:
    joint = Joint(Role.EVALUATOR_A, ActorOptions(), MODEL, 2, lambda session: None)
    seats = Seat(SESSION), Seat(bytes(16))
    for seat in seats:
        joint.seat(seat, lambda number: False)
    joint.unseat(seats[0])
    assert joint.open
    joint.unseat(seats[1])
    assert not joint.open
