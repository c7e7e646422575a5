"""How many bytes a unit takes, before it is made."""

from typing import NamedTuple

from models.programs.families import parameters_of
from models.programs.plan import Plan
from models.programs.predict import outline
from models.programs.program import Drafted
from protocols.base.shares import Role
from protocols.dpf import selector_bytes
from protocols.embedding import domain_bits
from puma_actors.prepare.unit import Shape

_INDEX, _MOST_INDEX = 1 << 17, 1 << 21
"""For the index of a step: about, and at most on average."""
_LITTLE = 1 << 12
"""For what is written about a step at the dealer, four times of which is the most."""
_WAITING = 16 << 20
"""The most for one index, which waits in memory until it is complete."""
_UNEVEN = 0.8
"""Of all that is dealt, the most that one evaluator gets: some goes to both, the rest by turns."""
_MARGIN = 1.1


class Sizes(NamedTuple):
    """Bytes of a unit.

    Attributes:
        dealt: what the dealer sends to both evaluators together, by prediction.
        expected: about what one party keeps. most: the most that it may be sent.
        small: the most of it that others than the dealer send, and of indices.
    """

    dealt: int
    expected: int
    most: int
    small: int


def unit_sizes(plan: Plan, shape: Shape, role: Role) -> Sizes:
    """The bytes of a unit at a party. Takes a moment."""
    settings, steps = shape.settings(), shape.steps
    later = [Drafted(0, 0)] * (steps - 1)
    found = outline(plan, shape.batch(), [], settings.first)[0].cost.offline
    if later:
        further = outline(plan, shape.batch(), later, settings.further)[1:]
        found += sum(each.cost.offline for each in further)
    vocabulary = max(
        each.shape[0] for each in parameters_of(plan.config).values() if each.kind == "table"
    )
    rows = 2 * (shape.tokens + steps - 1) * selector_bytes(domain_bits(vocabulary))
    if role.is_dealer:  # it is sent little, in few messages
        return Sizes(found, rows + _LITTLE * steps, rows + 4 * _LITTLE * steps, rows + _WAITING)
    expected = int(_UNEVEN * found) + rows + _INDEX * steps
    return Sizes(
        found, expected, int(_MARGIN * found) + rows + _MOST_INDEX * steps, rows + _WAITING
    )
