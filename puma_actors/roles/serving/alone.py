"""A party's part of a step that is not taken together with others."""

from collections.abc import Coroutine
from typing import Any

from models.programs.inference import embed_only, evaluate
from models.programs.plan import Plan
from models.programs.program import Cache
from protocols.base.lane import Lane
from protocols.drivers.ops import Parameters
from protocols.embedding import embed
from puma_actors.roles.turns import Turn


def step_alone(
    lane: Lane, plan: Plan, parameters: Parameters, turn: Turn, cache: Cache
) -> Coroutine[Any, Any, None]:
    """The whole step; a dealer that has dealt before only looks the input up."""
    if lane.is_dealer and lane.settings.prepared:
        return embed_only(lane, plan, parameters, turn.batch, embed)
    return evaluate(lane, plan, parameters, turn.batch, cache, turn.kept)
