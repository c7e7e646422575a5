"""The GPT-2 family as a program over `Ops`: LayerNorm before each block, learned positions."""

from collections.abc import Iterator

from models.checkpoints.checkpoint import Checkpoint
from models.configs.decoders.gpt2 import Gpt2Config
from models.programs.folding import Source, Stored, dense, norm_of
from models.programs.head_layers import finish, task_parameters, task_weights
from models.programs.plan import Parameter
from models.programs.program import Batch, Cache, norm_after, spans_of
from protocols.drivers.ops import Heads, Ops, Parameters, Tensor
from protocols.functions.normalize import Norm


async def forward(
    ops: Ops, config: Gpt2Config, parameters: Parameters, batch: Batch, cache: Cache
) -> Tensor:
    """The head's output for the batch's tokens, which extend the cache."""
    start, hidden = cache.length, config.hidden_size
    heads = Heads(config.num_heads, config.num_heads, config.head_dim)
    norm = Norm(hidden, config.layer_norm_eps, center=True)

    x = await ops.embed(parameters["table"], batch.tokens, hidden)  # (tokens, hidden)
    x = ops.add(x, ops.take(parameters["positions"], batch.positions(start)))
    for i in range(config.num_layers):
        name = f"layers.{i}"
        y = await ops.norm(x, f"{name}.attention_norm", norm)
        q, k, v = await ops.project(y, parameters[f"{name}.qkv"], name, heads)
        k, v = cache.extend(ops, i, k, v)  # (heads, context, size)
        wanted = None
        if i == config.num_layers - 1 and batch.takes_one:
            wanted = batch.wanted  # the other rows are not used
            x, q = ops.take(x, wanted), ops.heads_at(q, wanted)
        spans = spans_of(batch, start, causal=True, wanted=wanted)
        y = await ops.attention(q, k, v, name, spans)  # (tokens, hidden)
        y = await ops.linear(y, parameters[f"{name}.output"], f"{name}.output")
        x = await ops.residual(f"{name}.mlp_norm", norm, x, y)
        y = await ops.norm(x, f"{name}.mlp_norm", norm)
        y = await ops.dense(y, parameters[f"{name}.up"], f"{name}.up", config.hidden_act)
        y = await ops.linear(y, parameters[f"{name}.down"], f"{name}.down")
        x = await ops.residual(norm_after(config, i), norm, x, y)
    cache.length += batch.tokens

    x = await ops.norm(x, "norm", norm, parameters["norm.gain"], parameters["norm.shift"])
    return await finish(ops, config, parameters, x, batch)


def parameters_of(config: Gpt2Config) -> dict[str, Parameter]:
    """Name -> kind and shape of every shared tensor, in upload order."""
    hidden, inner = config.hidden_size, config.intermediate_size
    wanted = {
        "table": Parameter("table", (config.vocab_size, hidden)),
        "positions": Parameter("rows", (config.max_positions, hidden)),
    }
    for i in range(config.num_layers):
        wanted[f"layers.{i}.qkv"] = Parameter("weight", (hidden + 1, 3 * hidden))
        wanted[f"layers.{i}.output"] = Parameter("weight", (hidden + 1, hidden))
        wanted[f"layers.{i}.up"] = Parameter("weight", (hidden + 1, inner))
        wanted[f"layers.{i}.down"] = Parameter("weight", (inner + 1, hidden))
    wanted["norm.gain"] = Parameter("gain", (hidden,))
    wanted["norm.shift"] = Parameter("rows", (hidden,))
    return {**wanted, **task_parameters(config)}


def load_parameters(checkpoint: Checkpoint) -> Iterator[tuple[str, Source]]:
    """The matrices to be shared, in the order of `parameters_of`."""
    config = checkpoint.config
    assert isinstance(config, Gpt2Config)
    yield "table", Stored(checkpoint, "transformer.wte.weight")
    yield "positions", checkpoint.tensor("transformer.wpe.weight")
    for i in range(config.num_layers):
        source, name = f"transformer.h.{i}", f"layers.{i}"
        gain, shift = norm_of(checkpoint, f"{source}.ln_1")
        qkv = dense(checkpoint, f"{source}.attn.c_attn", gain=gain, shift=shift, turned=False)
        yield f"{name}.qkv", qkv.scaled(config.attention_scale(i), config.hidden_size)
        yield f"{name}.output", dense(checkpoint, f"{source}.attn.c_proj", turned=False)
        gain, shift = norm_of(checkpoint, f"{source}.ln_2")
        up = dense(checkpoint, f"{source}.mlp.c_fc", gain=gain, shift=shift, turned=False)
        yield f"{name}.up", up
        yield f"{name}.down", dense(checkpoint, f"{source}.mlp.c_proj", turned=False)
    gain, shift = norm_of(checkpoint, "transformer.ln_f")
    yield "norm.gain", gain
    yield "norm.shift", shift
    yield from task_weights(checkpoint)
