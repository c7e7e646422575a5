"""What fixed point may change of a model's results: see `models.owner.rounding`.

A secure result is compared with floating point within a few times what roundings alone make of it:
so a model whose function is steep (rows near zero under a tiny eps, scores far apart) is given what
its steepness explains and nothing more, and a well-behaved one is held tightly.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from models.configs.architecture import ModelConfig
from models.owner.rounding import Rounded
from models.programs.families import forward
from models.programs.program import Batch, Cache, Rows
from protocols.base.ring import Floats
from protocols.drivers.ops import Ranges
from protocols.drivers.plain import Plain
from protocols.drivers.trace import run_now


def explained(
    config: ModelConfig,
    ranges: Ranges,
    values: Any,
    sequences: Sequence[Sequence[int]],
    rows: Rows,
    runs: int = 16,
) -> tuple[Floats, Floats]:
    """The exact result, and by how much roundings move each of its rows (the largest of some runs).

    Returns:
        (results, columns) and (results, 1).
    """
    tokens = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in sequences])
    batch = Batch(tuple(len(ids) for ids in sequences), rows)

    def run(ops: Plain) -> Floats:
        cache = Cache.empty(config.num_layers)
        with np.errstate(over="ignore"):  # exp of what an activation makes 0
            return np.asarray(run_now(forward(ops, config, values, batch, cache)))

    exact = run(Plain(tokens))
    moved = np.zeros((len(exact), 1))
    for seed in range(runs):
        found = run(Rounded(tokens, ranges, seed))
        moved = np.maximum(moved, np.abs(found - exact).max(axis=1, keepdims=True))
    return exact, moved
