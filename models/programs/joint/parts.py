"""Steps of several requests as one joint step: what a party runs.

    part = part_of(lane, plan, parameters, batch, cache)       over the request's own lane
    await part.embed()                                         with the request's client
    results = await together(Secure(joint_lane, plan.ranges), parts)
    await reveal(lane, result)                                 to the request's client

`stand_in` is a part of zero words, for a request that a party knows nothing of any more: the other
parties go on with it, and its result is nobody's.
"""

from collections.abc import Coroutine, Sequence
from typing import Any, NamedTuple

import numpy as np

from models.programs.families import forward, parameters_of
from models.programs.plan import Plan
from models.programs.program import Batch, Cache, next_batch
from models.programs.sharing import hold_parameter
from protocols.base.lane import Lane, Settings
from protocols.base.shares import Role, SecretTensor
from protocols.drivers.ops import Parameters
from protocols.drivers.secure import Secure
from protocols.drivers.together import Member, Part, together
from protocols.drivers.trace import TraceLink, run_now


def part_of(lane: Lane, plan: Plan, parameters: Parameters, batch: Batch, cache: Cache) -> Part:
    """A request's part of a joint step. Its cache is extended, from where it is now: once more if
    the part is begun again.

    Args:
        lane: the request's own, on which its input is looked up.
    """
    ops, before = Secure(lane, plan.ranges), cache.length

    def program(member: Member) -> Coroutine[Any, Any, SecretTensor]:
        cache.keep(ops, before)
        return forward(member, plan.config, parameters, batch, cache)

    return Part(ops, program)


async def evaluate_together(lane: Lane, plan: Plan, parts: Sequence[Part]) -> list[SecretTensor]:
    """The result of each part, whose input has been looked up."""
    return await together(Secure(lane, plan.ranges), parts)


class Held(NamedTuple):
    """What a decoding step begins with, of blank words, with one token in the cache."""

    x: SecretTensor
    keys: list[Any]
    values: list[Any]


def stand_in(lane: Lane, plan: Plan, parameters: Parameters, context: int) -> Part:
    """The part of a decoding step after `context` tokens, with zero words for its input and cache.

    Args:
        lane: only its role and its settings are used.
    """
    held = held_by(plan, lane.settings)
    part = part_of(lane, plan, parameters, next_batch(), zeros(lane.role, held, context))
    part.look_up()
    part.begin(zero(lane.role, held.x, held.x.shape))
    return part


def traced(plan: Plan) -> Parameters:
    """A model's parameters as a tracing lane holds them."""
    return {
        name: hold_parameter(Role.TRACE, number, parameter, None, {})
        for number, (name, parameter) in enumerate(parameters_of(plan.config).items())
    }


def held_by(plan: Plan, settings: Settings) -> Held:
    """What a model's decoding steps begin with, found by walking through one."""
    lane = Lane(TraceLink(settings))
    cache = Cache.empty(plan.config.num_layers)
    part = part_of(lane, plan, traced(plan), next_batch(), cache)
    x: SecretTensor = run_now(part.look_up().run(Secure(lane, plan.ranges), ()))
    part.begin(x)
    run_now(evaluate_together(lane, plan, [part]))
    return Held(x, cache.keys, cache.values)


def zeros(role: Role, held: Held, context: int) -> Cache:
    """A cache of `context` tokens of zero words."""
    cache = Cache([], [], context)
    for half, given in ((cache.keys, held.keys), (cache.values, held.values)):
        half += [zero(role, each, (each.shape[0], context, each.shape[2])) for each in given]
    return cache


def zero(role: Role, like: SecretTensor, shape: tuple[int, ...]) -> SecretTensor:
    """Zeros, which take no memory until they are copied."""
    words = np.broadcast_to(np.uint64(0), shape)
    return SecretTensor(role, words, words, like.width, like.frac)
