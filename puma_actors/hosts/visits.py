"""Requests that a party answers at once: list models, measure connections, remove a model.

visits = Visits(server)
await visits.list(channel, request, session, caller)      and `remove`, `ping`: its handlers
group.start_soon(watch_certificates, config, role)        warns in the log, every day
group.start_soon(tidy_uploads, incoming)                  every hour
"""

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import anyio

from protocols.base.shares import COMPUTING, Role
from protocols.errors import Busy, ConfigError, StoreError
from puma_actors.base.certs import SOON_DAYS, expiring
from puma_actors.base.identity import PeerIdentity
from puma_actors.base.logs import log
from puma_actors.base.texts import printable
from puma_actors.hosts.admission import ModelEntry, Request, StockEntry, admit
from puma_actors.hosts.config import ClusterConfig
from puma_actors.hosts.residents import RETRY
from puma_actors.hosts.stores.incoming import Incoming
from puma_actors.hosts.stores.manifest import check_name
from puma_actors.hosts.stores.stored import content_digest
from puma_actors.transports import Channel
from puma_actors.transports.multiplexer import Mux

if TYPE_CHECKING:
    from puma_actors.hosts.server import PartyServer

T = TypeVar("T")

_PING_TIME = 60.0
_MOST_PINGS = 16
_INSPECTION = 10.0
"""Seconds that `list` may spend on reading files whose checksums are unknown."""
_DAY, _HOUR = 86400.0, 3600.0


async def disk(function: Callable[..., T], *args: object) -> T:
    """Run off the event loop, so that sessions go on meanwhile."""
    return await anyio.to_thread.run_sync(function, *args)


class Visits:
    """See the module docstring."""

    def __init__(self, server: "PartyServer") -> None:
        self._server = server
        self._store = server.store
        self._listing = anyio.Lock()
        self._pings = 0

    def entry(self, name: str, seconds: float = 0.0) -> ModelEntry:
        """The entry for a model; reads its files for up to `seconds` (in a thread)."""
        try:
            stored, verified = self._store.inspect(name, seconds)
        except StoreError as error:
            return ModelEntry(name=name, problem=printable(str(error)[:500]))
        manifest, config = stored.manifest, stored.plan.config
        return ModelEntry(
            name=name,
            upload=manifest.upload,
            digest=manifest.digest,
            created=manifest.created,
            architecture=config.family,
            head=config.head,
            weights=stored.plan.weights,
            content=content_digest(manifest, stored.plan),
            bytes=sum(entry.bytes for entry in manifest.files.values()),
            loaded=self._server.residents.loaded(name),
            verified=verified,
            prepared=[
                StockEntry(shape=shape, count=count, bytes=nbytes)
                for shape, (count, nbytes) in self._server.shelf.stock(manifest.upload).items()
            ],
        )

    def _entries(self) -> list[ModelEntry]:
        until = time.monotonic() + _INSPECTION
        names = self._store.names()
        return [self.entry(name, max(0.0, until - time.monotonic())) for name in names]

    async def list(
        self, channel: Channel, request: Request, session: bytes, caller: PeerIdentity
    ) -> None:
        """List all models, for one caller at a time: the disk is not faster for several."""
        async with self._listing:
            models = await disk(self._entries)
        answer = self._server.answer(models=models, sessions=self._server.sessions)
        await admit(channel, session, answer)

    async def remove(
        self, channel: Channel, request: Request, session: bytes, caller: PeerIdentity
    ) -> None:
        """Remove a model, if there is one of that name, and what was cut of an upload; the answer
        describes what was removed. Or take a model back, see `Request`.
        """
        name = check_name(request.model)
        models = [await disk(self.entry, name)] if name in self._store else []
        if request.upload:
            await disk(self._store.withdraw, name, request.upload)
        else:
            await disk(self._store.remove, name)
            if await disk(self._store.incoming.remove, name) and not models:
                models = [ModelEntry(name=name, problem="an unfinished upload")]
        self._server.residents.drop(name)
        await disk(self._server.tidy_units)
        if models:
            log.info("model removed", model=name)
        await admit(channel, session, self._server.answer(models=models))

    async def ping(
        self, channel: Channel, request: Request, session: bytes, caller: PeerIdentity
    ) -> None:
        """Answer with identity and measurements, then echo until the caller leaves."""
        if self._pings >= _MOST_PINGS:
            raise Busy(
                f"{self._server.role} is pinged by {_MOST_PINGS} others: try again in {RETRY} s"
            )
        self._pings += 1
        try:
            links = await self._server.links.measure() if request.measure else []
            days = await disk(days_left, self._server.config, self._server.role)
            sessions = self._server.sessions
            tasks = len(asyncio.all_tasks())
            answer = self._server.answer(links=links, sessions=sessions, tasks=tasks, days=days)
            await admit(channel, session, answer)
            with anyio.move_on_after(_PING_TIME):
                async with Mux(channel).running() as mux:
                    await mux.lost.wait()
        finally:
            self._pings -= 1


def days_left(config: ClusterConfig, role: Role) -> float | None:
    """Days until this machine's certificate for a role, or its authority, expires; None if there is
    no certificate or it is not used.
    """
    addresses = [config.parties[peer] for peer in COMPUTING]
    if role in COMPUTING:
        addresses = [config.listens(role)]
    if not any(urlsplit(address).scheme == "tls" for address in addresses):
        return None
    try:
        found = expiring(config.path(config.certificates), config.identity(role))
    except ConfigError:
        return None
    return min(each.days_left for each in found)


async def tidy_uploads(incoming: Incoming) -> None:
    """Every hour, remove uploads that were cut too long ago."""
    while True:
        await anyio.sleep(_HOUR)
        await disk(incoming.tidy)


async def watch_certificates(config: ClusterConfig, role: Role) -> None:
    """Log, at once and every day, certificates that expire soon or have expired."""
    while urlsplit(config.listens(role)).scheme == "tls":
        try:
            found = expiring(config.path(config.certificates), config.identity(role))
        except ConfigError as error:
            log.warning("certificate unreadable", reason=str(error))
            found = []
        for each in found:
            left = each.days_left
            if left < SOON_DAYS:
                event = "certificate expires soon" if left > 0 else "certificate has expired"
                on = f"{each.not_after:%Y-%m-%d %H:%M UTC}"
                log.warning(event, path=str(each.path), on=on, days_left=round(left, 1))
        await anyio.sleep(_DAY)
