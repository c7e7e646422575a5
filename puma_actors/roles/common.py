"""A model in the memory of a process that has all three parties: nothing is there twice.

    common = Common()
    InCommon(role, common)      a party's `Kept`

Both evaluators know the masked words of a table, and evaluator A and the dealer the first half of
its mask; evaluator B's factor of a matrix follows from those of A and the dealer. So a weight takes
16 bytes instead of 24. In such a process everything is known to whoever runs it anyway.
"""

import threading
from dataclasses import replace
from typing import Any

from models.programs.families import parameters_of
from models.programs.plan import Parameter, Plan, Weights
from models.programs.predict import WORD_BYTES
from protocols.base.shares import COMPUTING, Role
from protocols.elsewhere import Elsewhere
from protocols.kernels.sums import Half
from protocols.linear import Factor, Table, Weight
from protocols.streamed import Derived, Split, Sum
from puma_actors.roles.upload import InMemory

_HALVES = {
    Role.EVALUATOR_A: ("masked", "first"),
    Role.EVALUATOR_B: ("masked", "second"),
    Role.DEALER: ("first", "second"),
}
"""What the two halves of a party's table are."""


class Common:
    """What the parties of one process have in common, until each has taken it. Its methods are safe
    in threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[int, tuple[Sum, set[Role]]] = {}
        self._halves: dict[tuple[int, str], Half] = {}

    def factor(self, role: Role, number: int, shape: tuple[int, int], factor: Factor) -> Factor:
        """A party's factor of tensor `number`: its own, or one that follows from the others'."""
        assert not isinstance(factor, Elsewhere), "a process with all parties has no workers"
        with self._lock:
            parts, taken = self._sums.setdefault(number, (Sum(), set()))
            taken.add(role)
            if len(taken) == len(COMPUTING):
                del self._sums[number]
        if role is Role.EVALUATOR_B:
            return Derived(shape, parts)
        if role.is_dealer:
            parts.dealer = factor
        else:
            parts.first = factor
        return factor

    def halves(self, role: Role, number: int, halves: tuple[Half, Half]) -> tuple[Half, Half]:
        """The halves of a table: the arrays that another party has already, if there are any."""
        one, two = (
            self._half((number, what), half)
            for what, half in zip(_HALVES[role], halves, strict=True)
        )
        return one, two

    def _half(self, which: tuple[int, str], half: Half) -> Half:
        """Each half belongs to two parties."""
        with self._lock:
            known = self._halves.pop(which, None)
            if known is None:
                self._halves[which] = half
            return half if known is None else known


class InCommon:
    """A party's `Kept` upload in a process that has all parties. What a tensor's words are needed
    for is made as soon as they are complete, so that they need not be kept.
    """

    weights: Weights = "private"

    def __init__(self, role: Role, common: Common) -> None:
        self._role = role
        self._common = common
        self._own = InMemory(role)
        self._parameters: list[Parameter] = []
        self._made: dict[int, Any] = {}

    def check_size(self, plan: Plan) -> None:
        """As `Destination`."""
        self._own.check_size(plan)
        self._parameters = list(parameters_of(plan.config).values())

    def seed(self, which: int, seed: memoryview) -> None:
        """As `Destination`."""
        self._own.seed(which, seed)

    def words(self, number: int, at: int, size: int, data: memoryview) -> None:
        """As `Destination`. The words of a tensor come in order."""
        parameter = self._parameters[number]
        if self._role is Role.EVALUATOR_B and parameter.kind == "weight":
            return
        self._own.words(number, at, size, data)
        if WORD_BYTES * (size - at) == data.nbytes:
            self._made[number] = self._make(number, parameter)

    def hold(self, number: int, parameter: Parameter) -> Any:
        """As `Kept`."""
        if self._role is Role.EVALUATOR_B and parameter.kind == "weight":
            rows, columns = parameter.shape
            factor = self._common.factor(self._role, number, (rows, columns), None)
            return Weight(self._role, (rows, columns), factor)
        return self._made.pop(number) if number in self._made else self._make(number, parameter)

    def _make(self, number: int, parameter: Parameter) -> Any:
        held = self._own.hold(number, parameter)
        if not isinstance(held, Weight | Table):
            return held
        if isinstance(held, Weight):
            factor = self._common.factor(self._role, number, held.shape, held.factor)
            return replace(held, factor=factor)
        factor, halves = held.factor, held.halves
        if halves is not None:
            halves = self._common.halves(self._role, number, halves)
            if isinstance(factor, Split):
                factor = replace(factor, halves=halves)
        factor = self._common.factor(self._role, number, held.shape, factor)
        return replace(held, factor=factor, halves=halves)
