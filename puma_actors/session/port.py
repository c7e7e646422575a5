"""The connection to one peer: everything sent in one turn of the event loop leaves as one frame.

    port.put(tag, payload, dealt)   queue a message; True if the caller should let others run
    port.post(frame)                send a frame after everything queued
    await port.drained()            wait while the channel is too slow
    await port.write()              run by the scheduler: send frames that could not be sent before
    await port.finish()             send the rest, while time allows

The flush is a callback for the next turn of the loop, not a task: by then the messages of all lanes
that are ready in this turn are in the batch, and a round costs no task switches besides those of
the lanes. If there is only one lane, or if a frame costs nothing, an online message between
computing parties leaves at once, which saves a turn of the loop. A client gets its result together
with the report of the step.

On a slow channel two queues form. Frames that a round waits for (small online messages, credit,
failures) go before the parts of large messages, dealt messages and requests; each queue keeps its
order.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from protocols.base.shares import COMPUTING, Role
from protocols.errors import (
    LocalProtocolError,
    PumaError,
    RemoteProtocolError,
    TransportError,
)
from puma_actors.base.concurrency import Signal
from puma_actors.session.credit import CreditAccount, CreditWindow
from puma_actors.session.handshake import Peer
from puma_actors.session.mailbox import Flow, Mailbox
from puma_actors.session.outbox import Outbox
from puma_actors.transports.frames import Frame, Kind, Tag

_MOST_PER_FRAME = 1024
_MOST_WAITING = 1 << 16
"""A peer that leaves this many urgent frames unread is given up: far more than a program has lanes,
each of which has one or two in transit.
"""


class _Batch:
    """Messages that leave together; dealt and online ones are kept apart."""

    __slots__ = ("buffers", "count", "dealt", "nbytes", "tags")

    def __init__(self, dealt: bool) -> None:
        self.dealt = dealt
        self.tags: list[Tag] = []
        self.buffers: list[memoryview] = []
        self.count = self.nbytes = 0

    def frame(self, session: bytes) -> Frame:
        header = {"tags": self.tags, "dealt": self.dealt}
        frame = Frame(Kind.BATCH, session, (), header, self.buffers)
        self.tags, self.buffers, self.count, self.nbytes = [], [], 0, 0
        return frame


def _is_urgent(frame: Frame) -> bool:
    """Whether a frame may overtake frames that are not urgent. Messages carry their place in the
    program, so their order does not matter; that of requests, parts and the goodbye does.
    """
    if frame.kind is Kind.BATCH:
        return not frame.header["dealt"]
    return frame.kind in (Kind.CREDIT, Kind.OFFER, Kind.ASK, Kind.ERROR)


def _only_of(frame: Frame, numbers: range) -> bool:
    """Whether a frame carries messages of these inferences and of no other."""
    if frame.kind is Kind.DATA:
        return frame.tag[0] in numbers
    return frame.kind is Kind.BATCH and all(tag[0] in numbers for tag in frame.header["tags"])


class Port:
    """Everything about the connection to one peer.

    Args:
        own: this party's role.
        peer: the peer, from the handshake.
        flow: sizes of windows, batches and messages.
        lost: called when the channel breaks.
        check: raises if the session, or this peer, has failed.
    """

    def __init__(
        self,
        own: Role,
        peer: Peer,
        flow: Flow,
        lost: Callable[["Port", PumaError], None],
        check: Callable[["Port"], None],
    ) -> None:
        self.role = peer.role
        self.session = peer.session
        self.channel = peer.channel
        self.left = False  # the peer said goodbye
        self.closed = False  # by this side
        self.mailboxes: dict[int, Mailbox] = {}
        self.windows: dict[int, CreditWindow] = {}
        self.outboxes: dict[int, Outbox] = {}
        self.room = Signal()
        self.arrived: Callable[[Sequence[Any]], None] | None = None
        """Called with the tags of messages as soon as they arrive; for a profiler."""
        self._flow = flow
        self._incoming = flow.incoming(own, peer.role)
        self._outgoing = flow.incoming(peer.role, own)
        self._lost = lost
        self._check = check
        self.control_window = CreditWindow(flow.control, self.check)
        self.control_account = CreditAccount(flow.control, lambda size: self.credit((), size))
        self._inner = own in COMPUTING and peer.role in COMPUTING
        self._instant = self.channel.instant
        self._chunk = min(flow.chunk or self.channel.chunk_bytes, self.channel.chunk_bytes)
        self._online, self._dealt = _Batch(False), _Batch(True)
        self._scheduled = False
        self._urgent: deque[Frame] = deque()
        self._pending: deque[Frame] = deque()
        self._pending_bytes = 0
        self._work = Signal()
        self._writing = False
        self._broken = False
        self._gone = False

    def check(self) -> None:
        """Raise if the session has failed or this peer has left."""
        self._check(self)

    # -- state per inference ----------------------------------------------------------------------

    def mailbox(self, number: int) -> Mailbox:
        """The mailbox for an inference, created when first needed."""
        box = self.mailboxes.get(number)
        if box is None:
            box = self.mailboxes[number] = Mailbox(
                self._incoming,
                lambda size: self.credit((number,), size),
                self.check,
                lambda size: self.credit((number,), size, dealt=False),
                self.ask,
            )
        return box

    def window(self, number: int) -> CreditWindow:
        """The window for messages dealt to this peer, created when first needed."""
        window = self.windows.get(number)
        if window is None:
            window = self.windows[number] = CreditWindow(self._flow.window, self.check)
        return window

    def outbox(self, number: int) -> Outbox:
        """The outbox for an inference's messages to this peer, created when first needed."""
        box = self.outboxes.get(number)
        if box is None:
            window = CreditWindow(self._outgoing.early, self.check)
            box = self.outboxes[number] = Outbox(window)
        return box

    def sent_window(self, number: int, dealt: bool) -> CreditWindow | None:
        """The window of an inference's dealt or online bytes that are out, if any were sent."""
        if dealt:
            return self.windows.get(number)
        box = self.outboxes.get(number)
        return None if box is None else box.window

    async def settled(self, number: int) -> None:
        """Wait until the peer has requested all its messages of an inference, or has left."""
        box = self.outboxes.get(number)
        while box is not None and box.holds and not self.left:
            await box.emptied.wait()
            if not self.left:
                self.check()

    def end(self, number: int) -> None:
        """Forget an inference."""
        if (box := self.mailboxes.pop(number, None)) is not None:
            box.close()
        if (window := self.windows.pop(number, None)) is not None:
            window.changed.notify()
        if (outbox := self.outboxes.pop(number, None)) is not None:
            outbox.drop()

    def withdraw(self, numbers: range) -> None:
        """Drop what waits for the channel of inferences that were given up everywhere; but a frame
        that is being sent is sent whole.
        """
        waiting = [*self._pending]
        self._pending.clear()
        for place, frame in enumerate(waiting):
            if (place == 0 and self._broken) or not _only_of(frame, numbers):
                self._pending.append(frame)
            else:
                self._pending_bytes -= frame.nbytes
        self.room.notify()

    def wake(self) -> None:
        """Wake all tasks that wait for something from or to this peer."""
        for box in self.mailboxes.values():
            box.wake()
        for window in (*self.windows.values(), self.control_window):
            window.changed.notify()
        for outbox in self.outboxes.values():
            outbox.emptied.notify()
        self.room.notify()

    # -- sending ----------------------------------------------------------------------------------

    def put(self, tag: Tag, payload: memoryview, dealt: bool, *, alone: bool = False) -> bool:
        """Queue a message; True if the caller should let others run before it sends more.

        Args:
            alone: no other lane of the inference has messages to send in this turn: it leaves now.
        """
        if not dealt:
            number = tag[0]
            box = self.outboxes[number] if number in self.outboxes else self.outbox(number)
            if not box.window.admit(payload.nbytes):
                box.hold(tag, payload)
                self._emit(Frame(Kind.OFFER, self.session, tag, {"total": payload.nbytes}))
                return True
            at_once = self._inner and (alone or self._instant) and not self._online.tags
            if at_once and payload.nbytes < self._flow.watermark:
                header = {"tags": [tag], "dealt": False}
                self._emit(Frame(Kind.BATCH, self.session, (), header, [payload]))
                return self._pending_bytes > self._flow.backlog
        return self._put(tag, payload, dealt)

    def _put(self, tag: Tag, payload: memoryview, dealt: bool) -> bool:
        size = payload.nbytes
        if size >= self._flow.watermark:
            self.flush()
            self._emit_large(tag, payload, dealt)
            return True
        batch = self._dealt if dealt else self._online
        batch.tags.append(tag)
        batch.buffers.append(payload)
        batch.count += 1
        batch.nbytes += size
        if batch.nbytes >= self._flow.watermark or batch.count >= _MOST_PER_FRAME:
            self._emit(batch.frame(self.session))
            return True
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)
        return batch.count >= self._flow.batch or self._pending_bytes > self._flow.backlog

    def _turn(self) -> None:
        self._scheduled = False
        self.flush()

    def flush(self) -> None:
        """Send the queued messages."""
        if self._online.tags:
            self._emit(self._online.frame(self.session))
        if self._dealt.tags:
            self._emit(self._dealt.frame(self.session))

    def post(self, frame: Frame) -> None:
        """Send a frame after everything queued."""
        self.flush()
        self._emit(frame)

    def credit(self, tag: Tag, size: int, *, dealt: bool = True) -> None:
        """Tell the peer that `size` bytes were consumed; tag () means control messages."""
        self._answer(Frame(Kind.CREDIT, self.session, tag, {"bytes": size, "dealt": dealt}))

    def ask(self, tag: Tag, wanted: bool) -> None:
        """Tell the peer to send a message that it offered, or to forget it."""
        self._answer(Frame(Kind.ASK, self.session, tag, {"wanted": wanted}))

    def _answer(self, frame: Frame) -> None:
        """Send a frame that the peer has caused. No task waits here while the peer reads nothing,
        and the peer can cause any number of such frames, so the queue is limited.
        """
        if len(self._urgent) < _MOST_WAITING:
            self._emit(frame)
        else:
            self._lost(self, RemoteProtocolError("it causes more answers than it reads"))

    def asked(self, tag: Tag, wanted: bool) -> None:
        """Handle the peer's request for an offered message, or its notice that it will not need it.

        Raises:
            RemoteProtocolError: there is no such offer.
        """
        outbox = self.outboxes.get(tag[0])
        payload = None if outbox is None else outbox.taken(tag)
        if outbox is not None and payload is None:
            raise RemoteProtocolError(f"message {tag} was requested but not offered")
        if wanted and payload is not None:
            self._put(tag, payload, False)

    def _emit_large(self, tag: Tag, payload: memoryview, dealt: bool) -> None:
        total = payload.nbytes
        if total > self._flow.message:
            raise LocalProtocolError(
                f"message of {total} bytes, the limit is {self._flow.message}: send it in parts"
            )
        for start in range(0, total, self._chunk):
            header = {"dealt": dealt, "offset": start, "total": total}
            part = payload[start : start + self._chunk]
            self._emit(Frame(Kind.DATA, self.session, tag, header, [part]))

    def _emit(self, frame: Frame) -> None:
        if self.left or self.closed or self._gone:
            return
        if not (self._urgent or self._pending) or (_is_urgent(frame) and not self._urgent):
            try:
                if self.channel.try_send(frame):
                    return
            except PumaError as error:
                self._unsent(error)
                return
        queue = self._urgent if _is_urgent(frame) else self._pending
        queue.append(frame)
        self._pending_bytes += frame.nbytes
        self._work.notify()

    # -- a slow channel ---------------------------------------------------------------------------

    @property
    def slow(self) -> bool:
        """Whether more bytes wait for the channel than the limit."""
        return self._pending_bytes > self._flow.backlog

    async def drained(self) -> None:
        """Wait until the channel has caught up."""
        while self.slow:
            self.check()
            await self.room.wait()

    async def write(self) -> None:
        """Send frames that could not be sent at once, as long as the session runs."""
        self._writing = True
        try:
            while True:
                await self._write_pending()
                await self._work.wait()
        finally:
            self._writing = False
            self.room.notify()

    async def _write_pending(self) -> None:
        while (queue := self._urgent or self._pending) and not self._broken:
            try:
                self._broken = True  # until the frame is known to have been sent in full
                await self.channel.send(queue[0])
                self._broken = False
            except PumaError as error:
                self._unsent(error)
                return
            if queue:  # not dropped meanwhile
                self._pending_bytes -= queue.popleft().nbytes
            self.room.notify()

    def _unsent(self, error: PumaError) -> None:
        """Handle a frame that could not be sent. If the peer is gone, the task that reads from it
        reports that, after reading all earlier frames: perhaps a goodbye, or why it failed.
        """
        self._gone = isinstance(error, TransportError)
        self._drop()
        if not self._gone:
            self._lost(self, error)

    def _drop(self) -> None:
        self._urgent.clear()
        self._pending.clear()
        self._pending_bytes = 0
        self.room.notify()

    async def finish(self) -> None:
        """Send the rest."""
        self.flush()
        while (self._urgent or self._pending) and self._writing:
            await self.room.wait()
        await self._write_pending()

    async def close(self) -> None:
        """Close the channel."""
        self.closed = True
        self._drop()
        await self.channel.aclose()
