"""The round scheduler: `protocols.base.lane.Link` over channels, for one party and one session.
    scheduler = RoundScheduler(role, peers, settings=Settings(), flow=Flow(), compute=Compute())
    async with scheduler.running():                  receive loops; says goodbye at the end
        async with scheduler.link(number) as link:   one inference; a number is good for one use
            await program(Lane(link))
        await scheduler.send_control(role, {"do": "start"}, [buffer])
        role, header, buffers = await scheduler.control()
    scheduler.wire                                   frames and bytes that left

`link.send` queues; `port` says what leaves as one frame. A received frame is put directly into the
mailboxes. A buffer must not change once it was sent: within a process it is passed by reference.

Failure: if a channel breaks, a peer breaks the rules or reports an error, or the code inside
`running()` raises, then every waiter of this party wakes with `PeerFailed` (`RemoteProtocolError`
if this party caught a peer breaking the rules), every other party is told once, and `running()`
raises that error. Code that does not notice within `Flow.grace` seconds is cancelled. A peer that
leaves cleanly (GOODBYE) is not a failure until it is needed.
"""

from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple

import anyio

from protocols.base.lane import Settings
from protocols.base.prf import KeyRing
from protocols.base.shares import Role
from protocols.errors import (
    ConnectionLostError,
    LocalProtocolError,
    PeerFailed,
    ProtocolError,
    PumaError,
    RemoteProtocolError,
    StoreError,
    TransportError,
)
from puma_actors.base.compute import Compute
from puma_actors.base.concurrency import Signal, unwrap
from puma_actors.base.texts import TEXT_CHARS, told
from puma_actors.session.credit import MESSAGE_OVERHEAD
from puma_actors.session.handshake import Peer
from puma_actors.session.headers import read_ask, read_credit, read_offer, read_part
from puma_actors.session.inference import InferenceLink
from puma_actors.session.mailbox import Flow, Mailbox
from puma_actors.session.numbers import Numbers
from puma_actors.session.port import Port
from puma_actors.session.strands import Strands
from puma_actors.transports.frames import Frame, Kind, Tag, flat, message_tag


class Wire(NamedTuple):
    """Traffic sent through the channels, including headers (if frames are encoded at all)."""

    frames: int
    nbytes: int


class RoundScheduler:
    """See the module docstring.

    Args:
        role: this party.
        peers: from the handshakes, all of one session.
        settings: default settings of the links.
        flow: sizes and limits; the same at all parties.
        compute: where computation runs; actors of one process share one.
    """

    def __init__(
        self,
        role: Role,
        peers: Iterable[Peer],
        *,
        settings: Settings | None = None,
        flow: Flow | None = None,
        compute: Compute | None = None,
    ) -> None:
        peers = list(peers)
        self.role = role
        self.settings = settings or Settings()
        self.flow = flow or Flow()
        self.compute = compute or Compute()
        self.keys = KeyRing(role, {peer.role: peer.secret for peer in peers})
        self.ports = {
            peer.role: Port(role, peer, self.flow, self._lost, self._check_port) for peer in peers
        }
        self.numbers = Numbers()
        self._controls: deque[tuple[Port, dict[str, Any], list[memoryview], int]] = deque()
        self._changed = Signal()  # a control message arrived, or a peer left
        self._failure: PumaError | None = None
        self.over = False  # it has failed or ended
        self._failed = anyio.Event()
        self.strands: Strands | None = None
        self._state = "new"
        self._handlers = {
            Kind.BATCH: self._on_batch,
            Kind.DATA: self._on_data,
            Kind.CREDIT: self._on_credit,
            Kind.OFFER: self._on_offer,
            Kind.ASK: lambda port, frame: port.asked(*read_ask(frame)),
            Kind.CONTROL: self._on_control,
            Kind.ERROR: self._on_error,
            Kind.GOODBYE: self._on_goodbye,
        }

    # -- inferences -------------------------------------------------------------------------------

    def link(
        self, number: int, settings: Settings | None = None, bound: tuple[int, ...] = ()
    ) -> InferenceLink:
        """The link of inference `number` (>= 0); all parties must use the same number.

        Args:
            bound: other data that they must agree on; parties that disagree draw unrelated streams.

        Raises:
            LocalProtocolError: the number was used before: masks would repeat.
        """
        self.numbers.begin(number)
        return InferenceLink(self, number, settings or self.settings, bound)

    def end(self, first: int, stop: int | None = None) -> None:
        """Forget an inference, or all up to `stop`; their late messages are ignored."""
        numbers = range(first, first + 1 if stop is None else stop)
        ports = self.ports.values()
        kept = self.numbers.open.union(*(p.mailboxes for p in ports), *(p.windows for p in ports))
        self.numbers.end(numbers.start, numbers.stop)
        for number in [number for number in kept if number in numbers]:
            for port in ports:
                port.end(number)
            self.keys.forget((number,))

    def port(self, role: Role) -> Port:
        """The port to a peer.

        Raises:
            LocalProtocolError: there is no channel to that role.
        """
        if role not in self.ports:
            raise LocalProtocolError(f"{self.role} has no channel to {role}")
        return self.ports[role]

    # -- control messages -------------------------------------------------------------------------

    async def send_control(
        self, to: Role, header: Mapping[str, Any], buffers: Sequence[Any] = ()
    ) -> None:
        """Send a request to a peer, in order; waits while `Flow.control` bytes are unread there.

        Raises:
            LocalProtocolError: it does not fit one frame (cut large data into several requests).
            PeerFailed: the session failed, or the peer has left.
        """
        port = self.port(to)
        port.check()
        views = [flat(buffer).toreadonly() for buffer in buffers]
        if (size := sum(view.nbytes + 8 for view in views)) > port.channel.frame_bytes:
            raise LocalProtocolError(
                f"request of {size} bytes, a frame holds {port.channel.frame_bytes}:"
                " send it in parts"
            )
        frame = Frame(Kind.CONTROL, port.session, (), dict(header), views)
        await port.control_window.acquire(frame.weight)
        port.post(frame)
        await port.drained()

    async def control(self) -> tuple[Role, dict[str, Any], list[memoryview]]:
        """The next request from any peer.

        Raises:
            PeerFailed: the session failed, or all peers have left.
        """
        self.check()
        while not self._controls:
            if self.alone:
                raise PeerFailed("all other parties have left: no request can come any more")
            await self._changed.wait()
            self.check()
        port, header, buffers, size = self._controls.popleft()
        port.control_account.consumed(size)
        return port.role, header, buffers

    @property
    def alone(self) -> bool:
        """Whether every peer has left."""
        return all(port.left for port in self.ports.values())

    async def wait_alone(self) -> None:
        """Wait until every peer has left cleanly; raises PeerFailed if the session failed."""
        for role in self.ports:
            await self.wait_left(role)
        self.check()

    async def wait_left(self, role: Role) -> None:
        """Wait until one peer has left cleanly; raises as `wait_alone`."""
        self.check()
        while not self.port(role).left:
            await self._changed.wait()
            self.check()

    # -- life and death ---------------------------------------------------------------------------

    @property
    def wire(self) -> Wire:
        """Traffic with overhead; each link's `traffic` counts only the payload."""
        channels = [port.channel for port in self.ports.values()]
        return Wire(sum(c.sent_frames for c in channels), sum(c.sent_bytes for c in channels))

    @asynccontextmanager
    async def running(self) -> AsyncIterator["RoundScheduler"]:
        """Run the receive loops around a block of code. The module docstring says how it ends."""
        if self._state != "new":
            raise LocalProtocolError("a scheduler runs once: make a new one for a new session")
        self._state = "running"
        try:
            async with anyio.create_task_group() as group:
                self.strands = Strands(group)
                for port in self.ports.values():
                    group.start_soon(self._pump, port)
                    group.start_soon(port.write)
                group.start_soon(self._watch)
                try:
                    yield self
                except BaseException as error:
                    self._abort(error)
                    raise
                finally:
                    await self._leave()
                    group.cancel_scope.cancel()
        except BaseExceptionGroup as errors:
            root = unwrap(errors)
            raise root from root.__cause__

    def check(self) -> None:
        """Raise if the session has failed or ended."""
        if self._failure is not None:
            raise type(self._failure)(str(self._failure))
        if self._state == "ended":
            raise LocalProtocolError(f"the session of {self.role} has ended: start a new one")

    def _check_port(self, port: Port) -> None:
        self.check()
        if port.left:
            raise PeerFailed(f"{port.role} has left the session")

    async def _pump(self, port: Port) -> None:
        try:
            await port.channel.pump(partial(self._deliver, port))
            if not port.left:
                raise ConnectionLostError("the connection ended without a goodbye")
        except PumaError as error:
            self._lost(port, error)

    async def _watch(self) -> None:
        await self._failed.wait()
        await anyio.sleep(self.flow.grace)
        self.check()

    async def _leave(self) -> None:
        self._state = "leaving"
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(self.flow.farewell):
                for port in self.ports.values():
                    if self._failure is None:
                        port.post(Frame(Kind.GOODBYE, port.session))
                    await port.finish()
            for port in self.ports.values():
                await port.close()
        self._state = "ended"
        self.over = True
        for port in self.ports.values():
            port.wake()
        self._changed.notify()

    def _lost(self, port: Port, error: PumaError) -> None:
        """A channel broke."""
        if port.left or self._state != "running":
            return
        if isinstance(error, RemoteProtocolError):
            self._fail(RemoteProtocolError(f"{port.role} broke the protocol: {error}"))
        elif isinstance(error, TransportError):
            self._fail(PeerFailed(f"{self.role} lost {port.role}: {error}"))
        else:
            self._fail(PeerFailed(f"{self.role} cannot talk to {port.role}: {error}"))

    def _abort(self, error: BaseException) -> None:
        """The code of this party raised. Errors that are not ours may contain secrets: only their
        class is reported.
        """
        if isinstance(error, Exception):
            told = isinstance(error, ProtocolError | TransportError | PeerFailed | StoreError)
            reason = f"{type(error).__name__}: {error}" if told else type(error).__name__
        else:
            reason = "it was cancelled"
        self._fail(PeerFailed(f"{self.role} failed: {reason}"))

    def _fail(self, failure: PumaError) -> None:
        if self._failure is not None:
            return
        self._failure = failure
        self.over = True
        self._failed.set()
        for port in self.ports.values():
            port.post(Frame(Kind.ERROR, port.session, (), {"text": str(failure)[:TEXT_CHARS]}))
            port.wake()
        self._changed.notify()

    # -- what arrives -----------------------------------------------------------------------------

    def _deliver(self, port: Port, frame: Frame) -> None:
        if self._failure is not None:
            return
        try:
            if frame.kind not in self._handlers:
                raise RemoteProtocolError(f"{frame.kind.name} frame outside the handshake")
            if frame.session != port.session:
                raise RemoteProtocolError(f"frame of another session: {frame.session.hex()}")
            self._handlers[frame.kind](port, frame)
        except RemoteProtocolError as error:
            self._lost(port, error)

    def _mailbox(self, port: Port, tag: Tag) -> Mailbox | None:
        """The mailbox for a message; None if its inference has ended."""
        number = tag[0]
        box = port.mailboxes.get(number)
        if box is not None:
            return box
        if self.numbers.over(number):
            return None
        if number not in self.numbers.open and len(port.mailboxes) >= self.flow.inferences:
            raise RemoteProtocolError(
                f"message for inference {number} while {len(port.mailboxes)} others are open"
            )
        return port.mailbox(number)

    def _on_batch(self, port: Port, frame: Frame) -> None:
        boxes, tags, dealt = port.mailboxes, frame.header.get("tags"), frame.header.get("dealt")
        try:
            messages = list(zip(tags or (), frame.buffers, strict=True))
        except (TypeError, ValueError):
            tags = None
        if type(tags) is not list or type(dealt) is not bool:
            raise RemoteProtocolError("malformed batch of messages")
        for raw, buffer in messages:
            tag = raw if type(raw) is tuple else message_tag(raw)
            box = boxes[tag[0]] if tag[0] in boxes else self._mailbox(port, tag)
            if box is not None:
                box.put(tag, buffer, dealt)
            elif dealt:
                port.credit(tag[:1], buffer.nbytes + MESSAGE_OVERHEAD)
        if port.arrived is not None:
            port.arrived(tags)

    def _on_data(self, port: Port, frame: Frame) -> None:
        tag, offset, total, dealt, buffer = read_part(frame)
        box = self._mailbox(port, tag)
        if box is None:
            if dealt and offset == 0:
                port.credit(tag[:1], total + MESSAGE_OVERHEAD)
        elif buffer.nbytes == total:
            box.put(tag, buffer, dealt)
        else:
            box.put_chunk(tag, offset, total, buffer, dealt)
        if port.arrived is not None:
            port.arrived((tag,))

    def _on_offer(self, port: Port, frame: Frame) -> None:
        tag, total = read_offer(frame)
        if (box := self._mailbox(port, tag)) is None:
            port.ask(tag, False)
        else:
            box.offer(tag, total)

    def _on_credit(self, port: Port, frame: Frame) -> None:
        size, dealt = read_credit(frame)
        if frame.tag == ():
            port.control_window.release(size)
        elif (window := port.sent_window(frame.tag[0], dealt)) is not None:
            window.release(size)
        elif not self.numbers.over(frame.tag[0]):
            raise RemoteProtocolError(f"credit for inference {frame.tag[0]}, where none was used")

    def _on_control(self, port: Port, frame: Frame) -> None:
        port.control_account.arrived(size := frame.weight)
        self._controls.append((port, frame.header, [flat(b) for b in frame.buffers], size))
        self._changed.notify()

    def _on_error(self, port: Port, frame: Frame) -> None:
        if not (text := told(frame.header)):
            raise RemoteProtocolError("malformed error report")
        self._fail(PeerFailed(text))

    def _on_goodbye(self, port: Port, frame: Frame) -> None:
        port.left = True
        port.wake()
        self._changed.notify()
