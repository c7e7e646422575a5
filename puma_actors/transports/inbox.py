"""Frames received from a byte stream: decoded, kept within limits, handed out in order."""

import asyncio

from protocols.errors import RemoteProtocolError, TransportError
from puma_actors.transports.frame_queue import FrameQueue, Sink
from puma_actors.transports.frames import Decoder, Frame, Kind, Limits, State

MAX_FRAMES = 64
MAX_BYTES = 4 << 20
"""Nothing more is read from the stream while this much waits to be taken."""
_SCRATCH = 256 << 10
_DIRECT = 64 << 10
"""If more bytes of a payload are missing, they are read directly into it, otherwise into the
scratch buffer."""


class Inbox:
    """The receiving half of a `StreamChannel`.

    Attributes:
        greeted: whether a frame has come.
        heard: whether bytes have come since this was last set to False.
        paused: whether reading from the stream is paused.
        closed_by_peer: whether CLOSE has come.
        changed: notified when the frames or any of these except `heard` change.
    """

    def __init__(self, limits: Limits) -> None:
        self.greeted = self.paused = self.closed_by_peer = False
        self.heard = True
        self._decoder = Decoder(limits)
        self._scratch = memoryview(bytearray(_SCRATCH))
        self._direct = False
        self._queue = FrameQueue(eased=self._eased)
        self.changed = self._queue.changed
        self._transport: asyncio.Transport | None = None

    def attach(self, transport: asyncio.Transport) -> None:
        """Set the transport whose reading is paused and resumed."""
        self._transport = transport

    def widen(self, limits: Limits) -> None:
        """Set other limits for frames that begin from now on."""
        self._decoder.limits = limits

    # -- from the stream --------------------------------------------------------------------------

    @property
    def inside_frame(self) -> bool:
        """Whether the bytes so far end inside a frame."""
        try:
            self._decoder.finish()
        except RemoteProtocolError:
            return True
        return False

    def buffer(self) -> memoryview:
        """The memory into which the next bytes are to be written."""
        space = self._decoder.space(_DIRECT)
        self._direct = space is not None
        return self._scratch if space is None else space

    def received(self, size: int) -> None:
        """Process `size` bytes that have been written to `buffer`."""
        self.heard = True
        if self._decoder.state is State.BROKEN:
            return
        try:
            if self._direct:
                frames = self._decoder.filled(size)
            else:
                frames = self._decoder.feed(self._scratch[:size])
            for frame in frames:
                self._arrived(frame)
        except RemoteProtocolError as error:
            self._queue.fail(error)

    def _arrived(self, frame: Frame) -> None:
        self.greeted = True
        if frame.kind in (Kind.END, Kind.CLOSE):
            self.closed_by_peer |= frame.kind is Kind.CLOSE
            self._queue.end()
        elif frame.kind is Kind.ALIVE:
            self.changed.notify()
        else:
            self._queue.put(frame, frame.weight)
            self._pace()

    def lost(self, error: TransportError) -> None:
        """Note that the connection is lost: nothing more will come."""
        self._queue.lose(error)

    def _eased(self, _size: int) -> None:
        """Read on if there is room, even after a failure, to see the end of the stream."""
        self._pace()

    def _pace(self) -> None:
        assert self._transport is not None
        count, held = len(self._queue), self._queue.held
        full = count >= MAX_FRAMES or held >= MAX_BYTES
        if full and not self.paused:
            self.paused = True
            self._transport.pause_reading()
        elif self.paused and 2 * count <= MAX_FRAMES and 2 * held <= MAX_BYTES:
            self.paused = False
            self._transport.resume_reading()

    # -- to the program ---------------------------------------------------------------------------

    def check(self) -> None:
        """Raise if no frame will come any more."""
        self._queue.check()

    async def take(self) -> Frame:
        """Take the next frame."""
        return await self._queue.take()

    async def pump(self, sink: Sink) -> None:
        """Pass every frame to `sink`; see `Channel.pump`."""
        await self._queue.pump(sink)

    def close(self) -> None:
        """Drop all frames; this side takes no more."""
        self._queue.close()
