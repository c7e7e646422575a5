"""One inference of one party: `protocols.base.lane.Link` over the scheduler's ports."""

from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from protocols.base.cost import Traffic
from protocols.base.fields import Buffer
from protocols.base.lane import Path, Settings
from protocols.base.prf import Stream
from protocols.base.shares import Role
from protocols.errors import LocalProtocolError
from puma_actors.base.concurrency import gather, in_turn, unwrap
from puma_actors.session.mailbox import Mailbox
from puma_actors.transports.frames import flat

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from puma_actors.session.session import RoundScheduler

T = TypeVar("T")


class InferenceLink:
    """A `Link`; made by `RoundScheduler.link`.

    Use it as `async with`: the block ends when its deferred tasks have ended too and the peers have
    requested all messages that were too large to be sent at once (see
    `puma_actors.session.mailbox`). An error in a deferred task cancels the block and is raised from
    it. Afterwards the inference is forgotten. Paths and tags are prefixed with the inference
    number, so that no two inferences share a stream or a message.

    Attributes:
        role, settings, traffic: as in `Link`; `traffic` counts only the payload of this inference.
        number: number of the inference.
        bound: data that goes into the key of every stream.
        prepared: what is dealt was dealt before the session.
        early: the step may begin long before the client's input comes. Otherwise a deferred task is
            waited for, and what it sends is not behind what is dealt for the rest of the step.
    """

    prepared = False
    early = True

    def __init__(
        self, scheduler: "RoundScheduler", number: int, settings: Settings, bound: Path = ()
    ) -> None:
        self.role = scheduler.role
        self.settings = settings
        self.traffic = Traffic()
        self.number = number
        self.bound = bound
        self._scheduler = scheduler
        self._group: TaskGroup | None = None
        self._deferred: list[Coroutine[Any, Any, None]] = []
        self._boxes: dict[Role, Mailbox] = {}
        self._ports = scheduler.ports
        self._others = 0  # strands beside the first one
        self._ended = False

    # -- life -------------------------------------------------------------------------------------

    async def __aenter__(self) -> "InferenceLink":
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        assert self._group is not None
        try:
            handled = await self._group.__aexit__(kind, error, trace)
            if error is None:
                for port in self._scheduler.ports.values():
                    await port.settled(self.number)
            return handled
        except BaseExceptionGroup as errors:
            root = unwrap(errors)
            if root is error:
                return False
            raise root from root.__cause__
        finally:
            self._group = None
            self._ended = True
            for task in self._deferred:
                task.close()
            self._scheduler.end(self.number)

    # -- Link -------------------------------------------------------------------------------------

    def stream(self, peer: Role, path: Path) -> Stream:
        """As `Link.stream`."""
        return self._scheduler.keys.stream(peer, (self.number, *self.bound, *path))

    async def send(self, to: Role, tag: Path, data: Sequence[Buffer], *, online: bool) -> int:
        """As `Link.send`. The buffers must not change afterwards.

        Raises:
            PeerFailed: the session failed, or the receiver has left.
        """
        port = self._ports[to] if to in self._ports else self._scheduler.port(to)
        if port.left or self._ended or self._scheduler.over:
            self._check()
            port.check()
        parts: Sequence[Any] = data
        first, *rest = parts
        payload = memoryview(b"".join(parts) if rest else first)
        if payload.format != "B" or payload.ndim != 1:
            payload = flat(payload)
        payload, size, number = payload.toreadonly(), payload.nbytes, self.number
        if not online:
            window = port.windows[number] if number in port.windows else port.window(number)
            if not window.admit(size):
                await window.acquire(size)
        self.traffic.count(size, online=online)
        if port.put((number, *tag), payload, not online, alone=online and self._others == 0):
            await checkpoint()
            await port.drained()
        return size

    def receive(self, sender: Role, tag: Path) -> Coroutine[Any, Any, Buffer]:
        """As `Link.receive`.

        Raises:
            PeerFailed: the session failed, or the sender has left.
        """
        if self._ended or sender not in self._boxes:
            self._check()
            self._boxes[sender] = self._scheduler.port(sender).mailbox(self.number)
        return self._boxes[sender].take((self.number, *tag))

    def _check(self) -> None:
        if self._ended:
            raise LocalProtocolError(f"inference {self.number} has ended: take a new number")

    async def gather(self, tasks: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
        """As `Link.gather`. The dealer's lanes only wait for back-pressure, so it runs them in
        turn, which saves the tasks.
        """
        if self.role is Role.DEALER:
            return await in_turn(tasks)
        others = len(tasks) - 1
        if others == 0:
            return [await tasks[0]]
        self._others += others
        try:
            strands = self._scheduler.strands
            return await (gather if strands is None else strands.gather)(tasks)
        finally:
            self._others -= others

    async def defer(self, task: Coroutine[Any, Any, None]) -> None:
        """As `Link.defer`; inside `async with` only."""
        if not self.early:
            await task
            await checkpoint()  # what it sent leaves in the next turn, before all that follows
            return
        if self._group is None:
            task.close()
            raise LocalProtocolError("defer needs the link to be entered with `async with`")
        self._deferred.append(task)
        self._group.start_soon(self._finish, task)

    async def _finish(self, task: Coroutine[Any, Any, None]) -> None:
        try:
            await task
        finally:
            self._deferred.remove(task)

    def run(self, work: int, function: Callable[..., T], *args: Any) -> Coroutine[Any, Any, T]:
        """As `Link.run`."""
        return self._scheduler.compute.run(work, function, *args)
