"""How fast this machine computes a step, from constants of one machine and a moment's comparison.

The constants are measured, for all roles together on one machine. They are scaled by how long a
fixed piece of work takes here, so that a slower machine, or a busy one, is expected to take longer;
which tree takes least without a network does not depend on that. `python -m bench speeds` measures
all of them again, on a quiet machine: its notes are the lines to write below, seconds of the
processor divided by the number of cores. Where roles wait for each other a step takes longer than
that: compare with what a decode step of `python -m bench model.demo` takes.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from models.configs.architecture import ModelConfig
from models.programs.families import parameters_of
from models.programs.predict import Prediction
from models.programs.sharing import STREAMED
from protocols.base.lane import Tree


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds of all roles together on this machine, without products with weights.

    Attributes:
        exchange: of a round, also beside others. byte: of a byte, online or dealt.
    """

    exchange: float
    byte: float

    def seconds(self, exchanges: float, nbytes: float) -> float:
        """Of a step."""
        return self.exchange * exchanges + self.byte * nbytes


REFERENCE: Mapping[Tree, Speed] = {
    "rounds": Speed(348e-6, 3.5e-9),
    "balanced": Speed(293e-6, 4.4e-9),
    "traffic": Speed(270e-6, 6.4e-9),
}
"""Two cores with AVX2, 2026-11-29. SmolLM2 there, with "balanced": a prompt of 32 tokens was
predicted to take 4.2 s and took 4.1, one of 701 tokens 94 and 100; a step with "rounds" 0.6 and
took 0.6 to 1.1, as roles wait for each other. Corrected by medians of whole requests with
the three trees, in turns (two cores with AVX-512, the same day): small models, 28.6, 30.6 and 32.5
ms (LLaMA), 34.5, 38.7 and 41 ms (BERT); 32 tokens, 4.5, 4.2 and 4.4 s (SmolLM2), 2.2, 2.2 and 2.4 s
(GPT-2 base)."""
_ENTRY, _MULTIPLICATION = 0.505e-9, 0.165e-9
"""Seconds of all roles, on the same machine: for an entry of a matrix, and in addition for each row
that is multiplied by it."""
_WORK = 2.8e-3
"""Seconds of `piece` there."""
_CALLS, _WORDS = 20_000, 1 << 18


def exchanges_of(predicted: Prediction) -> int:
    """Rounds of a predicted step, with those that run beside others."""
    return sum(cost.rounds for cost in predicted.by_protocol.values())


def computation(config: ModelConfig, tokens: int, tree: Tree, exchanges: int, nbytes: int) -> float:
    """Seconds that all roles compute on this machine in a step of so many tokens, rounds (also
    beside others) and bytes.
    """
    products = matrix_entries(config) * (_ENTRY + _MULTIPLICATION * tokens)
    return pace() * (REFERENCE[tree].seconds(exchanges, nbytes) + products)


@cache
def matrix_entries(config: ModelConfig) -> int:
    """Entries of all matrices that rows are multiplied by."""
    return sum(
        int(np.prod(parameter.shape))
        for parameter in parameters_of(config).values()
        if parameter.kind in STREAMED
    )


@cache
def pace() -> float:
    """How many times as long as the machine of `REFERENCE` this one takes."""
    piece()
    return min(piece() for _ in range(3)) / _WORK


def piece() -> float:
    """Seconds of some Python and some arithmetic, as in a step."""
    started = time.perf_counter()
    found: dict[int, tuple[int, int]] = {}
    for number in range(_CALLS):
        found[number & 63] = divmod(number, 7)
    words = np.arange(_WORDS, dtype=np.uint64)
    for _ in range(4):
        words = words * words + words
    return time.perf_counter() - started
