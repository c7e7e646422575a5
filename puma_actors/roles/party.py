"""A computing party: dealer or evaluator. It receives shares of a model and serves inferences."""

from collections.abc import Sequence
from contextlib import aclosing, nullcontext, suppress
from functools import partial
from typing import Any, NoReturn

import anyio
from anyio.abc import TaskGroup

from models.programs.families import parameters_of
from models.programs.plan import Plan
from models.programs.program import Cache
from models.programs.public import plan_digests
from protocols.base.lane import Lane
from protocols.base.shares import COMPUTING, Role
from protocols.errors import (
    Busy,
    ConfigError,
    PumaError,
    RemoteProtocolError,
)
from puma_actors.base.concurrency import Signal, unwrap
from puma_actors.base.logs import log
from puma_actors.base.texts import TEXT_CHARS
from puma_actors.prepare.shelf import Shelf
from puma_actors.prepare.unit import UnitMessage
from puma_actors.prepare.using import Units, Use
from puma_actors.roles.actor import Actor, ActorOptions
from puma_actors.roles.messages import (
    AgreeMessage,
    CloseMessage,
    EndedMessage,
    EndMessage,
    InferMessage,
    JoinMessage,
    NextMessage,
    PlanMessage,
    ReadyMessage,
    RefusedMessage,
    SeedMessage,
    StepMessage,
    TensorMessage,
    UploadedMessage,
    parse,
)
from puma_actors.roles.serving.accepted import Admission, AdmitAll, check_request
from puma_actors.roles.serving.agreed import check_same
from puma_actors.roles.serving.alone import step_alone
from puma_actors.roles.serving.company import Company, Seat, joins, step_together
from puma_actors.roles.serving.progress import telling
from puma_actors.roles.turns import Announced, Turn
from puma_actors.roles.upload import InMemory, Kept, Model, Upload

DEALER_LEAD = 2
"""Steps that the dealer may begin before the client's input to the first of them has arrived."""
MOST_REFUSED = 64
"""How many refused requests the client may leave open. They do not count toward the limits of
tokens and memory, but each takes a task.
"""


class Party(Actor):
    """The dealer or an evaluator. Serves until the client closes the session.

    An inference is a chain of steps that share a cache of keys and values. The dealer's steps need
    no input except for the embedding, which is deferred, so it runs ahead by `DEALER_LEAD` steps.
    Where the input comes at once, first and in steps with a draft, it answers before it goes on.

    Args:
        model: the model to serve, whose parameters are not changed; None: the owner uploads one.
        admission: decides which requests to accept; None: all that fit the model.
        kept: where the owner's upload is kept; None: in memory.
        shelf: the prepared units that its requests may use, if any.
        company: lets steps be taken together with those of other sessions; None: they are not.

    Attributes:
        activity: counts the client's messages and the reports to it.
    """

    def __init__(
        self,
        role: Role,
        options: ActorOptions | None = None,
        *,
        model: Model | None = None,
        admission: Admission | None = None,
        kept: Kept | None = None,
        shelf: Shelf | None = None,
        company: Company | None = None,
    ) -> None:
        super().__init__(role, options)
        self.activity = 0
        self._units = Units(role, shelf)
        self._admission = admission or AdmitAll()
        self._kept = kept or InMemory(role)
        self._company = company
        self._seat: Seat | None = None
        self._seated = Signal()
        self._arriving: Upload | None = None
        self._plan: Plan | None = None
        self._parameters: dict[str, Any] = {}
        self._origin = ""  # upload id of a model that was here before the session
        self._content = ""  # digest of its public weights
        if model is not None:
            self._plan, self._origin, self._content = model.plan, model.upload, model.content
            self._parameters.update(model.parameters)
        self._running_inferences: dict[int, anyio.CancelScope] = {}
        self._announced: dict[int, Announced] = {}  # of the running ones, by their first number
        self._refused: set[int] = set()  # the refused ones among these
        self._lanes: dict[int, Lane] = {}  # of running steps
        self._unused = 0  # the lowest number that no inference has used
        self._mine: AgreeMessage | None = None
        self._heard: dict[Role, AgreeMessage] = {}  # the other parties' announcements
        self._ready = False

    @property
    def busy(self) -> bool:
        """Whether an inference runs."""
        return bool(self._running_inferences)

    @property
    def in_company(self) -> bool:
        """Whether a step is taken together with others now, in a session that this one's messages
        do not show.
        """
        return self._seat is not None and self._seat.busy

    async def main(self) -> None:
        try:
            if self._plan is not None:
                await self._announce(self._plan, self._origin)
            await self._serve()
        except BaseExceptionGroup as errors:
            root = unwrap(errors)
            raise root from root.__cause__
        finally:
            self._parameters.clear()  # gigabytes: do not wait for garbage collection

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

    async def _announce(self, plan: Plan, upload: str) -> None:
        """Tell the other parties which model this one serves. It is ready when they have announced
        the same: with other shares or public numbers, they would compute noise.
        """
        tables = await self.scheduler.compute.offload(plan_digests, plan)
        self._mine = AgreeMessage(
            digest=plan.digest(),
            upload=upload,
            tables=tables,
            content=self._content,
            max_batch=1 if self._company is None else self._company.most,
        )
        await self._tell_parties(self._mine.header())
        await self._compare()

    async def _tell_parties(self, header: dict[str, Any]) -> None:
        for role in (each for each in COMPUTING if each is not self.role):
            await self.scheduler.send_control(role, header)

    def _sit(self, session: bytes) -> None:
        """Take the session's seat among others."""
        if self._company is None or self._seat is not None:
            raise RemoteProtocolError("evaluator-a invites to a joint session that cannot be")
        self._seat = self._company.sit(session, self.scheduler.numbers.over)
        self._seated.notify()

    async def _from_party(self, role: Role, message: Any) -> None:
        if isinstance(message, UnitMessage):
            self._units.heard(self.scheduler, role, message)
            return
        if isinstance(message, JoinMessage) and role is Role.EVALUATOR_A:
            self._sit(bytes.fromhex(message.session))
            return
        if not isinstance(message, AgreeMessage) or role in self._heard:
            raise RemoteProtocolError(f"{role} may not send a {message.do!r} request")
        self._heard[role] = message
        await self._compare()

    async def _compare(self) -> None:
        mine = self._mine
        if mine is None:
            return
        for role, theirs in self._heard.items():
            check_same(self.role, mine, role, theirs)
        if len(self._heard) == len(COMPUTING) - 1:
            if self._company is not None and self.role is Role.EVALUATOR_A:
                session = self._company.choose()
                await self._tell_parties(JoinMessage(session=session.hex()).header())
                self._sit(session)
            self._ready = True
            ready = ReadyMessage(digest=mine.digest).header()
            for role in (each for each in self.scheduler.ports if each not in COMPUTING):
                await self.scheduler.send_control(role, ready)

    # -- the model --------------------------------------------------------------------------------

    async def _from_owner(self, message: Any, buffers: Sequence[memoryview]) -> None:
        if isinstance(message, PlanMessage):
            if self._arriving is not None or self._plan is not None:
                raise RemoteProtocolError("the owner sent a second model in one session")
            offload = self.scheduler.compute.offload
            self._arriving = await offload(Upload, self.role, message, self._kept)
            return
        if self._arriving is None:
            raise RemoteProtocolError(f"the owner sent {message.do!r} before a plan")
        upload = self._arriving
        if isinstance(message, SeedMessage):
            upload.seed(message.which, buffers)
        elif isinstance(message, TensorMessage):
            await self.scheduler.compute.offload(upload.tensor, message, buffers)
        elif isinstance(message, UploadedMessage):
            upload.check_complete()
            await self._hold(upload.plan)
        else:
            raise RemoteProtocolError(f"the owner may not send a {message.do!r} request")

    async def _hold(self, plan: Plan) -> None:
        offload = self.scheduler.compute.offload
        for number, (name, parameter) in enumerate(parameters_of(plan.config).items()):
            self._parameters[name] = await offload(self._kept.hold, number, parameter)
        self._plan, self._arriving = plan, None
        log.info("model ready", role=str(self.role), digest=plan.digest()[:16])
        await self._announce(plan, self.scheduler.port(Role.OWNER).session.hex())

    # -- inferences -------------------------------------------------------------------------------

    def _from_client(self, message: Any, group: TaskGroup) -> None:
        self.activity += 1
        if isinstance(message, InferMessage):
            if self._plan is None:
                raise RemoteProtocolError("the client asked for an inference before the model came")
            if not self._ready:
                raise RemoteProtocolError("the client asked before the parties agreed on the model")
            if message.number < self._unused:
                raise RemoteProtocolError(f"inference {message.number} is not new")
            # Skipped numbers cannot be used any more.
            self.scheduler.end(self._unused, message.number)
            try:
                self._admission.check(message)
                check_request(message, self._plan)
                self._admission.admit(message, self._plan)
            except (Busy, ConfigError) as error:
                if len(self._refused) >= MOST_REFUSED:
                    raise RemoteProtocolError(
                        f"the client has not ended {MOST_REFUSED} requests that were refused"
                    ) from None
                self._refused.add(message.number)
                group.start_soon(self._refuse, message, error)
            else:
                steps = self._announced[message.number] = Announced(message)
                group.start_soon(self._infer, message, self._plan, steps)
            self._unused = message.number + message.steps
            self._running_inferences[message.number] = anyio.CancelScope()
        elif isinstance(message, NextMessage):
            first = max((each for each in self._announced if each < message.number), default=None)
            if first is None:
                raise RemoteProtocolError(f"step {message.number} is of no running request")
            self._announced[first].take(message)
        elif isinstance(message, EndMessage):
            scope = self._running_inferences.get(message.number)
            if scope is None:
                raise RemoteProtocolError(f"inference {message.number} is not running")
            self._announced.pop(message.number, None)
            scope.cancel()
        else:
            raise RemoteProtocolError(f"the client may not send a {message.do!r} request")

    async def _refuse(self, message: InferMessage, error: PumaError) -> None:
        """Refuse a request, and wait until the client ends it, as it does at the other parties."""
        log.warning("request refused", role=str(self.role), reason=str(error))
        with self._running_inferences[message.number]:
            await self._tell_refused(message, error)
        await self._ended(message)

    async def _tell_refused(self, message: InferMessage, error: PumaError) -> NoReturn:
        """Tell the client that it is refused, and wait until the request's scope is cancelled."""
        self._forget(message)
        busy, text = isinstance(error, Busy), str(error)[:TEXT_CHARS]
        refused = RefusedMessage(number=message.number, text=text, busy=busy)
        await self.scheduler.send_control(Role.CLIENT, refused.header())
        await anyio.sleep_forever()
        raise AssertionError

    def _forget(self, message: InferMessage) -> None:
        """Forget a request, and what was dealt for steps that were not taken."""
        self._units.forget(message.number)
        self.give_up(message.number, message.number + message.steps)
        if self._seat is not None:
            self._seat.forgot()

    async def _ended(self, message: InferMessage) -> None:
        del self._running_inferences[message.number]
        self._refused.discard(message.number)
        self._forget(message)
        log.info("request ended", role=str(self.role), number=message.number)
        await self.scheduler.send_control(Role.CLIENT, EndedMessage(number=message.number).header())

    async def _infer(self, message: InferMessage, plan: Plan, steps: Announced) -> None:
        """Run all steps, then wait for the client's `end`, which may also come earlier."""
        with self._running_inferences[message.number]:
            unit = await self._take_unit(message, plan)
            cache = Cache.empty(plan.config.num_layers)
            lead = anyio.Semaphore(DEALER_LEAD if self.role.is_dealer else 1)
            with unit or nullcontext():
                async with anyio.create_task_group() as group, aclosing(steps.steps()) as turns:
                    async for turn in turns:
                        await lead.acquire()
                        done = anyio.Event()
                        group.start_soon(self._step, message, plan, turn, unit, cache, done, lead)
                        await done.wait()
                    await anyio.sleep_forever()
        self._admission.release(message.number)
        await self._ended(message)

    async def _take_unit(self, message: InferMessage, plan: Plan) -> Use | None:
        """The prepared unit that a request uses, if any; if it needs one, it may be refused."""
        asked = message.number, message.prepared, self._origin, plan, message.shape()
        try:
            return await self._units.take(self.scheduler, *asked)
        except Busy as error:
            await self._tell_refused(message, error)

    async def _step(
        self,
        message: InferMessage,
        plan: Plan,
        turn: Turn,
        unit: Use | None,
        cache: Cache,
        done: anyio.Event,
        lead: anyio.Semaphore,
    ) -> None:
        """Run one step. `done` is set when the next may begin; `lead` is released at the end."""
        number, step = turn.number, turn.number - message.number
        settings = message.settings().at(step)
        if unit is None:
            link = self.scheduler.link(number, settings, turn.bound)
        else:
            link = await unit.link(self.scheduler, number, settings, turn.bound, step)
        lane = self._lanes[number] = self.lane(link)
        joint = unit is None and self._company is not None and joins(message, turn)
        link.early = joint or (step > 0 and not message.draft)
        report = partial(self._report, number, lane, prepared=link.prepared, joint=joint)
        try:
            async with link:
                if joint:
                    last, seat = step == message.steps - 1, await self._seat_taken()
                    await lane.watch(step_together(seat, lane, plan, turn, cache, last))
                else:
                    async with telling(self.scheduler, number, lane, first=step == 0):
                        await lane.watch(step_alone(lane, plan, self._parameters, turn, cache))
                done.set()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True), suppress(PumaError):
                await report()  # what was dealt ahead was sent anyway
            raise
        finally:
            del self._lanes[number]
        await report()
        lead.release()

    async def _seat_taken(self) -> Seat:
        """The session's seat among others; evaluator A's word on it may still be on its way."""
        while self._seat is None:
            await self._seated.wait()
        return self._seat

    def rounds(self, number: int) -> int:
        """Rounds that a running step has completed, on its longest chain."""
        return self._lanes[number].clock if number in self._lanes else 0

    async def _report(self, number: int, lane: Lane, *, prepared: bool, joint: bool) -> None:
        self.activity += 1
        traffic = lane.link.traffic
        cost = StepMessage(
            number=number,
            rounds=lane.clock,
            online_bytes=traffic.online_bytes,
            offline_bytes=traffic.offline_bytes,
            prepared=prepared,
            joint=joint,
        )
        log.info("step done", role=str(self.role), **cost.model_dump(exclude={"do"}))
        await self.scheduler.send_control(Role.CLIENT, cost.header())
