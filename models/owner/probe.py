"""Whether roundings and approximations spoil a model's answers.

Ranges hold whatever the input; precision does not follow from them. An activation's approximation
is within 2.5e-4 of its function wherever it is read, and weights behind it that multiply it by a
million make a wrong answer of that; so do weights before it that leave a value a few digits. So the
owner runs its model on a few tokens in the clear, exactly and as fixed point has it, and compares.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from models.configs.architecture import ModelConfig
from models.owner.rounding import Rounded
from models.programs.families import forward
from models.programs.head_layers import default_rows
from models.programs.program import Batch, Cache
from protocols.base.ring import Floats
from protocols.drivers.ops import Index, Ranges
from protocols.drivers.plain import Plain
from protocols.drivers.trace import run_now
from protocols.errors import ConfigError, RangeError

TOKENS, SMALL_TOKENS = 8, 64
"""Made up, from all over the vocabulary: the first ones are often never trained, and a row of them
is a steep place of the function. Of a small model, which costs nothing, so many more.
"""
MOST_TOKENS = 256
"""Of each text that the owner gives."""
ALLOWED, ALLOWED_SHARE = 0.0075, 0.0035
"""How far a result may be moved: so much, and so much of the largest result. Other tokens are moved
by up to `OTHERS` times what these are (2.9 was the most among 4,076 reparametrised small models,
4.2 among 8,660 under two thirds of these limits), so that answers are right within 0.04 and 1.75 %
of the largest.
"""
OTHERS = 5
_DRAWS = 4
"""Draws of noise for a small model; in a large one they average out in one."""
_SMALL = 1 << 22
"""Weights up to which a model is run in double precision. In single the demo model takes a quarter
of the time.
"""


def probe(
    config: ModelConfig,
    parameters: Mapping[str, Floats],
    ranges: Ranges,
    texts: Sequence[Sequence[int]] = (),
) -> float:
    """By how much roundings and approximations move the result of made-up tokens, and of `texts`.

    Args:
        ranges: the proven exponents.
        texts: token ids of texts that the owner expects; the first `MOST_TOKENS` of each are read.

    Raises:
        RangeError: by more than is allowed; it names the place that does most.
        ConfigError: a token id is not in the vocabulary.
    """
    most = SMALL_TOKENS if _is_small(parameters) else TOKENS
    few = min(most, config.vocab_size - 1, config.max_positions)
    spread = range(1, config.vocab_size, (config.vocab_size - 1) // few)[:few]
    read = min(MOST_TOKENS, config.max_positions)
    inputs = [np.asarray(ids[:read], dtype=np.int64) for ids in (spread, *texts)]
    for ids in inputs:
        if ids.min(initial=0) < 0 or ids.max(initial=0) >= config.vocab_size:
            raise ConfigError(f"a token id of a text is not below {config.vocab_size}")
    return max(_probe(config, parameters, ranges, ids) for ids in inputs if ids.size)


def _is_small(parameters: Mapping[str, Floats]) -> bool:
    return sum(matrix.size for matrix in parameters.values()) <= _SMALL


def _probe(
    config: ModelConfig, parameters: Mapping[str, Floats], ranges: Ranges, ids: Index
) -> float:
    small = _is_small(parameters)

    def run(ops: Plain) -> Floats:
        ops.precision = np.float64 if small else np.float32
        batch, cache = Batch((len(ids),), default_rows(config)), Cache.empty(config.num_layers)
        with np.errstate(over="ignore"):  # exp of what an activation makes 0
            return np.asarray(run_now(forward(ops, config, parameters, batch, cache)))

    def moved_by(places: int | None) -> tuple[float, list[str]]:
        seeds = range(_DRAWS if small else 1)
        draws = [Rounded(ids, ranges, seed, places=places) for seed in seeds]
        found = [np.abs(run(ops) - exact).max(initial=0.0) for ops in draws]
        return float(max(found)), draws[0].places

    exact = run(Plain(ids))
    moved, places = moved_by(None)
    largest = float(np.abs(exact).max(initial=0.0))
    if moved <= ALLOWED + ALLOWED_SHARE * largest:
        return moved
    low, high = 0, len(places)  # roundings up to a place: the first that makes half of it
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if moved_by(middle)[0] >= moved / 2 else (middle, high)
    raise RangeError(
        f"{places[low]}: what is rounded or approximated here moves a result of at most "
        f"{largest:.3g} by {moved:.2g}: its weights are too large or too small beside those before "
        "and behind it"
    )
