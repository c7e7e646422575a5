"""`tcp://host:port?insecure_no_tls=1`: plain TCP, which anyone on the path can read and change.

For tests and for networks with their own protection (a VPN, a service mesh). It must be requested
explicitly, and logs a warning.
"""

import socket
from collections.abc import Callable
from urllib.parse import SplitResult

from protocols.errors import ConfigError
from puma_actors.base.logs import log
from puma_actors.transports.sockets import StreamTransport, bind_tcp, open_tcp
from puma_actors.transports.stream import StreamChannel, StreamOptions


class TcpTransport(StreamTransport):
    """See the module docstring. `insecure_no_tls=True` acts like the option in every address."""

    scheme = "tcp"
    known = ("insecure_no_tls",)

    def __init__(
        self, options: StreamOptions | None = None, *, insecure_no_tls: bool = False
    ) -> None:
        super().__init__(options)
        self._insecure = insecure_no_tls
        self._warned: set[str] = set()

    def parse(self, address: str) -> tuple[SplitResult, dict[str, str], StreamOptions]:
        url, given, options = super().parse(address)
        choice = given.get("insecure_no_tls", "1" if self._insecure else "0")
        if choice not in ("0", "1"):
            raise ConfigError(f"insecure_no_tls={choice!r} in {address!r}: use 0 or 1")
        if choice == "0":
            raise ConfigError(
                f"{address!r} would send everything in the clear: use tls://, or add "
                "?insecure_no_tls=1 if the network has its own protection"
            )
        if url.netloc not in self._warned:
            self._warned.add(url.netloc)
            log.warning("plain TCP: no encryption, no authentication", address=url.netloc)
        return url, given, options

    async def open_channel(
        self, url: SplitResult, options: dict[str, str], factory: Callable[[], StreamChannel]
    ) -> StreamChannel:
        return await open_tcp(url, factory, None)

    def bind(self, url: SplitResult) -> tuple[socket.socket, str]:
        return bind_tcp(url)
