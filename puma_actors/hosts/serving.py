"""A client's session on a stored model: which requests it may make, and when it ends.

limits = ServingLimits(tokens, idle, memory, room)
with RequestLimits(role, limits, window) as admission:
    party = Party(role, options, model=..., admission=admission)
    party.attach(peers)
    await serve(party, limits.idle)
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import NoReturn, Protocol, Self

import anyio

from models.programs.memory import footprint
from models.programs.plan import Plan
from protocols.base.shares import Role
from protocols.errors import PeerFailed, RemoteProtocolError
from puma_actors.base.concurrency import unwrap
from puma_actors.roles.messages import InferMessage
from puma_actors.roles.party import Party
from puma_actors.session.session import Wire


@dataclass(frozen=True, slots=True)
class ServingLimits:
    """Limits of a session.

    Attributes:
        tokens: the total of the requests that run at a time.
        idle: seconds that may pass without a request, a step or, during a step, a message.
        memory: bytes that are reserved for the session.
        room: reserves more for a request, see `Residents.for_request`; None: memory is not counted.
        joined: bytes that a request of so many tokens takes beyond those of its steps, because they
            are taken together with others.
    """

    tokens: int
    idle: float = 600.0
    memory: int = 0
    room: Callable[[Plan, int, int], AbstractContextManager[None]] | None = None
    joined: Callable[[Plan, int], int] = lambda plan, tokens: 0


class RequestLimits:
    """An `Admission` that limits the tokens and memory of all requests of a session together.
    Memory that is still reserved when its block ends is released.

    Args:
        role: the role of the party whose memory is counted.
        window: bytes that may be dealt ahead, as in the party's `Flow`.
    """

    def __init__(self, role: Role, limits: ServingLimits, window: int) -> None:
        self._role = role
        self._limits = limits
        self._window = window
        self._tokens: dict[int, int] = {}  # of running requests, by number
        self._needs: dict[int, int] = {}  # bytes that they need
        self._rooms: dict[int, ExitStack] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for number in list(self._tokens):
            self.release(number)

    def check(self, request: InferMessage) -> None:
        """As `Admission`."""
        if _tokens(request) + sum(self._tokens.values()) > self._limits.tokens:
            raise RemoteProtocolError(
                f"the client asked for more than {self._limits.tokens} tokens at once"
            )

    def admit(self, request: InferMessage, plan: Plan) -> None:
        """As `Admission`."""
        self._set_aside(request, plan)
        self._tokens[request.number] = _tokens(request)

    def _set_aside(self, request: InferMessage, plan: Plan) -> None:
        """Reserve the memory that a request needs beyond the session's."""
        if self._limits.room is None:
            return
        need = footprint(
            plan.config,
            request.batch(),
            request.steps,
            request.settings(),
            dealer=self._role.is_dealer,
            window=self._window,
            draft=request.draft,
        ).total + self._limits.joined(plan, _tokens(request))
        running = sum(self._needs.values())
        before, after = (max(self._limits.memory, each) for each in (running, running + need))
        room = ExitStack()
        room.enter_context(self._limits.room(plan, after - before, after))
        self._needs[request.number], self._rooms[request.number] = need, room

    def release(self, number: int) -> None:
        """As `Admission`."""
        del self._tokens[number]
        self._needs.pop(number, None)
        if (room := self._rooms.pop(number, None)) is not None:
            room.close()


def _tokens(request: InferMessage) -> int:
    """The number of tokens that a request reads and writes."""
    return sum(request.lengths) + request.steps - 1


class Watched(Protocol):
    """What a session needs besides its party."""

    async def watch(self) -> NoReturn:
        """Raise as soon as it is lost."""


async def serve(party: Party, idle: float, needs: Watched | None = None) -> None:
    """Run a connected party until its client closes the session.

    Args:
        idle: seconds, as in `ServingLimits`.
        needs: ends the session when it is lost, with its error.

    Raises:
        PeerFailed: the client left without closing the session, or another actor failed.
        RemoteProtocolError: the session was idle for too long.
    """
    async with party:
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(_watch_client, party)
                group.start_soon(_watch_time, party, idle)
                if needs is not None:
                    group.start_soon(needs.watch)
                await party.main()
                group.cancel_scope.cancel()
        except BaseExceptionGroup as errors:
            root = unwrap(errors)
            raise root from root.__cause__


async def _watch_client(party: Party) -> None:
    """End the session if the client leaves without closing it: it must not keep its place."""
    await party.scheduler.wait_left(Role.CLIENT)
    await anyio.sleep(party.scheduler.flow.grace)  # its last request may still be unread
    raise PeerFailed("the client left without closing the session")


async def _watch_time(party: Party, idle: float) -> None:
    """End the session if the client stays idle, although its process lives: it must not keep its
    place. A step may take any time: evaluators that compute exchange messages, and stop when the
    client's part is missing. The dealer is far ahead of them and leaves this to them.
    """
    seen, sent = -1, party.scheduler.wire
    while party.activity != seen or _busy(party, sent):
        seen, sent = party.activity, party.scheduler.wire
        await anyio.sleep(idle)
    raise RemoteProtocolError(f"the session was idle for {idle:g} s: open a new one")


def _busy(party: Party, sent: Wire) -> bool:
    """Whether a step has made progress since `sent`, as far as this party can tell."""
    if party.role.is_dealer:
        return party.busy
    return party.in_company or party.scheduler.wire != sent
