"""A computing party: dealer or evaluator. It receives shares of a model and serves inferences."""

import contextlib
from collections.abc import Sequence
from typing import Any

import anyio
import numpy as np
from anyio.abc import TaskGroup

from models.programs.families import parameters_of
from models.programs.head_layers import check_rows, default_rows
from models.programs.inference import evaluate
from models.programs.plan import Parameter, Plan
from models.programs.predict import predict
from models.programs.program import Batch, Cache
from models.programs.public import plan_digests
from models.programs.sharing import SEED_BYTES, hold_parameter, seeds_of
from protocols.base.lane import Lane
from protocols.base.ring import Words
from protocols.base.shares import COMPUTING, Role
from protocols.drivers.public import differing, refusal
from protocols.errors import (
    Busy,
    ConfigError,
    LocalProtocolError,
    ModelError,
    PumaError,
    RemoteProtocolError,
)
from puma_actors.base.concurrency import unwrap
from puma_actors.base.logs import log
from puma_actors.base.texts import TEXT_CHARS
from puma_actors.roles.actor import Actor, ActorOptions
from puma_actors.roles.messages import (
    AgreeMessage,
    CloseMessage,
    EndedMessage,
    EndMessage,
    InferMessage,
    PlanMessage,
    ReadyMessage,
    RefusedMessage,
    SeedMessage,
    StepMessage,
    TensorMessage,
    UploadedMessage,
    parse,
)

DEALER_LEAD = 2
"""Steps that the dealer begins before the client's input to the first of them has come."""


class Upload:
    """The shares of a model as they arrive.

    Raises RemoteProtocolError from every method where the owner strays from the plan.
    """

    def __init__(self, role: Role, message: PlanMessage) -> None:
        try:
            self.plan = Plan.from_public(message.plan)
            self.check_size(role)
            predict(self.plan, Batch((1,), default_rows(self.plan.config)))  # asks for each range
        except (ModelError, LocalProtocolError) as error:
            raise RemoteProtocolError(f"the owner's plan is unusable: {error}") from None
        self.digest = self.plan.digest()
        if self.digest != message.digest:
            raise RemoteProtocolError("the owner's plan does not have the digest it announced")
        self._role = role
        self._seeds: dict[int, bytes] = {}
        self._wanted = list(parameters_of(self.plan.config).items())
        self._masked: dict[int, Words] = {}
        self._filled: dict[int, int] = {}

    def check_size(self, role: Role) -> None:
        """Refuse a plan that is too large, before anything as large as it is made."""

    def seed(self, which: int, buffers: Sequence[memoryview]) -> None:
        """One of the seeds, of which an evaluator may have but its own."""
        if which not in seeds_of(self._role) or which in self._seeds:
            raise RemoteProtocolError(f"seed {which} is not for {self._role}, or came twice")
        if len(buffers) != 1 or buffers[0].nbytes != SEED_BYTES:
            raise RemoteProtocolError(f"a seed must be one buffer of {SEED_BYTES} bytes")
        self._seeds[which] = bytes(buffers[0])

    def tensor(self, message: TensorMessage, buffers: Sequence[memoryview]) -> None:
        """Rows of a masked tensor, in order."""
        if self._role.is_dealer or message.number >= len(self._wanted):
            raise RemoteProtocolError(f"tensor {message.number} is not expected here")
        name, parameter = self._wanted[message.number]
        rows, columns = _matrix(parameter)
        filled = self._filled.get(message.number, 0)
        if message.start != filled or filled + message.rows > rows or len(buffers) != 1:
            raise RemoteProtocolError(f"rows of {name} came out of order or twice")
        if buffers[0].nbytes != 8 * message.rows * columns:
            raise RemoteProtocolError(
                f"{name} has {buffers[0].nbytes} bytes for {message.rows} rows"
            )
        self._keep(message.number, filled * columns, rows * columns, buffers[0])
        self._filled[message.number] = filled + message.rows

    def _keep(self, number: int, at: int, size: int, buffer: memoryview) -> None:
        """Take words `at` and following of a tensor of `size` words."""
        words = np.frombuffer(buffer, dtype="<u8").astype(np.uint64, copy=False)
        if len(words) == size:
            self._masked[number] = words  # whole: kept as it came
        else:
            whole = self._masked.setdefault(number, np.empty(size, np.uint64))
            whole[at : at + len(words)] = words

    def check_complete(self) -> None:
        """Everything has come that this party is to have."""
        if len(self._seeds) != (2 if self._role.is_dealer else 1):
            raise RemoteProtocolError("a seed is missing")
        for number, (name, parameter) in enumerate(self._wanted):
            if not self._role.is_dealer and self._filled.get(number) != _matrix(parameter)[0]:
                raise RemoteProtocolError(f"{name} is not complete")

    def hold(self, number: int) -> tuple[str, Any]:
        """Name and handle of tensor `number`; everything must have come."""
        name, parameter = self._wanted[number]
        m = None
        if not self._role.is_dealer:
            m = self._masked.pop(number).reshape(parameter.shape)
        return name, hold_parameter(self._role, number, parameter, m, self._seeds)

    def __len__(self) -> int:
        return len(self._wanted)


def _matrix(parameter: Parameter) -> tuple[int, int]:
    """Rows and columns of a tensor; a vector is sent as one entry a row."""
    shape = parameter.shape
    return shape[0], shape[1] if len(shape) > 1 else 1


class Party(Actor):
    """The dealer or an evaluator. Serves until the client closes the session.

    An inference is a chain of steps that share a cache of keys and values. The dealer's steps need
    no input but for the embedding, which is deferred, so it runs ahead by `DEALER_LEAD` steps.
    """

    def __init__(self, role: Role, options: ActorOptions | None = None) -> None:
        super().__init__(role, options)
        self._upload: Upload | None = None
        self._plan: Plan | None = None
        self._parameters: dict[str, Any] = {}
        self._running_inferences: dict[int, anyio.CancelScope] = {}
        self._lanes: dict[int, Lane] = {}  # of the steps that run
        self._unused = 0  # the least number that no inference has taken
        self._mine: AgreeMessage | None = None
        self._heard: dict[Role, AgreeMessage] = {}  # what the others said of themselves
        self._ready = False

    async def main(self) -> None:
        try:
            await self._serve()
        except BaseExceptionGroup as errors:
            root = unwrap(errors)
            raise root from root.__cause__
        finally:
            self._parameters.clear()  # gigabytes, which must not wait for a garbage collection

    async def _serve(self) -> None:
        async with anyio.create_task_group() as group:
            while True:
                role, header, buffers = await self.scheduler.control()
                message = parse(header)
                if isinstance(message, CloseMessage) and role is Role.CLIENT:
                    group.cancel_scope.cancel()
                    return
                if role is Role.OWNER:
                    await self._from_owner(message, buffers)
                elif role is Role.CLIENT:
                    self._from_client(message, group)
                else:
                    await self._from_party(role, message)

    # -- what the parties must agree on -----------------------------------------------------------

    async def _announce(self, plan: Plan, digest: str, upload: str) -> None:
        """Tell the other parties what this one serves. When they have said the same, it is ready:
        what they would compute with other shares or other public numbers is noise.
        """
        tables = await self.scheduler.compute.offload(plan_digests, plan)
        self._mine = AgreeMessage(digest=digest, upload=upload, tables=tables)
        for role in COMPUTING:
            if role is not self.role:
                await self.scheduler.send_control(role, self._mine.header())
        await self._compare()

    async def _from_party(self, role: Role, message: Any) -> None:
        if not isinstance(message, AgreeMessage) or role in self._heard:
            raise RemoteProtocolError(f"{role} may not send a {message.do!r} request")
        self._heard[role] = message
        await self._compare()

    async def _compare(self) -> None:
        mine = self._mine
        if mine is None:
            return
        for role, theirs in self._heard.items():
            if (theirs.digest, theirs.upload) != (mine.digest, mine.upload):
                raise RemoteProtocolError(
                    f"{role} and {self.role} hold different uploads of the model: run `puma models "
                    "remove`, then `puma upload` again"
                )
            if names := differing(mine.tables, theirs.tables):
                raise RemoteProtocolError(refusal(str(role), names))
        if len(self._heard) == len(COMPUTING) - 1:
            self._ready = True
            ready = ReadyMessage(digest=mine.digest).header()
            for role in self.scheduler.ports:
                if role not in COMPUTING:
                    await self.scheduler.send_control(role, ready)

    # -- the model --------------------------------------------------------------------------------

    async def _from_owner(self, message: Any, buffers: Sequence[memoryview]) -> None:
        if isinstance(message, PlanMessage):
            if self._upload is not None or self._plan is not None:
                raise RemoteProtocolError("the owner sent a second model in one session")
            self._upload = Upload(self.role, message)
            return
        if self._upload is None:
            raise RemoteProtocolError(f"the owner sent {message.do!r} before a plan")
        if isinstance(message, SeedMessage):
            self._upload.seed(message.which, buffers)
        elif isinstance(message, TensorMessage):
            self._upload.tensor(message, buffers)
        elif isinstance(message, UploadedMessage):
            await self._finish_upload(self._upload)
        else:
            raise RemoteProtocolError(f"the owner may not send a {message.do!r} request")

    async def _finish_upload(self, upload: Upload) -> None:
        upload.check_complete()
        for number in range(len(upload)):
            name, handle = await self.scheduler.compute.offload(upload.hold, number)
            self._parameters[name] = handle
        self._plan, self._upload = upload.plan, None
        log.info("model ready", role=str(self.role), digest=upload.digest[:16])
        session = self.scheduler.port(Role.OWNER).session.hex()
        await self._announce(upload.plan, upload.digest, session)

    # -- inferences -------------------------------------------------------------------------------

    def _from_client(self, message: Any, group: TaskGroup) -> None:
        if isinstance(message, InferMessage):
            if self._plan is None:
                raise RemoteProtocolError("the client asked for an inference before the model came")
            if not self._ready:
                raise RemoteProtocolError("the client asked before the parties agreed on the model")
            if message.number < self._unused:
                raise RemoteProtocolError(f"inference {message.number} is not new")
            # Skipped numbers are good for nothing any more.
            self.scheduler.end(self._unused, message.number)
            try:
                self._check_request(message, self._plan)
            except (Busy, ConfigError) as error:
                group.start_soon(self._refuse, message, error)
            else:
                group.start_soon(self._infer, message, self._plan)
            self._unused = message.number + message.steps
            self._running_inferences[message.number] = anyio.CancelScope()
        elif isinstance(message, EndMessage):
            scope = self._running_inferences.get(message.number)
            if scope is None:
                raise RemoteProtocolError(f"inference {message.number} is not running")
            scope.cancel()
        else:
            raise RemoteProtocolError(f"the client may not send a {message.do!r} request")

    def _check_request(self, message: InferMessage, plan: Plan) -> None:
        """Raises:
        RemoteProtocolError: no honest client asks for this.
        Busy, ConfigError: this party refuses it, now or for ever.
        """
        batch, config = message.batch(), plan.config
        if max(batch.lengths) + message.steps - 1 > config.max_positions:
            raise RemoteProtocolError(
                f"the client asked for more than {config.max_positions} positions"
            )
        types = int(getattr(config, "type_vocab_size", 0))
        if batch.types is not None and max(batch.types) >= max(1, types):
            raise RemoteProtocolError(f"token types go up to {types - 1}")
        try:
            check_rows(config, batch.rows)
        except ConfigError as error:
            raise RemoteProtocolError(f"the client's request is unusable: {error}") from None

    async def _refuse(self, message: InferMessage, error: PumaError) -> None:
        """Take no part, until the client has told the others to end it too."""
        log.warning("request refused", role=str(self.role), reason=str(error))
        with self._running_inferences[message.number]:
            self._forget(message)
            busy, text = isinstance(error, Busy), str(error)[:TEXT_CHARS]
            refused = RefusedMessage(number=message.number, text=text, busy=busy)
            await self.scheduler.send_control(Role.CLIENT, refused.header())
            await anyio.sleep_forever()
        await self._ended(message)

    def _forget(self, message: InferMessage) -> None:
        """With what was dealt for steps that nobody wanted."""
        self.scheduler.end(message.number, message.number + message.steps)

    async def _ended(self, message: InferMessage) -> None:
        del self._running_inferences[message.number]
        self._forget(message)
        ended = EndedMessage(number=message.number).header()
        await self.scheduler.send_control(Role.CLIENT, ended)

    async def _infer(self, message: InferMessage, plan: Plan) -> None:
        """All steps, then wait for the client's `end`, which may also come at any time before."""
        with self._running_inferences[message.number]:
            cache = Cache.empty(plan.config.num_layers)
            lead = anyio.Semaphore(DEALER_LEAD if self.role.is_dealer else 1)
            async with anyio.create_task_group() as group:
                for step in range(message.steps):
                    await lead.acquire()
                    done = anyio.Event()
                    group.start_soon(self._step, message, plan, step, cache, done, lead)
                    await done.wait()
                await anyio.sleep_forever()
        await self._ended(message)

    async def _step(
        self,
        message: InferMessage,
        plan: Plan,
        step: int,
        cache: Cache,
        done: anyio.Event,
        lead: anyio.Semaphore,
    ) -> None:
        """One step; `done` is set when the next may begin, `lead` released when all is over."""
        number, settings = message.number + step, message.settings()
        batch = message.batch() if step == 0 else Batch((1,), "last")
        link = self.scheduler.link(number, settings, message.binding())
        lane = self._lanes[number] = self.lane(link)
        try:
            async with link:
                await lane.watch(evaluate(lane, plan, self._parameters, batch, cache))
                done.set()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True), contextlib.suppress(PumaError):
                await self._report(number, lane)  # what was dealt ahead was sent all the same
            raise
        finally:
            del self._lanes[number]
        await self._report(number, lane)
        lead.release()

    def rounds(self, number: int) -> int:
        """Rounds that a step which runs has been through, on its longest chain."""
        lane = self._lanes.get(number)
        return 0 if lane is None else lane.clock

    async def _report(self, number: int, lane: Lane) -> None:
        traffic = lane.link.traffic
        cost = StepMessage(
            number=number,
            rounds=lane.clock,
            online_bytes=traffic.online_bytes,
            offline_bytes=traffic.offline_bytes,
        )
        log.info("step done", role=str(self.role), **cost.model_dump(exclude={"do"}))
        await self.scheduler.send_control(Role.CLIENT, cost.header())
