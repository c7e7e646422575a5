"""Check whether roundings and approximations spoil a model's answers.

Ranges hold for any input, but they say nothing about precision. An activation's approximation is
always within 2.5e-4 of its function, but weights after it that multiply it by a million turn that
into a wrong answer; so do weights before it that leave a value only a few digits. So the owner runs
its model on a few tokens in the clear, exactly and with fixed-point errors, and compares.
"""

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from models.configs.architecture import ModelConfig
from models.owner.rounding import Rounded
from models.programs.families import forward, parameters_of
from models.programs.head_layers import default_rows, proven_rows
from models.programs.program import Batch, Cache, Rows
from protocols.base.ring import Floats
from protocols.drivers.ops import Index, Ranges
from protocols.drivers.plain import Plain
from protocols.drivers.trace import run_now
from protocols.errors import ConfigError, RangeError

TOKENS, SMALL_TOKENS = 8, 64
"""Numbers of made-up tokens, spread over the vocabulary: the first ids are often untrained, and the
function is steep for a row of them. A small model costs nothing, so it gets more.
"""
MOST_TOKENS = 256
"""Tokens read of each text that the owner gives."""
ALLOWED, ALLOWED_SHARE = 0.0075, 0.0035
"""How far a result may move: an absolute part, and a part of the largest result. The results of
other tokens move by up to `OTHERS` times as much (2.9 was the most among 4,076 reparametrised small
models, 4.2 among 8,660 under two thirds of these limits), so answers are right within 0.04 and
1.75 % of the largest.
"""
OTHERS = 5
_DRAWS = 4
"""Draws of noise for a small model; in a large one the noise of one draw averages out."""
_SMALL = 1 << 22
"""Models with up to this many weights run in double precision. In single precision the demo model
takes a quarter of the time.
"""


def probe(
    config: ModelConfig,
    parameters: Mapping[str, Floats],
    ranges: Ranges,
    texts: Sequence[Sequence[int]] = (),
    part: float = 1.0,
) -> float:
    """How far roundings and approximations move the results of made-up tokens and of `texts`.

    Args:
        ranges: the proven exponents.
        texts: token ids of texts that the owner expects; the first `MOST_TOKENS` of each are read.
        part: of what is allowed; below 1, the error names no place, which takes time to find.

    Raises:
        RangeError: further than allowed; it names the place that contributes most.
        ConfigError: a token id is not in the vocabulary.
    """
    most = SMALL_TOKENS if _is_small(config) else TOKENS
    few = min(most, config.vocab_size - 1, config.max_positions)
    spread = range(1, config.vocab_size, (config.vocab_size - 1) // few)[:few]
    read = min(MOST_TOKENS, config.max_positions)
    inputs = [np.asarray(ids[:read], dtype=np.int64) for ids in (spread, *texts)]
    for ids in inputs:
        if ids.min(initial=0) < 0 or ids.max(initial=0) >= config.vocab_size:
            raise ConfigError(f"a token id of a text is not below {config.vocab_size}")
    kinds = [default_rows(config)] if config.dense is None else proven_rows(config)[1:]
    return max(
        _probe(config, parameters, ranges, ids, rows, part)
        for rows in kinds
        for ids in inputs
        if ids.size
    )


def _is_small(config: ModelConfig) -> bool:
    return sum(prod(parameter.shape) for parameter in parameters_of(config).values()) <= _SMALL


def _probe(
    config: ModelConfig,
    parameters: Mapping[str, Floats],
    ranges: Ranges,
    ids: Index,
    rows: Rows,
    part: float,
) -> float:
    small = _is_small(config)

    def run(ops: Plain) -> Floats:
        ops.precision = np.float64 if small else np.float32
        batch, cache = Batch((len(ids),), rows), Cache.empty(config.num_layers)
        with np.errstate(over="ignore"):  # exp of arguments for which an activation is 0
            return np.asarray(run_now(forward(ops, config, parameters, batch, cache)))

    def moved_by(places: int | None) -> tuple[float, list[str]]:
        seeds = range(_DRAWS if small else 1)
        draws = [Rounded(ids, ranges, seed, places=places) for seed in seeds]
        found = [np.abs(run(ops) - exact).max(initial=0.0) for ops in draws]
        return float(max(found)), draws[0].places

    exact = run(Plain(ids))
    moved, places = moved_by(None)
    largest = float(np.abs(exact).max(initial=0.0))
    if moved <= part * (ALLOWED + ALLOWED_SHARE * largest):
        return moved
    if part < 1:  # nobody is told the place: there is another way
        raise RangeError(f"roundings move a result of at most {largest:.3g} by {moved:.2g}")
    # Round up to a place only: find the first place that makes half of the error.
    low, high = 0, len(places)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if moved_by(middle)[0] >= moved / 2 else (middle, high)
    raise RangeError(
        f"{places[low]}: rounding and approximation here move a result of at most {largest:.3g} by "
        f"{moved:.2g}: its weights are too large or too small compared with those before and "
        "after it"
    )
