"""`tls://host:port`: TLS 1.3 with certificates on both sides, from `puma_actors.base.certs`.

    TlsTransport(Credentials(Path("certs"), Role.DEALER, "dora"))
    tls://host:port?certs=certs&role=dealer&name=dora        the same in an address

Both sides accept only certificates of their own authority, and read the other side's role and name
from its certificate into `Channel.peer_identity`. The caller also checks that the certificate was
issued for the host it called. `session.handshake` decides which certificate holders may take part.
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
from puma_actors.base.certs import load_context
from puma_actors.base.identity import PeerIdentity
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

    def _context(self, given: dict[str, str], *, server: bool) -> ssl.SSLContext:
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
        return load_context(credentials.folder, credentials.identity, server=server)

    def server_context(self, options: dict[str, str]) -> ssl.SSLContext:
        return self._context(options, server=True)

    async def open_channel(
        self, url: SplitResult, options: dict[str, str], factory: Callable[[], StreamChannel]
    ) -> StreamChannel:
        return await open_tcp(url, factory, self._context(options, server=False))

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
