"""Frames that have come and wait until this side takes them: the receiving end of every channel.

    queue.put(frame, size)      from the carrier: behind all earlier ones
    queue.end()                 the other side has finished: nothing comes after what is here
    queue.lose(error)           the connection is lost: nothing comes after what is here
    queue.fail(error)           nothing here can be used: what waits is dropped
    await queue.take()          the next frame
    await queue.pump(sink)      every frame to a function, until the other side has ended
    queue.close()               by this side: what waits is dropped

A queue never refuses a frame for its size: the carrier reads `held` (or counts what `eased` tells
it) and stops its sender in its own way.
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


def _nothing(size: int) -> None:
    """For carriers that need not know what was taken."""


class FrameQueue:
    """See the module's text.

    Args:
        peer: who sends, for the text of `ChannelEnded`.
        eased: called when there is more room, with the bytes that this side has taken: before a
            sink gets their frame, and with 0 after frames were dropped.

    Attributes:
        held: bytes that wait.
        closed: by this side.
        ended: the other side has finished.
        changed: frames came or were taken, or any of this changed.
    """

    def __init__(
        self, peer: str = "the other side", eased: Callable[[int], None] = _nothing
    ) -> None:
        self.held = 0
        self.closed = self.ended = False
        self.changed = Signal()
        self._peer = peer
        self._eased = eased
        self._frames: deque[tuple[Frame, int]] = deque()
        self._sink: Sink | None = None
        self._broken: Exception | None = None  # why nothing here can be used
        self._lost: Exception | None = None  # why nothing comes after what is here

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def pumped(self) -> bool:
        """Frames go straight to a function."""
        return self._sink is not None

    @property
    def refusing(self) -> bool:
        """What comes is dropped: this side has closed, or failed."""
        return self.closed or self._broken is not None

    @property
    def over(self) -> bool:
        """Nothing more comes."""
        return self.refusing or self.ended or self._lost is not None

    # -- from the carrier -------------------------------------------------------------------------

    def put(self, frame: Frame, size: int) -> None:
        """A frame that counts for `size` bytes. Dropped if nothing can come any more.

        Raises:
            RemoteProtocolError: the other side had said that it has finished.
        """
        if self.refusing or self._lost is not None:
            return
        if self.ended:
            raise RemoteProtocolError(f"{frame.kind.name} frame after the last one")
        if self._sink is not None and not self._frames:
            self._deliver(self._sink, frame, size)
            return
        self._frames.append((frame, size))
        self.held += size
        self.changed.notify()

    def end(self) -> None:
        """The other side has finished; what has come can still be taken."""
        self.ended = True
        self.changed.notify()

    def lose(self, error: Exception) -> None:
        """Nothing more comes, unless all has come; what is here can still be taken."""
        if not self.ended:
            self._lost = self._lost or error
        self.changed.notify()

    def fail(self, error: Exception) -> None:
        """Drop everything; whoever takes gets `error`, or what came first: a failure, `close`."""
        if not self.closed:
            self._broken = self._broken or error
        self._drop()

    def close(self) -> None:
        """Nothing more is taken."""
        self.closed = True
        self._drop()

    def _drop(self) -> None:
        self._frames.clear()
        self.held = 0
        self._eased(0)
        self.changed.notify()

    # -- to the program ---------------------------------------------------------------------------

    def check(self) -> None:
        """Raise if no frame comes any more.

        Raises:
            ChannelEnded: the other side has finished.
            TransportError: this side has closed the channel; what `fail` or `lose` were told.
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
        """The next frame; a cancelled call takes none. Raises what `check` raises."""
        await checkpoint()
        while not self._frames:
            self.check()
            await self.changed.wait()
        frame, size = self._pop()
        self._eased(size)
        self.changed.notify()
        return frame

    async def pump(self, sink: Sink) -> None:
        """Give every frame to `sink`, at once while this runs; return when the other side has
        ended.

        Raises:
            LocalProtocolError: it is pumped already.
            Exception: what `check` or `sink` raise; what `sink` raises is a failure (see `fail`).
        """
        if self._sink is not None:
            raise LocalProtocolError("the channel is pumped already")
        self._sink = sink
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

    def _pop(self) -> tuple[Frame, int]:
        frame, size = self._frames.popleft()
        self.held -= size
        return frame, size

    def _deliver(self, sink: Sink, frame: Frame, size: int) -> None:
        self._eased(size)
        try:
            sink(frame)
        except Exception as error:  # raised by `pump`; it must not surface where frames come from
            self.fail(error)
