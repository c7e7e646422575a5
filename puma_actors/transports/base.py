"""The interface of every transport, and the registry of schemes.

A `Channel` carries frames both ways, in order, each exactly once, with bounded buffering:

    await channel.send(frame)        waits while the other side is slow
    channel.try_send(frame) -> bool  the same without waiting; False if it would wait
    await channel.receive()          the next frame
    await channel.pump(sink)         passes every frame to a function, until the other side ends
    await channel.send_eof()         half-close: no more frames from here, but still to here
    await channel.aclose()           both ways; pending `send` and `receive` on either side wake

Errors: `ChannelEnded` (a `TransportError`) when the other side finished cleanly and everything it
sent has been received; `TransportError` for anything else that broke the connection, or when this
side closed it; `LocalProtocolError` for a frame beyond the limits; `RemoteProtocolError` for
malformed frames from the other side.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import anyio

from protocols.errors import (
    ConfigError,
    ConnectError,
    TransportError,
)
from puma_actors.base.identity import PeerIdentity
from puma_actors.transports.frames import Frame, Limits

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0


class ChannelEnded(TransportError):  # noqa: N818 - a clean end is not an error
    """The other side has sent everything it had to send."""


class Unreachable(ConnectError):  # noqa: N818 - a state that may pass
    """There is no listener at an address, or not yet."""


class Refused(ConnectError):  # noqa: N818 - a state that waiting does not change
    """The listener at an address and this side do not accept each other's certificates."""


class _Closing(ABC):
    """Closed when its `async with` block ends."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close; closing twice is allowed."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()


class Channel(_Closing):
    """One connection between two actors. See the module docstring.

    Attributes:
        local_address, peer_address: for messages and logs.
        frame_bytes: no frame's payload may be larger.
        chunk_bytes: a buffer larger than this is better sent in several frames.
        sent_frames, sent_bytes: frames and bytes sent so far, in wire form if there is one.
        peer_identity: the other side's identity, if the transport has proof of it.
        instant: a frame is delivered while it is sent, and many cost no more than one.
        joins: several frames cost less with `send_all`, which sends none if one cannot be sent.
    """

    local_address: str = ""
    peer_address: str = ""
    frame_bytes: int = Limits().frame
    chunk_bytes: int = 1 << 20
    sent_frames: int = 0
    sent_bytes: int = 0
    peer_identity: PeerIdentity | None = None
    instant: bool = False
    joins: bool = False

    @abstractmethod
    async def send(self, frame: Frame) -> None:
        """Send a frame after all earlier ones; a cancelled send has sent all of it or nothing."""

    async def send_all(self, frames: Sequence[Frame]) -> None:
        """Send several frames, one after the other; raises the same errors as `send`."""
        for frame in frames:
            await self.send(frame)

    @abstractmethod
    async def receive(self) -> Frame:
        """Receive the next frame; a cancelled receive loses none."""

    @abstractmethod
    async def send_eof(self) -> None:
        """Half-close: send no more."""

    def try_send(self, frame: Frame) -> bool:
        """Send without waiting if that is possible now; raises the same errors as `send`."""
        return False

    async def pump(self, sink: Callable[[Frame], None]) -> None:
        """Pass every frame to `sink` as it arrives; return when the other side has ended.

        Raises:
            TransportError: the connection broke.
            RemoteProtocolError: the other side sent something malformed. Errors of `sink` are
            raised here too. The channel stays open, so that the other side can be told why.
        """
        try:
            while True:
                sink(await self.receive())
        except ChannelEnded:
            return


class Listener(_Closing):
    """Waits for connections at `address`."""

    address: str = ""

    @abstractmethod
    async def accept(self) -> Channel:
        """The next connection.

        Raises:
            TransportError: the listener was closed.
        """


class Transport(ABC):
    """A way to connect actors."""

    @abstractmethod
    async def connect(self, address: str) -> Channel:
        """Connect to a listener.

        Raises:
            Unreachable: there is no listener.
            Refused: the listener and this side do not accept each other.
            TransportError: it hung up.
            ConfigError: the address is malformed, or its host is unknown.
        """

    @abstractmethod
    async def listen(self, address: str) -> Listener:
        """Listen at an address.

        Raises:
            TransportError: the address is taken.
            ConfigError: the address is malformed.
        """


_schemes: dict[str, Callable[[], Transport]] = {}


def register(scheme: str, factory: Callable[[], Transport]) -> None:
    """Register the transport for `scheme://`.

    Raises:
        ConfigError: another transport already has that scheme.
    """
    if _schemes.setdefault(scheme, factory) is not factory:
        raise ConfigError(f"the scheme {scheme}:// is taken: choose another name")


def transport_for(address: str) -> Transport:
    """The transport of an address like `memory://name`.

    Raises:
        ConfigError: unknown scheme.
    """
    scheme = urlsplit(address).scheme
    factory = _schemes.get(scheme)
    if factory is None:
        known = ", ".join(f"{name}://" for name in sorted(_schemes))
        raise ConfigError(f"no transport for {address!r}: use one of {known}")
    return factory()


async def connect(address: str, *, retry: float = 0.0) -> Channel:
    """`Transport.connect` of the address's transport; see `connect_patiently` for `retry`."""
    return await connect_patiently(transport_for(address), address, retry)


async def connect_patiently(transport: Transport, address: str, retry: float) -> Channel:
    """Connect, and retry for `retry` seconds while there is no listener.

    The pauses double from 50 ms up to 2 s, each shortened at random to between half and all of it,
    so that parties started together do not keep calling at the same time.

    Raises:
        Unreachable: there is still no listener after that time. Other errors of `connect` are
        raised at once.
    """
    deadline = anyio.current_time() + retry
    longest = _FIRST_PAUSE
    while True:
        try:
            return await transport.connect(address)
        except Unreachable:
            pause = longest * random.uniform(0.5, 1.0)  # noqa: S311 - nothing secret about it
            if anyio.current_time() + pause > deadline:
                raise
            await anyio.sleep(pause)
            longest = min(2 * longest, _LONGEST_PAUSE)


async def listen(address: str) -> Listener:
    """`Transport.listen` of the address's transport."""
    return await transport_for(address).listen(address)
