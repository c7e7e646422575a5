"""The Falcon and GPT-NeoX families as a program over `Ops`.

Attention and MLP in parallel (7B, 40B) or one after the other (RW), one or two norms per layer,
rotary positions or ALiBi, and one key head, a few, or as many as query heads.
"""

from collections.abc import Iterator
from decimal import Decimal, localcontext
from functools import partial

import numpy as np
from numpy.typing import NDArray

from models.checkpoints.checkpoint import Checkpoint
from models.configs.decoders.falcon import FalconConfig
from models.configs.rope import rotary_order
from models.programs.folding import Matrix, Source, Stored, dense, norm_of
from models.programs.head_layers import finish, task_parameters, task_weights
from models.programs.plan import Parameter
from models.programs.program import Batch, Cache, norm_after, rotation_of, spans_of
from protocols.base.precise import PRECISE, inverse_root
from protocols.drivers.ops import Heads, Ops, Parameters, Slopes, Tensor
from protocols.functions.normalize import Norm


def heads_of(config: FalconConfig) -> Heads:
    """The shape of the attention."""
    return Heads(config.num_heads, config.num_kv_heads, config.head_dim)


def alibi_slopes(count: int) -> NDArray[np.float64]:
    """The slope of each head (ALiBi, arXiv 2108.12409, section 3).

    The slopes of the first 2^n heads, for the largest n, are a geometric sequence. Further heads
    have every other value of a sequence that is twice as long.
    """
    power = 1 << (count.bit_length() - 1)

    def sequence(size: int) -> list[float]:
        with localcontext(PRECISE):  # must be the same to the last bit at both evaluators
            log = Decimal(2).ln()
            return [float((-log * 8 * k / size).exp()) for k in range(1, size + 1)]

    return np.array([*sequence(power), *sequence(2 * power)[::2][: count - power]])


async def forward(
    ops: Ops, config: FalconConfig, parameters: Parameters, batch: Batch, cache: Cache
) -> Tensor:
    """The head's output for the batch's tokens, which extend the cache."""
    start, hidden, heads = cache.length, config.hidden_size, heads_of(config)
    norm = Norm(hidden, config.layer_norm_eps, center=True)
    turn = None if config.alibi else rotation_of(config.turns, batch, start)
    slopes = Slopes(alibi_slopes(heads.query), inverse_root(heads.size)) if config.alibi else None
    spans = partial(spans_of, batch, start, causal=True, slopes=slopes)

    x = await ops.embed(parameters["table"], batch.tokens, hidden)  # (tokens, hidden)
    for i in range(config.num_layers):
        name = f"layers.{i}"
        y = await ops.norm(x, f"{name}.attention_norm", norm)
        q, k, v = await ops.project(y, parameters[f"{name}.qkv"], name, heads, turn)
        k, v = cache.extend(ops, i, k, v)  # (key heads, context, size)
        wanted = None
        if i == config.num_layers - 1 and batch.takes_one:
            wanted = batch.wanted  # the other rows are not used
            x, y, q = ops.take(x, wanted), ops.take(y, wanted), ops.heads_at(q, wanted)
        attended = await ops.attention(q, k, v, name, spans(wanted=wanted))
        attended = await ops.linear(attended, parameters[f"{name}.output"], f"{name}.output")
        if not config.parallel_attn:
            x = await ops.residual(f"{name}.mlp_norm", norm, x, attended)
        if config.parallel_norms != 1:
            y = await ops.norm(x, f"{name}.mlp_norm", norm)
        y = await ops.dense(y, parameters[f"{name}.up"], f"{name}.up", config.hidden_act)
        y = await ops.linear(y, parameters[f"{name}.down"], f"{name}.down")
        parts = (attended, y) if config.parallel_attn else (y,)
        x = await ops.residual(norm_after(config, i), norm, x, *parts)
    cache.length += batch.tokens

    x = await ops.norm(x, "norm", norm, parameters["norm.gain"], parameters["norm.shift"])
    return await finish(ops, config, parameters, x, batch)


def parameters_of(config: FalconConfig) -> dict[str, Parameter]:
    """Name -> kind and shape of every shared tensor, in upload order."""
    hidden, inner, heads = config.hidden_size, config.intermediate_size, heads_of(config)
    wanted = {"table": Parameter("table", (config.vocab_size, hidden))}
    for i in range(config.num_layers):
        # A norm's shift becomes a bias of the matrix after it, whether or not that had one.
        wanted[f"layers.{i}.qkv"] = Parameter("weight", (hidden + 1, heads.columns))
        wanted[f"layers.{i}.output"] = Parameter("weight", (hidden + config.bias, hidden))
        wanted[f"layers.{i}.up"] = Parameter("weight", (hidden + 1, inner))
        wanted[f"layers.{i}.down"] = Parameter("weight", (inner + config.bias, hidden))
    wanted["norm.gain"] = Parameter("gain", (hidden,))
    wanted["norm.shift"] = Parameter("rows", (hidden,))
    return {**wanted, **task_parameters(config)}


def load_parameters(checkpoint: Checkpoint) -> Iterator[tuple[str, Source]]:
    """The matrices to be shared, in the order of `parameters_of`."""
    config = checkpoint.config
    assert isinstance(config, FalconConfig)
    yield "table", Stored(checkpoint, f"{config.table}.weight")
    for i in range(config.num_layers):
        source, name = f"{config.layer}.{i}", f"layers.{i}"
        attention = f"{source}.{config.attention}"
        norms = [norm_of(checkpoint, f"{source}.{norm}") for norm in config.norm_names()]
        gain, shift = norms[0]
        fused = dense(checkpoint, f"{attention}.query_key_value", gain=gain, shift=shift)
        order = _order(config)
        factors = np.ones(len(order), dtype=np.float32)
        queries = config.num_heads * config.head_dim
        factors[:queries] = np.tile(_query_factors(config), config.num_heads)
        yield f"{name}.qkv", fused.ordered(order).times(factors)
        yield f"{name}.output", dense(checkpoint, f"{attention}.dense")
        gain, shift = norms[-1]
        yield f"{name}.up", dense(checkpoint, f"{source}.mlp.dense_h_to_4h", gain=gain, shift=shift)
        yield f"{name}.down", dense(checkpoint, f"{source}.mlp.dense_4h_to_h")
    gain, shift = norm_of(checkpoint, config.last_norm)
    yield "norm.gain", gain
    yield "norm.shift", shift
    yield from task_weights(checkpoint)


def _order(config: FalconConfig) -> NDArray[np.int64]:
    """Columns of the fused matrix in the order queries, keys, values (see `FalconConfig`)."""
    share = config.num_heads // config.num_kv_heads
    blocks = np.arange(config.num_kv_heads * (share + 2)).reshape(config.num_kv_heads, share + 2)
    heads = np.concatenate([blocks[:, :share].reshape(-1), blocks[:, share], blocks[:, share + 1]])
    size, turned = config.head_dim, config.num_heads + config.num_kv_heads
    entries = np.tile(np.arange(size), (len(heads), 1))
    entries[:turned] = rotary_order(size, config.rotated)
    return (heads[:, None] * size + entries).reshape(-1)


def _query_factors(config: FalconConfig) -> Matrix:
    """The factor on each entry of a query, in the order in which the entries are shared."""
    factors = np.full(config.head_dim, config.head_dim**-0.5)
    if config.rope_scaling is not None:  # a factor on both queries and keys
        turned = rotary_order(config.head_dim, config.rotated) < config.rotated
        factors[turned] *= (config.rope_scaling.attention_factor or 1.0) ** 2
    return factors.astype(np.float32)
