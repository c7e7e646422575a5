"""The LLaMA family as a program over `Ops`: prefill and decode are the same function.

RMSNorm, rotary positions, grouped-query attention, a gated MLP, tied or separate head. SmolLM2,
LLaMA 1 to 3, TinyLlama, Mistral (sliding window), Qwen2 (biases) and Qwen3 (normalised queries and
keys) are configurations of it.
"""

from collections.abc import Iterator

import numpy as np

from models.checkpoints.checkpoint import Checkpoint
from models.configs.decoders.llama import LlamaConfig
from models.programs.folding import Matrix, dense
from models.programs.head_layers import finish, task_parameters, task_weights
from models.programs.plan import Parameter
from models.programs.program import Batch, Cache, rotation_of, spans_of
from protocols.drivers.ops import Heads, Ops, Parameters, Tensor
from protocols.functions.normalize import Norm


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
    turn = rotation_of(config.turns, batch, start)
    windows = config.windows or (None,) * config.num_layers

    x = await ops.embed(parameters["table"], batch.tokens, hidden)  # (tokens, hidden)
    for i in range(config.num_layers):
        name = f"layers.{i}"
        gains = (parameters[f"{name}.q_norm"], parameters[f"{name}.k_norm"]) if head_norm else None
        y = await ops.norm(x, f"{name}.attention_norm", norm)
        q, k, v = await ops.project(
            y, parameters[f"{name}.qkv"], name, heads, turn, head_norm, gains
        )
        k, v = cache.extend(ops, i, k, v)  # (key heads, context, size)
        wanted = None
        if i == config.num_layers - 1 and batch.rows in ("last", "first"):
            wanted = batch.wanted  # the other rows are not used
            x, q = ops.take(x, wanted), ops.heads_at(q, wanted)
        spans = spans_of(batch, start, causal=True, wanted=wanted, window=windows[i])
        y = await ops.attention(q, k, v, name, spans)  # (tokens, query heads * size)
        x = ops.add(x, await ops.linear(y, parameters[f"{name}.output"], f"{name}.output"))
        y = await ops.norm(x, f"{name}.mlp_norm", norm)
        y = await ops.gated(y, parameters[f"{name}.gate_up"], f"{name}.gate_up", config.hidden_act)
        x = ops.add(x, await ops.linear(y, parameters[f"{name}.down"], f"{name}.down"))
    cache.length += batch.tokens

    x = await ops.norm(x, "norm", norm, parameters["norm"])
    return await finish(ops, config, parameters, x, batch)


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
        wanted.update({f"layers.{i}.{name}": parameter for name, parameter in layer.items()})
    return {**wanted, "norm": Parameter("gain", (hidden,)), **task_parameters(config)}


def load_parameters(checkpoint: Checkpoint) -> Iterator[tuple[str, Matrix]]:
    """The float matrices to be shared, in the order of `parameters_of`."""
    config = checkpoint.config
    assert isinstance(config, LlamaConfig)
    queries = config.num_heads * config.head_dim
    yield "table", checkpoint.tensor("model.embed_tokens.weight")
    for i in range(config.num_layers):
        source, name = f"model.layers.{i}", f"layers.{i}"
        attention, mlp = f"{source}.self_attn", f"{source}.mlp"
        gain = checkpoint.tensor(f"{source}.input_layernorm.weight")
        names = [f"{attention}.{part}_proj" for part in ("q", "k", "v")]
        qkv = dense(checkpoint, names, gain=gain)
        scale = config.head_dim**-0.5
        if not config.qk_norm:
            qkv[:, :queries] *= scale
        yield f"{name}.qkv", qkv
        yield f"{name}.output", dense(checkpoint, f"{attention}.o_proj")
        gain = checkpoint.tensor(f"{source}.post_attention_layernorm.weight")
        yield (
            f"{name}.gate_up",
            dense(checkpoint, [f"{mlp}.gate_proj", f"{mlp}.up_proj"], gain=gain),
        )
        yield f"{name}.down", dense(checkpoint, f"{mlp}.down_proj")
        if config.qk_norm:
            yield (
                f"{name}.q_norm",
                checkpoint.tensor(f"{attention}.q_norm.weight") * np.float32(scale),
            )
            yield f"{name}.k_norm", checkpoint.tensor(f"{attention}.k_norm.weight")
    yield "norm", checkpoint.tensor("model.norm.weight")
    yield from task_weights(checkpoint)
