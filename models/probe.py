"""Whether a model blows up what its activation functions' approximations are off.

An approximation is within 2.5e-4 of its function wherever it is read. Weights that multiply its
result by a million make a wrong answer of that, with every number in its range. So the owner runs
its model on a few tokens in the clear, exactly and with the approximations, and compares.
"""

from collections.abc import Mapping

import numpy as np

from models.architecture import ModelConfig
from models.families import forward
from models.program import Batch, Cache
from models.tasks import default_rows
from protocols.activations import ACTIVATIONS
from protocols.errors import RangeError
from protocols.plain import Plain
from protocols.ring import Floats
from protocols.trace import run_now

TOKENS = 8
ALLOWED, ALLOWED_SHARE = 0.05, 0.01
"""How far a result may be moved: so much, and so much of the largest result."""
_ROUNDING = 2.0**-16
"""Beside an approximation's own error; its sign changes from one element to the next."""


class Quick(Plain):
    """In single precision: the demo model takes a quarter of the time."""

    precision = np.float32


class Approximate(Quick):
    """`Plain` with the approximations of "tight" in place of the activation functions.

    Args:
        only: at this place alone.
    """

    def __init__(self, tokens: int, only: str | None = None) -> None:
        super().__init__(np.arange(1, tokens + 1))
        self.places: list[str] = []
        self._only = only

    def activated(self, activation: str, x: Floats, name: str) -> Floats:
        self.places.append(name)
        if self._only not in (None, name):
            return super().activated(activation, x, name)
        signs = np.where(np.arange(x.size) * 2654435761 >> 7 & 1, 1.0, -1.0)
        found = ACTIVATIONS[activation].tightly(np.asarray(x, dtype=np.float64))
        return np.asarray(found + _ROUNDING * signs.reshape(x.shape))


def probe(config: ModelConfig, parameters: Mapping[str, Floats]) -> float:
    """By how much approximations move the result of made-up tokens.

    Raises:
        RangeError: by more than is allowed; it names the place that does most.
    """
    count = min(TOKENS, config.vocab_size - 1, config.max_positions)

    def run(ops: Plain) -> Floats:
        batch, cache = Batch((count,), default_rows(config)), Cache.empty(config.num_layers)
        return np.asarray(run_now(forward(ops, config, parameters, batch, cache)))

    exact, approximate = run(Quick(np.arange(1, count + 1))), Approximate(count)
    moved = float(np.abs(run(approximate) - exact).max(initial=0.0))
    largest = float(np.abs(exact).max(initial=0.0))
    if moved <= ALLOWED + ALLOWED_SHARE * largest:
        return moved
    by_place = {
        place: float(np.abs(run(Approximate(count, place)) - exact).max())
        for place in dict.fromkeys(approximate.places)
    }
    worst = max(by_place, key=lambda place: by_place[place])
    raise RangeError(
        f"{worst}: the weights beside and behind its activation function are too large: they make "
        f"{moved:.2g} in a result of at most {largest:.3g} of what its approximation is off"
    )
