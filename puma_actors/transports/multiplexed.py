"""One session's channel on a connection that it shares with others; made by `multiplexer.Mux`.

Frames travel with the session's id. News about the session itself are LINK frames:
`window` (so many bytes were taken by the reader), `end` (no more frames from here) and `close`
(and none are taken).
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from anyio.lowlevel import checkpoint

from protocols.errors import (
    ConnectionLostError,
    LocalProtocolError,
    RemoteProtocolError,
    TransportError,
)
from puma_actors.base.concurrency import Signal
from puma_actors.base.texts import told
from puma_actors.transports.base import Channel, ChannelEnded
from puma_actors.transports.frames import Frame, Kind

if TYPE_CHECKING:
    from puma_actors.transports.multiplexer import Mux

WINDOW = 8 << 20
"""Bytes of a session on the way or unread; at 40 ms there and back this allows 200 MB/s."""
_OVERHEAD = 256
"""What a frame counts for beside its buffers."""


def window_bytes(frame: Frame) -> int:
    """What a frame takes of the window, and of its session's turn to send."""
    return frame.nbytes + _OVERHEAD


class MuxChannel(Channel):
    """See the module's text, and `Channel`.

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
        self._out = 0  # sent and not taken yet
        self._frames: deque[Frame] = deque()
        self._held = 0  # received and not taken yet
        self._owed = 0  # taken and not acknowledged yet
        self._sink: Callable[[Frame], None] | None = None
        self._changed = Signal()
        self._eof = self._closed = False  # by this side
        self._ended = False  # by the other side
        self._gone: TransportError | None = None  # why nothing can be sent
        self._error: Exception | None = None  # why nothing will be received

    # -- called by the mux ------------------------------------------------------------------------

    def told(self, header: Mapping[str, Any]) -> None:
        """News about the session from the other end."""
        do, size = header.get("do"), header.get("bytes")
        if do == "window":
            if type(size) is not int or not 0 < size <= self._out:
                self._break(RemoteProtocolError("malformed window of a session"))
                return
            self._out -= size
        elif do in ("end", "close"):
            self._ended = True
            if do == "close":
                self._gone = self._gone or ConnectionLostError(_reason(header))
                self._error = self._error or (self._gone if header.get("text") else None)
        else:
            self._break(RemoteProtocolError("unknown news about a session"))
            return
        self._changed.notify()

    def arrived(self, frame: Frame) -> None:
        """A frame of the session."""
        if self._closed or self._error is not None:
            return
        self._held += window_bytes(frame)
        if self._ended or self._held - window_bytes(frame) > WINDOW:
            what = "after the last one" if self._ended else "beyond the window"
            self._break(RemoteProtocolError(f"{frame.kind.name} frame {what}"))
        elif self._sink is not None:
            self._hand_over(self._sink, frame)
        else:
            self._frames.append(frame)
            self._changed.notify()

    def fail(self, error: TransportError) -> None:
        """The connection is lost. What has come can still be read."""
        self._gone = self._gone or error
        if not self._ended:
            self._error = self._error or error
        self._changed.notify()

    def _break(self, error: Exception) -> None:
        """This session cannot go on; others can."""
        self._error = self._error or error
        self._frames.clear()
        self._changed.notify()

    def _hand_over(self, sink: Callable[[Frame], None], frame: Frame) -> None:
        self._took(frame)
        try:
            sink(frame)
        except Exception as error:  # raised by `pump`; the other sessions know nothing of it
            self._break(error)

    def _took(self, frame: Frame) -> None:
        size = window_bytes(frame)
        self._held -= size
        self._owed += size
        if 4 * self._owed >= WINDOW and not self._ended:
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
        if self._eof or self._closed:
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
            await self._changed.wait()
            self._check_open()
        self._count(frame)
        entry = self._mux.queue(frame)
        try:
            await entry.settled()
        finally:
            if not entry.taken:  # cancelled in the queue: it will not leave
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

    def _check_receiving(self) -> None:
        if self._closed:
            raise TransportError("this side has closed the channel")
        if self._error is not None:
            raise self._error
        if self._ended:
            raise ChannelEnded("the other side has finished")

    async def receive(self) -> Frame:
        await checkpoint()
        while not self._frames:
            self._check_receiving()
            await self._changed.wait()
        frame = self._frames.popleft()
        self._took(frame)
        return frame

    async def pump(self, sink: Callable[[Frame], None]) -> None:
        if self._sink is not None:
            raise LocalProtocolError("the channel is pumped already")
        self._sink = sink
        try:
            while self._frames:
                self._hand_over(sink, self._frames.popleft())
            while True:
                self._check_receiving()
                await self._changed.wait()
        except ChannelEnded:
            return
        finally:
            self._sink = None

    async def aclose(self) -> None:
        await checkpoint()
        if self._closed:
            return
        self._closed = True
        self._frames.clear()
        if self._gone is None:
            self._mux.post(self._news({"do": "close"}))
        self._mux.forget(self.session)
        self._changed.notify()


def _reason(header: Mapping[str, Any]) -> str:
    return told(header) or "the other side has closed the channel"
