"""How an owner or a client calls the three parties.

calls = await call_all(config, Role.CLIENT, "session", model="llama")
calls[Role.DEALER].answer, .buffers, .channel
await list_models(config, role) · await remove_model(config, name) · await ping_all(config, role)
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import anyio

from protocols.errors import ConfigError, PumaError, RemoteProtocolError
from protocols.shares import COMPUTING, Role
from puma_actors.config import ClusterConfig
from puma_actors.entry import Answer, ModelEntry, Purpose, Request, enter
from puma_actors.identity import PeerIdentity
from puma_actors.mux import Mux
from puma_actors.session import Identity, Peer, handshake, naming
from puma_actors.tasks import gather
from puma_actors.transports import Channel
from puma_actors.transports.base import connect_patiently
from puma_actors.wire import SESSION_BYTES

_PROBE_BYTES = 8 << 20


@dataclass(frozen=True)
class Call:
    """A connection to a party that has granted what was asked for."""

    channel: Channel
    answer: Answer
    buffers: list[memoryview] = field(repr=False)
    session: bytes


async def call(
    config: ClusterConfig,
    role: Role,
    peer: Role,
    purpose: Purpose,
    *,
    session: bytes | None = None,
    model: str = "",
    files: bool = False,
    measure: bool = False,
    retry: float | None = None,
) -> Call:
    """Connect to a party and ask it for something.

    Args:
        role: as whom. session: default: drawn by the operating system.
        retry: seconds to go on while nobody answers; default: as configured.

    Raises:
        Busy: the party has no place now. ConfigError: it refuses, and says why.
        TransportError: it cannot be reached. RemoteProtocolError: somebody else answers.
    """
    address = config.parties[peer]
    transport = config.transport(address, role)
    retry = config.timeouts.retry if retry is None else retry
    channel = await connect_patiently(transport, address, retry)
    channel = config.behind(channel, sender=peer, receiver=role)
    session = session or os.urandom(SESSION_BYTES)
    try:
        _check_identity(config, channel.peer_identity, peer)  # first: it may refuse misleadingly
        request = Request(
            role=str(role),
            name=config.identity(role).name,
            purpose=purpose,
            model=model,
            files=files,
            measure=measure,
        )
        answer, buffers = await enter(channel, request, session)
        _check_role(config, answer.role, peer)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await channel.aclose()
        raise
    return Call(channel, answer, buffers, session)


def _check_identity(config: ClusterConfig, proven: PeerIdentity | None, peer: Role) -> None:
    """Who answers, as far as its certificate tells."""
    if proven is None:
        return
    _check_role(config, str(proven.role), peer)
    if not config.allow.admits(proven):
        address = config.parties[peer]
        raise RemoteProtocolError(f"{proven} answers at {address} and is not in allow.parties")


def _check_role(config: ClusterConfig, found: str, peer: Role) -> None:
    if found != peer:
        raise RemoteProtocolError(
            f"{found} answers at {config.parties[peer]}, the address of {peer}: check [parties]"
        )


async def call_all(
    config: ClusterConfig, role: Role, purpose: Purpose, *, model: str = "", files: bool = False
) -> dict[Role, Call]:
    """Call all three parties at once, under one session's id; all of them grant it, or none.

    Args:
        files: ask the dealer for what the owner published.

    Raises:
        As `call`, for the first that refuses or cannot be reached.
    """
    session = os.urandom(SESSION_BYTES)
    found: dict[Role, Call] = {}
    errors: list[PumaError] = []

    async def one(peer: Role) -> None:
        try:
            with naming(peer):
                found[peer] = await call(
                    config,
                    role,
                    peer,
                    purpose,
                    session=session,
                    model=model,
                    files=files and peer.is_dealer,
                )
        except PumaError as error:
            errors.append(error)
            group.cancel_scope.cancel()  # what the others say does not matter any more

    try:
        async with anyio.create_task_group() as group:
            for peer in COMPUTING:
                group.start_soon(one, peer)
        if errors:
            raise errors[0]
    except BaseException:
        await hang_up(found)
        raise
    return {peer: found[peer] for peer in COMPUTING}


async def hang_up(calls: Mapping[Role, Call]) -> None:
    """Close the connections."""
    with anyio.CancelScope(shield=True):
        async with anyio.create_task_group() as group:
            for each in calls.values():
                group.start_soon(each.channel.aclose)


async def shake_hands(config: ClusterConfig, role: Role, calls: Mapping[Role, Call]) -> list[Peer]:
    """Go on to the session: from here on its parties shake hands with each other too."""
    name = config.identity(role).name
    timeout = config.timeouts.handshake

    async def one(peer: Role, each: Call) -> Peer:
        identity = Identity(role, name, each.session)
        with naming(peer):
            return await handshake(each.channel, identity, {peer}, timeout=timeout)

    return await gather([one(peer, each) for peer, each in calls.items()])


# -- models ----------------------------------------------------------------------------------------


async def _visit(
    config: ClusterConfig, role: Role, purpose: Purpose, model: str = ""
) -> dict[Role, list[ModelEntry]]:
    calls = await call_all(config, role, purpose, model=model)
    await hang_up(calls)
    return {peer: each.answer.models for peer, each in calls.items()}


async def list_models(
    config: ClusterConfig, role: Role = Role.OWNER
) -> dict[str, dict[Role, ModelEntry]]:
    """By name, what each party holds of a model."""
    models: dict[str, dict[Role, ModelEntry]] = {}
    for peer, entries in (await _visit(config, role, "list")).items():
        for entry in entries:
            models.setdefault(entry.name, {})[peer] = entry
    return dict(sorted(models.items()))


def problem_of(held: Mapping[Role, ModelEntry]) -> str:
    """What keeps a model from being served; empty if nothing is known to."""
    for entry in held.values():
        if entry.problem:
            return entry.problem
    missing = [str(peer) for peer in COMPUTING if peer not in held]
    if missing:
        return f"missing at {', '.join(missing)}"
    if len({(entry.digest, entry.upload) for entry in held.values()}) > 1:
        return "the parties hold different uploads"
    return ""


async def remove_model(config: ClusterConfig, name: str) -> list[Role]:
    """Remove a model everywhere; the parties that had it.

    Raises:
        ConfigError: none had it.
    """
    found = await _visit(config, Role.OWNER, "remove", name)
    had = [peer for peer, models in found.items() if models]
    if not had:
        raise ConfigError(f"no party has a model {name!r}: `puma models list` shows what there is")
    return had


async def discard_model(config: ClusterConfig, name: str) -> None:
    """Remove what a failed upload may have left, wherever a party still answers."""
    for peer in COMPUTING:
        with suppress(PumaError):
            visit = await call(config, Role.OWNER, peer, "remove", model=name, retry=0.0)
            await visit.channel.aclose()


# -- ping ------------------------------------------------------------------------------------------


@dataclass
class Pinged:
    """What was found about a party from here, and by it about the others."""

    peer: Role
    address: str
    round_trip: float | None = None
    throughput: float | None = None
    answer: Answer | None = None
    problem: str = ""


async def ping_all(config: ClusterConfig, role: Role) -> list[Pinged]:
    """Reach each party, one after another, so that they do not disturb each other."""
    return [await _ping(config, role, peer) for peer in COMPUTING]


async def _ping(config: ClusterConfig, role: Role, peer: Role) -> Pinged:
    found = Pinged(peer, config.parties[peer])
    try:
        visit = await call(config, role, peer, "ping", measure=True, retry=0.0)
        found.answer = visit.answer
        async with Mux(visit.channel, str(peer)).running() as mux:
            found.round_trip = await mux.ping()
            found.throughput = await mux.throughput(_PROBE_BYTES)
    except PumaError as error:
        found.problem = str(error)
    return found
