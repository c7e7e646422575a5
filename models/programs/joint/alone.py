"""What a decoding step costs that is taken together with others: the cost of it alone."""

from typing import Any

from models.programs.families import forward
from models.programs.inference import evaluate
from models.programs.joint.parts import held_by, traced, zero, zeros
from models.programs.plan import Plan
from models.programs.program import Cache, next_batch
from protocols.base.cost import Cost
from protocols.base.lane import Lane, Settings
from protocols.base.shares import Role, SecretTensor
from protocols.drivers.secure import Secure
from protocols.drivers.together import Call, Part
from protocols.drivers.trace import TraceLink, run_now, trace


class Alone:
    """What decoding steps of a model cost alone. Of a step only attention depends on what comes
    before it, so the whole model is walked through once, and then only attention.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._walks: dict[Settings, tuple[_Walk, Cost]] = {}

    def cost(self, settings: Settings, context: int) -> Cost:
        """The cost of a step after `context` tokens, for all parties together."""
        if settings not in self._walks:
            walk = _Walk(self._plan, settings)
            self._walks[settings] = walk, self._whole(settings, walk, context)
        walk, rest = self._walks[settings]
        return rest + walk.attention(context)

    def _whole(self, settings: Settings, walk: "_Walk", context: int) -> Cost:
        """The cost of a step without its attention."""
        cache = walk.cache(context)

        async def step(lane: Lane) -> None:
            await evaluate(lane, self._plan, traced(self._plan), next_batch(), cache)

        return trace(step, settings)[0] - walk.attention(context)


class _Blank(Secure):
    """Local operations on blank words, which need not be copied."""

    def append(self, past: SecretTensor | None, new: SecretTensor) -> SecretTensor:
        heads, count, size = new.shape
        before = 0 if past is None else past.shape[1]
        return zero(new.role, new, (heads, before + count, size))


class _Walk:
    """A decoding step of which only attention is traced."""

    def __init__(self, plan: Plan, settings: Settings) -> None:
        self._plan, self._settings = plan, settings
        self._parameters = traced(plan)
        self._held = held_by(plan, settings)
        self._results: list[Any] = []  # of all other operations, in order

    def cache(self, context: int) -> Cache:
        """Blank keys and values of so many tokens."""
        return zeros(Role.TRACE, self._held, context)

    def attention(self, context: int) -> Cost:
        """What attention costs after `context` tokens."""
        lane, aside = (Lane(TraceLink(self._settings)) for _ in range(2))
        attending, others = (Secure(each, self._plan.ranges) for each in (lane, aside))
        plan, cache = self._plan, self.cache(context)
        local = _Blank(aside, plan.ranges)
        part = Part(
            local,
            lambda member: forward(member, plan.config, self._parameters, next_batch(), cache),
        )
        part.look_up()
        part.begin(self._held.x)
        place = 0
        while isinstance(call := part.go(), Call):
            if call.key[0] == "attention":
                part.begin(run_now(call.run(attending, [call.public], *call.tensors)))
                continue
            if place == len(self._results):  # the first walk
                found = run_now(call.run(others, [call.public], *call.tensors))
                self._results.append(found)
            part.begin(self._results[place])
            place += 1
        traffic = lane.link.traffic
        return Cost(lane.clock, traffic.online_bytes, traffic.offline_bytes)
