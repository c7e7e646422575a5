"""A party's connections to the other two parties: one each, authenticated and kept alive.

    links = Links(config, role)
    group.start_soon(links.keep, peer)           for each peer that this party calls (`links.calls`)
    await links.serve(channel, peer, name)       a connection from a peer that calls this party
    links.get(peer)                              the `Mux`; raises `Busy`, or the reason, without
    one links.failed(peer, error)                    a caller was refused, or left at once

The party that comes later in the order dealer, evaluator-a, evaluator-b calls. A lost connection is
made again, with pauses that double from 50 ms up to 2 s; the sessions on it have failed. A
connection lost right after it was made counts as a failed call: two processes with the same role
replace each other's connections, and must not do so at full speed. When a caller returns before its
old connection was found dead, the new one replaces it.
"""

import math
from collections import deque
from dataclasses import dataclass

import anyio

from protocols.base.shares import COMPUTING, Role
from protocols.errors import Busy, ConfigError, PumaError, RemoteProtocolError
from puma_actors.base.logs import log
from puma_actors.base.texts import printable
from puma_actors.hosts.admission import LinkEntry, Request, enter
from puma_actors.hosts.config import ClusterConfig
from puma_actors.hosts.residents import RETRY
from puma_actors.session.handshake import Identity, handshake
from puma_actors.transports import Channel, Refused
from puma_actors.transports.frames import NO_SESSION
from puma_actors.transports.multiplexer import Mux

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
_PROBE_BYTES = 8 << 20
_PATIENCE = 10.0
"""Seconds that a caller waits while connections are measured for others."""
_MEASURED = 12
"""Measurements per minute: 192 MiB to two parties."""
_MINUTE = 60.0
_SAMPLE_BYTES = 1 << 20
"""Sent to measure the throughput for a session: fewer bytes than `puma ping` sends."""
_LEAST = 1e-5
"""Seconds; no connection is taken to carry these bytes in less."""
_KNOWN_FOR = 600.0
"""Seconds for which such a measurement is not repeated."""
_FRESH = 30.0
"""Seconds after which the reason of a failed call is outdated: the next call is due."""
_FIRST_WORD, _LATER_WORDS = 5.0, 60.0
"""Seconds until a party logs which parties it waits for, and until it repeats that."""


@dataclass(slots=True)
class _Link:
    mux: Mux
    scope: anyio.CancelScope


class Links:
    """See the module docstring."""

    def __init__(self, config: ClusterConfig, role: Role) -> None:
        self.role = role
        self.peers = tuple(other for other in COMPUTING if other is not role)
        self.calls = tuple(other for other in COMPUTING[: COMPUTING.index(role)])
        self._config = config
        self._links: dict[Role, _Link] = {}
        self._failures: dict[Role, tuple[float, PumaError]] = {}  # time and reason
        self._measuring = anyio.Lock()
        self._measured: deque[float] = deque(maxlen=_MEASURED)  # times
        self._known: dict[Role, tuple[float, LinkEntry]] = {}  # for sessions, and when

    def get(self, peer: Role) -> Mux:
        """The connection to a party.

        Raises:
            Busy: there is none now. ConfigError: there will be none until an operator fixes
            something.
        """
        if self._up(peer):
            return self._links[peer].mux
        when, why = self._failures.get(peer, (-math.inf, None))
        if why is None or anyio.current_time() - when > _FRESH:
            raise Busy(
                f"{self.role} has no connection to {peer} now: is it running? Try again in "
                f"{RETRY} s"
            )
        text = f"{self.role} has no connection to {peer}: {printable(str(why))}"
        if isinstance(why, ConfigError | RemoteProtocolError | Refused):
            raise ConfigError(text)
        raise Busy(f"{text}; try again in {RETRY} s")

    def failed(self, peer: Role, error: PumaError) -> None:
        """Keep the reason why there is no connection, for later callers."""
        if peer in self.peers:
            self._failures[peer] = anyio.current_time(), error

    async def keep(self, peer: Role) -> None:
        """Call a party, and call again whenever the connection is lost, forever."""
        pause, told = _FIRST_PAUSE, ""
        while True:
            try:
                channel = await self._call(peer)
            except PumaError as error:
                self.failed(peer, error)
                if str(error) != told:  # once, not for every attempt
                    told = str(error)
                    log.warning("no link", peer=str(peer), reason=told)
                await anyio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            told, began = "", anyio.current_time()
            await self.serve(channel, peer)
            if anyio.current_time() - began > 2 * _LONGEST_PAUSE:
                pause = _FIRST_PAUSE
            else:
                await anyio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    async def tell(self) -> None:
        """Log which parties this one waits for, forever: a dealer calls none itself."""
        await anyio.sleep(_FIRST_WORD)
        while True:
            missing = [str(peer) for peer in self.peers if not self._up(peer)]
            if missing:
                log.warning("waiting for other parties", role=str(self.role), missing=missing)
            await anyio.sleep(_LATER_WORDS)

    def _up(self, peer: Role) -> bool:
        link = self._links.get(peer)
        return link is not None and not link.mux.lost.is_set()

    async def _call(self, peer: Role) -> Channel:
        address = self._config.parties[peer]
        channel = await self._config.transport(address, self.role).connect(address)
        channel = self._config.behind(channel, sender=peer, receiver=self.role)
        try:
            identity = self._config.identity(self.role)
            request = Request(role=str(self.role), name=identity.name, purpose="link")
            answer, _ = await enter(channel, request)
            if answer.role != peer:
                raise ConfigError(f"{answer.role} answers at {address}, the address of {peer}")
            await self.greet(channel, peer)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await channel.aclose()
            raise
        return channel

    async def greet(self, channel: Channel, peer: Role) -> None:
        """Shake hands on a new connection; afterwards the other side's identity is proven.

        Raises:
            RemoteProtocolError: it is another party, or not an allowed one.
        """
        identity = Identity(self.role, self._config.identity(self.role).name, NO_SESSION)
        timeout = self._config.timeouts.handshake
        found = await handshake(channel, identity, {peer}, timeout=timeout)
        proven = channel.peer_identity
        if proven is not None and not self._config.allow.admits(proven):
            raise RemoteProtocolError(f"{proven} is not in allow.parties")
        log.info("link up", peer=str(peer), name=found.name)

    async def serve(self, channel: Channel, peer: Role) -> None:
        """Carry sessions over a connection until it is lost or replaced."""
        if (old := self._links.pop(peer, None)) is not None:
            old.scope.cancel()
        with anyio.CancelScope() as scope:
            async with Mux(channel, str(peer)).running() as mux:
                link = self._links[peer] = _Link(mux, scope)
                self._failures.pop(peer, None)
                await mux.lost.wait()
                log.warning("link lost", peer=str(peer), reason=mux.reason)
        if self._links.get(peer) is link:
            del self._links[peer]

    async def measure(self) -> list[LinkEntry]:
        """Round trip and throughput to each of the other parties, one after another, for one
        caller at a time.

        Raises:
            Busy: there were too many measurements recently, or one is running.
        """
        with anyio.move_on_after(_PATIENCE) as scope:
            await self._measuring.acquire()
        if scope.cancelled_caught:
            raise Busy(f"{self.role} is measuring for another caller: try again in {RETRY} s")
        try:
            now = anyio.current_time()
            if len(self._measured) == _MEASURED and now - self._measured[0] < _MINUTE:
                raise Busy(
                    f"{self.role} has measured its connections {_MEASURED} times in a minute: try "
                    f"again in {RETRY} s"
                )
            self._measured.append(now)
            return await self._measure()
        finally:
            self._measuring.release()

    async def _measure(self) -> list[LinkEntry]:
        return [await self._measure_one(peer, _PROBE_BYTES) for peer in self.peers]

    async def _measure_one(self, peer: Role, nbytes: int) -> LinkEntry:
        try:
            mux = self.get(peer)
            times = await mux.ping(), await mux.throughput(nbytes)
        except PumaError as error:
            return LinkEntry(peer=str(peer), problem=printable(str(error)[:300]))
        return LinkEntry(peer=str(peer), round_trip=times[0], throughput=times[1])

    async def sample(self) -> list[LinkEntry]:
        """The same for a client that opens a session, measured with fewer bytes and not again for
        ten minutes, and only of the connections that this party made: each is measured once.
        """
        with anyio.move_on_after(_PATIENCE):  # a session does not depend on it
            async with self._measuring:
                for peer in self.calls:
                    when, _ = self._known.get(peer, (-math.inf, None))
                    if anyio.current_time() - when > _KNOWN_FOR:
                        entry = await self._measure_one(peer, _SAMPLE_BYTES)
                        self._known[peer] = anyio.current_time(), _alone(entry)
        return [self._known[peer][1] for peer in self.calls if peer in self._known]


def _alone(entry: LinkEntry) -> LinkEntry:
    """The throughput without the wait for the echo, which counts when few bytes are sent."""
    if entry.round_trip is None or entry.throughput is None:
        return entry
    spent = max(_SAMPLE_BYTES / entry.throughput - entry.round_trip, _LEAST)
    return entry.model_copy(update={"throughput": _SAMPLE_BYTES / spent})
