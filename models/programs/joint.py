"""Steps of several requests as one joint step: what a party runs, and what it costs.

    part = part_of(lane, plan, parameters, batch, cache)       over the request's own lane
    await part.embed()                                         with the request's client
    results = await together(Secure(joint_lane, plan.ranges), parts)
    await reveal(lane, result)                                 to the request's client

`stand_in` is a part of zero words, for a request that a party knows nothing of any more: the other
parties go on with it, and its result is nobody's.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from models.programs.families import forward, parameters_of, shallow
from models.programs.inference import evaluate
from models.programs.plan import Plan
from models.programs.program import Batch, Cache, next_batch
from models.programs.sharing import hold_parameter
from protocols.base.cost import Cost
from protocols.base.lane import Lane, Settings
from protocols.base.shares import Role, SecretTensor
from protocols.drivers.ops import Parameters
from protocols.drivers.secure import Secure
from protocols.drivers.together import Part, together
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


_EVERY = 16


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
    """What decoding steps of a model cost alone. The whole model is walked through for one context
    in `_EVERY`, or for each if layers see windows of it; for those between, as in
    `predict.outline`, only the first two layers are, for the difference.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._some = [replace(plan, config=shallow(plan.config, most)) for most in (1, 2)]
        self._every = 1 if getattr(plan.config, "windows", None) else _EVERY
        self._held: dict[tuple[Settings, int], _Held] = {}
        self._known: dict[Settings, tuple[int, Cost]] = {}

    def cost(self, settings: Settings, context: int) -> Cost:
        """The cost of a step after `context` tokens, for all parties together."""
        place = context - context % self._every
        if settings not in self._known or self._known[settings][0] != place:
            self._known[settings] = place, self._walk(self._plan, settings, place)
        known = self._known[settings][1]
        return known if place == context else known + self._more(settings, place, context)

    def _more(self, settings: Settings, place: int, context: int) -> Cost:
        one, two = (
            self._walk(plan, settings, context) - self._walk(plan, settings, place)
            for plan in self._some
        )
        each, more = two - one, self._plan.config.num_layers - 2
        if more < 0:
            return one
        return two + Cost(more * each.rounds, more * each.online, more * each.offline)

    def _walk(self, plan: Plan, settings: Settings, context: int) -> Cost:
        key = settings, plan.config.num_layers
        if key not in self._held:
            self._held[key] = _held(plan, settings)
        return _decoding(plan, settings, _zeros(Role.TRACE, self._held[key], context))


def _decoding(plan: Plan, settings: Settings, cache: Cache) -> Cost:
    async def step(lane: Lane) -> None:
        await evaluate(lane, plan, _traced(plan), next_batch(), cache)

    return trace(step, settings)[0]


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
