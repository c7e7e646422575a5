"""The OPT family as a program over `Ops`: learned positions, LayerNorm before or after blocks."""

from collections.abc import Iterator

from models.checkpoints.checkpoint import Checkpoint
from models.configs.decoders.opt import FIRST_POSITION, OptConfig
from models.programs.folding import Matrix, Source, Stored, dense, norm_of
from models.programs.head_layers import finish, task_parameters, task_weights
from models.programs.plan import Parameter
from models.programs.program import Batch, Cache, norm_after, spans_of
from protocols.drivers.ops import Heads, Ops, Parameters, Tensor
from protocols.functions.normalize import Norm


async def forward(
    ops: Ops, config: OptConfig, parameters: Parameters, batch: Batch, cache: Cache
) -> Tensor:
    """The head's output for the batch's tokens, which extend the cache."""
    start, first = cache.length, config.norm_first
    heads = Heads(config.num_heads, config.num_heads, config.head_dim)
    norm = Norm(config.hidden_size, config.layer_norm_eps, center=True)

    async def normed(x: Tensor, name: str, here: bool) -> Tensor:
        if not here:
            return x
        weights = () if first and name != "norm" else (f"{name}.gain", f"{name}.shift")
        return await ops.norm(x, name, norm, *(parameters[each] for each in weights))

    x = await ops.embed(parameters["table"], batch.tokens, config.embedding_columns)
    if config.projects:
        x = await ops.linear(x, parameters["embeddings.project"], "embeddings.project")
    positions = ops.take(parameters["positions"], batch.positions(start + FIRST_POSITION))
    x = await ops.residual("layers.0.attention_norm" if first else "", norm, x, positions)
    for i in range(config.num_layers):
        name = f"layers.{i}"
        y = await normed(x, f"{name}.attention_norm", first)
        q, k, v = await ops.project(y, parameters[f"{name}.qkv"], name, heads)
        k, v = cache.extend(ops, i, k, v)  # (heads, context, size)
        wanted = None
        if i == config.num_layers - 1 and batch.takes_one:
            wanted = batch.wanted  # the other rows are not used
            x, q = ops.take(x, wanted), ops.heads_at(q, wanted)
        spans = spans_of(batch, start, causal=True, wanted=wanted)
        y = await ops.attention(q, k, v, name, spans)  # (tokens, hidden)
        y = await ops.linear(y, parameters[f"{name}.output"], f"{name}.output")
        x = await ops.residual(f"{name}.{'mlp' if first else 'attention'}_norm", norm, x, y)
        x = await normed(x, f"{name}.attention_norm", not first)
        y = await normed(x, f"{name}.mlp_norm", first)
        y = await ops.dense(y, parameters[f"{name}.up"], f"{name}.up", config.hidden_act)
        y = await ops.linear(y, parameters[f"{name}.down"], f"{name}.down")
        x = await ops.residual(_norm_after(config, i), norm, x, y)
        x = await normed(x, f"{name}.mlp_norm", not first)
    cache.length += batch.tokens

    x = await normed(x, "norm", config.ends_in_norm)
    if config.projects:
        x = await ops.linear(x, parameters["head.project"], "head.project")
        x = await ops.residual("", norm, x)
    return await finish(ops, config, parameters, x, batch)


def _norm_after(config: OptConfig, i: int) -> str:
    """The norm after a layer, or ""."""
    if not config.norm_first:
        return f"layers.{i}.mlp_norm"
    last = i == config.num_layers - 1
    return "" if last and not config.ends_in_norm else norm_after(config, i)


def _norm_parameters(name: str, size: int) -> dict[str, Parameter]:
    return {f"{name}.gain": Parameter("gain", (size,)), f"{name}.shift": Parameter("rows", (size,))}


def parameters_of(config: OptConfig) -> dict[str, Parameter]:
    """Name -> kind and shape of every shared tensor, in upload order."""
    hidden, inner, columns = (
        config.hidden_size,
        config.intermediate_size,
        config.embedding_columns,
    )
    wanted = {
        "table": Parameter("table", (config.vocab_size, columns)),
        "positions": Parameter("rows", (config.max_positions + FIRST_POSITION, hidden)),
    }
    if config.projects:
        wanted["embeddings.project"] = Parameter("weight", (columns, hidden))
    for i in range(config.num_layers):
        name = f"layers.{i}"
        wanted[f"{name}.qkv"] = Parameter("weight", (hidden + 1, 3 * hidden))
        wanted[f"{name}.output"] = Parameter("weight", (hidden + 1, hidden))
        wanted[f"{name}.up"] = Parameter("weight", (hidden + 1, inner))
        wanted[f"{name}.down"] = Parameter("weight", (inner + 1, hidden))
        if not config.norm_first:
            wanted.update(_norm_parameters(f"{name}.attention_norm", hidden))
            wanted.update(_norm_parameters(f"{name}.mlp_norm", hidden))
    if config.ends_in_norm:
        wanted.update(_norm_parameters("norm", hidden))
    if config.projects:
        wanted["head.project"] = Parameter("weight", (hidden, columns))
    return {**wanted, **task_parameters(config)}


def load_parameters(checkpoint: Checkpoint) -> Iterator[tuple[str, Source]]:
    """The matrices to be shared, in the order of `parameters_of`."""
    config = checkpoint.config
    assert isinstance(config, OptConfig)
    decoder = "model.decoder"
    yield "table", Stored(checkpoint, f"{decoder}.embed_tokens.weight")
    yield "positions", checkpoint.tensor(f"{decoder}.embed_positions.weight")
    if config.projects:
        yield "embeddings.project", dense(checkpoint, f"{decoder}.project_in")
    for i in range(config.num_layers):
        source, name = f"{decoder}.layers.{i}", f"layers.{i}"
        norms = [
            norm_of(checkpoint, f"{source}.{part}")
            for part in ("self_attn_layer_norm", "final_layer_norm")
        ]
        inner = norms if config.norm_first else [(None, None)] * 2
        names = [f"{source}.self_attn.{part}_proj" for part in ("q", "k", "v")]
        qkv = dense(checkpoint, names, gain=inner[0][0], shift=inner[0][1])
        yield f"{name}.qkv", qkv.scaled(config.head_dim**-0.5, config.hidden_size)
        yield f"{name}.output", dense(checkpoint, f"{source}.self_attn.out_proj")
        up = dense(checkpoint, f"{source}.fc1", gain=inner[1][0], shift=inner[1][1])
        yield f"{name}.up", up
        yield f"{name}.down", dense(checkpoint, f"{source}.fc2")
        if not config.norm_first:
            yield from _norm(f"{name}.attention_norm", norms[0])
            yield from _norm(f"{name}.mlp_norm", norms[1])
    if config.ends_in_norm:
        yield from _norm("norm", norm_of(checkpoint, f"{decoder}.final_layer_norm"))
    if config.projects:
        yield "head.project", dense(checkpoint, f"{decoder}.project_out")
    yield from task_weights(checkpoint)


def _norm(name: str, norm: tuple[Matrix, Matrix]) -> Iterator[tuple[str, Source]]:
    yield f"{name}.gain", norm[0]
    yield f"{name}.shift", norm[1]
