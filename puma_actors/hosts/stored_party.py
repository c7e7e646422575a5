"""What a party runs for one caller: a session on a stored model, or the upload of one."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import anyio
from anyio.abc import TaskGroup

from models.programs.memory import footprint
from models.programs.plan import Plan
from models.programs.predict import share_bytes
from protocols.base.lane import Lane
from protocols.base.shares import Role
from protocols.errors import PeerFailed, RemoteProtocolError
from puma_actors.base.concurrency import unwrap
from puma_actors.base.logs import log
from puma_actors.hosts.manifest import PUBLIC_BYTES, seed_file, words_file
from puma_actors.hosts.residents import Held
from puma_actors.hosts.store import Draft
from puma_actors.roles.actor import Actor, ActorOptions
from puma_actors.roles.messages import (
    CommitMessage,
    FileMessage,
    InferMessage,
    PlanMessage,
    ReadyMessage,
    SeedMessage,
    TensorMessage,
    UploadedMessage,
    parse,
)
from puma_actors.roles.party import Party, Upload
from puma_actors.session.session import Wire


@dataclass(frozen=True, slots=True)
class ServingLimits:
    """Tokens of the requests that run at a time; seconds that a session may go without a request,
    a step or, in the middle of one, a message.

    Attributes:
        memory: bytes that were set aside for the session.
        room: sets more aside for a request, see `Residents.for_request`; None: nobody counts.
    """

    tokens: int
    idle: float = 600.0
    memory: int = 0
    room: Callable[[Plan, int, int], AbstractContextManager[None]] | None = None


class ServingParty(Party):
    """A party whose model is there already.

    Args:
        held: the model; its parameters are shared with other sessions.
    """

    def __init__(
        self, role: Role, held: Held, limits: ServingLimits, options: ActorOptions | None = None
    ) -> None:
        super().__init__(role, options)
        self._plan = held.plan
        self._parameters = dict(held.parameters)
        self._limits = limits
        self._active = True  # since the idle time was last looked at
        self._tokens: dict[int, int] = {}  # of the inferences that run
        self._manifest = held.manifest
        self._needs: dict[int, int] = {}  # and their bytes
        self._rooms: dict[int, ExitStack] = {}

    async def main(self) -> None:
        assert self._plan is not None
        await self._announce(self._plan, self._manifest.digest, self._manifest.upload)
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._watch_client)
                group.start_soon(self._watch_time)
                await super().main()
                group.cancel_scope.cancel()
        except BaseExceptionGroup as errors:
            root = unwrap(errors)
            raise root from root.__cause__
        finally:
            for room in self._rooms.values():
                room.close()

    async def _watch_client(self) -> None:
        """A client that leaves without closing the session must not keep its place."""
        await self.scheduler.wait_left(Role.CLIENT)
        await anyio.sleep(self.scheduler.flow.grace)  # its last request may wait to be read
        raise PeerFailed("the client left without closing the session")

    async def _watch_time(self) -> None:
        """Nor must one that has gone to sleep, although its process lives. A step may take as long
        as it likes: evaluators that compute exchange messages, and stop when the client's part is
        missing. The dealer, far ahead of them, leaves that to them.
        """
        sent = self.scheduler.wire
        while self._active or self._busy(sent):
            self._active, sent = False, self.scheduler.wire
            await anyio.sleep(self._limits.idle)
        raise RemoteProtocolError(
            f"the session was idle for {self._limits.idle:g} s: open a new one"
        )

    def _busy(self, sent: Wire) -> bool:
        """A step has gone on since `sent`, as far as this party can tell."""
        if self.role.is_dealer:
            return bool(self._running_inferences)
        return self.scheduler.wire != sent

    def _from_client(self, message: Any, group: TaskGroup) -> None:
        self._active = True
        super()._from_client(message, group)

    async def _report(self, number: int, lane: Lane) -> None:
        self._active = True
        await super()._report(number, lane)

    def _check_request(self, message: InferMessage, plan: Plan) -> None:
        tokens = sum(message.lengths) + message.steps - 1
        running = sum(self._tokens.get(number, 0) for number in self._running_inferences)
        if tokens + running > self._limits.tokens:
            raise RemoteProtocolError(
                f"the client asked for more than {self._limits.tokens} tokens at once"
            )
        super()._check_request(message, plan)
        self._set_aside(message, plan)
        self._tokens[message.number] = tokens

    def _set_aside(self, message: InferMessage, plan: Plan) -> None:
        """Memory for a request beyond what the session has."""
        if self._limits.room is None:
            return
        dealer, window = self.role.is_dealer, self.scheduler.flow.window
        need = footprint(
            plan.config,
            message.batch(),
            message.steps,
            message.settings(),
            dealer=dealer,
            window=window,
        ).total
        running = sum(self._needs.values())
        before, after = (max(self._limits.memory, each) for each in (running, running + need))
        room = ExitStack()
        room.enter_context(self._limits.room(plan, after - before, after))
        self._needs[message.number], self._rooms[message.number] = need, room

    async def _ended(self, message: InferMessage) -> None:
        self._tokens.pop(message.number, None)
        self._needs.pop(message.number, None)
        if (room := self._rooms.pop(message.number, None)) is not None:
            room.close()
        await super()._ended(message)


class _StoredUpload(Upload):
    """An upload whose tensors go to the disk as they come, one after another."""

    def __init__(self, role: Role, message: PlanMessage, draft: Draft, memory: int) -> None:
        self._memory = memory
        super().__init__(role, message)
        self._draft = draft
        self._number = 0

    def check_size(self, role: Role) -> None:
        need = share_bytes(self.plan.config)
        if need > self._memory:
            raise RemoteProtocolError(
                f"the model needs about {need // 1_000_000:,} MB at {role}, which may use "
                f"{self._memory // 1_000_000:,} MB: raise limits.memory there"
            )

    def seed(self, which: int, buffers: Sequence[memoryview]) -> None:
        super().seed(which, buffers)
        self._draft.write(seed_file(which), buffers[0])

    def _keep(self, number: int, at: int, size: int, buffer: memoryview) -> None:
        if number < self._number:
            raise RemoteProtocolError(f"tensor {number} came after tensor {self._number}")
        self._number = number
        self._draft.write(words_file(number), buffer)

    def finish(self) -> None:
        """Everything has come: complete the draft."""
        self.check_complete()
        self._draft.finish(self.plan)


class Receiver(Actor):
    """Takes one model from its owner. Its draft is published everywhere or gone when it ends.

    Args:
        memory: bytes that the party may use; what it could never load is refused at once.
    """

    def __init__(
        self, role: Role, draft: Draft, memory: int, options: ActorOptions | None = None
    ) -> None:
        super().__init__(role, options)
        self._draft = draft
        self._memory = memory
        self._files: set[str] = set()
        self._published_bytes = 0
        self._upload: _StoredUpload | None = None
        self._finished = self._published = self._kept = False

    async def main(self) -> None:
        try:
            while True:
                _, header, buffers = await self.scheduler.control()
                message = parse(header)
                if isinstance(message, CommitMessage) and self._published:
                    await self._disk(self._draft.keep)
                    self._kept = True
                    log.info("model stored", model=self._draft.name)
                    await self._ready()
                    return
                if isinstance(message, CommitMessage) and self._finished:
                    await self._disk(self._draft.publish)
                    self._published = True
                    await self._ready()
                else:
                    await self._take(message, buffers)
        finally:
            if not self._kept:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(self._draft.withdraw)

    async def _take(self, message: Any, buffers: Sequence[memoryview]) -> None:
        if self._finished:
            raise RemoteProtocolError(f"the owner sent {message.do!r} after the model")
        if isinstance(message, FileMessage):
            await self._file(message, buffers)
        elif isinstance(message, PlanMessage) and self._upload is None:
            parts = (self.role, message, self._draft, self._memory)
            self._upload = await self.scheduler.compute.offload(_StoredUpload, *parts)
        elif self._upload is None:
            raise RemoteProtocolError(f"the owner sent {message.do!r} before a plan")
        elif isinstance(message, SeedMessage):
            await self._disk(self._upload.seed, message.which, buffers)
        elif isinstance(message, TensorMessage):
            await self._disk(self._upload.tensor, message, buffers)
        elif isinstance(message, UploadedMessage):
            await self._disk(self._upload.finish)
            self._finished = True
            await self._ready()
        else:
            raise RemoteProtocolError(f"the owner may not send a {message.do!r} request")

    async def _file(self, message: FileMessage, buffers: Sequence[memoryview]) -> None:
        if self._upload is not None or message.name in self._files or len(buffers) != 1:
            raise RemoteProtocolError(f"{message.name} came twice, or after the plan")
        self._published_bytes += buffers[0].nbytes
        if self._published_bytes > PUBLIC_BYTES:
            raise RemoteProtocolError(
                f"the published files have more than {PUBLIC_BYTES} bytes: upload without them"
            )
        self._files.add(message.name)
        await self._disk(self._draft.write, message.name, buffers[0])

    async def _ready(self) -> None:
        ready = ReadyMessage(digest=self._draft.digest).header()
        await self.scheduler.send_control(Role.OWNER, ready)

    async def _disk(self, function: Callable[..., object], *args: Any) -> None:
        """Off the event loop: sessions go on meanwhile."""
        await self.scheduler.compute.offload(function, *args)
