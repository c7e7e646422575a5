"""Messages that have arrived from one peer for one inference, and flow control on both sides.

    Flow           every size and limit of the runtime; all parties of a session use the same
    Mailbox        put, put_chunk, offer (from the channel), take (from a lane); refuses replays
                       and floods

A message is consumed when a lane takes it. Dealt messages may run ahead as far as their window
allows: the sender waits while more than `window` bytes are out, and the receiver returns credit a
quarter of a window at a time.

Online messages that arrive before a lane waits for them count against the budget `early`. A sender
must not wait for that budget, because both evaluators send before they receive: it counts the bytes
that are out as above, and for a message that would exceed the budget it only sends an offer. The
lane that wants the message asks for it, and requested messages count against no budget: so every
message gets through, however large, and in whatever order the lanes want theirs.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from protocols.base.shares import COMPUTING, Role
from protocols.errors import LocalProtocolError, RemoteProtocolError
from puma_actors.session.credit import MESSAGE_OVERHEAD, CreditAccount
from puma_actors.transports.frames import Tag

GUEST_OFFERS = 64
"""Offers of a guest that may wait: a client has two messages for each party, for any request."""

Lane: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Flow:
    """Sizes are bytes, times seconds.

    Attributes:
        watermark: a message this large is sent at once, and so is a batch that reaches it.
        batch: after this many messages in a batch the sender lets other tasks run.
        chunk: larger messages are split (None: as the channel recommends).
        window: dealt bytes ahead of the receiver, per receiver and inference.
        early: online bytes that may arrive before a lane waits for them, per sender and inference.
        offers: messages that may wait at their sender until they are requested, per sender and
            inference: far more than a program has lanes.
        inferences: inferences that a peer may start before this party does.
        control: control bytes ahead of the receiver, per peer.
        backlog: bytes that may wait for a slow channel before senders wait too.
        message: largest message.
        guest: bytes that a client or an owner may make a party hold for an inference: its largest
            message, and everything that comes early. They only send ids, in so few messages that
            `GUEST_OFFERS` may wait to be requested.
        grace: after a failure, how long the actor's own code may take to notice before it is
            cancelled.
        farewell: how long sending the last frame (goodbye or error) may take.
    """

    watermark: int = 256 << 10
    batch: int = 8
    chunk: int | None = None
    window: int = 256 << 20
    early: int = 256 << 20
    offers: int = 1 << 16
    inferences: int = 64
    control: int = 64 << 20
    backlog: int = 64 << 20
    message: int = 4 << 30
    guest: int = 8 << 20
    grace: float = 1.0
    farewell: float = 2.0

    def incoming(self, receiver: Role, sender: Role) -> "Flow":
        """The limits for messages of `sender` at `receiver`."""
        if receiver not in COMPUTING or sender in COMPUTING:
            return self
        least = min(self.guest, self.message)
        offers = min(self.offers, GUEST_OFFERS)
        early = min(least, self.early)
        return replace(self, message=least, early=early, window=least, offers=offers)


@dataclass(slots=True)
class _Parts:
    """A message that arrives in chunks; `data` grows only with the bytes that have arrived, however
    small the pieces are.
    """

    total: int
    dealt: bool
    awaited: bool
    data: bytearray = field(default_factory=bytearray)


def _nothing(*args: object) -> None:
    """Do nothing."""


class Mailbox:
    """Messages of one sender for one inference.

    Args:
        flow: limits.
        acknowledge: sends credit for a number of dealt bytes.
        check: raises if the session, or the sender, has failed.
        spent: sends credit for a number of online bytes.
        ask: requests an offered message, or says that it will never be requested.
    """

    def __init__(
        self,
        flow: Flow,
        acknowledge: Callable[[int], None],
        check: Callable[[], None],
        spent: Callable[[int], None] = _nothing,
        ask: Callable[[Tag, bool], None] = _nothing,
    ) -> None:
        self._flow = flow
        self._check = check
        self._ready: dict[Tag, tuple[memoryview, bool]] = {}
        self._waiting: dict[Tag, asyncio.Future[memoryview | None]] = {}
        self._taken: defaultdict[Lane, int] = defaultdict(int)  # number of the last message taken
        self._parts: dict[Tag, _Parts] = {}
        self._offers: set[Tag] = set()
        self._asked: set[Tag] = set()  # requested offers, until they arrive
        self._alarmed = True  # look for a failure before the next wait
        self._early = 0
        self._owed = 0
        self._account = CreditAccount(flow.window, acknowledge)
        self._spent = spent
        self._ask = ask

    # -- from the channel -------------------------------------------------------------------------

    def put(self, tag: Tag, buffer: memoryview, dealt: bool) -> None:
        """Accept a whole message.

        Raises:
            RemoteProtocolError: it came before (replay), or it exceeds the budget.
        """
        waiter = None
        if tag in self._waiting:
            waiter = self._waiting[tag]
            del self._waiting[tag]
        if waiter is not None and not (dealt or self._parts or self._asked or waiter.done()):
            self._owed += buffer.nbytes + MESSAGE_OVERHEAD
            if 4 * self._owed >= self._flow.early:
                self._pay()
            waiter.set_result(buffer)  # the usual course of a round
            return
        if waiter is None or tag in self._parts:
            self._refuse_replay(tag)
        if waiter is None and not self._asked:  # the usual course of what comes early
            if dealt:
                self._account.arrived(buffer.nbytes)
            else:
                self._came_early(buffer.nbytes)
            self._ready[tag] = (buffer, dealt)
            return
        self._reserve(buffer.nbytes, dealt, waiter is not None or tag in self._asked)
        self._hand_over(tag, buffer, dealt, waiter)

    def put_chunk(self, tag: Tag, offset: int, total: int, buffer: memoryview, dealt: bool) -> None:
        """Accept part of a message; the parts of one message come in order.

        Raises:
            RemoteProtocolError: as for `put`, or the parts do not fit together.
        """
        parts = self._parts.get(tag)
        if parts is None:
            if tag not in self._waiting:
                self._refuse_replay(tag)
            self._check_size(total)
            parts = _Parts(total, dealt, tag in self._waiting or tag in self._asked)
            self._reserve(total, dealt, parts.awaited)
            self._parts[tag] = parts
        end = len(parts.data) + buffer.nbytes
        fits = (offset, total, dealt) == (len(parts.data), parts.total, parts.dealt)
        if not fits or end > total or not buffer.nbytes:
            raise RemoteProtocolError(f"the chunks of message {tag} do not fit together")
        parts.data += buffer
        if end == total:
            del self._parts[tag]
            waiter = self._waiting.pop(tag, None)
            if not dealt and tag not in self._asked:  # the waiting lane may have changed meanwhile
                self._early += (parts.awaited - (waiter is not None)) * (total + MESSAGE_OVERHEAD)
            self._hand_over(tag, memoryview(parts.data).toreadonly(), dealt, waiter)

    def offer(self, tag: Tag, total: int) -> None:
        """A message of `total` bytes waits at its sender.

        Raises:
            RemoteProtocolError: it came or was offered before, it is too large, or there are too
            many offers.
        """
        self._refuse_replay(tag)
        if tag in self._asked:
            raise RemoteProtocolError(f"message {tag} was offered twice")
        self._check_size(total)
        if len(self._offers) >= self._flow.offers:
            raise RemoteProtocolError(
                f"more than {self._flow.offers} messages wait to be requested"
            )
        self._offers.add(tag)
        if tag in self._waiting:
            self._want(tag)

    def _check_size(self, total: int) -> None:
        if total > self._flow.message:
            raise RemoteProtocolError(
                f"message of {total} bytes, the limit is {self._flow.message}"
            )

    def _want(self, tag: Tag) -> None:
        self._offers.remove(tag)
        self._asked.add(tag)
        self._ask(tag, True)

    def _hand_over(
        self,
        tag: Tag,
        buffer: memoryview,
        dealt: bool,
        waiter: "asyncio.Future[memoryview | None] | None",
    ) -> None:
        if waiter is None:
            self._ready[tag] = (buffer, dealt)
            return
        if dealt:
            self._account.consumed(buffer.nbytes)
        elif tag in self._asked:
            self._asked.remove(tag)
        else:
            self._consumed(buffer.nbytes)
        if not waiter.done():
            waiter.set_result(buffer)

    def _consumed(self, size: int) -> None:
        """Count an online message as consumed."""
        self._owed += size + MESSAGE_OVERHEAD
        if 4 * self._owed >= self._flow.early:
            self._pay()

    def _pay(self) -> None:
        owed, self._owed = self._owed, 0
        self._spent(owed)

    def _refuse_replay(self, tag: Tag) -> None:
        seen = tag in self._ready or tag in self._parts or tag in self._offers
        lane = tag[:-1]  # looked up without adding it: a peer may name any
        late = lane in self._taken and tag[-1] <= self._taken[lane] and tag not in self._waiting
        if seen or late:
            raise RemoteProtocolError(f"message {tag} came twice")

    def _reserve(self, size: int, dealt: bool, awaited: bool) -> None:
        if dealt:
            self._account.arrived(size)
        elif not awaited:
            self._came_early(size)

    def _came_early(self, size: int) -> None:
        self._early += size + MESSAGE_OVERHEAD
        if self._early > self._flow.early:
            raise RemoteProtocolError(
                f"more than {self._flow.early} bytes came before any task waited for them"
            )

    # -- from the program -------------------------------------------------------------------------

    async def take(self, tag: Tag) -> memoryview:
        """Wait for the message with this tag. The messages of one lane must be taken in order of
        their numbers.

        Raises:
            LocalProtocolError: the order is wrong.
            PeerFailed: the session failed, or the sender has left.
        """
        lane, number = tag[:-1], tag[-1]
        if number != self._taken[lane] + 1:
            raise LocalProtocolError(f"message {tag} is taken out of order")
        self._taken[lane] = number
        if tag in self._ready:
            buffer, dealt = self._ready[tag]
            del self._ready[tag]
            if dealt:
                self._account.consumed(buffer.nbytes)
            elif tag in self._asked:
                self._asked.remove(tag)
            else:
                self._early -= buffer.nbytes + MESSAGE_OVERHEAD
                self._consumed(buffer.nbytes)
            return buffer
        if self._alarmed:
            self._check()
            self._alarmed = False
        waiter: asyncio.Future[memoryview | None] = asyncio.get_running_loop().create_future()
        self._waiting[tag] = waiter
        if self._offers and tag in self._offers:
            self._want(tag)
        try:
            found = await waiter
        except asyncio.CancelledError:
            if self._waiting.pop(tag, None) is not None:
                self._taken[lane] = number - 1  # if it still comes, it is not a replay
            raise
        if found is None:
            self._waiting.pop(tag, None)
            self._check()
            raise LocalProtocolError("the inference ended while a lane waited for a message")
        return found

    def skip(self, tag: Tag) -> None:
        """The message with this tag does not come, or not any more: the program has it already.

        Raises:
            LocalProtocolError: the order is wrong, as for `take`.
        """
        lane, number = tag[:-1], tag[-1]
        if number != self._taken[lane] + 1:
            raise LocalProtocolError(f"message {tag} is skipped out of order")
        self._taken[lane] = number

    def wake(self) -> None:
        """Wake every waiter, which then sees the failure."""
        self._alarmed = True
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_result(None)

    def close(self) -> None:
        """The inference has ended: forget everything, acknowledge everything."""
        self._ready.clear()
        self._parts.clear()
        self.wake()
        self._account.close()
        for tag in self._offers:
            self._ask(tag, False)
        self._offers.clear()
