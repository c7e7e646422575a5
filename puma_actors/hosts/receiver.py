"""A party that receives a model for its store. All three parties keep it, or none does.

What has come of an upload that is cut stays in the store's incoming area, and the owner continues
behind it. Only an upload that breaks the rules is removed at once.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

import anyio

from models.programs.families import parameters_of
from models.programs.plan import Plan, Weights
from protocols.base.shares import Role
from protocols.errors import PumaError, RemoteProtocolError, StoreError, StoreNameError
from puma_actors.base.identity import PeerIdentity
from puma_actors.base.logs import log
from puma_actors.hosts.admission import Request, admit
from puma_actors.hosts.residents import least_bytes
from puma_actors.hosts.shelf import DraftShelf
from puma_actors.hosts.stores.draft import Draft
from puma_actors.hosts.stores.manifest import PUBLIC_BYTES, check_name, seed_file, words_file
from puma_actors.hosts.visits import disk
from puma_actors.roles.actor import Actor, ActorOptions
from puma_actors.roles.matrices import Matrices
from puma_actors.roles.messages import (
    CommitMessage,
    FileMessage,
    HeldMessage,
    MatrixMessage,
    PieceMessage,
    PlanMessage,
    ReadyMessage,
    SeedMessage,
    TensorMessage,
    UploadedMessage,
    parse,
)
from puma_actors.roles.spool import spool_bytes
from puma_actors.roles.upload import Upload
from puma_actors.session.handshake import Identity, handshake
from puma_actors.transports import Channel

if TYPE_CHECKING:
    from puma_actors.hosts.server import PartyServer


class OnDisk:
    """A `Destination` that writes an upload to a draft as it arrives, one tensor after another.

    Args:
        memory: bytes that the party may use.
    """

    weights: Weights | Literal["any"] = "any"

    def __init__(self, role: Role, draft: Draft, memory: int) -> None:
        self._role = role
        self._draft = draft
        self._memory = memory
        self._number = 0

    def check_size(self, plan: Plan) -> None:
        """As `Destination`."""
        need = least_bytes(plan)
        if need > self._memory:
            raise RemoteProtocolError(
                f"the model needs about {need // 1_000_000:,} MB at {self._role}, which may use "
                f"{self._memory // 1_000_000:,} MB: raise limits.memory there"
            )
        if self._role.is_dealer or plan.weights == "public":  # whose size is not known yet
            return
        need, room = spool_bytes(parameters_of(plan.config)), self._draft.room()
        if need > room:
            raise StoreError(
                f"the model needs {need // 1_000_000:,} MB on the disk of {self._role}, which has "
                f"{room // 1_000_000:,} MB: free some there, then run the same `puma upload` again"
            )

    def seed(self, which: int, seed: memoryview) -> None:
        """As `Destination`."""
        self._draft.write(seed_file(which), seed)

    def words(self, number: int, at: int, size: int, data: memoryview) -> None:
        """As `Destination`; tensors must come in order."""
        if number < self._number:
            raise RemoteProtocolError(f"tensor {number} came after tensor {self._number}")
        self._number = number
        self._draft.write(words_file(number), data)


def tensor_bytes(held: Mapping[str, int]) -> list[int]:
    """The bytes of each tensor, in upload order, from those of its files."""
    found: dict[int, int] = {}
    for file, size in held.items():
        if (number := file.partition(".")[0]).isdecimal():
            found[int(number)] = found.get(int(number), 0) + size
    return [found.get(number, 0) for number in range(max(found, default=-1) + 1)]


class Receiver(Actor):
    """Receives one model from its owner. At the end its draft is kept, suspended or removed.

    Args:
        memory: bytes that the party may use; a model that could never be loaded is refused at once.
    """

    def __init__(
        self, role: Role, draft: Draft, memory: int, options: ActorOptions | None = None
    ) -> None:
        super().__init__(role, options)
        self._draft = draft
        self._memory = memory
        self._files: set[str] = set()
        self._published_bytes = 0
        self._upload: Upload | None = None
        self._matrices: Matrices | None = None  # of public weights
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
        except RemoteProtocolError:
            await self._end(self._draft.discard)
            raise
        finally:
            if not self._kept:
                await self._end(self._draft.suspend)

    async def _end(self, end: Callable[[], None]) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(end)

    async def _take(self, message: Any, buffers: Sequence[memoryview]) -> None:
        if self._finished:
            raise RemoteProtocolError(f"the owner sent {message.do!r} after the model")
        if isinstance(message, FileMessage):
            await self._file(message, buffers)
        elif isinstance(message, PlanMessage) and self._upload is None:
            kept = OnDisk(self.role, self._draft, self._memory)
            offload = self.scheduler.compute.offload
            self._upload = await offload(Upload, self.role, message, kept)
            plan = self._upload.plan
            held = tensor_bytes(await offload(self._draft.begin, self._upload.digest))
            if plan.weights == "public":
                self._matrices = Matrices(self.role, plan, DraftShelf(self._draft), held)
            else:
                self._upload.resume(held)
            await self.scheduler.send_control(Role.OWNER, HeldMessage(tensors=held).header())
        elif self._upload is None:
            raise RemoteProtocolError(f"the owner sent {message.do!r} before a plan")
        elif isinstance(message, UploadedMessage):
            self._upload.check_complete()
            if self._matrices is not None:
                self._matrices.check_complete()
            await self._disk(self._draft.finish, self._upload.plan)
            self._finished = True
            await self._ready()
        else:
            await self._weights(self._upload, message, buffers)

    async def _weights(self, upload: Upload, message: Any, buffers: Sequence[memoryview]) -> None:
        if isinstance(message, SeedMessage):
            await self._disk(upload.seed, message.which, buffers)
        elif isinstance(message, TensorMessage):
            await self._disk(upload.tensor, message, buffers)
        elif isinstance(message, MatrixMessage) and self._matrices is not None:
            await self._disk(self._matrices.describe, message)
        elif isinstance(message, PieceMessage) and self._matrices is not None:
            await self._disk(self._matrices.piece, message, buffers)
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
        """Run a function off the event loop, so that sessions go on meanwhile."""
        await self.scheduler.compute.offload(function, *args)


class Uploads:
    """A party's handler for owners that upload.

    Attributes:
        names: of the models that are being uploaded.
    """

    def __init__(self, server: "PartyServer") -> None:
        self.names: set[str] = set()
        self._server = server

    async def receive(
        self, channel: Channel, request: Request, session: bytes, caller: PeerIdentity
    ) -> None:
        """Receive one model, from admission to the end of its session."""
        server, name = self._server, check_name(request.model)
        times = server.config.timeouts
        if name in self.names:
            raise StoreNameError(
                f"a model {name!r} is being uploaded to {server.role} already: if its owner is "
                f"gone, try again in {times.silence:g} s"
            )
        upload = request.upload or session.hex()
        async with server.place(session), self._draft(name, upload) as draft:
            try:
                await admit(channel, session, server.answer())
                me = Identity(server.role, server.identity.name, session)
                peer = await handshake(channel, me, {Role.OWNER}, timeout=times.opening)
                options = ActorOptions(compute=server.compute)
                receiver = Receiver(server.role, draft, server.config.limits.memory, options)
                receiver.attach([peer])
                log.info("upload begins", model=name)
                await receiver.run()
            except (PumaError, OSError) as error:
                log.warning("upload failed", model=name, reason=str(error))

    @asynccontextmanager
    async def _draft(self, name: str, upload: str) -> AsyncIterator[Draft]:
        """The only draft of this name; suspended afterwards, unless it was kept."""
        self.names.add(name)
        try:
            draft = await disk(self._server.store.draft, name, upload)
            self._server.residents.drop(name)  # it may have been taken back
            try:
                yield draft
            finally:
                with anyio.CancelScope(shield=True):
                    await disk(draft.suspend)
        finally:
            self.names.discard(name)
