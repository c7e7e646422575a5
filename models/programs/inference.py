"""One step of an inference on each side: the computing parties, the client, and the cost tracer.

The parties' part is the same function for all three and for the tracing lane that predicts its
cost.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NoReturn, TypeAlias

import numpy as np

from models.configs.architecture import ModelConfig
from models.programs.families import forward
from models.programs.head_layers import columns_of
from models.programs.plan import Plan
from models.programs.program import Batch, Cache
from protocols.base.lane import Lane
from protocols.base.ring import FRACTION_BITS, Floats, decode
from protocols.drivers.observed import Observed, ObservedLane
from protocols.drivers.ops import Parameters, Ranges
from protocols.drivers.secure import ARGMAX_WIDTH, OUTPUT_WIDTH, Secure
from protocols.embedding import request_rows, reveal, revealed
from protocols.errors import LocalProtocolError
from protocols.linear import AnyTable

Embedding: TypeAlias = Callable[[Lane, AnyTable, int], Awaitable[Any]]
"""A party's part of an embedding: lane, table, number of tokens."""


async def evaluate(
    lane: Lane,
    plan: Plan,
    parameters: Parameters,
    batch: Batch,
    cache: Cache,
    kept: int | None = None,
) -> None:
    """A computing party's part: the batch's result goes to the client.

    kept: how many tokens of the cache the batch follows; the others are forgotten first. None: all.
    """
    ops = (
        Observed(lane, plan.ranges) if isinstance(lane, ObservedLane) else Secure(lane, plan.ranges)
    )
    if kept is not None:
        cache.keep(ops, kept)
    result = await forward(ops, plan.config, parameters, batch, cache)
    if lane.settings.reveal == "argmax":
        result = await ops.argmax(result)
    await reveal(lane, result)


class _EmbeddedError(Exception):
    """The program has embedded its tokens."""


class _Embedding(Secure):
    """Runs a program up to its embedding, and another function in place of that."""

    def __init__(self, lane: Lane, ranges: Ranges, part: Embedding) -> None:
        super().__init__(lane, ranges)
        self._part = part

    async def embed(self, table: AnyTable, count: int, columns: int) -> NoReturn:
        await self._part(self.lane, table, count)
        raise _EmbeddedError


async def embed_only(
    lane: Lane, plan: Plan, parameters: Parameters, batch: Batch, part: Embedding
) -> None:
    """The part of `evaluate` that a client's input or a table is needed for: `part` in place of the
    embedding, at the same place in the program, and nothing after it.
    """
    ops, cache = _Embedding(lane, plan.ranges, part), Cache.empty(plan.config.num_layers)
    try:
        await forward(ops, plan.config, parameters, batch, cache)
    except _EmbeddedError:
        return
    raise LocalProtocolError(f"the program of a {plan.config.family} model embeds no tokens")


async def ask(lane: Lane, config: ModelConfig, batch: Batch, ids: Sequence[int]) -> Floats:
    """The client's part: share the ids of the batch's tokens, and combine the shares of the result.

    Returns:
        (results, columns); with "argmax" the best column of each row, (results,).
    """
    tokens: Any = np.asarray(ids, dtype=np.int64)
    await request_rows(lane, tokens, config.vocab_size)
    if lane.settings.reveal == "argmax":
        return (await revealed(lane, (batch.results,), ARGMAX_WIDTH)).astype(np.float64)
    words = await revealed(lane, (batch.results, columns_of(config, batch.rows)), OUTPUT_WIDTH)
    return decode(words, FRACTION_BITS, OUTPUT_WIDTH)
