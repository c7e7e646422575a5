"""The encoders with norms after each block as one program over `Ops`: BERT, RoBERTa, DistilBERT,
ELECTRA, MPNet and DeBERTa-v2.

They differ in names, positions, token types, the embedding's width, relative positions and heads.
"""

from collections.abc import Callable, Iterator

import numpy as np

from models.checkpoints.checkpoint import Checkpoint
from models.configs.encoders.deberta import DebertaV2Config
from models.configs.encoders.distilbert import DistilBertConfig
from models.configs.encoders.encoder import EncoderConfig
from models.configs.encoders.mpnet import BUCKETS, MpnetConfig
from models.programs.folding import Source, dense, norm_of
from models.programs.head_layers import (
    finish,
    table_columns,
    table_of,
    task_parameters,
    task_weights,
)
from models.programs.plan import Parameter
from models.programs.program import Batch, Cache, spans_of
from models.programs.relative import distance_buckets, log_rows
from protocols.drivers.ops import Heads, Index, Ops, Parameters, Relative, Tensor
from protocols.functions.normalize import Norm


async def forward(
    ops: Ops, config: EncoderConfig, parameters: Parameters, batch: Batch, cache: Cache
) -> Tensor:
    """The head's output for the batch. An encoder sees whole texts: the cache stays empty."""
    hidden, columns = config.hidden_size, config.embedding_size
    heads = Heads(config.num_heads, config.num_heads, config.head_dim)
    norm = Norm(hidden, config.layer_norm_eps, center=True)

    async def normed(x: Tensor, name: str, size: int = hidden) -> Tensor:
        norm = Norm(size, config.layer_norm_eps, center=True)
        return await ops.norm(
            x, name, norm, parameters[f"{name}.gain"], parameters[f"{name}.shift"]
        )

    async def added(x: Tensor, y: Tensor, name: str) -> Tensor:
        return await normed(await ops.residual(name, norm, x, y), name)

    x = await ops.embed(parameters["table"], batch.tokens, columns)  # (tokens, columns)
    if "positions" in parameters:
        x = ops.add(x, ops.take(parameters["positions"], batch.positions(config.position_offset)))
    if config.type_vocab_size:
        types = np.array(batch.types or (0,) * batch.tokens, dtype=np.int64)
        x = ops.add(x, ops.take(parameters["types"], types))
    x = await normed(x, "embeddings", columns)
    if columns != hidden:
        x = await ops.linear(x, parameters["embeddings.project"], "embeddings.project")
        x = await ops.residual("", norm, x)
    for i in range(config.num_layers):
        name = f"layers.{i}"
        q, k, v = await ops.project(x, parameters[f"{name}.qkv"], name, heads)
        wanted = None
        if i == config.num_layers - 1 and batch.takes_one:
            wanted = batch.wanted  # the other rows are not used
            x, q = ops.take(x, wanted), ops.heads_at(q, wanted)
        relative = relative_of(config, parameters, name)
        spans = spans_of(batch, causal=False, wanted=wanted, relative=relative)
        y = await ops.attention(q, k, v, name, spans)
        y = await ops.linear(y, parameters[f"{name}.output"], f"{name}.output")
        x = await added(x, y, f"{name}.attention_norm")
        y = await ops.dense(x, parameters[f"{name}.up"], f"{name}.up", config.hidden_act)
        y = await ops.linear(y, parameters[f"{name}.down"], f"{name}.down")
        x = await added(x, y, f"{name}.mlp_norm")
    return await finish(ops, config, parameters, x, batch)


def relative_of(
    config: EncoderConfig, parameters: Parameters, layer: str
) -> Callable[[Index], Relative] | None:
    """A function from distances to what they add to a layer's scores; None if that is nothing."""
    if isinstance(config, DebertaV2Config):
        keys, queries = (
            parameters[f"{layer}.position_keys"],
            parameters[f"{layer}.position_queries"],
        )
        return lambda distance: Relative(
            log_rows(distance, config.buckets, config.reach), keys=keys, queries=queries
        )
    if not isinstance(config, MpnetConfig):
        return None
    return lambda distance: Relative(distance_buckets(distance), parameters["relative"])


def parameters_of(config: EncoderConfig) -> dict[str, Parameter]:
    """Name -> kind and shape of every shared tensor, in upload order."""
    hidden, inner = config.hidden_size, config.intermediate_size
    columns = config.embedding_size

    def norm(name: str, size: int = hidden) -> dict[str, Parameter]:
        gain, shift = Parameter("gain", (size,)), Parameter("rows", (size,))
        return {f"{name}.gain": gain, f"{name}.shift": shift}

    wanted = {"table": Parameter("table", (config.vocab_size, table_columns(config)))}
    if not config.positional_scores:
        rows = config.max_positions + config.position_offset
        wanted["positions"] = Parameter("rows", (rows, columns))
    if config.type_vocab_size:
        wanted["types"] = Parameter("rows", (config.type_vocab_size, columns))
    wanted.update(norm("embeddings", columns))
    if columns != hidden:
        wanted["embeddings.project"] = Parameter("weight", (columns + 1, hidden))
    if isinstance(config, MpnetConfig):
        wanted["relative"] = Parameter("relative", (BUCKETS, config.num_heads))
    for i in range(config.num_layers):
        name = f"layers.{i}"
        if isinstance(config, DebertaV2Config):
            for part in ("keys", "queries"):
                wanted[f"{name}.position_{part}"] = Parameter("relative", (config.rows, hidden))
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
_MPNET = {
    **_BERT,
    "qkv": ("attention.attn.q", "attention.attn.k", "attention.attn.v"),
    "output": ("attention.attn.o",),
    "attention_norm": ("attention.LayerNorm",),
}
_DEBERTA = {
    **_BERT,
    "qkv": ("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
}
_NAMES = {"deberta-v2": _DEBERTA, "distilbert": _DISTILBERT, "mpnet": _MPNET}


def load_parameters(checkpoint: Checkpoint) -> Iterator[tuple[str, Source]]:
    """The matrices to be shared, in the order of `parameters_of`. 1 / sqrt(head size) is
    folded into the queries.
    """
    config = checkpoint.config
    assert isinstance(config, EncoderConfig)
    distilled = isinstance(config, DistilBertConfig)
    names = _NAMES.get(config.family, _BERT)
    prefix = config.naming.prefix
    embeddings = f"{prefix}embeddings"
    yield "table", table_of(checkpoint, f"{embeddings}.word_embeddings.weight")
    if not config.positional_scores:
        yield "positions", checkpoint.tensor(f"{embeddings}.position_embeddings.weight")
    if config.type_vocab_size:
        yield "types", checkpoint.tensor(f"{embeddings}.token_type_embeddings.weight")
    yield from _norm(checkpoint, f"{embeddings}.LayerNorm", "embeddings")
    if config.embedding_size != config.hidden_size:
        yield "embeddings.project", dense(checkpoint, f"{prefix}embeddings_project")
    if isinstance(config, MpnetConfig):
        yield "relative", checkpoint.tensor(f"{prefix}encoder.relative_attention_bias.weight")
    for i in range(config.num_layers):
        layer = f"{prefix}transformer.layer.{i}" if distilled else f"{prefix}encoder.layer.{i}"
        if isinstance(config, DebertaV2Config):
            yield from _positional(checkpoint, config, layer, f"layers.{i}")
        for part, sources in names.items():
            stored = [f"{layer}.{source}" for source in sources]
            name = f"layers.{i}.{part}"
            if part.endswith("norm"):
                yield from _norm(checkpoint, stored[0], name)
                continue
            matrix = dense(checkpoint, stored)
            if part == "qkv":
                matrix = matrix.scaled(_score_scale(config), config.hidden_size)
            yield name, matrix
    yield from task_weights(checkpoint)


def _score_scale(config: EncoderConfig) -> float:
    if isinstance(config, DebertaV2Config):
        return config.score_scale
    return float(config.head_dim**-0.5)


def _positional(
    checkpoint: Checkpoint, config: DebertaV2Config, layer: str, name: str
) -> Iterator[tuple[str, Source]]:
    """Keys and queries of positions: a layer's projections of the table that all layers share."""
    rows = checkpoint.tensor("deberta.encoder.rel_embeddings.weight").astype(np.float64)
    if config.normed:
        gain, shift = norm_of(checkpoint, "deberta.encoder.LayerNorm")
        rows = rows - rows.mean(axis=1, keepdims=True)
        rows /= np.sqrt((rows * rows).mean(axis=1, keepdims=True) + config.layer_norm_eps)
        rows = rows * gain + shift
    parts = ("key", "query") if config.shared else ("pos_key", "pos_query")
    for part, scale in zip(parts, (1.0, config.score_scale), strict=True):
        matrix = dense(checkpoint, f"{layer}.attention.self.{part}_proj").values()
        made = (rows @ matrix[:-1] + matrix[-1]) * scale
        kind = "keys" if part.endswith("key") else "queries"
        yield f"{name}.position_{kind}", made.astype(np.float32)


def _norm(checkpoint: Checkpoint, source: str, name: str) -> Iterator[tuple[str, Source]]:
    gain, shift = norm_of(checkpoint, source)
    yield f"{name}.gain", gain
    yield f"{name}.shift", shift
