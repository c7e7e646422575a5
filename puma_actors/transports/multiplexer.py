"""Many sessions on one connection between two parties, distinguished by each frame's session id.

    mux = Mux(channel)
    async with mux.running():                    until the block or the connection ends
        channel = mux.open(session)              a `Channel`: handshake and scheduler run over it
        await mux.ping()                         seconds there and back
        await mux.throughput(8 << 20)            bytes per second
    await mux.lost.wait()                        set when the connection has ended

Both ends open a session before anything is sent for it; a frame for a session that is not open is
answered with the session's end. A session ends on its own (`aclose` of its channel); the connection
stays. When the connection is lost, every session fails with the reason.

Fairness: frames wait in a queue for each session, and leave in the order of start-time fair
queueing (Goyal, Vin, Cheng, SIGCOMM 1996): sessions that always have something to send get equal
shares of bytes, and a frame of a session that was idle goes before the next frame of those
sessions, however many large ones are waiting. Small frames that wait, of whichever sessions, leave
in one write.

Back-pressure: for each session up to `WINDOW` bytes may be in transit or unread at the other end,
which acknowledges the bytes that its reader has taken. A session that does not read only stops
itself.
"""

import asyncio
import heapq
import itertools
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio

from protocols.errors import (
    ConnectionLostError,
    LocalProtocolError,
    NoAnswerError,
    PumaError,
    RemoteProtocolError,
    TransportError,
)
from puma_actors.base.concurrency import Signal, unwrap
from puma_actors.transports.base import Channel
from puma_actors.transports.frames import NO_SESSION, Frame, Kind
from puma_actors.transports.multiplexed import WINDOW, MuxChannel, window_bytes

_PROBE = 256 << 10
_REMEMBERED = 1 << 12
"""Number of recently ended sessions that are remembered: their stray frames are dropped silently.
"""
_ECHO_TIME = 30.0
_MOST_WAITING = 1 << 14
_JOINED = 64 << 10
"""Bytes of frames that leave in one write; a larger frame leaves alone."""


class QueuedFrame:
    """A queued frame, and the task that waits for it."""

    __slots__ = ("done", "frame", "taken")

    def __init__(self, frame: Frame, done: "asyncio.Future[None] | None" = None) -> None:
        self.frame = frame
        self.done = done
        self.taken = False  # it is being sent, or was sent

    async def settled(self) -> None:
        """Wait until it was sent, or cannot be sent."""
        assert self.done is not None
        await self.done

    @property
    def dropped(self) -> bool:
        """Whether the waiting task gave up."""
        return self.done is not None and self.done.done()

    def settle(self, error: PumaError | None = None) -> None:
        """Wake the waiting task."""
        if self.done is None or self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


class FairQueue:
    """Frames of several sessions in the order in which they should be sent."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, QueuedFrame]] = []
        self._finish: dict[bytes, float] = {}
        self._now = 0.0  # virtual time: the start of the last frame sent
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, entry: QueuedFrame) -> None:
        """Add a frame: in order within a session, by start time between sessions."""
        session = entry.frame.session
        start = max(self._now, self._finish.get(session, 0.0))
        self._finish[session] = start + window_bytes(entry.frame)
        if len(self._finish) > _REMEMBERED:  # past finishes do not matter, and ids must not pile up
            self._finish = {s: t for s, t in self._finish.items() if t > self._now}
        heapq.heappush(self._heap, (start, next(self._order), entry))

    def pop(self) -> QueuedFrame:
        """Remove and return the next frame."""
        self._now, _, entry = heapq.heappop(self._heap)
        return entry

    def pop_all(self, most: int) -> list[QueuedFrame]:
        """Remove and return the next frames: as many as have at most so many bytes; or one."""
        found = [self.pop()]
        room = most - window_bytes(found[0].frame)
        while self._heap and (room := room - window_bytes(self._heap[0][2].frame)) >= 0:
            found.append(self.pop())
        return found

    def forget(self, session: bytes) -> None:
        """The session will send no more; its waiting frames stay in the queue."""
        self._finish.pop(session, None)


class Mux:
    """See the module docstring.

    Args:
        channel: a connection that only the multiplexer uses from now on.
        peer: name of the other end, for messages.
    """

    def __init__(self, channel: Channel, peer: str = "") -> None:
        self.channel = channel
        self.peer = peer or channel.peer_address
        self.lost = anyio.Event()
        self._channels: dict[bytes, MuxChannel] = {}
        self._ended: deque[bytes] = deque(maxlen=_REMEMBERED)
        self._error: TransportError | None = None
        self._queue = FairQueue()
        self._work = Signal()
        self._sending = False
        self._echoes: dict[bytes, asyncio.Future[None]] = {}

    # -- life -------------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Mux"]:
        """Serve the connection around a block of code; close it afterwards."""
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._pump)
                group.start_soon(self._write)
                try:
                    yield self
                finally:
                    self._fail(TransportError(f"this side has closed the link to {self.peer}"))
                    group.cancel_scope.cancel()
                    with anyio.CancelScope(shield=True):
                        await self.channel.aclose()
        except BaseExceptionGroup as errors:
            root = unwrap(errors)
            raise root from root.__cause__

    def check(self) -> None:
        """Raise TransportError if the connection is lost."""
        if self._error is not None:
            raise type(self._error)(str(self._error))

    @property
    def reason(self) -> str:
        """Why the connection was lost; empty while it is not."""
        return str(self._error or "")

    def _lost_by(self, error: TransportError) -> TransportError:
        kind = NoAnswerError if isinstance(error, NoAnswerError) else ConnectionLostError
        return kind(f"the connection to {self.peer} was lost: {error}")

    def _fail(self, error: TransportError) -> None:
        if self._error is not None:
            return
        self._error = error
        while self._queue:
            self._queue.pop().settle(self._error)
        for echo in self._echoes.values():
            if not echo.done():
                echo.set_exception(self._error)
                echo.exception()  # the waiting task has the error, if any task still waits
        for channel in list(self._channels.values()):
            channel.fail(self._error)
        self._channels.clear()
        self._work.notify()
        self.lost.set()

    async def _pump(self) -> None:
        try:
            await self.channel.pump(self._deliver)
            raise ConnectionLostError(f"{self.peer} has closed the connection")
        except TransportError as error:
            self._fail(self._lost_by(error))
        except PumaError as error:
            self._fail(ConnectionLostError(f"the connection to {self.peer} is unusable: {error}"))

    # -- sessions ---------------------------------------------------------------------------------

    def open(self, session: bytes) -> MuxChannel:
        """The channel of a session, which must be new.

        Raises:
            TransportError: the connection is lost.
            LocalProtocolError: the session was used before.
        """
        self.check()
        if session in self._channels or session in self._ended or session == NO_SESSION:
            raise LocalProtocolError(f"session {session.hex()} was used before: draw a new one")
        channel = self._channels[session] = MuxChannel(self, session)
        return channel

    def forget(self, session: bytes) -> None:
        """Called by a channel that both ends have closed, or only this end."""
        if self._channels.pop(session, None) is not None:
            self._ended.append(session)
            self._queue.forget(session)

    @property
    def sessions(self) -> int:
        """Number of open sessions."""
        return len(self._channels)

    # -- sending ----------------------------------------------------------------------------------

    def try_send(self, frame: Frame) -> bool:
        """Send immediately if nothing else waits."""
        self.check()
        if self._sending or self._queue:
            return False
        return self.channel.try_send(frame)

    async def send(self, frame: Frame) -> None:
        """Wait for this frame's turn, and until the connection has taken it."""
        await self.queue(frame).settled()

    def queue(self, frame: Frame) -> QueuedFrame:
        """Put a frame in its session's queue."""
        self.check()
        entry = QueuedFrame(frame, asyncio.get_running_loop().create_future())
        self._queue.push(entry)
        self._work.notify()
        return entry

    def post(self, frame: Frame) -> None:
        """Send without waiting: notices about a session, of which there are few at a time."""
        if self._error is not None or self.try_send(frame):
            return
        if len(self._queue) > _MOST_WAITING:
            self._fail(ConnectionLostError(f"{self.peer} requests more than it reads"))
            return
        self._queue.push(QueuedFrame(frame))
        self._work.notify()

    async def _write(self) -> None:
        while self._error is None:
            while self._queue:
                await self._write_all(self._queue.pop_all(_JOINED if self.channel.joins else 0))
            await self._work.wait()

    async def _write_all(self, popped: Sequence[QueuedFrame]) -> None:
        entries = [entry for entry in popped if not entry.dropped]
        if not entries:
            return
        self._sending = True
        for entry in entries:
            entry.taken = True
        failure: PumaError | None = None
        try:
            await self.channel.send_all([entry.frame for entry in entries])
        except TransportError as error:
            failure = error
            self._fail(self._lost_by(error))
        except PumaError as error:  # one of the frames cannot be sent, and none was
            if len(entries) > 1:
                for entry in entries:
                    await self._write_all((entry,))
                return
            failure = error
        finally:
            self._sending = False
        for entry in entries:
            entry.settle(failure)

    # -- receiving --------------------------------------------------------------------------------

    def _deliver(self, frame: Frame) -> None:
        if frame.session == NO_SESSION:
            self._measure(frame)
            return
        channel = self._channels.get(frame.session)
        if channel is None:
            self._stray(frame)
        elif frame.kind is Kind.LINK:
            channel.told(frame.header)
        else:
            channel.arrived(frame)

    def _stray(self, frame: Frame) -> None:
        """Handle a frame for a session that is not open here."""
        if frame.kind is not Kind.LINK and frame.session not in self._ended:
            self._ended.append(frame.session)
            text = "the session is not open at the other side: it ended, or never began there"
            self.post(Frame(Kind.LINK, frame.session, (), {"do": "close", "text": text}))

    # -- measuring --------------------------------------------------------------------------------

    def _measure(self, frame: Frame) -> None:
        do, key = frame.header.get("do"), frame.header.get("key")
        if frame.kind is not Kind.LINK or not isinstance(key, bytes) or len(key) > 16:
            raise RemoteProtocolError(f"{frame.kind.name} frame without a session")
        if do == "ping":
            self.post(Frame(Kind.LINK, NO_SESSION, (), {"do": "pong", "key": key}))
        elif do == "pong":
            echo = self._echoes.pop(key, None)
            if echo is not None and not echo.done():
                echo.set_result(None)
        elif do != "load":
            raise RemoteProtocolError("malformed measurement")

    async def _echo(self, before: Callable[[], Any] | None = None) -> float:
        key = os.urandom(8)
        echo = self._echoes[key] = asyncio.get_running_loop().create_future()
        started = time.perf_counter()
        try:
            with anyio.fail_after(_ECHO_TIME):
                if before is not None:
                    await before()
                await self.send(Frame(Kind.LINK, NO_SESSION, (), {"do": "ping", "key": key}))
                await echo
        except TimeoutError:
            raise NoAnswerError(
                f"no answer from {self.peer} within {_ECHO_TIME:g} s: is it overloaded?"
            ) from None
        finally:
            self._echoes.pop(key, None)
        return time.perf_counter() - started

    async def ping(self, count: int = 5) -> float:
        """Round-trip time in seconds, the shortest of `count`."""
        return min([await self._echo() for _ in range(count)])

    async def throughput(self, nbytes: int = 8 << 20) -> float:
        """Bytes per second to the other end, while sessions take their share."""
        payload = bytes(_PROBE)

        async def load() -> None:
            header = {"do": "load", "key": b""}
            for _ in range(max(1, nbytes // _PROBE)):
                await self.send(Frame(Kind.LINK, NO_SESSION, (), header, [payload]))

        return max(1, nbytes // _PROBE) * _PROBE / max(await self._echo(load), 1e-9)


__all__ = ["WINDOW", "FairQueue", "Mux", "MuxChannel"]
