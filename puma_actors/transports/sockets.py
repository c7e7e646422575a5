"""Common parts of tcp://, tls:// and unix:// without the channel: connecting, addresses."""

import asyncio
import errno
import socket
import ssl
from abc import abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlsplit

import anyio
from anyio.lowlevel import checkpoint

from protocols.errors import (
    ConfigError,
    ConnectError,
    PumaError,
    TransportError,
)
from puma_actors.base.concurrency import Signal
from puma_actors.base.identity import PeerIdentity
from puma_actors.base.logs import log
from puma_actors.transports.base import Channel, Listener, Refused, Transport, Unreachable
from puma_actors.transports.stream import StreamChannel, StreamOptions

_BACKLOG = 64
"""Most connections that may wait for `accept` or be in a TLS handshake."""
_UNSENT_BYTES = 256 << 10
"""Bytes that the kernel may take ahead of the network: what it has taken cannot be overtaken."""


class StreamTransport(Transport):
    """A transport over sockets."""

    scheme: str
    known: tuple[str, ...] = ()
    turned_away: str = "it hung up without sending anything"

    def __init__(self, options: StreamOptions | None = None) -> None:
        self.options = options or StreamOptions()

    # -- for subclasses ---------------------------------------------------------------------------

    @abstractmethod
    async def open_channel(
        self, url: SplitResult, options: dict[str, str], factory: Callable[[], StreamChannel]
    ) -> StreamChannel:
        """Connect a channel made by `factory`. OSErrors are translated by the caller."""

    @abstractmethod
    def bind(self, url: SplitResult) -> tuple[socket.socket, str]:
        """A bound socket and the address where it can be reached."""

    def server_context(self, options: dict[str, str]) -> Callable[[], ssl.SSLContext] | None:
        """What gives each accepted connection its TLS context; None: no TLS."""
        return None

    def identify(self, transport: asyncio.BaseTransport) -> PeerIdentity | None:
        """The proven identity of the other end of a new connection; None if there is no proof.

        Raises:
            TransportError: it must not be admitted.
        """
        return None

    # -- connecting -------------------------------------------------------------------------------

    def parse(self, address: str) -> tuple[SplitResult, dict[str, str], StreamOptions]:
        """The parts of an address, the options after its `?`, and the settings of its streams.

        Raises:
            ConfigError: an unknown option, or a bad value.
        """
        url = urlsplit(address)
        given = dict(parse_qsl(url.query, keep_blank_values=True))
        unknown = set(given) - {"silence", *self.known}
        if url.scheme != self.scheme or unknown:
            known = ", ".join(sorted({"silence", *self.known}))
            wrong = ", ".join(sorted(unknown)) or url.scheme
            raise ConfigError(
                f"bad address {address!r} ({wrong}): {self.scheme}:// takes the options {known}"
            )
        options = self.options
        if "silence" in given:
            options = replace(options, silence=_seconds(given["silence"], address))
        return url, given, options

    async def connect(self, address: str) -> Channel:
        url, given, options = self.parse(address)
        peer = address.partition("?")[0]

        def factory() -> StreamChannel:
            return StreamChannel(options, f"{self.scheme}://here", peer, self.identify)

        try:
            with anyio.fail_after(options.timeout):
                channel = await self.open_channel(url, given, factory)
                await self._enter(channel)
        except TimeoutError:
            raise Unreachable(
                f"no answer from {peer} within {options.timeout:g} s: is it running?"
            ) from None
        except ssl.SSLError as error:
            # Anything else may come from a broken or disturbed line, and pass.
            kind = Refused if "CERT" in (error.reason or "") else ConnectError
            raise kind(f"no TLS with {peer}: {explain(error)}") from error
        except socket.gaierror as error:  # no retry: an unknown host will not appear
            if error.errno == socket.EAI_AGAIN:  # but the name service may recover
                raise Unreachable(
                    f"the host of {peer} cannot be looked up now ({error.strerror or error}): is "
                    "this machine's name service running?"
                ) from None
            raise ConfigError(
                f"the host of {peer} is unknown ({error.strerror or error}): check [parties] and "
                "this machine's name service"
            ) from None
        except OSError as error:
            raise Unreachable(
                f"nobody listens at {peer} ({error.strerror or error}): start the other actor first"
            ) from error
        return channel

    async def _enter(self, channel: StreamChannel) -> None:
        try:
            channel.check()
            try:
                await channel.welcomed()
            except TransportError as error:
                raise ConnectError(f"{error}; {self.turned_away}") from None
        except BaseException:
            channel.abort()
            raise

    async def listen(self, address: str) -> Listener:
        url, given, options = self.parse(address)
        context = self.server_context(given)
        try:
            bound, real = self.bind(url)
        except OSError as error:
            raise ConnectError(
                f"cannot listen at {address.partition('?')[0]} ({error.strerror or error}): "
                "choose another address"
            ) from error

        async def welcome(connection: socket.socket) -> StreamChannel:
            caller = peer_name(self.scheme, connection)
            channel = StreamChannel(options, real, caller, self.identify, guest=True)
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: channel,
                connection,
                ssl=context() if context else None,
                ssl_handshake_timeout=options.timeout if context else None,
            )
            channel.check()
            return channel

        return SocketListener(bound, real, welcome)


class SocketListener(Listener):
    """Accepts connections in the background, TLS handshakes included: a caller that stalls in its
    handshake does not delay others. Its tasks end with `aclose`.
    """

    def __init__(
        self,
        bound: socket.socket,
        address: str,
        welcome: Callable[[socket.socket], Awaitable[StreamChannel]],
    ) -> None:
        self.address = address
        self._welcome = welcome
        self._waiting: deque[StreamChannel] = deque()
        self._changed = Signal()
        self._closed = False
        bound.setblocking(False)
        bound.listen(_BACKLOG)
        self._socket = bound
        self._guests: dict[asyncio.Task[None], None] = {}  # oldest first
        self._server = asyncio.create_task(self._serve())

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._socket)
            except OSError as error:  # out of file descriptors, or the caller is already gone
                log.warning("accepting failed", address=self.address, error=str(error))
                await anyio.sleep(0.1)
                continue
            if len(self._guests) + len(self._waiting) >= _BACKLOG:
                log.warning("too many connections wait", address=self.address)
                oldest = next((task for task in self._guests if not task.cancelling()), None)
                if oldest is None:
                    connection.close()
                    continue
                # Honest callers finish the handshake quickly; the oldest one is the likeliest to
                # stall.
                oldest.cancel()
            prepare(connection)
            guest = asyncio.create_task(self._receive(connection))
            self._guests[guest] = None
            guest.add_done_callback(lambda task: self._guests.pop(task, None))

    async def _receive(self, connection: socket.socket) -> None:
        peer = peer_name("", connection)
        try:
            channel = await self._welcome(connection)
        except (OSError, PumaError) as error:
            connection.close()
            reason = explain(error) if isinstance(error, ssl.SSLError) else str(error)
            log.warning("connection refused", address=self.address, peer=peer, reason=reason)
            return
        except BaseException:
            connection.close()
            raise
        self._waiting.append(channel)
        self._changed.notify()

    async def accept(self) -> Channel:
        await checkpoint()
        while not self._waiting:
            if self._closed:
                raise TransportError(f"the listener at {self.address} is closed")
            await self._changed.wait()
        return self._waiting.popleft()

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._changed.notify()
        tasks = [self._server, *self._guests]
        for task in tasks:
            task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.gather(*tasks, return_exceptions=True)
        name = self._socket.getsockname()
        self._socket.close()
        if isinstance(name, str):  # unix
            Path(name).unlink(missing_ok=True)
        while self._waiting:
            await self._waiting.popleft().aclose()


# -- small things ----------------------------------------------------------------------------------


def prepare(connection: socket.socket) -> None:
    """Set options that send small frames at once and keep the kernel from buffering much ahead."""
    if connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)


def peer_name(scheme: str, connection: socket.socket) -> str:
    """The other end of a socket, for messages."""
    try:
        name: Any = connection.getpeername()
    except OSError:
        return "a caller that left"
    if not isinstance(name, tuple):
        return f"{scheme}://caller" if scheme else "caller"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"{scheme}://{host}:{name[1]}" if scheme else f"{host}:{name[1]}"


def host_and_port(url: SplitResult) -> tuple[str, int]:
    """The host and port to connect to or listen on.

    Raises:
        ConfigError: the address lacks a host or port, or has more after them.
    """
    try:
        host, port = url.hostname, url.port
    except ValueError:
        host = port = None
    if not host or port is None or url.path or url.username is not None:
        raise ConfigError(f"bad address {url.geturl()!r}: use {url.scheme}://HOST:PORT")
    return host, port


def bind_tcp(url: SplitResult) -> tuple[socket.socket, str]:
    """Bind to the first address of a host; port 0 takes a free one.

    Raises:
        OSError: unknown host, or the port is taken.
    """
    host, port = host_and_port(url)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, where = found[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(where)
    except BaseException:
        bound.close()
        raise
    shown = f"[{host}]" if ":" in host else host
    return bound, f"{url.scheme}://{shown}:{bound.getsockname()[1]}"


async def open_tcp(
    url: SplitResult, factory: Callable[[], StreamChannel], context: ssl.SSLContext | None
) -> StreamChannel:
    """Connect to a host and port, with TLS if there is a context.

    Raises:
        OSError: nobody listens there, or the connection is lost again at once.
    """
    host, port = host_and_port(url)
    transport, channel = await asyncio.get_running_loop().create_connection(
        factory,
        host,
        port,
        ssl=context,
        server_hostname=host if context else None,
        happy_eyeballs_delay=0.25,
    )
    connection = transport.get_extra_info("socket")
    if connection is None:  # TLS forgets it when the connection is lost
        raise ConnectionAbortedError(errno.ECONNABORTED, "it has closed the connection at once")
    prepare(connection)
    return channel


def explain(error: ssl.SSLError) -> str:
    """A readable reason for a TLS error, with a remedy."""
    reason = error.reason or str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the other side's certificate was refused ({error.verify_message}): both need "
            "certificates of one authority, in date, and for the host that was called; "
            "see `puma certs show`"
        )
    return f"{reason.lower()}: does the other side speak TLS 1.3?"


def _seconds(text: str, address: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"silence={text!r} in {address!r} is not a number of seconds") from None
