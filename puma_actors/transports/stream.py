"""Frames over a byte stream: the channel that tcp://, tls:// and unix:// share.

It is an asyncio protocol, not a pair of tasks: `try_send` reaches the socket in the same call, a
sink is called where the bytes arrive, and a channel owns no task that could be left behind. With
asyncio's own TLS this is also the fastest way to move bytes.

The end of a byte stream does not say whether it was intended, so the two ends tell each other: END
(no more frames from here), CLOSE (and none are accepted). A stream that ends without CLOSE was
lost. Each end sends ALIVE when it has nothing else to send; an end that is silent for `silence`
seconds is considered dead. The first ALIVE is sent at once and tells the other side that it was
admitted.
"""

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import anyio

from protocols.errors import (
    ConfigError,
    ConnectionLostError,
    LocalProtocolError,
    NoAnswerError,
    TransportError,
)
from puma_actors.base.concurrency import Signal
from puma_actors.base.identity import PeerIdentity
from puma_actors.transports.base import Channel
from puma_actors.transports.frame_queue import Sink
from puma_actors.transports.frames import Frame, Kind, Limits, encode
from puma_actors.transports.inbox import Inbox

CHUNK_BYTES = 256 << 10
"""Parts of large messages: at 1 Gbit/s a small frame waits 2 ms for one of them."""
_HIGH, _LOW = 256 << 10, 64 << 10
"""Senders wait from `_HIGH` bytes not yet at the socket, until only `_LOW` are left."""
_WHOLE = 1 << 20
"""`try_send` does not accept more than this at once."""
_SMALL = 64 << 10
"""Pieces smaller than this are copied into one write with their neighbours."""
_PULSE = 1.0
_OWN = (Kind.ALIVE, Kind.END, Kind.CLOSE)


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """Settings of a stream. Times in seconds.

    Attributes:
        silence: the other side is considered dead if nothing came for this long; at least 0.1.
        timeout: limit for connecting, TLS included.
        linger: how long a closing side waits until the other has read everything.
        limits: limits for frames, both ways.
        stranger: at a listener, limits for frames of a caller not answered yet; None: the same
            limits.
    """

    silence: float = 10.0
    timeout: float = 10.0
    linger: float = 3.0
    limits: Limits = field(default_factory=lambda: Limits(frame=64 << 20))
    stranger: Limits | None = None

    def __post_init__(self) -> None:
        for name, least in (("silence", 0.1), ("timeout", 0.001), ("linger", 0.0)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise ConfigError(f"{name} of {value:g} s: use at least {least:g}")


class StreamChannel(Channel, asyncio.BufferedProtocol):
    """See the module docstring. Created by a transport, which connects it to a socket.

    Args:
        options: its settings.
        local, peer: the two ends, for messages.
        identify: returns the other end's proven identity, or raises TransportError to refuse it
            before anything is sent.
        guest: whether the other end called.
    """

    joins = True

    def __init__(
        self,
        options: StreamOptions,
        local: str,
        peer: str,
        identify: Callable[[asyncio.BaseTransport], PeerIdentity | None],
        *,
        guest: bool = False,
    ) -> None:
        self.local_address, self.peer_address = local, peer
        self.frame_bytes = options.limits.frame
        self.chunk_bytes = min(CHUNK_BYTES, self.frame_bytes)
        self._options = options
        self._identify = identify
        self._inbox = Inbox((options.stranger if guest else None) or options.limits)
        self._transport = cast(asyncio.Transport, None)
        self._changed = Signal()  # room to write, or the end
        self._turn = anyio.Lock()
        self._rest: list[memoryview] = []  # rest of the frame being sent, last piece first
        self._stuffed = self._ended = self._closed = self._gone = False
        self._lost: TransportError | None = None
        self._spoke = False
        self._quiet = 0
        self._timer: asyncio.TimerHandle | None = None

    # -- called by asyncio ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(_HIGH, _LOW)
        self._inbox.attach(self._transport)
        try:
            self.peer_identity = self._identify(transport)
        except TransportError as error:
            self._lose(error)
        else:
            self._tick()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._inbox.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self._inbox.received(nbytes)
        if self._inbox.closed_by_peer and self._lost is None:
            self._lose(ConnectionLostError("the other side has closed the channel"))

    def pause_writing(self) -> None:
        self._stuffed = True

    def resume_writing(self) -> None:
        self._stuffed = False
        self._changed.notify()

    def eof_received(self) -> None:
        self._lose(self._explain(None))

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(self._explain(exc))
        self._gone = True
        self._changed.notify()

    # -- loss -------------------------------------------------------------------------------------

    def _explain(self, exc: Exception | None) -> TransportError:
        where = " inside a frame" if self._inbox.inside_frame else ""
        why = f" ({type(exc).__name__}: {exc})" if exc is not None else ""
        return ConnectionLostError(
            f"the connection to {self.peer_address} was lost{where}{why}: is it still running?"
        )

    def _lose(self, error: TransportError) -> None:
        """Mark the connection as lost: nothing more can be sent, and nothing more will come."""
        if self._lost is not None:
            return
        self._lost = error
        if self._timer is not None:
            self._timer.cancel()
        self._inbox.lost(error)
        self._rest.clear()
        self._changed.notify()
        # Not now: asyncio may be in the middle of reading from this transport.
        asyncio.get_running_loop().call_soon(self._transport.abort)

    def _tick(self) -> None:
        """Count the intervals without a sign of life. The clock alone is not enough: if this
        process was stopped for a while, it has not read yet what arrived meanwhile.
        """
        pulse = min(_PULSE, self._options.silence / 4)
        heard = self._inbox.heard or self._inbox.paused
        self._quiet = 0 if heard else self._quiet + 1
        self._inbox.heard = False
        if self._quiet * pulse > self._options.silence:
            self._lose(
                NoAnswerError(
                    f"{self.peer_address} has been silent for {self._options.silence:g} s:"
                    " it died, or the network broke"
                )
            )
            return
        if not (self._spoke or self._rest or self._stuffed or self._closed):
            self._say(Kind.ALIVE)
        self._spoke = False
        self._timer = asyncio.get_running_loop().call_later(pulse, self._tick)

    # -- sending ----------------------------------------------------------------------------------

    def _say(self, kind: Kind) -> None:
        self._transport.write(encode(Frame(kind))[0])

    def check(self) -> None:
        """Raise if frames cannot be sent, or no longer."""
        if self._ended or self._closed:
            raise TransportError("this side has closed the channel")
        if self._lost is not None:
            raise type(self._lost)(str(self._lost))

    def _encode(self, frame: Frame) -> tuple[list[memoryview], int]:
        if frame.kind in _OWN:
            raise LocalProtocolError(f"{frame.kind.name} frames are the channel's own")
        pieces = encode(frame, self._options.limits)
        return pieces, sum(piece.nbytes for piece in pieces)

    def _count(self, frame: Frame, size: int) -> None:
        if not self.sent_frames and frame.kind is not Kind.ERROR:
            self._inbox.widen(self._options.limits)
        self.sent_frames += 1
        self.sent_bytes += size
        self._spoke = True

    def try_send(self, frame: Frame) -> bool:
        self.check()
        if self._stuffed or self._turn.locked():
            return False
        pieces, size = self._encode(frame)
        if size > _WHOLE:
            return False
        for piece in _writes(pieces):
            self._transport.write(piece)
        self._count(frame, size)
        return True

    async def send(self, frame: Frame) -> None:
        await self.send_all((frame,))

    async def send_all(self, frames: Sequence[Frame]) -> None:
        async with self._turn:  # senders take turns, so that waiting ones are not overtaken
            self.check()
            encoded = [self._encode(frame) for frame in frames]
            await self._room()
            self._rest = list(_writes([piece for pieces, _ in encoded for piece in pieces]))[::-1]
            for frame, (_, size) in zip(frames, encoded, strict=True):
                self._count(frame, size)
            try:
                while self._rest:
                    await self._room()
                    if self._rest:
                        self._transport.write(self._rest.pop())
            finally:
                self._write_rest()  # after a cancellation: the rest of a frame that was begun

    async def _room(self) -> None:
        while self._stuffed:
            await self._changed.wait()
            self.check()

    def _write_rest(self) -> None:
        while self._rest:
            self._transport.write(self._rest.pop())

    async def send_eof(self) -> None:
        if not self._ended:
            self.check()
            async with self._turn:
                self._ended = True
                self._say(Kind.END)

    # -- receiving --------------------------------------------------------------------------------

    async def welcomed(self) -> None:
        """Wait until the other side has sent anything at all.

        Raises:
            TransportError: it hung up instead, or sent nothing in time.
            RemoteProtocolError: it speaks another protocol.
        """
        while not self._inbox.greeted:
            self._inbox.check()
            await self._inbox.changed.wait()

    async def receive(self) -> Frame:
        return await self._inbox.take()

    async def pump(self, sink: Sink) -> None:
        await self._inbox.pump(sink)

    # -- the end ----------------------------------------------------------------------------------

    def abort(self) -> None:
        """Drop the connection; the other side sees it lost."""
        self._closed = True
        self._lose(TransportError("this side has closed the channel"))

    async def aclose(self) -> None:
        """Close; wait until the other side has read everything, or `linger` seconds have passed."""
        first, self._closed = not self._closed, True
        self._inbox.close()
        try:
            if first and self._lost is None:
                self._write_rest()
                self._say(Kind.CLOSE)
                self._changed.notify()
            with anyio.move_on_after(self._options.linger):
                while not self._gone:
                    await self._changed.wait()
        finally:
            self._lose(TransportError("this side has closed the channel"))
        with anyio.CancelScope(shield=True):
            while not self._gone:
                await self._changed.wait()


def _writes(pieces: Sequence[memoryview]) -> Iterator[memoryview]:
    """The same bytes with small pieces joined, and large ones in slices."""
    small: list[memoryview] = []
    for piece in pieces:
        if piece.nbytes < _SMALL:
            small.append(piece)
            continue
        if small:
            yield memoryview(b"".join(small))
            small = []
        for start in range(0, piece.nbytes, CHUNK_BYTES):
            yield piece[start : start + CHUNK_BYTES]
    if small:
        yield memoryview(b"".join(small))
