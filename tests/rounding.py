"""What fixed point may change: the plaintext program with the secure run's roundings put in.

A secure result is compared with floating point within a few times what roundings alone make of it:
so a model whose function is steep (rows near zero under a tiny eps, scores far apart) is given what
its steepness explains and nothing more, and a well-behaved one is held tightly.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from models.architecture import ModelConfig
from models.families import forward, parameters_of
from models.program import Batch, Cache, Rows
from protocols.normalize import Norm, NormRange
from protocols.ops import Ranges
from protocols.plain import Plain
from protocols.ring import FRACTION_BITS, RESIDUAL_BITS, WEIGHT_BITS, Floats
from protocols.trace import run_now

_FRACTIONS = {"table": RESIDUAL_BITS, "weight": WEIGHT_BITS, "gain": FRACTION_BITS, "rows": 22}
_FUNCTION = 5e-5
"""Distance of a spline from its function (`protocols.activations`, `protocols.elementary`)."""


class Rounded(Plain):
    """`Plain` with noise of a unit of the last place wherever the secure run truncates."""

    def __init__(self, ids: Any, ranges: Ranges, rng: np.random.Generator) -> None:
        super().__init__(ids)
        self._ranges, self._rng = ranges, rng

    def _noise(self, x: Floats, step: float) -> Floats:
        return np.asarray(x + self._rng.uniform(-step, step, np.shape(x)))

    async def norm(
        self, x: Floats, name: str, norm: Norm, *args: Any, unit: bool = False, **options: Any
    ) -> Floats:
        bounds: NormRange = self._ranges.norms[name]
        x = self._noise(x, 2.0**-RESIDUAL_BITS)
        moved = x - x.mean(axis=-1, keepdims=True) if norm.center else x
        coarse = self._noise(moved, 2.0 ** (bounds.drop - RESIDUAL_BITS))
        eps = float(bounds.eps_word(norm)) * 4.0 ** (bounds.drop - RESIDUAL_BITS)
        exact = (moved**2).sum(-1, keepdims=True) + norm.size * norm.eps
        found = (coarse**2).sum(-1, keepdims=True) + eps / norm.stretch**2
        step = 2.0**-bounds.frac + _FUNCTION
        root = self._noise(np.sqrt(exact / found), step)
        y = await super().norm(x, name, norm, *args, unit=unit, **options)
        shift = options.get("shift", args[1] if len(args) > 1 else None)
        base = 0 if shift is None else shift
        return self._noise((y - base) * root + base, 2.0**-FRACTION_BITS)

    async def linear(self, x: Floats, weight: Floats, name: str) -> Floats:
        return self._noise(await super().linear(x, weight, name), 2.0**-RESIDUAL_BITS)

    async def dense(self, x: Floats, weight: Floats, name: str, activation: str) -> Floats:
        return self._noise(await super().dense(x, weight, name, activation), 2 * _FUNCTION)

    async def gated(self, x: Floats, weight: Floats, name: str, activation: str) -> Floats:
        features = x.shape[1]
        up = (x @ weight[:features])[:, weight.shape[1] // 2 :]
        y = await super().gated(x, weight, name, activation)
        step = 2 * _FUNCTION * (1 + np.abs(up)) + 2.0**-FRACTION_BITS * np.abs(y)
        return np.asarray(y + step * self._rng.uniform(-1, 1, y.shape))

    async def project(self, *args: Any, **options: Any) -> tuple[Floats, Floats, Floats]:
        name = args[2]
        bounds = self._ranges.attention[name]
        angle = 2.0 ** -(bounds.rope_frac or 18)
        q, k, v = await super().project(*args, **options)
        parts = [self._noise(part, 2.0**-FRACTION_BITS) for part in (q, k)]
        parts.append(self._noise(v, 2.0 ** (bounds.value_drop - FRACTION_BITS)))
        for part in parts[:2]:
            part *= 1 + self._rng.uniform(-angle, angle, part.shape)
        return parts[0], parts[1], parts[2]

    async def attention(self, *args: Any) -> Floats:
        y = await super().attention(*args)
        v = np.abs(args[2]).max(initial=0.0)
        return self._noise(y, 8 * _FUNCTION * (1 + v))

    async def output(self, *args: Any, **options: Any) -> Floats:
        return self._noise(await super().output(*args, **options), 2.0**-FRACTION_BITS)


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

    def run(ops: Plain, held: Any) -> Floats:
        cache = Cache.empty(config.num_layers)
        with np.errstate(over="ignore"):  # exp of what an activation makes 0
            return np.asarray(run_now(forward(ops, config, held, batch, cache)))

    exact = run(Plain(tokens), values)
    moved = np.zeros((len(exact), 1))
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        held = {
            name: np.round(np.asarray(values[name], dtype=np.float64) * 2.0 ** _FRACTIONS[p.kind])
            / 2.0 ** _FRACTIONS[p.kind]
            for name, p in parameters_of(config).items()
        }
        found = run(Rounded(tokens, ranges, rng), held)
        moved = np.maximum(moved, np.abs(found - exact).max(axis=1, keepdims=True))
    return exact, moved
