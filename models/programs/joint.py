"""Steps of several requests as one joint step: what a party runs, and what it costs.

    part = part_of(lane, plan, parameters, batch, cache)       over the request's own lane
    await part.embed()                                         with the request's client
    results = await together(Secure(joint_lane, plan.ranges), parts)
    await reveal(lane, result)                                 to the request's client

`stand_in` is a part of zero words, for a request that a party knows nothing of any more: the other
parties go on with it, and its result is nobody's.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from models.programs.families import forward, parameters_of
from models.programs.inference import evaluate
from models.programs.plan import Plan
from models.programs.program import Batch, Cache, next_batch
from models.programs.sharing import hold_parameter
from protocols.base.cost import Cost
from protocols.base.lane import Lane, Settings
from protocols.base.shares import Role, SecretTensor
from protocols.drivers.ops import Parameters
from protocols.drivers.secure import Secure
from protocols.drivers.together import Call, Part, together
from protocols.drivers.trace import TraceLink, run_now, trace


def part_of(lane: Lane, plan: Plan, parameters: Parameters, batch: Batch, cache: Cache) -> Part:
    """A request's part of a joint step. Its cache is extended.

    Args:
        lane: the request's own, on which its input is looked up.
    """
    ops = Secure(lane, plan.ranges)
    return Part(ops, lambda member: forward(member, plan.config, parameters, batch, cache))


async def evaluate_together(lane: Lane, plan: Plan, parts: Sequence[Part]) -> list[SecretTensor]:
    """The result of each part, whose input has been looked up."""
    return await together(Secure(lane, plan.ranges), parts)


class _Held(NamedTuple):
    """What a decoding step begins with, of blank words, with one token in the cache."""

    x: SecretTensor
    keys: list[Any]
    values: list[Any]


def stand_in(lane: Lane, plan: Plan, parameters: Parameters, context: int) -> Part:
    """The part of a decoding step after `context` tokens, with zero words for its input and cache.

    Args:
        lane: only its role and its settings are used.
    """
    held = _held(plan, lane.settings)
    part = part_of(lane, plan, parameters, next_batch(), _zeros(lane.role, held, context))
    part.look_up()
    part.begin(_zero(lane.role, held.x, held.x.shape))
    return part


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
            await evaluate(lane, self._plan, _traced(self._plan), next_batch(), cache)

        return trace(step, settings)[0] - walk.attention(context)


class _Blank(Secure):
    """Local operations on blank words, which need not be copied."""

    def append(self, past: SecretTensor | None, new: SecretTensor) -> SecretTensor:
        heads, count, size = new.shape
        before = 0 if past is None else past.shape[1]
        return _zero(new.role, new, (heads, before + count, size))


class _Walk:
    """A decoding step of which only attention is traced."""

    def __init__(self, plan: Plan, settings: Settings) -> None:
        self._plan, self._settings = plan, settings
        self._parameters = _traced(plan)
        self._held = _held(plan, settings)
        self._results: list[Any] = []  # of all other operations, in order

    def cache(self, context: int) -> Cache:
        """Blank keys and values of so many tokens."""
        return _zeros(Role.TRACE, self._held, context)

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


def _traced(plan: Plan) -> Parameters:
    return {
        name: hold_parameter(Role.TRACE, number, parameter, None, {})
        for number, (name, parameter) in enumerate(parameters_of(plan.config).items())
    }


def _held(plan: Plan, settings: Settings) -> _Held:
    """Found by walking through a step of the model."""
    lane = Lane(TraceLink(settings))
    cache = Cache.empty(plan.config.num_layers)
    part = part_of(lane, plan, _traced(plan), next_batch(), cache)
    x: SecretTensor = run_now(part.look_up().run(Secure(lane, plan.ranges), ()))
    part.begin(x)
    run_now(evaluate_together(lane, plan, [part]))
    return _Held(x, cache.keys, cache.values)


def _zeros(role: Role, held: _Held, context: int) -> Cache:
    keys, values = (
        [_zero(role, each, (each.shape[0], context, each.shape[2])) for each in half]
        for half in (held.keys, held.values)
    )
    return Cache(keys, values, context)


def _zero(role: Role, like: SecretTensor, shape: tuple[int, ...]) -> SecretTensor:
    """Zeros, which take no memory until they are copied."""
    words = np.broadcast_to(np.uint64(0), shape)
    return SecretTensor(role, words, words, like.width, like.frac)
