"""What three parties' answers to one request must have in common."""

from collections.abc import Iterable, Mapping

from models.programs.plan import Plan
from protocols.base.shares import Role
from protocols.errors import ConfigError, ModelError, RemoteProtocolError
from puma_actors.hosts.admission import ModelEntry
from puma_actors.hosts.caller import Call
from puma_actors.prepare.unit import Shape
from puma_actors.roles.upload import different_weights


def agreed_plan(calls: Mapping[Role, Call]) -> tuple[Plan, int]:
    """The plan that all three parties announce, and the largest request that all allow.

    Raises:
        ConfigError: the parties hold shares that do not belong together.
        RemoteProtocolError: an answer is unusable.
    """
    entries = {peer: each.answer.model for peer, each in calls.items()}
    held = {(entry.digest, entry.upload) for entry in entries.values() if entry is not None}
    contents = {entry.content for peer, entry in entries.items() if entry and not peer.is_dealer}
    if len(held) != 1 or None in entries.values():
        raise ConfigError(
            "the parties hold different uploads of this model: run `puma models remove`, then "
            "`puma upload` again"
        )
    if len(contents) > 1:
        raise ConfigError(different_weights())
    try:
        plan = Plan.from_public(calls[Role.DEALER].answer.plan)
    except ModelError as error:
        raise RemoteProtocolError(f"the announced plan is unusable: {error}") from None
    if {plan.digest()} != {digest for digest, _ in held}:
        raise RemoteProtocolError("the announced plan does not have the announced digest")
    return plan, min(each.answer.tokens for each in calls.values())


def common_stock(entries: Iterable[ModelEntry | None]) -> dict[Shape, int]:
    """The prepared units of a model, by shape: as many as every party has."""
    parts = [
        {each.shape: each.count for each in entry.prepared} if entry else {} for entry in entries
    ]
    shapes = set[Shape]().union(*parts)
    counts = {shape: min(part.get(shape, 0) for part in parts) for shape in shapes}
    order = sorted(counts, key=lambda shape: (shape.tokens, shape.steps, repr(shape)))
    return {shape: counts[shape] for shape in order if counts[shape]}
