"""A computing party as a service: `puma party`.

    server = PartyServer(config, Role.DEALER)
    await server.run()            until `server.drain()`; raises ConfigError if it cannot start
    await server.listening.wait()

It keeps a link to each of the other two parties, and admits callers as described in
`puma_actors.hosts.admission`: clients open sessions on stored models, owners upload, list and
remove them, both have units prepared (`puma_actors.hosts.prepared`), anyone may ping. Each session
has its own id, keys, channels and scheduler; one that fails or is slow does not affect the others.
Beyond its limits a party refuses with `Busy`.

A session starts when the client has been admitted by all three parties: its handshake is the
signal, and then the parties shake hands with each other over the links, under the session's id. An
id can be used for one session.
"""

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from typing import TypeAlias

import anyio
import structlog
from anyio.abc import TaskGroup

from protocols.base.shares import Role
from protocols.errors import (
    Busy,
    ConfigError,
    ModelError,
    PumaError,
    RemoteProtocolError,
    StoreError,
    TransportError,
)
from puma_actors.base.allocator import give_back
from puma_actors.base.compute import Compute
from puma_actors.base.concurrency import unwrap
from puma_actors.base.identity import PeerIdentity
from puma_actors.base.logs import log
from puma_actors.hosts.admission import (
    Answer,
    FilePart,
    Purpose,
    Request,
    admit,
    caller_of,
    check_programs,
    hear,
    refuse,
)
from puma_actors.hosts.config import ClusterConfig
from puma_actors.hosts.peer_links import Links
from puma_actors.hosts.prepared.making import Maker
from puma_actors.hosts.receiver import Uploads
from puma_actors.hosts.residents import RETRY, Held, Residents, joined_bytes
from puma_actors.hosts.serving import RequestLimits, ServingLimits, serve
from puma_actors.hosts.stores.manifest import check_name
from puma_actors.hosts.stores.store import ModelStore
from puma_actors.hosts.together.joints import Joints
from puma_actors.hosts.together.meeting import meet
from puma_actors.hosts.visits import Visits, disk, tidy_uploads, watch_certificates
from puma_actors.hosts.workers.cluster import workers_of
from puma_actors.prepare.shelf import FOLDER, Shelf
from puma_actors.roles.actor import ActorOptions
from puma_actors.roles.party import Party
from puma_actors.roles.serving.company import Company
from puma_actors.session.handshake import Identity, Peer, handshake
from puma_actors.session.mailbox import Flow
from puma_actors.transports import Channel, Listener
from puma_actors.transports.frames import NO_SESSION

_MOST_CONNECTIONS = 256
_KEPT_FOR_PARTIES = 16
"""Reserved places that clients and owners cannot take: links must be able to come back."""
_REMEMBERED = 1 << 16
_WITH_PROGRAMS = ("link", "session", "prepare", "upload")
"""Purposes that need the same program on both sides."""
_LARGE = ("session", "prepare", "upload")
"""Purposes that take so much memory that it is returned to the system afterwards."""

Handler: TypeAlias = Callable[[Channel, Request, bytes, PeerIdentity], Awaitable[None]]


class PartyServer:
    """See the module docstring.

    Args:
        config: from `load_config`.
        role: dealer or evaluator.
        compute: where computation runs; all its sessions share it.
    """

    def __init__(
        self, config: ClusterConfig, role: Role, *, compute: Compute | None = None
    ) -> None:
        self.config = config
        self.role = role
        self.identity = config.identity(role)
        self.compute = compute or Compute()
        self.store = ModelStore(config.path(config.store), role, config.limits.unfinished)
        self.workers = workers_of(config, role, self.compute)
        self.shelf = Shelf(self.store.folder / FOLDER, role, config.limits.prepared)
        self.residents = Residents(self.store, config.limits, self.compute, self.workers)
        self.links = Links(config, role)
        self.joints = Joints(config, role, self.compute)
        self.visits = Visits(self)
        self.listening = anyio.Event()
        self.sessions = 0
        self._draining = anyio.Event()
        self._idle = anyio.Event()
        self._connections = 0
        self._uploads = Uploads(self)
        self._used: deque[bytes] = deque(maxlen=_REMEMBERED)
        self._known: set[bytes] = set()
        self._handlers: dict[str, Handler] = {
            "link": self._link,
            "session": self._session,
            "prepare": self._session,
            "upload": self._uploads.receive,
            "list": self.visits.list,
            "remove": self.visits.remove,
            "ping": self.visits.ping,
        }

    # -- life -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until drained.

        Raises:
            ConfigError, TransportError: the store, the certificate or the address is unusable.
        """
        address = self.config.listens(self.role)
        transport = self.config.transport(address, self.role)
        with self.store:
            self.shelf.open(self.store.uploads())
            async with self.workers or nullcontext(), await transport.listen(address) as listener:
                log.info("listening", role=str(self.role), address=listener.address)
                try:
                    await self._serve(listener)
                except BaseExceptionGroup as errors:
                    root = unwrap(errors)
                    raise root from root.__cause__
        log.info("stopped", role=str(self.role))

    async def _serve(self, listener: Listener) -> None:
        async with anyio.create_task_group() as group:
            for peer in self.links.calls:
                group.start_soon(self.links.keep, peer)
            group.start_soon(self.links.tell)
            group.start_soon(self.joints.run)
            group.start_soon(self._accept, listener, group)
            group.start_soon(watch_certificates, self.config, self.role)
            group.start_soon(tidy_uploads, self.store.incoming)
            self.listening.set()
            try:
                await self._draining.wait()
                await self._finish()
            finally:  # before the links close, or the others would call again at once
                with anyio.CancelScope(shield=True):
                    await listener.aclose()
                group.cancel_scope.cancel()

    def drain(self) -> None:
        """Take no new sessions; end when the running ones have ended, or after the grace time."""
        self._draining.set()

    @property
    def draining(self) -> bool:
        """Whether `drain` was called."""
        return self._draining.is_set()

    async def _finish(self) -> None:
        log.info("draining", role=str(self.role), sessions=self.sessions)
        with anyio.move_on_after(self.config.timeouts.grace) as scope:
            while self.sessions:
                self._idle = anyio.Event()
                await self._idle.wait()
        if scope.cancelled_caught:
            log.warning("sessions cut off", sessions=self.sessions)

    async def _accept(self, listener: Listener, group: TaskGroup) -> None:
        while True:
            try:
                channel = await listener.accept()
            except TransportError:  # closed: this party is stopping
                return
            known = channel.peer_identity
            party = known is not None and known.role in self.links.peers
            limit = _MOST_CONNECTIONS - (0 if party else _KEPT_FOR_PARTIES)
            if self._connections >= limit:
                log.warning("too many connections", peer=channel.peer_address)
                group.start_soon(channel.aclose)
                continue
            self._connections += 1
            group.start_soon(self._guest, channel)

    async def _guest(self, channel: Channel) -> None:
        """Serve one connection from its first message to its end. No error gets out."""
        try:
            if await self._welcome(channel) in _LARGE:
                await give_back()
        except PumaError as error:
            log.warning("caller gone", peer=channel.peer_address, reason=str(error))
        except Exception as error:  # a bug here must not end the other sessions
            log.error("session failed", error=type(error).__name__)
        finally:
            self._connections -= 1

    async def _welcome(self, channel: Channel) -> Purpose | None:
        """Admit a caller; return the purpose that was granted."""
        session, way = NO_SESSION, channel
        caller = channel.peer_identity
        try:
            request, session = await hear(channel, self.config.timeouts.handshake)
            caller = caller_of(channel, request)
            if not self.config.allow.admits(caller):
                raise RemoteProtocolError(f"{caller} is not on the allow-list of {self.role}")
            structlog.contextvars.bind_contextvars(session=session.hex(), caller=str(caller))
            if request.purpose in _WITH_PROGRAMS:
                check_programs(request, self.role)
            # Only now it is known which link of the emulated network this is.
            way = self.config.behind(channel, sender=caller.role, receiver=self.role)
            await self._handlers[request.purpose](way, request, session, caller)
            return request.purpose
        except (Busy, ConfigError, ModelError, RemoteProtocolError, StoreError) as error:
            log.warning("refused", peer=channel.peer_address, reason=str(error))
            if caller is not None:
                self.links.failed(caller.role, error)
            await refuse(way, session, error)
            return None
        finally:
            with anyio.CancelScope(shield=True):
                await way.aclose()

    # -- sessions ---------------------------------------------------------------------------------

    @asynccontextmanager
    async def place(self, session: bytes) -> AsyncIterator[None]:
        """Take one of the party's places, for a session with a fresh id."""
        if self._draining.is_set():
            raise Busy(f"{self.role} is shutting down: try again in {RETRY} s")
        limit = self.config.limits.sessions
        if self.sessions >= limit:
            raise Busy(f"{self.role} is busy ({limit} sessions): try again in {RETRY} s")
        if session in self._known or session == NO_SESSION:
            raise RemoteProtocolError(f"session {session.hex()} was used before: draw a new one")
        if len(self._used) == _REMEMBERED:
            self._known.discard(self._used[0])
        self._used.append(session)
        self._known.add(session)
        self.sessions += 1
        try:
            yield
        finally:
            self.sessions -= 1
            self._idle.set()

    def tidy_units(self) -> None:
        """Remove the prepared units of models that are gone (in a thread)."""
        self.shelf.keep_only(self.store.uploads())

    def answer(self, **content: object) -> Answer:
        """An answer of this party."""
        name = self.identity.name
        return Answer.model_validate({"role": str(self.role), "name": name, **content})

    async def _session(
        self, channel: Channel, request: Request, session: bytes, caller: PeerIdentity
    ) -> None:
        name = check_name(request.model)
        for peer in self.links.peers:
            self.links.get(peer)  # before loading a model in vain
        async with self.place(session), self.residents.lease(name) as held, AsyncExitStack() as on:
            links = {peer: self.links.get(peer) for peer in self.links.peers}
            ways = {peer: link.open(session) for peer, link in links.items()}
            company = await on.enter_async_context(self.joints.company(session, links, held.model))
            try:
                await self._open(channel, request, session, held)
                try:
                    peers = await self._shake_hands(channel, ways, session, caller)
                except PumaError as error:  # perhaps from another party: tell the client the reason
                    with suppress(PumaError):
                        await refuse(channel, session, error)
                    raise
                log.info("session begins", model=name, purpose=request.purpose)
                prepare = request.purpose == "prepare"
                await self._serve_session(held, peers, company, prepare=prepare)
                log.info("session ends", model=name)
            except PumaError as error:  # admitted: the caller learns of it through the scheduler
                # The client may have noticed first, and hung up: that alone would not show the
                # reason.
                lost = [str(peer) for peer, link in links.items() if link.lost.is_set()]
                log.warning("session failed", reason=str(error), **({"lost": lost} if lost else {}))
            finally:
                with anyio.CancelScope(shield=True):
                    for way in ways.values():
                        await way.aclose()

    async def _serve_session(
        self, held: Held, peers: list[Peer], company: Company | None, *, prepare: bool
    ) -> None:
        limits = ServingLimits(
            self.config.limits.inference_tokens,
            self.config.timeouts.idle,
            self.residents.session_need(held.plan),
            self.residents.for_request,
            *([joined_bytes] if company is not None else []),
        )
        flow = Flow()
        options = ActorOptions(compute=self.compute.share(), flow=flow)
        with RequestLimits(self.role, limits, flow.window) as admission:
            if prepare:
                asker = peers[0].role
                maker = Maker(
                    self.role, options, asker, held.model, self.shelf, admission, limits.idle
                )
                maker.attach(peers)
                await maker.run()
                return
            party = Party(
                self.role,
                options,
                model=held.model,
                admission=admission,
                shelf=self.shelf,
                company=company,
            )
            party.attach(peers)
            await serve(party, limits.idle, held.placement)

    async def _open(self, channel: Channel, request: Request, session: bytes, held: Held) -> None:
        found = held.manifest.files
        parts = [FilePart(name=name, **found[name].model_dump()) for name in held.files]
        answer = self.answer(
            model=await disk(self.visits.entry, request.model),
            plan=held.plan.to_public(),
            tokens=self.config.limits.inference_tokens,
            files=parts,
            links=await self.links.sample() if request.measure else [],
        )
        files = list(held.files.values()) if request.files else []
        limit = self.config.timeouts.opening  # it occupies a place meanwhile
        with anyio.move_on_after(limit) as scope:
            await admit(channel, session, answer, files)
        if scope.cancelled_caught:
            raise TransportError(f"the client has not read its answer within {limit:g} s")

    async def _shake_hands(
        self,
        channel: Channel,
        ways: Mapping[Role, Channel],
        session: bytes,
        caller: PeerIdentity,
    ) -> list[Peer]:
        """Shake hands first with the client, which waits for all parties; then with the parties."""
        me = Identity(self.role, self.identity.name, session)
        times = self.config.timeouts
        peer = await handshake(channel, me, {caller.role}, timeout=times.opening)
        if peer.name != caller.name:
            raise RemoteProtocolError(f"{caller} continued as {peer.name!r}")
        return [peer, *await meet(me, ways, times.handshake)]

    # -- links ------------------------------------------------------------------------------------

    async def _link(
        self, channel: Channel, request: Request, session: bytes, caller: PeerIdentity
    ) -> None:
        if caller.role not in self.links.peers or caller.role in self.links.calls:
            raise RemoteProtocolError(f"{self.role} does not expect a link from {caller.role}")
        await admit(channel, session, self.answer())
        try:
            await self.links.greet(channel, caller.role)
        except (RemoteProtocolError, TransportError) as error:
            log.warning("no link", peer=str(caller.role), reason=str(error))
            self.links.failed(caller.role, error)
            return
        await self.links.serve(channel, caller.role)
