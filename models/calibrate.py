"""Ranges that the owner measures on a few texts, in plaintext, before the model is shared.

Two kinds. The mean square that enters a norm is measured and given a margin of `MARGIN`; what a
projection can put out is bounded rigorously from the weights, since its input was normalised. Both
are published as small integers.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.config import LlamaConfig
from models.llama import Cache, forward, heads_of
from models.plan import MAX_ROPE_FRAC, MIN_ROPE_FRAC, Plan
from protocols.errors import RangeError
from protocols.normalize import NormRange, norm_range
from protocols.plain import Plain
from protocols.ring import FRACTION_BITS, WEIGHT_BITS, Floats
from protocols.trace import run_now

MARGIN = 16.0
"""A mean square up to this many times the largest one seen is still represented."""
TEXTS = (
    "The quick brown fox jumps over the lazy dog while the sun sets behind the old mill.",
    "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n",
    "In 1969, 600 million people watched; 3.14159 and 2.71828 are numbers, (a+b)^2 = a^2+2ab+b^2.",
    "Ça va? 你好, мир! Größe, naïve café - <|punctuation|> & 'quotes' \"everywhere\"...",
)


def draft_plan(config: LlamaConfig) -> Plan:
    """A plan with unit ranges: good for shapes, costs and plaintext runs, not for secret ones."""
    norm = norm_range(config.hidden_size, config.rms_norm_eps, 1.0)
    return Plan(config, (norm,) * (2 * config.num_layers + 1), (MAX_ROPE_FRAC,) * config.num_layers)


def plain_logits(
    config: LlamaConfig,
    parameters: Mapping[str, Floats],
    ids: Sequence[int],
    record: Any = None,
    *,
    last_only: bool = False,
) -> Floats:
    """Logits of `ids` in floating point: (len(ids), vocabulary)."""
    tokens = np.asarray(ids, dtype=np.int64)
    ops = Plain(tokens, record)
    cache = Cache.empty(config.num_layers)
    task = forward(ops, draft_plan(config), parameters, len(ids), cache, last_only=last_only)
    return np.asarray(run_now(task))


def calibrate(
    config: LlamaConfig, parameters: Mapping[str, Floats], texts: Sequence[Sequence[int]]
) -> Plan:
    """The plan of a model from runs on a few token sequences.

    Raises:
        RangeError: activations or projections are too large for a 64-bit ring.
    """
    largest: dict[str, float] = {}

    def record(name: str, value: Floats) -> None:
        peak = float(np.abs(value).max())
        if not math.isfinite(peak):
            raise RangeError(f"{name} is not finite in a plaintext run: the weights are broken")
        largest[name] = max(largest.get(name, 0.0), peak)

    for ids in texts:
        plain_logits(config, parameters, ids, record)
    names = [
        f"layers.{i}.{part}" for i in range(config.num_layers) for part in ("attention", "mlp")
    ]
    norms = [_norm(config, largest[name]) for name in (*names, "norm")]
    fracs = [
        _rope_frac(config, np.asarray(parameters[f"layers.{i}.qkv"]))
        for i in range(config.num_layers)
    ]
    return Plan(config, tuple(norms), tuple(fracs))


def _norm(config: LlamaConfig, mean_square: float) -> NormRange:
    return norm_range(config.hidden_size, config.rms_norm_eps, MARGIN * mean_square)


def _rope_frac(config: LlamaConfig, qkv: NDArray[np.floating[Any]]) -> int:
    """Angle bits left beside the largest entry that any normalised row can project to.

    |sum_j y_j w_j| <= sqrt(n) |w|, as a row y has n entries of mean square at most 1, and a
    rotation mixes two entries of a head.
    """
    norms = np.sqrt((qkv.astype(np.float64) ** 2).sum(axis=0))
    heads = heads_of(config)
    pairs = norms.reshape(-1, 2, heads.size // 2)
    bound = math.sqrt(config.hidden_size) * float(np.hypot(pairs[:, 0], pairs[:, 1]).max())
    room = 62 - FRACTION_BITS - WEIGHT_BITS - math.ceil(math.log2(max(bound, 1.0)))
    if room < MIN_ROPE_FRAC:
        raise RangeError(
            f"a projection can reach {bound:.3g}, which leaves {room} bits for rotary angles where "
            f"{MIN_ROPE_FRAC} are needed: the attention weights are too large"
        )
    return min(room, MAX_ROPE_FRAC)
