"""The LLaMA family as a program over `Ops`: prefill and decode are the same function.

RMSNorm, rotary positions, grouped-query attention, a SiLU gate, tied or separate head; SmolLM2,
LLaMA 1 to 3 and TinyLlama are configurations of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.architecture import ModelConfig
from models.config import LlamaConfig
from models.plan import Parameter, Plan
from models.weights import Checkpoint
from protocols.errors import ModelError
from protocols.ops import Heads, Ops, Parameters, Rotation, Tensor


@dataclass
class Cache:
    """Keys and values of the tokens so far, a pair a layer: (key heads, tokens, size), shared."""

    keys: list[Tensor | None] = field(default_factory=list)
    values: list[Tensor | None] = field(default_factory=list)
    length: int = 0

    @classmethod
    def empty(cls, layers: int) -> "Cache":
        return cls([None] * layers, [None] * layers)


def evaluated(config: ModelConfig) -> LlamaConfig:
    """`config` if `forward` computes its function. Raises ModelError naming what it lacks."""
    if not isinstance(config, LlamaConfig) or config.head != "causal-lm":
        raise ModelError(
            f"family {config.family!r} with head {config.head!r} cannot be evaluated; supported: "
            "family 'llama' with head 'causal-lm'"
        )
    if config.hidden_act != "silu":
        raise ModelError(f"hidden_act: {config.hidden_act!r} is not supported; supported: silu")
    for name in ("qkv_bias", "output_bias", "mlp_bias", "qk_norm", "windows", "rope_scaling"):
        if getattr(config, name):
            raise ModelError(f"{name}: cannot be evaluated; supported: models without it")
    return config


def heads_of(config: LlamaConfig) -> Heads:
    """The attention's shape."""
    return Heads(config.num_heads, config.num_kv_heads, config.head_dim)


def rotation(config: LlamaConfig, start: int, count: int, frac: int) -> Rotation:
    """Angles of positions start .. start + count - 1."""
    rates = config.rope_theta ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    angles = np.arange(start, start + count)[:, None] * np.concatenate([rates, rates])
    return Rotation(np.cos(angles), np.sin(angles), frac)


async def forward(
    ops: Ops,
    plan: Plan,
    parameters: Parameters,
    count: int,
    cache: Cache,
    *,
    last_only: bool = True,
) -> Tensor:
    """Logits after the next `count` input tokens: (1 or count, vocabulary). Extends the cache."""
    config, start = plan.config, cache.length
    heads = heads_of(config)
    mask = np.tri(count, start + count, start, dtype=np.bool_)  # (count, context)
    norms = iter(plan.norms)

    x = await ops.embed(parameters["table"], count)  # (count, hidden)
    for i in range(config.num_layers):
        name = f"layers.{i}"
        turn = rotation(config, start, count, plan.rope_frac[i])
        y = await ops.rms_norm(x, f"{name}.attention", config.rms_norm_eps, next(norms))
        q, k, v = await ops.project(y, parameters[f"{name}.qkv"], heads, turn)
        cache.keys[i] = ops.append(cache.keys[i], k)  # (key heads, context, size)
        cache.values[i] = ops.append(cache.values[i], v)
        if last_only and i == config.num_layers - 1:  # the rest of the rows has no reader
            x, q, mask = ops.rows(x, count - 1), q[:, count - 1 :], mask[count - 1 :]
        y = await ops.attention(q, cache.keys[i], cache.values[i], mask)  # (count, hidden)
        x = ops.add(x, await ops.linear(y, parameters[f"{name}.output"]))
        y = await ops.rms_norm(x, f"{name}.mlp", config.rms_norm_eps, next(norms))
        y = await ops.gated_silu(y, parameters[f"{name}.gate_up"])  # (count, intermediate)
        x = ops.add(x, await ops.linear(y, parameters[f"{name}.down"]))
    cache.length += count

    x = await ops.rms_norm(x, "norm", config.rms_norm_eps, next(norms))
    x = await ops.gain(x, parameters["norm"])
    tied = config.tie_embeddings
    return await ops.logits(x, parameters["table" if tied else "head"], tied=tied)


def parameters_of(config: ModelConfig) -> dict[str, Parameter]:
    """Name -> kind and shape of everything that is shared, in upload order. Raises ModelError."""
    config = evaluated(config)
    hidden, inner = config.hidden_size, config.intermediate_size
    heads = heads_of(config)
    wanted = {"table": Parameter("table", (config.vocab_size, hidden))}
    for i in range(config.num_layers):
        wanted[f"layers.{i}.qkv"] = Parameter("weight", (hidden, heads.columns))
        wanted[f"layers.{i}.output"] = Parameter("weight", (heads.query * heads.size, hidden))
        wanted[f"layers.{i}.gate_up"] = Parameter("weight", (hidden, 2 * inner))
        wanted[f"layers.{i}.down"] = Parameter("weight", (inner, hidden))
    wanted["norm"] = Parameter("vector", (hidden,))
    if not config.tie_embeddings:
        wanted["head"] = Parameter("weight", (hidden, config.vocab_size))
    return wanted


def load_parameters(checkpoint: Checkpoint) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The float matrices to be shared, (inputs, outputs), in the order of `parameters_of`.

    Exact foldings: a pre-norm's gain scales the rows of the matrix after it, and 1 / sqrt(head
    size) the queries.
    """
    config = evaluated(checkpoint.config)
    queries = config.num_heads * config.head_dim
    yield "table", checkpoint.tensor("model.embed_tokens.weight")
    for i in range(config.num_layers):
        source, name = f"model.layers.{i}", f"layers.{i}"
        gain = checkpoint.tensor(f"{source}.input_layernorm.weight")
        qkv = _joined(checkpoint, f"{source}.self_attn", ("q_proj", "k_proj", "v_proj"))
        qkv *= gain[:, None]
        qkv[:, :queries] *= config.head_dim**-0.5
        yield f"{name}.qkv", qkv
        yield f"{name}.output", _transposed(checkpoint, f"{source}.self_attn.o_proj")
        gain = checkpoint.tensor(f"{source}.post_attention_layernorm.weight")
        gate_up = _joined(checkpoint, f"{source}.mlp", ("gate_proj", "up_proj"))
        gate_up *= gain[:, None]
        yield f"{name}.gate_up", gate_up
        yield f"{name}.down", _transposed(checkpoint, f"{source}.mlp.down_proj")
    yield "norm", checkpoint.tensor("model.norm.weight")
    if not config.tie_embeddings:
        yield "head", _transposed(checkpoint, "lm_head")


def _transposed(checkpoint: Checkpoint, name: str) -> NDArray[np.float32]:
    return np.ascontiguousarray(checkpoint.tensor(f"{name}.weight").T)


def _joined(checkpoint: Checkpoint, prefix: str, names: tuple[str, ...]) -> NDArray[np.float32]:
    parts = [checkpoint.tensor(f"{prefix}.{name}.weight").T for name in names]
    return np.ascontiguousarray(np.concatenate(parts, axis=1))
