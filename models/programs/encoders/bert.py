"""The encoders as one program over `Ops`: BERT, RoBERTa and DistilBERT (post-norm).

They differ in names, positions, token types and heads.
"""

from collections.abc import Iterator

import numpy as np

from models.checkpoints.checkpoint import Checkpoint
from models.configs.encoders.distilbert import DistilBertConfig
from models.configs.encoders.encoder import EncoderConfig
from models.programs.folding import Matrix, dense, norm_of
from models.programs.head_layers import (
    finish,
    table_columns,
    table_of,
    task_parameters,
    task_weights,
)
from models.programs.plan import Parameter
from models.programs.program import Batch, Cache, spans_of
from protocols.drivers.ops import Heads, Ops, Parameters, Tensor
from protocols.functions.normalize import Norm


async def forward(
    ops: Ops, config: EncoderConfig, parameters: Parameters, batch: Batch, cache: Cache
) -> Tensor:
    """The head's output for the batch. An encoder sees whole texts: the cache stays empty."""
    hidden = config.hidden_size
    heads = Heads(config.num_heads, config.num_heads, config.head_dim)
    norm = Norm(hidden, config.layer_norm_eps, center=True)

    async def normed(x: Tensor, name: str) -> Tensor:
        return await ops.norm(
            x, name, norm, parameters[f"{name}.gain"], parameters[f"{name}.shift"]
        )

    x = await ops.embed(parameters["table"], batch.tokens, hidden)  # (tokens, hidden)
    x = ops.add(x, ops.take(parameters["positions"], batch.positions(config.position_offset)))
    if config.type_vocab_size:
        types = np.array(batch.types or (0,) * batch.tokens, dtype=np.int64)
        x = ops.add(x, ops.take(parameters["types"], types))
    x = await normed(x, "embeddings")
    for i in range(config.num_layers):
        name = f"layers.{i}"
        q, k, v = await ops.project(x, parameters[f"{name}.qkv"], name, heads)
        wanted = None
        if i == config.num_layers - 1 and batch.rows in ("first", "last"):
            wanted = batch.wanted  # the other rows are not used
            x, q = ops.take(x, wanted), ops.heads_at(q, wanted)
        y = await ops.attention(q, k, v, name, spans_of(batch, causal=False, wanted=wanted))
        x = ops.add(x, await ops.linear(y, parameters[f"{name}.output"], f"{name}.output"))
        x = await normed(x, f"{name}.attention_norm")
        y = await ops.dense(x, parameters[f"{name}.up"], f"{name}.up", config.hidden_act)
        x = ops.add(x, await ops.linear(y, parameters[f"{name}.down"], f"{name}.down"))
        x = await normed(x, f"{name}.mlp_norm")
    return await finish(ops, config, parameters, x, batch)


def parameters_of(config: EncoderConfig) -> dict[str, Parameter]:
    """Name -> kind and shape of every shared tensor, in upload order."""
    hidden, inner = config.hidden_size, config.intermediate_size

    def norm(name: str) -> dict[str, Parameter]:
        gain, shift = Parameter("gain", (hidden,)), Parameter("rows", (hidden,))
        return {f"{name}.gain": gain, f"{name}.shift": shift}

    wanted = {
        "table": Parameter("table", (config.vocab_size, table_columns(config))),
        "positions": Parameter("rows", (config.max_positions + config.position_offset, hidden)),
    }
    if config.type_vocab_size:
        wanted["types"] = Parameter("rows", (config.type_vocab_size, hidden))
    wanted.update(norm("embeddings"))
    for i in range(config.num_layers):
        name = f"layers.{i}"
        wanted[f"{name}.qkv"] = Parameter("weight", (hidden + 1, 3 * hidden))
        wanted[f"{name}.output"] = Parameter("weight", (hidden + 1, hidden))
        wanted.update(norm(f"{name}.attention_norm"))
        wanted[f"{name}.up"] = Parameter("weight", (hidden + 1, inner))
        wanted[f"{name}.down"] = Parameter("weight", (inner + 1, hidden))
        wanted.update(norm(f"{name}.mlp_norm"))
    return {**wanted, **task_parameters(config)}


_BERT = {
    "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "output": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "up": ("intermediate.dense",),
    "down": ("output.dense",),
    "mlp_norm": ("output.LayerNorm",),
}
_DISTILBERT = {
    "qkv": ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    "output": ("attention.out_lin",),
    "attention_norm": ("sa_layer_norm",),
    "up": ("ffn.lin1",),
    "down": ("ffn.lin2",),
    "mlp_norm": ("output_layer_norm",),
}


def load_parameters(checkpoint: Checkpoint) -> Iterator[tuple[str, Matrix]]:
    """The float matrices to be shared, in the order of `parameters_of`. 1 / sqrt(head size) is
    folded into the queries.
    """
    config = checkpoint.config
    assert isinstance(config, EncoderConfig)
    distilled = isinstance(config, DistilBertConfig)
    names = _DISTILBERT if distilled else _BERT
    prefix = config.naming.prefix
    embeddings = f"{prefix}embeddings"
    yield "table", table_of(checkpoint, f"{embeddings}.word_embeddings.weight")
    yield "positions", checkpoint.tensor(f"{embeddings}.position_embeddings.weight")
    if config.type_vocab_size:
        yield "types", checkpoint.tensor(f"{embeddings}.token_type_embeddings.weight")
    yield from _norm(checkpoint, f"{embeddings}.LayerNorm", "embeddings")
    for i in range(config.num_layers):
        layer = f"{prefix}transformer.layer.{i}" if distilled else f"{prefix}encoder.layer.{i}"
        for part, sources in names.items():
            stored = [f"{layer}.{source}" for source in sources]
            name = f"layers.{i}.{part}"
            if part.endswith("norm"):
                yield from _norm(checkpoint, stored[0], name)
                continue
            matrix = dense(checkpoint, stored)
            if part == "qkv":
                matrix[:, : config.hidden_size] *= config.head_dim**-0.5
            yield name, matrix
    yield from task_weights(checkpoint)


def _norm(checkpoint: Checkpoint, source: str, name: str) -> Iterator[tuple[str, Matrix]]:
    gain, shift = norm_of(checkpoint, source)
    yield f"{name}.gain", gain
    yield f"{name}.shift", shift
