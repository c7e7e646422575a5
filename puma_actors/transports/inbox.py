"""Frames that have come through a byte stream: decoded, kept within bounds, given out in order."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from anyio.lowlevel import checkpoint

from protocols.errors import LocalProtocolError, RemoteProtocolError, TransportError
from puma_actors.base.concurrency import Signal
from puma_actors.transports.base import ChannelEnded
from puma_actors.transports.frames import Decoder, Frame, Kind, Limits, State

MAX_FRAMES = 64
MAX_BYTES = 4 << 20
"""Nothing more is read from the stream while so much waits to be taken."""
_SCRATCH = 256 << 10
_DIRECT = 64 << 10
"""If a payload lacks more than this, it is read into place; else by way of the scratch buffer."""

Sink: TypeAlias = Callable[[Frame], None]


class Inbox:
    """The receiving half of a `StreamChannel`.

    Attributes:
        greeted: a frame has come.
        heard: bytes have come since somebody set this to False.
        paused: nothing is read from the stream.
        closed_by_peer: CLOSE has come.
        changed: any of this, or the frames, changed.
    """

    def __init__(self, limits: Limits) -> None:
        self.greeted = self.paused = self.closed_by_peer = False
        self.heard = True
        self.changed = Signal()
        self._decoder = Decoder(limits)
        self._scratch = memoryview(bytearray(_SCRATCH))
        self._direct = False
        self._frames: deque[Frame] = deque()
        self._held = 0
        self._sink: Sink | None = None
        self._ended = False  # by the other side
        self._closed = False  # by this side
        self._error: Exception | None = None
        self._transport: asyncio.Transport | None = None

    def attach(self, transport: asyncio.Transport) -> None:
        """Where to pause and resume reading."""
        self._transport = transport

    def widen(self, limits: Limits) -> None:
        """Other limits, for frames that begin from now on."""
        self._decoder.limits = limits

    # -- from the stream --------------------------------------------------------------------------

    @property
    def inside_frame(self) -> bool:
        """The bytes so far end inside a frame."""
        try:
            self._decoder.finish()
        except RemoteProtocolError:
            return True
        return False

    def buffer(self) -> memoryview:
        """Where the next bytes are to go."""
        space = self._decoder.space(_DIRECT)
        self._direct = space is not None
        return self._scratch if space is None else space

    def received(self, size: int) -> None:
        """So many bytes have been written to `buffer`."""
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
            self._fail(error)

    def _arrived(self, frame: Frame) -> None:
        self.greeted = True
        if frame.kind in (Kind.END, Kind.CLOSE):
            self._ended = True
            self.closed_by_peer |= frame.kind is Kind.CLOSE
        elif frame.kind is not Kind.ALIVE:
            if self._ended:
                raise RemoteProtocolError(f"{frame.kind.name} frame after the last one")
            if self._closed or self._error is not None:
                return
            if self._sink is not None:
                self._deliver(frame)
                return
            self._frames.append(frame)
            self._held += frame.weight
            self._pace()
        self.changed.notify()

    def _deliver(self, frame: Frame) -> None:
        assert self._sink is not None
        try:
            self._sink(frame)
        except Exception as error:  # raised by `pump`; it must not surface in asyncio
            self._fail(error)

    def lost(self, error: TransportError) -> None:
        """Nothing more will come."""
        if not self._ended:
            self._error = self._error or error
        self.changed.notify()

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error
        self._drop()

    def _drop(self) -> None:
        """Take no more frames; bytes are read all the same, to see the end of the stream."""
        self._frames.clear()
        self._held = 0
        self._pace()
        self.changed.notify()

    def _pace(self) -> None:
        assert self._transport is not None
        full = len(self._frames) >= MAX_FRAMES or self._held >= MAX_BYTES
        if full and not self.paused:
            self.paused = True
            self._transport.pause_reading()
        elif self.paused and 2 * len(self._frames) <= MAX_FRAMES and 2 * self._held <= MAX_BYTES:
            self.paused = False
            self._transport.resume_reading()

    # -- to the program ---------------------------------------------------------------------------

    def check(self) -> None:
        """Raise if no frame will come any more."""
        if self._closed:
            raise TransportError("this side has closed the channel")
        if self._error is not None:
            raise self._error
        if self._ended:
            raise ChannelEnded("the other side has finished")

    async def take(self) -> Frame:
        """The next frame."""
        await checkpoint()
        while not self._frames:
            self.check()
            await self.changed.wait()
        frame = self._frames.popleft()
        self._held -= frame.weight
        self._pace()
        return frame

    async def pump(self, sink: Sink) -> None:
        """Give every frame to `sink`; see `Channel.pump`."""
        if self._sink is not None:
            raise LocalProtocolError("the channel is pumped already")
        self._sink = sink
        try:
            while self._frames:
                frame = self._frames.popleft()
                self._held -= frame.weight
                self._deliver(frame)
            self._pace()
            while True:
                self.check()
                await self.changed.wait()
        except ChannelEnded:
            return
        finally:
            self._sink = None

    def close(self) -> None:
        """Nothing more is taken."""
        self._closed = True
        self._drop()
