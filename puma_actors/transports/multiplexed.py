"""A session's channel on a connection shared with other sessions; `multiplexer.Mux` creates it.

Frames carry the session's id. News about the session itself is sent in LINK frames: `window` (the
number of bytes that the reader has taken), `end` (this side sends no more frames) and `close`
(this side neither sends nor takes any more).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from anyio.lowlevel import checkpoint

from protocols.errors import (
    ConnectionLostError,
    LocalProtocolError,
    RemoteProtocolError,
    TransportError,
)
from puma_actors.base.texts import told
from puma_actors.transports.base import Channel
from puma_actors.transports.frame_queue import FrameQueue, Sink
from puma_actors.transports.frames import Frame, Kind

if TYPE_CHECKING:
    from puma_actors.transports.multiplexer import Mux

WINDOW = 8 << 20
"""Bytes of a session in transit or unread; with a round trip of 40 ms this allows 200 MB/s."""
_OVERHEAD = 256
"""Bytes that a frame counts in addition to its buffers."""


def window_bytes(frame: Frame) -> int:
    """How many bytes of the window, and of its session's turn to send, a frame uses."""
    return frame.nbytes + _OVERHEAD


class MuxChannel(Channel):
    """See the module docstring, and `Channel`.

    Attributes:
        session: its id; only frames of this session can be sent.
    """

    def __init__(self, mux: "Mux", session: bytes) -> None:
        under = mux.channel
        self.session = session
        self.local_address, self.peer_address = under.local_address, under.peer_address
        self.frame_bytes, self.chunk_bytes = under.frame_bytes, under.chunk_bytes
        self.peer_identity = under.peer_identity
        self._mux = mux
        self._out = 0  # sent, but not taken yet
        self._owed = 0  # taken, but not acknowledged yet
        self._queue = FrameQueue(eased=self._took)
        self._eof = False  # sent by this side
        self._gone: TransportError | None = None  # why nothing can be sent

    # -- called by the mux ------------------------------------------------------------------------

    def told(self, header: Mapping[str, Any]) -> None:
        """Handle news about the session from the other end."""
        do, size = header.get("do"), header.get("bytes")
        if do == "window":
            if type(size) is not int or not 0 < size <= self._out:
                self._queue.fail(RemoteProtocolError("malformed window of a session"))
                return
            self._out -= size
            self._queue.changed.notify()
        elif do in ("end", "close"):
            if do == "close":
                self._gone = self._gone or ConnectionLostError(_reason(header))
                if header.get("text"):
                    self._queue.lose(self._gone)
            self._queue.end()
        else:
            self._queue.fail(RemoteProtocolError("unknown news about a session"))

    def arrived(self, frame: Frame) -> None:
        """Take in a frame of the session."""
        if self._queue.held > WINDOW and not self._queue.over:
            error = RemoteProtocolError(f"{frame.kind.name} frame beyond the window")
            self._queue.fail(error)
            return
        try:
            self._queue.put(frame, window_bytes(frame))
        except RemoteProtocolError as error:  # only this session cannot go on
            self._queue.fail(error)

    def fail(self, error: TransportError) -> None:
        """Note that the connection is lost. Frames that have arrived can still be read."""
        self._gone = self._gone or error
        self._queue.lose(error)

    def _took(self, size: int) -> None:
        self._owed += size
        if 4 * self._owed >= WINDOW and not self._queue.ended:
            owed, self._owed = self._owed, 0
            self._mux.post(self._news({"do": "window", "bytes": owed}))

    def _news(self, header: dict[str, Any]) -> Frame:
        return Frame(Kind.LINK, self.session, (), header)

    # -- sending ----------------------------------------------------------------------------------

    def _check_sending(self, frame: Frame) -> None:
        self._check_open()
        if frame.session != self.session or frame.kind is Kind.LINK:
            raise LocalProtocolError("a session's channel takes frames of that session alone")

    def _check_open(self) -> None:
        if self._eof or self._queue.closed:
            raise TransportError("this side has closed the channel")
        if self._gone is not None:
            raise type(self._gone)(str(self._gone))

    def try_send(self, frame: Frame) -> bool:
        self._check_sending(frame)
        if self._out > WINDOW or not self._mux.try_send(frame):
            return False
        self._count(frame)
        return True

    async def send(self, frame: Frame) -> None:
        self._check_sending(frame)
        while self._out > WINDOW:
            await self._queue.changed.wait()
            self._check_open()
        self._count(frame)
        entry = self._mux.queue(frame)
        try:
            await entry.settled()
        finally:
            if not entry.taken:  # cancelled in the queue: it will not be sent
                self._out -= window_bytes(frame)

    def _count(self, frame: Frame) -> None:
        self._out += window_bytes(frame)
        self.sent_frames += 1
        self.sent_bytes += frame.nbytes

    async def send_eof(self) -> None:
        if not self._eof:
            self._check_open()
            self._eof = True
            self._mux.post(self._news({"do": "end"}))

    # -- receiving --------------------------------------------------------------------------------

    async def receive(self) -> Frame:
        return await self._queue.take()

    async def pump(self, sink: Sink) -> None:
        await self._queue.pump(sink)

    async def aclose(self) -> None:
        await checkpoint()
        if self._queue.closed:
            return
        self._queue.close()
        if self._gone is None:
            self._mux.post(self._news({"do": "close"}))
        self._mux.forget(self.session)


def _reason(header: Mapping[str, Any]) -> str:
    return told(header) or "the other side has closed the channel"
