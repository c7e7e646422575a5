"""The owner's part before sharing: the ranges of its model, and runs in plaintext."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from models.configs.architecture import ModelConfig
from models.owner.late import LateBounds
from models.owner.probe import probe
from models.programs.families import forward
from models.programs.head_layers import proven_rows
from models.programs.plan import Plan
from models.programs.program import Batch, Cache, Rows, batch_of
from protocols.base.ring import Floats
from protocols.drivers.plain import Plain, Record
from protocols.drivers.trace import run_now
from protocols.errors import RangeError

_LATE_PART = 0.1
"""Norms come after products where roundings move a result by at most this part of what is allowed:
a row much smaller than those that are tested loses more in a product before its norm.
"""


def calibrate(
    config: ModelConfig,
    parameters: Mapping[str, Floats],
    texts: Sequence[Sequence[int]] = (),
) -> Plan:
    """The plan of a model: ranges that hold for every input, proven from its weights.

    Args:
        texts: token ids of texts that the owner expects; precision is tested on them as well as on
            made-up tokens.

    Raises:
        RangeError: a place of the model needs numbers that a 64-bit ring cannot hold, or amplifies
        the error of a rounding or an approximation too much (see `models.owner.probe`).
        ConfigError: a text contains an id that is not a token.
    """
    bounds = LateBounds(config.max_positions)
    for rows in proven_rows(config):
        cache = Cache.empty(config.num_layers)
        with np.errstate(over="ignore", invalid="ignore"):  # ends as a RangeError
            run_now(_forward(bounds, config, parameters, Batch((1,), rows), cache))
    found = bounds.ranges
    if found.late:  # these have more roundings than norms before products
        try:
            probe(config, parameters, found, texts, part=_LATE_PART)
        except RangeError:
            found = replace(found, late={})
    if not found.late:
        probe(config, parameters, found, texts)
    return Plan(config, found)


async def _forward(ops: object, *args: object) -> object:
    return await forward(ops, *args)  # type: ignore[arg-type]


def plain_run(
    config: ModelConfig,
    parameters: Mapping[str, Floats],
    sequences: Sequence[Sequence[int]],
    rows: Rows = "all",
    *,
    types: tuple[int, ...] | None = None,
    record: Record | None = None,
) -> Floats:
    """The model's result for token sequences, in floating point."""
    tokens = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in sequences])
    batch = Batch(batch_of(sequences).lengths, rows, types)
    cache = Cache.empty(config.num_layers)
    task = forward(Plain(tokens, record), config, parameters, batch, cache)
    return np.asarray(run_now(task))
