"""A queue of received frames that wait to be taken: the receiving end of every channel.

    queue.put(frame, size)      the carrier appends a frame
    queue.end()                 the other side has finished: no more frames will come
    queue.lose(error)           the connection is lost: no more frames will come
    queue.fail(error)           the queue cannot be used any more: waiting frames are dropped
    await queue.take()          the next frame
    await queue.pump(sink)      pass every frame to a function, until the other side has ended
    queue.close()               this side closes: waiting frames are dropped

A queue never refuses a frame because of its size. The carrier reads `held` (or adds up the sizes
passed to `eased`), and slows down its sender in its own way.
"""

from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from anyio.lowlevel import checkpoint

from protocols.errors import LocalProtocolError, RemoteProtocolError, TransportError
from puma_actors.base.concurrency import Signal
from puma_actors.transports.base import ChannelEnded
from puma_actors.transports.frames import Frame

Sink: TypeAlias = Callable[[Frame], None]


class FrameQueue:
    """See the module docstring.

    Args:
        peer: the sender's name, for the text of `ChannelEnded`.
        eased: called when there is more room, with the number of bytes that this side has taken:
            before a sink gets the frame, and with 0 after frames were dropped.

    Attributes:
        held: bytes that wait.
        closed: whether this side has closed.
        ended: whether the other side has finished.
        over: whether no more frames will come.
        pumped: whether frames go straight to a function.
        changed: notified when frames come or are taken, or when any of these states changes.
    """

    def __init__(
        self, peer: str = "the other side", eased: Callable[[int], None] | None = None
    ) -> None:
        self.held = 0
        self.closed = self.ended = self.over = self.pumped = False
        self.changed = Signal()
        self._peer = peer
        self._eased = eased
        self._frames: deque[tuple[Frame, int]] = deque()
        self._sink: Sink | None = None
        self._broken: Exception | None = None  # why the queue cannot be used
        self._lost: Exception | None = None  # why no more frames come

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def refusing(self) -> bool:
        """Whether new frames are dropped, because this side has closed or failed."""
        return self.closed or self._broken is not None

    # -- from the carrier -------------------------------------------------------------------------

    def put(self, frame: Frame, size: int) -> None:
        """Append a frame that counts as `size` bytes. It is dropped if the queue has failed, is
        closed or has lost its connection.

        Raises:
            RemoteProtocolError: the other side had already finished.
        """
        if self.over:
            if self.ended and not (self.refusing or self._lost is not None):
                raise RemoteProtocolError(f"{frame.kind.name} frame after the last one")
            return
        if self._sink is not None and not self._frames:
            self._deliver(self._sink, frame, size)
            return
        self._frames.append((frame, size))
        self.held += size
        self.changed.notify()

    def end(self) -> None:
        """Note that the other side has finished. Frames in the queue can still be taken."""
        self.ended = self.over = True
        self.changed.notify()

    def lose(self, error: Exception) -> None:
        """Note that the connection is lost, unless the other side has finished. Frames in the queue
        can still be taken.
        """
        if not self.ended:
            self._lost = self._lost or error
            self.over = True
        self.changed.notify()

    def fail(self, error: Exception) -> None:
        """Drop everything. From now on `take` raises `error`, unless the queue failed or was closed
        before.
        """
        if not self.closed:
            self._broken = self._broken or error
        self._drop()

    def close(self) -> None:
        """Drop everything; this side takes no more frames."""
        self.closed = True
        self._drop()

    def _drop(self) -> None:
        self.over = True
        self._frames.clear()
        self.held = 0
        if self._eased is not None:
            self._eased(0)
        self.changed.notify()

    # -- to the program ---------------------------------------------------------------------------

    def check(self) -> None:
        """Raise if no more frames will come.

        Raises:
            ChannelEnded: the other side has finished.
            TransportError: this side has closed the channel.
            Exception: the error passed to `fail` or `lose`.
        """
        if self._broken is not None:
            raise self._broken
        if self.closed:
            raise TransportError("this side has closed the channel")
        if self._lost is not None:
            raise self._lost
        if self.ended:
            raise ChannelEnded(f"{self._peer} has finished")

    async def take(self) -> Frame:
        """Take the next frame; a cancelled call takes none. Raises what `check` raises."""
        await checkpoint()
        while not self._frames:
            self.check()
            await self.changed.wait()
        frame, size = self._pop()
        if self._eased is not None:
            self._eased(size)
        self.changed.notify()
        return frame

    async def pump(self, sink: Sink) -> None:
        """Pass every frame to `sink` as soon as it comes; return when the other side has ended.

        Raises:
            LocalProtocolError: it is pumped already.
            Exception: what `check` or `sink` raises; an error of `sink` is a failure (see `fail`).
        """
        if self._sink is not None:
            raise LocalProtocolError("the channel is pumped already")
        self._sink = sink
        self.pumped = True
        try:
            while self._frames:
                self._deliver(sink, *self._pop())
            self.changed.notify()
            while True:
                self.check()
                await self.changed.wait()
        except ChannelEnded:
            return
        finally:
            self._sink = None
            self.pumped = False

    def _pop(self) -> tuple[Frame, int]:
        frame, size = self._frames.popleft()
        self.held -= size
        return frame, size

    def _deliver(self, sink: Sink, frame: Frame, size: int) -> None:
        if self._eased is not None:
            self._eased(size)
        try:
            sink(frame)
        except Exception as error:  # `pump` raises it; the carrier must not see it
            self.fail(error)
