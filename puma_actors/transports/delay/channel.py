"""Emulate a network: a channel around any other channel that is as slow as required.

    channel = delay(channel, network, sender=peer, receiver=mine)      at both ends

Each end delays incoming frames, so both ends must be wrapped. A frame that is sent at `now` over
one direction of a link, and has `size` bytes on the wire (or would have, if passed by reference),

    departs   at max(now, when the link is free) + size / bandwidth; then the link is free again
    arrives   at departure + latency + jitter, and never before the previous frame

so a large frame delays all frames behind it, on any lane. Layers below frames (TLS, TCP and IP
headers, lost packets, slow start) are not modelled.

Sending is left to the inner channel, with its errors and limits: a frame is sent on the inner
channel at once, and waits at the receiving end for its time. A direction holds the bytes that are
under way at full speed, and `PIPE_BYTES` more. Beyond that, nothing more is taken from the inner
channel, which slows its senders down in its own way. The end of the stream and a broken connection
are delayed like a frame without content. Closing drops what has not arrived at this end yet, as
between hosts.
"""

import asyncio
import random
import time
from collections import deque

import anyio

from protocols.base.shares import Role
from protocols.errors import TransportError
from puma_actors.base.concurrency import Signal
from puma_actors.transports.base import Channel, ChannelEnded
from puma_actors.transports.delay.alarm import Alarm
from puma_actors.transports.delay.network import Network, Route
from puma_actors.transports.frame_queue import FrameQueue, Sink
from puma_actors.transports.frames import Frame, wire_bytes

PIPE_BYTES = 16 << 20
"""Bytes that a direction of a link holds beyond bandwidth times delay: a fast sender's buffers.
Reading resumes when half of this is free, so that it seldom stops and never runs dry."""


class Line:
    """One direction of a link: computes when frames arrive.

    Args:
        route: latency, bandwidth and jitter.
        seed: seed of the jitter; equal seeds give equal draws.
    """

    def __init__(self, route: Route, seed: str = "") -> None:
        self.route = route
        self._byte = 8 / route.bandwidth if route.bandwidth else 0.0  # seconds
        self._random = random.Random(seed)  # noqa: S311 - a simulated network, no secret
        self._free = self._last = 0.0

    def arrival(self, now: float, size: int) -> float:
        """The time in seconds when `size` bytes sent at `now` arrive, after all earlier ones."""
        self._free = max(now, self._free) + size * self._byte
        jitter = self._random.random() * self.route.jitter / 2
        self._last = max(self._last, self._free + self.route.latency + jitter)
        return self._last

    @property
    def under_way(self) -> int:
        """Bytes that are under way at full speed."""
        delay = self.route.latency + self.route.jitter / 2
        return int(delay / self._byte) if self._byte else 0


class DelayedChannel(Channel):
    """One end of a channel, whose incoming frames arrive as late as `line` says. Create, use and
    close it in one event loop; a task reads from the inner channel until it is closed.
    """

    def __init__(self, inner: Channel, line: Line) -> None:
        self.inner = inner
        self.local_address = inner.local_address
        self.peer_address = inner.peer_address
        self.frame_bytes = inner.frame_bytes
        self.chunk_bytes = inner.chunk_bytes
        self.peer_identity = inner.peer_identity
        self._line = line
        self._flying: deque[tuple[float, int, Frame | Exception]] = deque()
        self._aloft = 0  # bytes of the flying frames
        self._queue = FrameQueue(self.peer_address, self._eased)  # what has arrived
        self._most = line.under_way + PIPE_BYTES
        self._ended = False  # by this side, for sending
        self._room = Signal()
        self._alarm = Alarm.acquire()
        self._alarmed = False
        self._reading = anyio.CancelScope()
        self._reader = asyncio.get_running_loop().create_task(self._read())

    # -- sending: the inner channel's -------------------------------------------------------------

    @property
    def sent_frames(self) -> int:  # type: ignore[override]
        return self.inner.sent_frames

    @property
    def sent_bytes(self) -> int:  # type: ignore[override]
        return self.inner.sent_bytes

    def try_send(self, frame: Frame) -> bool:
        try:
            return self.inner.try_send(frame)
        except TransportError:
            if self._informed:
                raise
            return True

    async def send(self, frame: Frame) -> None:
        try:
            await self.inner.send(frame)
        except TransportError:
            if self._informed:
                raise

    @property
    def _informed(self) -> bool:
        """Whether this side may already know that nothing can be sent. While the news that the
        other side is gone is under way, frames are lost, as between hosts, and the reason comes
        with the news. Otherwise a side that leaves properly would seem to fail until its goodbye
        arrives.
        """
        return self._queue.over or self._ended

    async def send_eof(self) -> None:
        self._ended = True
        await self.inner.send_eof()

    # -- what comes in ----------------------------------------------------------------------------

    async def _read(self) -> None:
        """Move everything from the inner channel to `_flying`, including the reason for its end."""
        end: Exception
        try:
            while not await self._read_until_full():
                while self._held > self._most - PIPE_BYTES // 2:
                    await self._room.wait()
            end = ChannelEnded(f"{self.peer_address} has finished")
        except Exception as error:
            end = error
        self._depart(time.monotonic(), 0, end)

    async def _read_until_full(self) -> bool:
        """Read until this end is full (False) or the inner channel has ended (True). It pumps, so
        a frame's time counts from the moment it was sent, even if the loop is busy then.
        """
        with anyio.CancelScope() as self._reading:
            await self.inner.pump(self._take_in)
            return True
        return False

    def _take_in(self, frame: Frame) -> None:
        now = time.monotonic()
        if self._queue.over:
            return
        size = wire_bytes(frame)
        self._aloft += size
        self._depart(now, size, frame)
        if self._held > self._most:
            self._reading.cancel()

    def _depart(self, now: float, size: int, what: Frame | Exception) -> None:
        if self._queue.over:
            return
        arrival = self._line.arrival(now, size)
        self._flying.append((arrival, size, what))
        if not self._alarmed:
            self._alarmed = True
            self._alarm.at(arrival, self._land)

    def _land(self) -> None:
        """Deliver everything whose time has come."""
        now = time.monotonic()
        while self._flying and self._flying[0][0] <= now:
            _, size, what = self._flying.popleft()
            self._aloft -= size
            if isinstance(what, Frame):
                self._queue.put(what, size)
            elif isinstance(what, ChannelEnded):
                self._queue.end()
            else:
                self._queue.lose(what)
        self._alarmed = bool(self._flying)
        if self._flying:
            self._alarm.at(self._flying[0][0], self._land)

    @property
    def _held(self) -> int:
        """Bytes that are under way or not taken yet."""
        return self._aloft + self._queue.held

    def _eased(self, _size: int) -> None:
        if self._queue.refusing:  # nothing under way will be used
            self._flying.clear()
            self._aloft = 0
        if self._held <= self._most - PIPE_BYTES // 2:
            self._room.notify()

    # -- receiving --------------------------------------------------------------------------------

    async def receive(self) -> Frame:
        return await self._queue.take()

    async def pump(self, sink: Sink) -> None:
        await self._queue.pump(sink)

    # -- the end ----------------------------------------------------------------------------------

    async def aclose(self) -> None:
        if not self._queue.closed:
            self._queue.close()
            self._alarm.release()
        self._reader.cancel()
        try:
            await self.inner.aclose()
        finally:
            with anyio.CancelScope(shield=True):  # it ends at once; no task is left behind
                await asyncio.wait([self._reader])


def delay(channel: Channel, network: Network, *, sender: Role, receiver: Role) -> DelayedChannel:
    """Wrap the receiver's end of a channel, to be as slow as the network from the sender."""
    route = network.route(sender, receiver)
    return DelayedChannel(channel, Line(route, f"{network.seed}/{sender}/{receiver}"))
