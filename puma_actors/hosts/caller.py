"""Calls from an owner or a client to the three parties.

calls = await call_all(config, Role.CLIENT, "session", model="llama")
calls[Role.DEALER].answer, .buffers, .channel
await survey_models(config, role) · await remove_model(config, name) · await ping_all(config, role)
"""

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

import anyio

from protocols.base.shares import COMPUTING, EVALUATORS, Role
from protocols.errors import (
    Busy,
    ConfigError,
    NoAnswerError,
    PumaError,
    StoreError,
    TransportError,
)
from puma_actors.base.concurrency import gather
from puma_actors.base.identity import PeerIdentity
from puma_actors.hosts.admission import Answer, ModelEntry, Purpose, Request, enter
from puma_actors.hosts.config import ClusterConfig
from puma_actors.hosts.unfinished import forget
from puma_actors.session.handshake import Identity, Peer, handshake, naming
from puma_actors.transports import Channel, Refused
from puma_actors.transports.base import connect_patiently
from puma_actors.transports.frames import SESSION_BYTES
from puma_actors.transports.multiplexer import Mux

_PROBE_BYTES = 8 << 20
_LAST_WORDS = 2.0
"""Seconds to wait, after a refusal that may pass, for another party's permanent reason."""
_VISIT, _VISIT_RETRY = 30.0, 2.0
"""Seconds for a party to be reached, and for answers that it gives at once."""


@dataclass(frozen=True)
class Call:
    """A connection to a party that has granted a request."""

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
    upload: str = "",
    retry: float | None = None,
) -> Call:
    """Connect to a party and send it a request.

    Args:
        role: the caller's role. session: default: drawn by the operating system.
        upload: as in `Request`.
        retry: seconds to keep trying while there is no answer; default: as configured.

    Raises:
        Busy: the party is full now. ConfigError: it refuses for some reason; or its version,
        certificate or name is wrong. TransportError: it cannot be reached. RemoteProtocolError: it
        breaks the rules.
    """
    address = config.parties[peer]
    transport = config.transport(address, role)
    retry = config.timeouts.retry if retry is None else retry
    try:
        channel = await connect_patiently(transport, address, retry)
    except Refused as error:  # waiting will not help
        raise ConfigError(f"{peer}: {error}") from None
    channel = config.behind(channel, sender=peer, receiver=role)
    session = session or os.urandom(SESSION_BYTES)
    try:
        _check_identity(config, channel.peer_identity, peer)  # first: a refusal may be misleading
        request = Request(
            role=str(role),
            name=config.identity(role).name,
            purpose=purpose,
            model=model,
            files=files,
            measure=measure,
            upload=upload,
        )
        try:
            answer, buffers = await enter(channel, request, session)
        except (Busy, ConfigError, StoreError) as error:
            raise error if str(peer) in str(error) else type(error)(f"{peer}: {error}") from None
        _check_role(config, answer.role, peer)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await channel.aclose()
        raise
    return Call(channel, answer, buffers, session)


def _check_identity(config: ClusterConfig, proven: PeerIdentity | None, peer: Role) -> None:
    """Check who answers, as far as the certificate shows."""
    if proven is None:
        return
    _check_role(config, str(proven.role), peer)
    if not config.allow.admits(proven):
        address = config.parties[peer]
        raise ConfigError(f"{proven} answers at {address} and is not in allow.parties")


def _check_role(config: ClusterConfig, found: str, peer: Role) -> None:
    if found != peer:
        raise ConfigError(
            f"{found} answers at {config.parties[peer]}, the address of {peer}: check [parties]"
        )


async def call_all(
    config: ClusterConfig,
    role: Role,
    purpose: Purpose,
    *,
    model: str = "",
    files: bool = False,
    measure: bool = False,
    upload: str = "",
) -> dict[Role, Call]:
    """Call all three parties at once, under one session id: all grant the request, or none does.

    Args:
        files: ask the dealer for the published files. measure, upload: as in `Request`.

    Raises:
        As `call`, for a party that refuses or cannot be reached. If several fail at about the same
        time, a permanent reason comes first.
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
                    measure=measure,
                    upload=upload,
                )
        except PumaError as error:
            errors.append(error)
            if _may_pass(error):  # another party may give a permanent reason
                group.start_soon(expire)
            else:
                group.cancel_scope.cancel()  # the others' answers no longer matter
        if errors and len(errors) + len(found) == len(COMPUTING):
            group.cancel_scope.cancel()

    async def expire() -> None:
        await anyio.sleep(_LAST_WORDS)
        group.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as group:
            for peer in COMPUTING:
                group.start_soon(one, peer)
        if errors:
            raise _weightiest(errors)
    except BaseException:
        await hang_up(found)
        raise
    return {peer: found[peer] for peer in COMPUTING}


def _may_pass(error: PumaError) -> bool:
    return isinstance(error, Busy | TransportError)


def _weightiest(errors: Sequence[PumaError]) -> PumaError:
    """The first error that is permanent, or else the first."""
    return min(errors, key=lambda error: (_may_pass(error), isinstance(error, TransportError)))


async def hang_up(calls: Mapping[Role, Call]) -> None:
    """Close the connections."""
    with anyio.CancelScope(shield=True):
        async with anyio.create_task_group() as group:
            for each in calls.values():
                group.start_soon(each.channel.aclose)


async def shake_hands(config: ClusterConfig, role: Role, calls: Mapping[Role, Call]) -> list[Peer]:
    """Start the session: from now on its parties shake hands with each other too."""
    name = config.identity(role).name
    timeout = config.timeouts.handshake

    async def one(peer: Role, each: Call) -> Peer:
        identity = Identity(role, name, each.session)
        with naming(peer):
            return await handshake(each.channel, identity, {peer}, timeout=timeout)

    return await gather([one(peer, each) for peer, each in calls.items()])


# -- models ----------------------------------------------------------------------------------------


@dataclass
class Visited:
    """One party's answer, or the reason why there is none."""

    peer: Role
    answer: Answer | None = None
    error: PumaError | None = None

    def fail(self, error: PumaError) -> None:
        """Note why it did not answer, unless it has."""
        if self.answer is None:
            self.error = error


async def visit_all(
    config: ClusterConfig, role: Role, purpose: Purpose, model: str = ""
) -> dict[Role, Visited]:
    """Send each party a request that it answers at once. A party that does not answer neither
    blocks the others nor makes the caller wait long.
    """
    found = {peer: Visited(peer) for peer in COMPUTING}

    async def one(peer: Role) -> None:
        limit = config.timeouts.handshake + _VISIT
        try:
            with naming(peer), anyio.fail_after(limit):
                retry = min(config.timeouts.retry, _VISIT_RETRY)
                each = await call(config, role, peer, purpose, model=model, retry=retry)
                found[peer].answer = each.answer  # it holds, however the connection ends
                await each.channel.aclose()
        except PumaError as error:
            found[peer].fail(error)
        except TimeoutError:
            found[peer].fail(NoAnswerError(f"{peer}: no answer within {limit:g} s"))

    async with anyio.create_task_group() as group:
        for peer in COMPUTING:
            group.start_soon(one, peer)
    return found


@dataclass
class Listing:
    """Each party's entry for each model, by name; and why some parties did not answer."""

    models: dict[str, dict[Role, ModelEntry]]
    silent: dict[Role, PumaError]


async def survey_models(config: ClusterConfig, role: Role = Role.OWNER) -> Listing:
    """The models at the parties that answer.

    Raises:
        As `call`, if none answers.
    """
    visited = await visit_all(config, role, "list")
    silent = {peer: each.error for peer, each in visited.items() if each.error is not None}
    if len(silent) == len(visited):
        raise _weightiest([*silent.values()])
    models: dict[str, dict[Role, ModelEntry]] = {}
    for peer, each in visited.items():
        for entry in each.answer.models if each.answer else []:
            models.setdefault(entry.name, {})[peer] = entry
    return Listing(dict(sorted(models.items())), silent)


def problem_of(held: Mapping[Role, ModelEntry], silent: Collection[Role] = ()) -> str:
    """The reason why a model cannot be served; empty if none is known.

    Args:
        held: the entries by party. silent: parties that did not answer.
    """
    for entry in held.values():
        if entry.problem:
            return entry.problem
    missing = [str(peer) for peer in COMPUTING if peer not in held and peer not in silent]
    if missing:
        return f"missing at {', '.join(missing)}"
    if len({(entry.digest, entry.upload) for entry in held.values()}) > 1:
        return "the parties hold different uploads"
    if len({held[peer].content for peer in EVALUATORS if peer in held}) > 1:
        return "the evaluators hold different public weights"
    if silent:
        return f"no answer from {', '.join(silent)}"
    return ""


@dataclass(frozen=True)
class Removal:
    """The outcome of a removal at one party: "removed", "none" (there was no such model), "kept"
    (it failed) or "unreachable"; and the reason. `weights`: the kind of the removed one's.
    """

    peer: Role
    state: Literal["removed", "none", "kept", "unreachable"]
    problem: str = ""
    weights: str = ""

    @property
    def done(self) -> bool:
        """Whether nothing is left to do there."""
        return self.state in ("removed", "none")


async def remove_model(config: ClusterConfig, name: str) -> dict[Role, Removal]:
    """Remove a model, or what was cut of its upload, from all parties that answer, and the owner's
    record of the upload. Where that fails, it can be repeated later.

    Raises:
        ConfigError: all answered, and none had the model; or another process uploads it.
    """
    forget(config, name)
    found = {}
    for peer, each in (await visit_all(config, Role.OWNER, "remove", name)).items():
        if each.answer is not None:
            had = each.answer.models
            kind = had[0].weights if had else ""
            found[peer] = Removal(peer, "removed" if had else "none", weights=kind)
        else:
            away = isinstance(each.error, TransportError)
            found[peer] = Removal(peer, "unreachable" if away else "kept", str(each.error))
    if all(each.state == "none" for each in found.values()):
        raise ConfigError(f"no party has a model {name!r}: `puma models list` shows them")
    return found


async def take_back(config: ClusterConfig, name: str, upload: str) -> None:
    """At all parties that still answer, make a model an upload that was cut: others lack it."""
    for peer in COMPUTING:
        with suppress(PumaError):
            visit = await call(
                config, Role.OWNER, peer, "remove", model=name, upload=upload, retry=0.0
            )
            await visit.channel.aclose()


# -- ping ------------------------------------------------------------------------------------------


@dataclass
class Pinged:
    """Measurements of a party, made from here, and its own measurements of the others."""

    peer: Role
    address: str
    round_trip: float | None = None
    throughput: float | None = None
    answer: Answer | None = None
    problem: str = ""


async def ping_all(config: ClusterConfig, role: Role) -> list[Pinged]:
    """Measure each party, one after another, so that they do not disturb each other."""
    return [await ping(config, role, peer) for peer in COMPUTING]


async def ping(config: ClusterConfig, role: Role, peer: Role, *, measure: bool = True) -> Pinged:
    """Reach one party; unless `measure` is false, measure the way to it and its ways to others."""
    found = Pinged(peer, config.parties[peer])
    try:
        visit = await call(config, role, peer, "ping", measure=measure, retry=0.0)
        found.answer = visit.answer
        if not measure:
            await visit.channel.aclose()
            return found
        async with Mux(visit.channel, str(peer)).running() as mux:
            found.round_trip = await mux.ping()
            found.throughput = await mux.throughput(_PROBE_BYTES)
    except PumaError as error:
        found.problem = str(error)
    return found
