"""What a party's session needs to take steps together with those of other sessions.

    company.most                            requests of one joint step, at most
    session = company.choose()              evaluator A: the joint session to take part in
    seat = company.sit(session, over)       every party, as evaluator A says
    with seat.place(number, settings, context, last) as place:
        result = await place.result(part)   the part's result of a joint step

The input of a step is looked up in the request's own session, with its client and its keys, and its
result is revealed there. Only what lies between is shared with others.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from models.programs.joint.parts import part_of
from models.programs.plan import Plan
from models.programs.program import Cache
from protocols.base.lane import Lane, Settings
from protocols.base.shares import SecretTensor
from protocols.drivers.together import Part
from protocols.embedding import reveal
from puma_actors.roles.messages import InferMessage
from puma_actors.roles.turns import Turn


class Place(Protocol):
    """A request's place in a joint step."""

    async def result(self, part: Part) -> SecretTensor:
        """The part's result, once a joint step has taken it.

        Raises:
            PeerFailed: the joint session failed.
        """


class Seat(Protocol):
    """A session's seat among others on the same model. `parameters`: what all compute with."""

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The model's shares, by canonical name."""

    @property
    def busy(self) -> bool:
        """Whether a part waits for its result."""

    def place(
        self, number: int, settings: Settings, context: int, last: bool
    ) -> AbstractContextManager[Place]:
        """A place for step `number`, from before its input is looked up until it has its result.

        Args:
            last: no step of the request follows.

        Raises:
            PeerFailed: the joint session failed.
        """

    def forgot(self) -> None:
        """Note that numbers are over."""


class Company(Protocol):
    """Joint sessions, as one client's session sees them. `most`: requests of one joint step."""

    @property
    def most(self) -> int:
        """The most requests of one joint step."""

    def choose(self) -> bytes:
        """The joint session to take part in: one that runs on this model, or a new one."""

    def sit(self, session: bytes, over: Callable[[int], bool]) -> Seat:
        """Take part in a joint session.

        Args:
            over: whether a step's number is over.

        Raises:
            PeerFailed: it has ended.
        """


def joins(request: InferMessage, turn: Turn) -> bool:
    """Whether a step is taken together with others: if it decodes one token and reveals its logits.
    It does not depend on whether there are others.
    """
    first = turn.number == request.number
    return not first and request.draft == 0 and request.reveal == "logits"


async def step_together(
    seat: Seat, lane: Lane, plan: Plan, turn: Turn, cache: Cache, last: bool
) -> None:
    """A party's part of a step that is taken together with others.

    Args:
        lane: the request's own.
        last: no step of the request follows.
    """
    with seat.place(turn.number, lane.settings, cache.length, last) as place:
        part = part_of(lane, plan, seat.parameters, turn.batch, cache)
        await part.embed()
        result = await place.result(part)
    await reveal(lane, result)
