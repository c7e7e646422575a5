"""Actors: a role, its channels, its scheduler, and a life that ends cleanly.

    class Evaluator(Actor):
        async def main(self) -> None:       its work; default: stay until all others have left
            role, header, buffers = await self.scheduler.control()
            ...
    actors = [Evaluator(Role.EVALUATOR_A), ...]
    await connect_all(actors)                         handshakes between every two; then
    await actor.run()                                 `main` with the receive loops around it
    async with actor: ...                             the same around other code, without `main`

When `main` (or the block) raises or is cancelled, all other actors are notified and fail with
`PeerFailed`. When it returns, the actor says goodbye and closes its channels. In both cases no
task, thread or waiter is left behind.
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
"""Address of an actor in a cluster within one process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorOptions:
    """Options of an actor of any role.

    Attributes:
        name: for display; "": the role.
        settings, flow, compute: for its scheduler; None: the scheduler's defaults.
        recorder: records what happens on its lanes, if given.
    """

    name: str = ""
    settings: Settings | None = None
    flow: Flow | None = None
    compute: Compute | None = None
    recorder: Recorder | None = None


class Actor:
    """One party of a session. See the module docstring.

    Args:
        role: its role.
        options: None: all defaults.
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
        """The scheduler of its channels.

        Raises:
            LocalProtocolError: the actor is not connected.
        """
        if self._scheduler is None:
            raise LocalProtocolError(f"{self.role} is not connected: call connect_all first")
        return self._scheduler

    def attach(self, peers: Iterable[Peer]) -> None:
        """Set its peers, once per session."""
        chosen = self.options
        self._scheduler = RoundScheduler(
            self.role, peers, settings=chosen.settings, flow=chosen.flow, compute=chosen.compute
        )
        if self.recorder is not None:
            self.recorder.attach(self._scheduler)

    def observe(self, recorder: Recorder | None) -> None:
        """From the next inference on, record with `recorder`; None: do not record."""
        self.recorder = recorder
        if recorder is None:
            Recorder.detach(self.scheduler)
        else:
            recorder.attach(self.scheduler)

    def lane(self, link: InferenceLink) -> Lane:
        """The lane on which this party's program begins."""
        return Lane(link) if self.recorder is None else self.recorder.lane(link)

    def give_up(self, first: int, stop: int | None = None) -> None:
        """Forget an inference, or all up to `stop`, that no party goes on with: what still waits
        for a slow channel is not sent.
        """
        numbers = range(first, first + 1 if stop is None else stop)
        for port in self.scheduler.ports.values():
            port.withdraw(numbers)
        self.scheduler.end(numbers.start, numbers.stop)

    async def main(self) -> None:
        """The actor's work. Here: stay until all others have left."""
        await self.scheduler.wait_alone()

    async def run(self) -> None:
        """Run `main`, supervised.

        Raises:
            PeerFailed: another actor failed. Otherwise any error of `main`.
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
        actors: actors of different roles, in this process.
        address: where each listens; `{session}`, `{role}` and `{name}` are filled in. A caller uses
            the address that the listener reports (so port 0 works), with the template's options
            after `?` filled in for the caller: over tls:// each shows its own certificate.
        session: 16 bytes, default: drawn by the operating system.
        timeout: for each handshake, in seconds.
        network: the network to emulate between the actors, from the handshakes on, if any.

    Raises:
        LocalProtocolError: two actors have one role.
        TransportError, RemoteProtocolError: a connection or handshake failed; all channels are then
        closed.
    """
    roles = [actor.role for actor in actors]
    if len(set(roles)) != len(roles):
        raise LocalProtocolError(f"two actors have the same role: {', '.join(roles)}")
    meeting = _Meeting(actors, address, session or os.urandom(SESSION_BYTES), timeout)
    try:
        await meeting.hold()
    except BaseException as error:
        with anyio.CancelScope(shield=True):
            await meeting.close()
        if isinstance(error, BaseExceptionGroup):
            root = unwrap(error)
            raise root from root.__cause__
        raise
    for actor in actors:
        met = meeting.peers[actor.role].values()
        actor.attach(met if network is None else _behind(network, actor.role, met))


class _Meeting:
    """Connects every two of the actors and shakes hands. Arguments: see `connect_all`.

    Attributes:
        peers: by the role of one actor, then of another: the second, as a peer of the first.
    """

    def __init__(
        self, actors: Sequence[Actor], address: str, session: bytes, timeout: float
    ) -> None:
        self.peers: dict[Role, dict[Role, Peer]] = {actor.role: {} for actor in actors}
        self._actors, self._session, self._timeout = actors, session, timeout
        self._address = address
        _, question, options = address.partition("?")
        self._options = question + options

    async def hold(self) -> None:
        """Connect everyone; raises any error, but actors that have met stay connected."""
        async with AsyncExitStack() as stack, anyio.create_task_group() as group:
            for index, host in enumerate(self._actors):
                listening = await listen(self._fill(self._address, host))
                listener = await stack.enter_async_context(listening)
                guests = self._actors[index + 1 :]
                roles = {guest.role for guest in guests}
                for guest in guests:
                    group.start_soon(partial(self._meet, host, roles, listener, dial=False))
                    group.start_soon(partial(self._meet, guest, {host.role}, listener, dial=True))

    async def close(self) -> None:
        """Close all channels."""
        for peer in (peer for found in self.peers.values() for peer in found.values()):
            await peer.channel.aclose()

    def _fill(self, text: str, actor: Actor) -> str:
        name = quote(actor.name, safe="")
        return text.format(session=self._session.hex(), role=actor.role, name=name)

    async def _meet(
        self, actor: Actor, others: set[Role], listener: Listener, *, dial: bool
    ) -> None:
        way = f"{listener.address}{self._fill(self._options, actor)}"
        channel = await (connect(way) if dial else listener.accept())
        identity = Identity(actor.role, actor.name, self._session)
        try:
            peer = await handshake(channel, identity, others, timeout=self._timeout)
            if self.peers[actor.role].setdefault(peer.role, peer) is not peer:
                raise RemoteProtocolError(f"{peer.role} connected to {actor.role} twice")
        except BaseException:
            with anyio.CancelScope(shield=True):
                await channel.aclose()
            await checkpoint_if_cancelled()  # if cancelled, the error came from that
            raise


def _behind(network: Network, role: Role, peers: Iterable[Peer]) -> list[Peer]:
    """The peers, with the network's delays."""
    return [
        replace(peer, channel=delay(peer.channel, network, sender=peer.role, receiver=role))
        for peer in peers
    ]
