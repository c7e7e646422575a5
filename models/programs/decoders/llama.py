"""The LLaMA family as a program over `Ops`: prefill and decode are the same function.

RMSNorm, rotary positions, grouped-query attention, a gated MLP, tied or separate head. SmolLM2,
LLaMA 1 to 3, TinyLlama, Mistral (sliding window), Qwen2 (biases) and Qwen3 (normalised queries and
keys) are configurations of it. So are Gemma (scaled embedding, norms after blocks, soft caps, two
kinds of rotary positions), Phi-3 (fused projections), Granite (multipliers) and SmolLM3 (layers
without positions).
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from models.checkpoints.checkpoint import Checkpoint
from models.configs.decoders.llama import LlamaConfig
from models.configs.rope import rotary_order
from models.programs.folding import Matrix, Source, Stored, dense
from models.programs.head_layers import finish, task_parameters, task_weights
from models.programs.plan import Parameter
from models.programs.program import Batch, Cache, norm_after, rotation_of, spans_of
from protocols.drivers.ops import Heads, Ops, Parameters, Rotation, Tensor
from protocols.functions.normalize import Norm
from protocols.functions.softcap import Cap


def heads_of(config: LlamaConfig) -> Heads:
    """The shape of the attention."""
    return Heads(config.num_heads, config.num_kv_heads, config.head_dim)


async def forward(
    ops: Ops, config: LlamaConfig, parameters: Parameters, batch: Batch, cache: Cache
) -> Tensor:
    """The head's output for the batch's tokens, which extend the cache."""
    start, hidden, heads = cache.length, config.hidden_size, heads_of(config)
    norm = Norm(hidden, config.rms_norm_eps)
    head_norm = Norm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None
    turns: dict[str, Rotation | None] = {
        kind: rotation_of(partial(config.turns, kind=kind), batch, start)
        for kind in config.rotary_kinds()
    }
    cap = None if config.score_cap is None else Cap(config.score_cap)

    async def added(x: Tensor, y: Tensor, name: str, reader: str) -> Tensor:
        if config.post_norms:
            y = await ops.norm(y, name, norm, parameters[name], residual=True)
        return await ops.residual(reader, norm, x, y)

    x = await ops.embed(parameters["table"], batch.tokens, hidden)  # (tokens, hidden)
    if config.embedding_scale != 1:
        x = await ops.scaled(x, config.embedding_scale)
    for i in range(config.num_layers):
        name, turn = f"layers.{i}", turns.get(config.rotary_of(i))
        gains = (parameters[f"{name}.q_norm"], parameters[f"{name}.k_norm"]) if head_norm else None
        before, qkv = f"{name}.attention_norm", parameters[f"{name}.qkv"]
        q, k, v = await ops.normed_project(
            x, before, norm, qkv, name, heads, turn, head_norm, gains
        )
        k, v = cache.extend(ops, i, k, v)  # (key heads, context, size)
        wanted = None
        if i == config.num_layers - 1 and batch.takes_one:
            wanted = batch.wanted  # the other rows are not used
            x, q = ops.take(x, wanted), ops.heads_at(q, wanted)
        window = config.window_of(i)
        spans = spans_of(batch, start, causal=True, wanted=wanted, window=window, cap=cap)
        y = await ops.attention(q, k, v, name, spans)  # (tokens, query heads * size)
        y = await ops.linear(y, parameters[f"{name}.output"], f"{name}.output")
        x = await added(x, y, f"{name}.output_norm", f"{name}.mlp_norm")
        before, weight = f"{name}.mlp_norm", parameters[f"{name}.gate_up"]
        y = await ops.normed_gated(x, before, norm, weight, f"{name}.gate_up", config.hidden_act)
        y = await ops.linear(y, parameters[f"{name}.down"], f"{name}.down")
        x = await added(x, y, f"{name}.down_norm", norm_after(config, i))
    cache.length += batch.tokens

    x = await ops.norm(x, "norm", norm, parameters["norm"])
    logits = await finish(ops, config, parameters, x, batch)
    if config.logits_cap is None or config.head != "causal-lm":
        return logits
    return await ops.capped(logits, "head.cap", Cap(config.logits_cap))


def parameters_of(config: LlamaConfig) -> dict[str, Parameter]:
    """Name -> kind and shape of every shared tensor, in upload order."""
    hidden, inner, heads = config.hidden_size, config.intermediate_size, heads_of(config)
    queries = heads.query * heads.size
    wanted = {"table": Parameter("table", (config.vocab_size, hidden))}
    for i in range(config.num_layers):
        layer = {
            "qkv": Parameter("weight", (hidden + config.qkv_bias, heads.columns)),
            "output": Parameter("weight", (queries + config.output_bias, hidden)),
            "gate_up": Parameter("weight", (hidden + config.mlp_bias, 2 * inner)),
            "down": Parameter("weight", (inner + config.mlp_bias, hidden)),
        }
        if config.qk_norm:
            layer["q_norm"] = layer["k_norm"] = Parameter("gain", (heads.size,))
        if config.post_norms:
            layer["output_norm"] = layer["down_norm"] = Parameter("gain", (hidden,))
        wanted.update({f"layers.{i}.{name}": parameter for name, parameter in layer.items()})
    return {**wanted, "norm": Parameter("gain", (hidden,)), **task_parameters(config)}


def load_parameters(checkpoint: Checkpoint) -> Iterator[tuple[str, Source]]:
    """The matrices to be shared, in the order of `parameters_of`."""
    config = checkpoint.config
    assert isinstance(config, LlamaConfig)
    yield "table", Stored(checkpoint, "model.embed_tokens.weight")
    for i in range(config.num_layers):
        for name, matrix in _layer(checkpoint, config, i):
            yield f"layers.{i}.{name}", matrix
    gain = _gain(checkpoint, config, "model.norm")
    if config.head == "causal-lm":
        gain = gain * np.float32(config.logits_scale * _cap_factor(config.logits_cap))
    yield "norm", gain
    yield from task_weights(checkpoint)


def _layer(checkpoint: Checkpoint, config: LlamaConfig, i: int) -> Iterator[tuple[str, Source]]:
    source, names = f"model.layers.{i}", config.part_names()
    stored = {part: [f"{source}.{name}" for name in given] for part, given in names.items()}
    gains = {part: _gain(checkpoint, config, stored[part][0]) for part in stored if "norm" in part}
    order, factors = _rotary_layout(config, i)
    queries, rotated = config.num_heads, config.num_heads + config.num_kv_heads

    qkv = dense(checkpoint, stored["qkv"], gain=gains["attention_norm"])
    places = np.arange(heads_of(config).columns).reshape(-1, config.head_dim)
    if config.rotated != config.head_dim:
        places[:rotated] = places[:rotated][:, order]
        qkv = qkv.ordered(places.reshape(-1))
    if not config.qk_norm:
        every = np.ones(places.shape, dtype=np.float32)
        every[:queries] = factors
        qkv = qkv.times(every.reshape(-1))
    yield "qkv", qkv
    yield "output", dense(checkpoint, stored["output"]).scaled(config.residual_scale)
    yield "gate_up", dense(checkpoint, stored["gate_up"], gain=gains["mlp_norm"])
    yield "down", dense(checkpoint, stored["down"]).scaled(config.residual_scale)
    if config.qk_norm:
        yield "q_norm", gains["q_norm"][order] * factors
        yield "k_norm", gains["k_norm"][order]
    if config.post_norms:
        yield "output_norm", gains["output_norm"]
        yield "down_norm", gains["down_norm"]


def _rotary_layout(config: LlamaConfig, i: int) -> tuple[NDArray[np.int64], Matrix]:
    """The order in which a layer's head entries are shared, and the factor on each in queries."""
    order = rotary_order(config.head_dim, config.rotated)
    factors = np.full(config.head_dim, config.query_scale * _cap_factor(config.score_cap))
    if config.rotary_of(i) == "global" and config.rope_scaling is not None:
        # A factor on both rotated queries and rotated keys; here queries get both.
        factors[order < config.rotated] *= (config.rope_scaling.attention_factor or 1.0) ** 2
    return order, factors.astype(np.float32)


def _cap_factor(cap: float | None) -> float:
    """The factor on the argument of a soft cap."""
    return 1.0 if cap is None else Cap(cap).factor


def _gain(checkpoint: Checkpoint, config: LlamaConfig, name: str) -> Matrix:
    return checkpoint.tensor(f"{name}.weight") + np.float32(config.gain_offset)
