"""`memory://name`: channels between actors in one process and one event loop.

Frames and their buffers pass by reference, so the receiver sees the memory that was sent: do not
write to a buffer after it has been sent. With `memory://name?codec=1` (on either side) each frame
goes through `encode` and `Decoder` instead, as over a network.

When the receiver pumps, `send` calls its sink directly; nothing is buffered and no task switch
happens.
"""

from collections import deque
from urllib.parse import parse_qs, urlsplit

import anyio
from anyio.lowlevel import checkpoint

from protocols.errors import (
    ConfigError,
    ConnectError,
    ConnectionLostError,
    LocalProtocolError,
    RemoteProtocolError,
    TransportError,
)
from puma_actors.transports.base import Channel, Listener, Transport, Unreachable
from puma_actors.transports.frame_queue import FrameQueue, Sink
from puma_actors.transports.frames import Decoder, Frame, Limits, encode

MAX_FRAMES = 64
MAX_BYTES = 64 << 20
"""A pipe accepts frames while it holds fewer than `MAX_FRAMES` frames and `MAX_BYTES` bytes."""
_BACKLOG = 64
_CODEC_CHUNK = 1 << 20


class _Pipe:
    """One direction of a channel; `sender` is the address of the sending end."""

    def __init__(self, limits: Limits, codec: bool, sender: str) -> None:
        self.limits = limits
        self.decoder = Decoder(limits) if codec else None
        self.queue = FrameQueue(sender)
        self.turn = anyio.Lock()
        self.senders = 0  # that wait for room, or for their turn
        self.sent_frames = self.sent_bytes = 0

    @property
    def room(self) -> bool:
        if self.queue.pumped:
            return True
        return len(self.queue) < MAX_FRAMES and self.queue.held < MAX_BYTES

    def check(self) -> None:
        """Raise if frames cannot be sent (any more)."""
        if self.queue.ended:
            raise TransportError("this side has closed the channel")
        if self.queue.refusing:
            raise ConnectionLostError("the other side has closed the channel")

    def put(self, frame: Frame) -> None:
        """Pass a frame on; there must be room."""
        if self.decoder is not None:
            self._put_coded(self.decoder, frame)
            return
        size = frame.nbytes
        if size > self.limits.frame:
            raise LocalProtocolError(
                f"frame with {size} payload bytes, the limit is {self.limits.frame}: split it"
            )
        self.sent_frames += 1
        self.sent_bytes += size
        self.queue.put(frame, size)

    def _put_coded(self, decoder: Decoder, frame: Frame) -> None:
        pieces = encode(frame, self.limits)
        size = sum(piece.nbytes for piece in pieces)
        try:
            frames = [got for piece in pieces for got in decoder.feed(piece)]
        except RemoteProtocolError as error:
            self.queue.fail(error)
            return
        for got in frames:
            self.sent_frames += 1
            self.sent_bytes += size
            self.queue.put(got, size)


class MemoryChannel(Channel):
    """One end of a pair of pipes."""

    def __init__(self, inward: _Pipe, outward: _Pipe, local: str, peer: str) -> None:
        self._in = inward
        self._out = outward
        self.local_address = local
        self.peer_address = peer
        self.frame_bytes = outward.limits.frame
        codec = outward.decoder is not None
        self.chunk_bytes = _CODEC_CHUNK if codec else outward.limits.frame
        self.instant = not codec

    @property
    def sent_frames(self) -> int:  # type: ignore[override]
        return self._out.sent_frames

    @property
    def sent_bytes(self) -> int:  # type: ignore[override]
        return self._out.sent_bytes

    def try_send(self, frame: Frame) -> bool:
        pipe, queue = self._out, self._out.queue
        if queue.over:
            pipe.check()
        if pipe.senders or not (queue.pumped or pipe.room):
            return False
        pipe.put(frame)
        return True

    async def send(self, frame: Frame) -> None:
        pipe = self._out
        pipe.senders += 1
        try:
            async with pipe.turn:  # senders take turns, so that waiting ones are not overtaken
                pipe.check()
                while not pipe.room:
                    await pipe.queue.changed.wait()
                    pipe.check()
                pipe.put(frame)
        finally:
            pipe.senders -= 1

    async def receive(self) -> Frame:
        return await self._in.queue.take()

    async def pump(self, sink: Sink) -> None:
        await self._in.queue.pump(sink)

    async def send_eof(self) -> None:
        self._out.queue.end()
        await checkpoint()

    async def aclose(self) -> None:
        self._out.queue.end()
        self._in.queue.close()


def memory_pair(
    limits: Limits | None = None, *, codec: bool = False, names: tuple[str, str] = ("left", "right")
) -> tuple[MemoryChannel, MemoryChannel]:
    """Create the two ends of a channel."""
    left, right = (f"memory://{name}" for name in names)
    one, two = (_Pipe(limits or Limits(), codec, sender) for sender in (right, left))
    return MemoryChannel(one, two, left, right), MemoryChannel(two, one, right, left)


class MemoryListener(Listener):
    """Holds a name until closed."""

    def __init__(self, name: str, codec: bool) -> None:
        self.name = name
        self.codec = codec
        self.address = f"memory://{name}"
        self._waiting: deque[MemoryChannel] = deque()
        self._changed = anyio.Event()
        self.closed = False

    def offer(self, channel: MemoryChannel) -> None:
        """Queue a connection for `accept`."""
        if len(self._waiting) >= _BACKLOG:
            raise ConnectError(f"{self.address} has {_BACKLOG} connections waiting: try later")
        self._waiting.append(channel)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def accept(self) -> Channel:
        await checkpoint()
        while not self._waiting:
            if self.closed:
                raise TransportError(f"the listener at {self.address} is closed")
            await self._changed.wait()
        return self._waiting.popleft()

    async def aclose(self) -> None:
        if not self.closed:
            self.closed = True
            _listeners.pop(self.name, None)
            while self._waiting:
                await self._waiting.popleft().aclose()
            self._wake()


_listeners: dict[str, MemoryListener] = {}


class MemoryTransport(Transport):
    """See the module docstring. `codec=True` has the effect of `?codec=1` in every address."""

    def __init__(self, *, codec: bool = False, limits: Limits | None = None) -> None:
        self._codec = codec
        self._limits = limits

    async def connect(self, address: str) -> Channel:
        name, codec = self._parse(address)
        listener = _listeners.get(name)
        if listener is None:
            raise Unreachable(f"nobody listens at memory://{name}: start the other actor first")
        codec = codec or listener.codec
        ours, theirs = memory_pair(self._limits, codec=codec, names=(f"{name}#client", name))
        listener.offer(theirs)
        return ours

    async def listen(self, address: str) -> Listener:
        name, codec = self._parse(address)
        if name in _listeners:
            raise ConnectError(f"memory://{name} is taken: choose another name")
        listener = _listeners[name] = MemoryListener(name, codec)
        return listener

    def _parse(self, address: str) -> tuple[str, bool]:
        parts = urlsplit(address)
        name = parts.netloc + parts.path
        options = parse_qs(parts.query, keep_blank_values=True)
        codec = options.pop("codec", ["0"])[-1]
        if not name or options or codec not in ("0", "1"):
            raise ConfigError(
                f"bad address {address!r}: use memory://NAME or memory://NAME?codec=1"
            )
        return name, self._codec or codec == "1"
