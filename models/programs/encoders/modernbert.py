"""ModernBERT as a program over `Ops`: norms before blocks, gated MLPs, rotary positions."""

from collections.abc import Iterator
from functools import partial

from models.checkpoints.checkpoint import Checkpoint
from models.configs.encoders.modernbert import ModernBertConfig
from models.programs.folding import Source, dense
from models.programs.head_layers import (
    finish,
    table_columns,
    table_of,
    task_parameters,
    task_weights,
)
from models.programs.plan import Parameter
from models.programs.program import Batch, Cache, norm_after, rotation_of, spans_of
from protocols.drivers.ops import Heads, Ops, Parameters, Tensor
from protocols.functions.normalize import Norm


async def forward(
    ops: Ops, config: ModernBertConfig, parameters: Parameters, batch: Batch, cache: Cache
) -> Tensor:
    """The head's output for the batch. An encoder sees whole texts: the cache stays empty."""
    hidden = config.hidden_size
    heads = Heads(config.num_heads, config.num_heads, config.head_dim)
    norm = Norm(hidden, config.layer_norm_eps, center=True)
    turns = {
        kind: rotation_of(partial(config.turns, kind=kind), batch, 0)
        for kind in config.rotary_kinds()
    }
    windows = config.windows or (None,) * config.num_layers

    x = await ops.embed(parameters["table"], batch.tokens, hidden)  # (tokens, hidden)
    x = await ops.norm(x, "embeddings", norm, parameters["embeddings.gain"])
    for i in range(config.num_layers):
        name = f"layers.{i}"
        y = await ops.norm(x, f"{name}.attention_norm", norm) if i else x
        turn = turns["local" if config.local[i] else "global"]
        q, k, v = await ops.project(y, parameters[f"{name}.qkv"], name, heads, turn)
        wanted = None
        if i == config.num_layers - 1 and batch.takes_one:
            wanted = batch.wanted  # the other rows are not used
            x, q = ops.take(x, wanted), ops.heads_at(q, wanted)
        spans = spans_of(batch, causal=False, wanted=wanted, window=windows[i])
        y = await ops.attention(q, k, v, name, spans)
        y = await ops.linear(y, parameters[f"{name}.output"], f"{name}.output")
        x = await ops.residual(f"{name}.mlp_norm", norm, x, y)
        y = await ops.norm(x, f"{name}.mlp_norm", norm)
        y = await ops.gated(y, parameters[f"{name}.gate_up"], f"{name}.gate_up", config.hidden_act)
        y = await ops.linear(y, parameters[f"{name}.down"], f"{name}.down")
        x = await ops.residual(norm_after(config, i), norm, x, y)

    x = await ops.norm(x, "norm", norm, parameters["norm"])
    return await finish(ops, config, parameters, x, batch)


def parameters_of(config: ModernBertConfig) -> dict[str, Parameter]:
    """Name -> kind and shape of every shared tensor, in upload order."""
    hidden, inner = config.hidden_size, config.intermediate_size
    wanted = {
        "table": Parameter("table", (config.vocab_size, table_columns(config))),
        "embeddings.gain": Parameter("gain", (hidden,)),
    }
    for i in range(config.num_layers):
        name = f"layers.{i}"
        wanted[f"{name}.qkv"] = Parameter("weight", (hidden, 3 * hidden))
        wanted[f"{name}.output"] = Parameter("weight", (hidden, hidden))
        wanted[f"{name}.gate_up"] = Parameter("weight", (hidden, 2 * inner))
        wanted[f"{name}.down"] = Parameter("weight", (inner, hidden))
    return {**wanted, "norm": Parameter("gain", (hidden,)), **task_parameters(config)}


def load_parameters(checkpoint: Checkpoint) -> Iterator[tuple[str, Source]]:
    """The matrices to be shared, in the order of `parameters_of`."""
    config = checkpoint.config
    assert isinstance(config, ModernBertConfig)
    yield "table", table_of(checkpoint, "model.embeddings.tok_embeddings.weight")
    yield "embeddings.gain", checkpoint.tensor("model.embeddings.norm.weight")
    for i in range(config.num_layers):
        source, name = f"model.layers.{i}", f"layers.{i}"
        gain = checkpoint.tensor(f"{source}.attn_norm.weight") if i else None
        qkv = dense(checkpoint, f"{source}.attn.Wqkv", gain=gain)
        yield f"{name}.qkv", qkv.scaled(config.head_dim**-0.5, config.hidden_size)
        yield f"{name}.output", dense(checkpoint, f"{source}.attn.Wo")
        gain = checkpoint.tensor(f"{source}.mlp_norm.weight")
        yield f"{name}.gate_up", dense(checkpoint, f"{source}.mlp.Wi", gain=gain)
        yield f"{name}.down", dense(checkpoint, f"{source}.mlp.Wo")
    yield "norm", checkpoint.tensor("model.final_norm.weight")
    yield from task_weights(checkpoint)
