"""Actors: a role, its channels, its scheduler, and a life that ends cleanly.

    class Evaluator(Actor):
        async def main(self) -> None:       what it does; default: stay until all others left
            role, header, buffers = await self.scheduler.control()
            ...
    actors = [Evaluator(Role.EVALUATOR_A), ...]
    await connect_all(actors)                         handshakes between every two; then
    await actor.run()                                 `main` with the receive loops around it
    async with actor: ...                             or the same around other code, without `main`

When `main` (or the block) raises or is cancelled, all other actors are told and fail with
`PeerFailed`. When it returns, the actor says goodbye and closes its channels. Either way no task,
thread or waiter is left behind.
"""

import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import anyio
from anyio.lowlevel import checkpoint_if_cancelled

from protocols.base.lane import Lane, Settings
from protocols.base.shares import Role
from protocols.errors import LocalProtocolError, RemoteProtocolError
from puma_actors.base.compute import Compute
from puma_actors.base.concurrency import unwrap
from puma_actors.session.handshake import Identity, Peer, handshake
from puma_actors.session.inference import InferenceLink
from puma_actors.session.mailbox import Flow
from puma_actors.session.recorder import Recorder
from puma_actors.session.session import RoundScheduler
from puma_actors.transports import Listener, connect, listen
from puma_actors.transports.delay.channel import delay
from puma_actors.transports.delay.network import Network
from puma_actors.transports.frames import SESSION_BYTES

MEMORY = "memory://{session}/{role}"
"""Where an actor of a cluster in one process listens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorOptions:
    """What can be chosen for an actor of any role.

    Attributes:
        name: for people to read; "": the role.
        settings, flow, compute: for its scheduler; None: what that takes by default.
        recorder: notes what happens on its lanes; None: nobody does.
    """

    name: str = ""
    settings: Settings | None = None
    flow: Flow | None = None
    compute: Compute | None = None
    recorder: Recorder | None = None


class Actor:
    """One party of a session. See the module's text.

    Args:
        role: what it is.
        options: None: all as by default.
    """

    def __init__(self, role: Role, options: ActorOptions | None = None) -> None:
        self.role = role
        self.options = options or ActorOptions()
        self.name = self.options.name or str(role)
        self.recorder = self.options.recorder
        self._scheduler: RoundScheduler | None = None
        self._running: AbstractAsyncContextManager[Any] | None = None

    @property
    def scheduler(self) -> RoundScheduler:
        """Its channels' scheduler.

        Raises:
            LocalProtocolError: the actor is not connected.
        """
        if self._scheduler is None:
            raise LocalProtocolError(f"{self.role} is not connected: call connect_all first")
        return self._scheduler

    def attach(self, peers: Iterable[Peer]) -> None:
        """Give it its peers, once for a session."""
        chosen = self.options
        self._scheduler = RoundScheduler(
            self.role, peers, settings=chosen.settings, flow=chosen.flow, compute=chosen.compute
        )
        if self.recorder is not None:
            self.recorder.attach(self._scheduler)

    def observe(self, recorder: Recorder | None) -> None:
        """From the next inference on, `recorder` notes what happens; None: nobody does."""
        self.recorder = recorder
        if recorder is None:
            Recorder.detach(self.scheduler)
        else:
            recorder.attach(self.scheduler)

    def lane(self, link: InferenceLink) -> Lane:
        """The lane that a program of this party begins on."""
        return Lane(link) if self.recorder is None else self.recorder.lane(link)

    async def main(self) -> None:
        """What the actor does. Here: stay until all others have left."""
        await self.scheduler.wait_alone()

    async def run(self) -> None:
        """`main`, supervised.

        Raises:
            PeerFailed: another actor failed. Whatever `main` raises, unless that is the reason.
        """
        async with self:
            await self.main()

    async def __aenter__(self) -> Self:
        self._running = self.scheduler.running()
        await self._running.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        assert self._running is not None
        return await self._running.__aexit__(kind, error, trace)


async def connect_all(
    actors: Sequence[Actor],
    address: str = MEMORY,
    *,
    session: bytes | None = None,
    timeout: float = 10.0,
    network: Network | None = None,
) -> None:
    """Connect every two of the actors, shake hands, and attach the peers.

    Args:
        actors: of different roles, in this process.
        address: where each listens; `{session}`, `{role}` and `{name}` are filled in. Who calls
            uses the address that the listener reports (so port 0 works), with what follows the
            template's `?` filled in for the caller: over tls:// everybody shows its own
            certificate.
        session: 16 bytes, default: drawn by the operating system.
        timeout: for each handshake, in seconds.
        network: what to put between the actors, from the handshakes on; None: nothing.

    Raises:
        LocalProtocolError: two actors have one role.
        TransportError, RemoteProtocolError: a connection or handshake failed; all channels are
            closed then.
    """
    session = session or os.urandom(SESSION_BYTES)
    roles = [actor.role for actor in actors]
    if len(set(roles)) != len(roles):
        raise LocalProtocolError(f"two actors have the same role: {', '.join(roles)}")
    peers: dict[Role, dict[Role, Peer]] = {role: {} for role in roles}
    _, question, options = address.partition("?")

    def fill(text: str, actor: Actor) -> str:
        name = quote(actor.name, safe="")
        return text.format(session=session.hex(), role=actor.role, name=name)

    async def meet(actor: Actor, others: set[Role], listener: Listener, *, dial: bool) -> None:
        way = f"{listener.address}{fill(question + options, actor)}"
        channel = await (connect(way) if dial else listener.accept())
        identity = Identity(actor.role, actor.name, session)
        try:
            peer = await handshake(channel, identity, others, timeout=timeout)
            if peers[actor.role].setdefault(peer.role, peer) is not peer:
                raise RemoteProtocolError(f"{peer.role} connected to {actor.role} twice")
        except BaseException:
            with anyio.CancelScope(shield=True):
                await channel.aclose()
            await checkpoint_if_cancelled()  # then the error came of it: the other side hung up
            raise

    try:
        async with AsyncExitStack() as stack, anyio.create_task_group() as group:
            for index, host in enumerate(actors):
                listener = await stack.enter_async_context(await listen(fill(address, host)))
                for guest in actors[index + 1 :]:
                    accept = partial(meet, host, set(roles[index + 1 :]), listener, dial=False)
                    call = partial(meet, guest, {host.role}, listener, dial=True)
                    group.start_soon(accept)
                    group.start_soon(call)
    except BaseException as error:
        with anyio.CancelScope(shield=True):
            for peer in (peer for found in peers.values() for peer in found.values()):
                await peer.channel.aclose()
        if isinstance(error, BaseExceptionGroup):
            root = unwrap(error)
            raise root from root.__cause__
        raise
    for actor in actors:
        met = peers[actor.role].values()
        actor.attach(met if network is None else _behind(network, actor.role, met))


def _behind(network: Network, role: Role, peers: Iterable[Peer]) -> list[Peer]:
    """The peers, as far away as the network says."""
    return [
        replace(peer, channel=delay(peer.channel, network, sender=peer.role, receiver=role))
        for peer in peers
    ]
