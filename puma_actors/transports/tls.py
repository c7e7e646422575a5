"""`tls://host:port`: TLS 1.3 with certificates on both sides, from `puma_actors.base.certs`.

    TlsTransport(Credentials(Path("certs"), Role.DEALER, "dora"))
    tls://host:port?certs=certs&role=dealer&name=dora        the same in an address

Both sides accept only certificates of their own authority, and read the other side's role and name
from its certificate into `Channel.peer_identity`. The caller also checks that the certificate was
issued for the host it called. `session.handshake` decides which certificate holders may take part.

Each connection uses the files as they are then, so a renewed certificate needs no restart;
connections that exist go on with the one that they began with.
"""

import asyncio
import hashlib
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import SplitResult

from protocols.base.shares import Role
from protocols.errors import (
    ConfigError,
    ConnectError,
)
from puma_actors.base.certs import files_of, load_context
from puma_actors.base.identity import PeerIdentity
from puma_actors.base.logs import log
from puma_actors.transports.sockets import StreamTransport, bind_tcp, open_tcp
from puma_actors.transports.stream import StreamChannel, StreamOptions


@dataclass(frozen=True, slots=True)
class Credentials:
    """The place of a party's certificate: the folder, and its holder."""

    folder: Path
    role: Role
    name: str = ""

    @property
    def identity(self) -> PeerIdentity:
        """Raises:
        ConfigError: no such role, or a bad name.
        """
        return PeerIdentity(self.role, self.name or str(self.role))


class Current:
    """A listener's context, loaded again when its files have changed. Files that cannot be used
    (while a new pair is being copied, say) are told in the log, and the former context stays.

    Raises (when it is made): ConfigError: the files cannot be used.
    """

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._files = files_of(credentials.folder, credentials.identity)
        self._seen = self._marks()
        self._context = self._load()

    def __call__(self) -> ssl.SSLContext:
        marks = self._marks()
        if marks != self._seen:
            self._seen = marks
            try:
                self._context = self._load()
            except ConfigError as error:
                log.warning("new certificate not used, the former one stays", reason=str(error))
            else:
                log.info("certificate loaded again", path=str(self._files[1]))
        return self._context

    def _load(self) -> ssl.SSLContext:
        return load_context(self._credentials.folder, self._credentials.identity, server=True)

    def _marks(self) -> list[tuple[int, int, int] | None]:
        """What differs when a file was replaced or written to."""
        return [_mark(path) for path in self._files]


def _mark(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


class TlsTransport(StreamTransport):
    """See the module docstring. `credentials` are used if an address names none.

    Raises (from `connect` and `listen`): ConfigError if there is no certificate, or it has expired.
    """

    scheme = "tls"
    known = ("certs", "role", "name")
    turned_away = (
        "perhaps it refused this side's certificate (another authority, or expired); "
        "its log has the reason"
    )

    def __init__(
        self, credentials: Credentials | None = None, options: StreamOptions | None = None
    ) -> None:
        super().__init__(options)
        self._credentials = credentials

    def _chosen(self, given: dict[str, str]) -> Credentials:
        """Those of an address, or else the transport's."""
        credentials = self._credentials
        if "certs" in given or "role" in given:
            role = given.get("role", "")
            if role not in set(Role) or not given.get("certs"):
                raise ConfigError(
                    f"tls:// with certs={given.get('certs', '')!r} and role={role!r}: give the "
                    "folder of the certificates and a role"
                )
            credentials = Credentials(Path(given["certs"]), Role(role), given.get("name", ""))
        if credentials is None:
            raise ConfigError(
                "tls:// needs a certificate: add ?certs=FOLDER&role=ROLE&name=NAME "
                "(`puma certs issue` makes them)"
            )
        return credentials

    def server_context(self, options: dict[str, str]) -> Callable[[], ssl.SSLContext]:
        return Current(self._chosen(options))

    async def open_channel(
        self, url: SplitResult, options: dict[str, str], factory: Callable[[], StreamChannel]
    ) -> StreamChannel:
        credentials = self._chosen(options)
        context = load_context(credentials.folder, credentials.identity, server=False)
        return await open_tcp(url, factory, context)

    def bind(self, url: SplitResult) -> tuple[socket.socket, str]:
        return bind_tcp(url)

    def identify(self, transport: asyncio.BaseTransport) -> PeerIdentity | None:
        certificate = transport.get_extra_info("peercert") or {}
        names = certificate.get("subjectAltName", ())
        try:
            found = PeerIdentity.from_uris([value for kind, value in names if kind == "URI"])
            until = ssl.cert_time_to_seconds(certificate["notAfter"])
            return replace(found, certificate=_fingerprint(transport), expires=until)
        except ConfigError as error:
            raise ConnectError(f"the other side's certificate is unusable: {error}") from None


def _fingerprint(transport: asyncio.BaseTransport) -> str:
    encoded = transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
    return hashlib.sha256(encoded).hexdigest()
