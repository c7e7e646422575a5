"""The client: it shares token ids and learns logits (or only the next token), nothing else."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio

from models.programs.head_layers import check_rows
from models.programs.inference import ask
from models.programs.joint.alone import Alone
from models.programs.plan import Plan
from models.programs.program import Batch
from models.programs.steps import StepSettings
from protocols.base.cost import Cost
from protocols.base.lane import Lane, Settings
from protocols.base.ring import Floats
from protocols.base.shares import COMPUTING, Role
from protocols.errors import (
    Busy,
    ConfigError,
    LocalProtocolError,
    ModelError,
    PeerFailed,
    PumaError,
    RemoteProtocolError,
)
from puma_actors.base.concurrency import Signal
from puma_actors.base.texts import printable
from puma_actors.prepare.stock import Stock
from puma_actors.prepare.unit import shape_of
from puma_actors.roles.actor import Actor, ActorOptions
from puma_actors.roles.messages import (
    CloseMessage,
    EndedMessage,
    EndMessage,
    NextMessage,
    PlanMessage,
    ProgressMessage,
    ReadyMessage,
    RefusedMessage,
    StepMessage,
    infer_message,
    parse,
)
from puma_actors.roles.peers import CountingLane, Exchanged, Peers
from puma_actors.roles.turns import Turn, Turns
from puma_actors.session.inference import InferenceLink


@dataclass
class Inference:
    """A chain of steps that share a cache.

    Attributes:
        number: number of the first step. batch: the batch of that step. steps: maximum number.
        taken: steps done so far.
        turns: its steps, as the parties count them.
        costs: cost of each step for all parties together, as far as they have reported.
        prepared: the steps for which the parties used a prepared unit.
        joint: the steps of which parties counted only what is the request's own.
        alone: what such a step, by its index, is predicted to cost without company.
        refusal: the reason why a party does not take part, if any.
        done: rounds of the first step that a party has said to have completed.
    """

    number: int
    batch: Batch
    steps: int
    settings: StepSettings
    turns: Turns
    alone: Callable[[int], Cost] = field(repr=False)
    taken: int = 0
    costs: dict[int, Cost] = field(default_factory=dict)
    prepared: set[int] = field(default_factory=set)
    joint: set[int] = field(default_factory=set)
    refusal: PumaError | None = None
    done: int = 0
    _scope: anyio.CancelScope | None = None  # scope of the running step
    _reports: dict[int, set[Role]] = field(default_factory=dict)
    _forgotten: set[Role] = field(default_factory=set)
    _predicted: set[int] = field(default_factory=set)

    def add(self, step: int, role: Role, cost: Cost, *, prepared: bool, joint: bool) -> None:
        """Add a party's report; rounds are those of the longest chain."""
        if prepared:
            self.prepared.add(step)
        if step not in self._predicted:
            self.costs[step] = self.costs.get(step, Cost()).beside(cost)
            if joint:
                self.joint.add(step)
        self._reports.setdefault(step, set()).add(role)

    def refuse(self, error: PumaError) -> None:
        """A party does not take part: end the running step."""
        self.refusal = self.refusal or error
        if self._scope is not None:
            self._scope.cancel()

    def refusable(self) -> anyio.CancelScope:
        """A scope for a step, cancelled by a refusal. Raises an earlier refusal."""
        if self.refusal is not None:
            raise self.refusal
        self._scope = anyio.CancelScope()
        return self._scope

    def forget(self, role: Role) -> None:
        """Note that a party has forgotten this inference."""
        self._forgotten.add(role)

    @property
    def forgotten(self) -> bool:
        """Whether all parties have forgotten it."""
        return self._forgotten >= set(COMPUTING)

    @property
    def known_costs(self) -> list[Cost]:
        """The costs of the steps that parties have reported so far, in order. Those of joint steps
        are predictions: what was sent for all of their members is no one's in particular.
        """
        for step in [step for step in self.joint if step < self.taken]:
            self.costs[step] = self.alone(step)
            self.joint.discard(step)
            self._predicted.add(step)
        return [self.costs[step] for step in sorted(self.costs)]

    def reported(self, steps: int) -> bool:
        """Whether all parties have reported the first `steps` steps."""
        return all(self._reports.get(step, set()) >= set(COMPUTING) for step in range(steps))


RequestCheck = Callable[[Plan, Batch, int, StepSettings, int], Awaitable[None]]
"""Called with the model's plan, the first batch, the steps, the settings and the largest draft of a
request.
"""


class Client(Actor):
    """Requests inferences. Run `listen` alongside the code that calls the other methods.

    Args:
        plan: the model's plan, if the parties have sent it already; None: the owner sends it.
        tokens: how many tokens the parties accept at a time, prompts and answers; None: no limit.
        check: called before each request; it raises an error to refuse it.
        stock: which requests use prepared units; None: none do.

    Attributes:
        plan: the model's plan, once it is known.
        tokens: as above.
        peers: what all requests have exchanged with each party so far; not with a recorder.
    """

    def __init__(
        self,
        options: ActorOptions | None = None,
        *,
        plan: Plan | None = None,
        tokens: int | None = None,
        check: RequestCheck | None = None,
        stock: Stock | None = None,
    ) -> None:
        super().__init__(Role.CLIENT, options)
        self._stock = stock or Stock({}, "never")
        self.plan = plan
        self.tokens = tokens
        self.peers: Peers = {role: Exchanged() for role in COMPUTING}
        self._check = check
        self._ready: dict[Role, str] = {}  # digest of the plan a party is ready for
        self._next = 0
        self._decoding: Alone | None = None
        self._inferences: dict[int, Inference] = {}
        self._changed = Signal()
        self._listening = True
        self._failure: PumaError | None = None

    def lane(self, link: InferenceLink) -> Lane:
        """As `Actor.lane`; counts in `peers`."""
        return super().lane(link) if self.recorder else CountingLane.first(link, self.peers)

    async def listen(self) -> None:
        """Process the others' reports, forever."""
        try:
            while True:
                role, header, _ = await self.scheduler.control()
                self._take(role, parse(header))
                self._changed.notify()
        except PumaError as error:
            self._failure = error
            raise
        finally:
            self._listening = False
            self._changed.notify()

    def _take(self, role: Role, message: Any) -> None:
        if isinstance(message, PlanMessage) and role is Role.OWNER and self.plan is None:
            try:
                self.plan = Plan.from_public(message.plan)
            except ModelError as error:
                raise RemoteProtocolError(f"the owner's plan is unusable: {error}") from None
            self._check_ready()
        elif role not in COMPUTING or not self._reported(role, message):
            raise RemoteProtocolError(f"{role} may not send a {message.do!r} request to a client")

    def _reported(self, role: Role, message: Any) -> bool:
        """Take a party's message; False if it is none that a party sends."""
        if isinstance(message, ReadyMessage):
            self._ready[role] = message.digest
            self._check_ready()
        elif isinstance(message, StepMessage):
            inference, step = self._find(message.number)
            cost = Cost(message.rounds, message.online_bytes, message.offline_bytes)
            inference.add(step, role, cost, prepared=message.prepared, joint=message.joint)
        elif isinstance(message, ProgressMessage):
            self._find(message.number)[0].done = message.rounds
        elif isinstance(message, RefusedMessage):
            text = printable(message.text)
            self._find(message.number)[0].refuse((Busy if message.busy else ConfigError)(text))
        elif isinstance(message, EndedMessage):
            self._find(message.number)[0].forget(role)
        else:
            return False
        return True

    def _check_ready(self) -> None:
        """Compare digests; the parties' messages may come before the owner's."""
        for role, digest in self._ready.items():
            if self.plan is not None and digest != self.plan.digest():
                raise RemoteProtocolError(f"{role} holds another model than the owner announced")

    def _find(self, number: int) -> tuple[Inference, int]:
        for inference in self._inferences.values():
            if inference.number <= number < inference.number + inference.steps:
                return inference, number - inference.number
        raise RemoteProtocolError(f"a report on inference {number}, which was not requested")

    async def _until(self, condition: Any) -> None:
        while not condition():
            if not self._listening:
                raise self._failure or PeerFailed("the session has ended: start a new one")
            await self._changed.wait()

    async def wait_ready(self) -> Plan:
        """Wait until all parties hold the model; return its public plan."""
        await self._until(lambda: self.plan is not None and len(self._ready) == len(COMPUTING))
        assert self.plan is not None
        return self.plan

    # -- inferences -------------------------------------------------------------------------------

    async def begin(
        self,
        batch: Batch,
        steps: int = 1,
        settings: Settings | StepSettings | None = None,
        draft: int = 0,
    ) -> Inference:
        """Request the evaluation of a batch, and up to `steps` - 1 more tokens after it. A step may
        propose up to `draft` tokens.

        Raises:
            ConfigError: the model's context is too short, the model has no such results, or the
                parties allow no such request. Also whatever `check` raises.
        """
        self._check_tokens(batch, steps)
        plan, chosen = await self.wait_ready(), StepSettings.of(settings)
        if self._check is not None:
            await self._check(plan, batch, steps, chosen, draft)
        limit, longest = plan.config.max_positions, max(batch.lengths)
        if longest + steps - 1 > limit:
            raise ConfigError(
                f"{longest} tokens and {steps} steps need more than the model's {limit} "
                "positions: shorten the text or request fewer tokens"
            )
        check_rows(plan.config, batch.rows)
        prepared = self._stock.ask(shape_of(batch, steps, chosen, draft))
        request = infer_message(self._next, batch, steps, chosen, draft, prepared)
        alone = partial(self._alone, plan, chosen.further, batch.tokens)
        inference = Inference(self._next, batch, steps, chosen, Turns(request), alone)
        self._next += steps
        self._inferences[inference.number] = inference
        await self._tell(request.header())
        return inference

    def _alone(self, plan: Plan, settings: Settings, tokens: int, step: int) -> Cost:
        """What decoding step `step` of a request that began with `tokens` tokens costs alone."""
        if self._decoding is None:
            self._decoding = Alone(plan)
        return self._decoding.cost(settings, tokens + step - 1)

    async def _tell(self, header: dict[str, Any]) -> None:
        """Send all parties a request, or none."""
        with anyio.CancelScope(shield=True):
            for role in COMPUTING:
                await self.scheduler.send_control(role, header)

    def rounds(self, number: int) -> int:
        """Rounds that a request's first step, of that number, has completed as far as is known."""
        inference = self._inferences.get(number)
        return 0 if inference is None else inference.done

    def _check_tokens(self, batch: Batch, steps: int) -> None:
        running = sum(each.batch.tokens + each.steps - 1 for each in self._inferences.values())
        wanted = running + batch.tokens + steps - 1
        if self.tokens is not None and wanted > self.tokens:
            raise ConfigError(
                f"{wanted} tokens (prompt and answer) at once, the parties allow {self.tokens}: "
                "shorten the text or ask for fewer tokens"
            )

    async def step(self, inference: Inference, ids: Sequence[int], accepted: int = 0) -> Floats:
        """Send the next tokens; return the results that the parties reveal.

        Args:
            ids: the batch's tokens; later the last token of the answer, and those that a draft
                proposes after it.
            accepted: how many of the tokens that the last step proposed stay, the first of them.

        Returns:
            (results, columns); with "argmax" the best column of each row, (results,).

        Raises:
            ConfigError: an id is not in the vocabulary, there are too few or too many, more are
            accepted than were proposed, or a party refuses the request.
            Busy: a party has no memory for it now.
        """
        assert self.plan is not None
        config = self.plan.config
        for token in ids:
            if not 0 <= token < config.vocab_size:
                raise ConfigError(f"token id {token} is not below {config.vocab_size}")
        result: Floats | None = None
        with inference.refusable():
            turn = await self._turn(inference, len(ids), accepted)
            settings = inference.settings.at(inference.taken)
            async with self.scheduler.link(turn.number, settings, turn.bound) as link:
                lane = self.lane(link)
                result = await lane.watch(ask(lane, config, turn.batch, ids))
        if result is None:
            raise inference.refusal or LocalProtocolError("a step ended without a result")
        cost = Cost(0, link.traffic.online_bytes, link.traffic.offline_bytes)
        inference.add(inference.taken, Role.CLIENT, cost, prepared=False, joint=False)
        inference.taken += 1
        return result

    async def _turn(self, inference: Inference, count: int, accepted: int) -> Turn:
        """The next step, of `count` tokens, announced to the parties if they must know."""
        turns = inference.turns
        if inference.taken == 0 or not turns.drafts:
            wanted = inference.batch.tokens if inference.taken == 0 else 1
            if count != wanted:
                raise ConfigError(f"{count} token ids for a step of {wanted}")
            return turns.following() if inference.taken else turns.first
        turn = turns.drafted(accepted, count - 1)
        message = NextMessage(number=turn.number, accepted=accepted, proposed=count - 1)
        await self._tell(message.header())
        return turn

    async def wait_reports(self, inference: Inference) -> None:
        """Wait until all parties have reported the cost of the steps taken so far."""
        await self._until(lambda: inference.reported(inference.taken))

    async def end(self, inference: Inference) -> None:
        """Tell the parties that no more steps follow, and wait until they have forgotten it."""
        with anyio.CancelScope(shield=True):
            await self._tell(EndMessage(number=inference.number).header())
            await self._until(lambda: inference.forgotten)
        self._inferences.pop(inference.number, None)
        self.scheduler.end(inference.number, inference.number + inference.steps)

    async def close(self) -> None:
        """End the session for all parties."""
        for role in COMPUTING:
            await self.scheduler.send_control(role, CloseMessage().header())
