"""Small models of any family, shared among the three parties and run in lockstep."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from helpers import A, B, D, generator
from numpy.typing import NDArray
from tiny_models import save
from tiny_models import tiny_model as torch_model

from models.checkpoints.weights import open_checkpoint
from models.configs.architecture import ModelConfig
from models.configs.reading import LlamaConfig
from models.owner.calibrate import calibrate
from models.programs.families import load_parameters, parameters_of
from models.programs.inference import ask, evaluate
from models.programs.plan import Plan
from models.programs.program import Batch, Cache, Rows
from models.programs.sharing import hold_parameter, mask_parameter
from protocols.base.lane import Lane, Settings
from protocols.base.shares import COMPUTING, Role
from protocols.drivers.lockstep import Outcome, run_parties

Values = dict[str, NDArray[np.floating[Any]]]


def tiny_config(
    *, heads: int = 4, key_heads: int = 2, layers: int = 2, tied: bool = True, vocab: int = 40
) -> LlamaConfig:
    """An architecture small enough for a lockstep run."""
    return LlamaConfig(
        vocab_size=vocab,
        hidden_size=32,
        num_layers=layers,
        num_heads=heads,
        max_positions=64,
        bos_token_id=None,
        eos_token_ids=(),
        intermediate_size=48,
        num_kv_heads=key_heads,
        head_dim=8,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_embeddings=tied,
    )


def random_values(config: ModelConfig, seed: int = 0) -> Values:
    """Random weights of the usual sizes."""
    rng = generator(seed)
    return {
        name: np.abs(rng.normal(size=p.shape)) + 0.5
        if p.kind == "gain"
        else rng.normal(size=p.shape) * (p.shape[0] ** -0.5 if p.kind == "weight" else 0.5)
        for name, p in parameters_of(config).items()
    }


def family_values(
    model_type: str, head: str, folder: Path, **changes: Any
) -> tuple[ModelConfig, Values]:
    """Configuration and weights, as they are shared, of a model that transformers made."""
    with open_checkpoint(save(torch_model(model_type, head, **changes), folder)) as checkpoint:
        return checkpoint.config, dict(load_parameters(checkpoint))


@dataclass
class TinyModel:
    """Weights of an architecture, its plan, and what each computing party holds of it."""

    config: ModelConfig
    plan: Plan
    floats: Values
    held: dict[Role, dict[str, Any]] = field(repr=False)


def tiny_model(config: ModelConfig, seed: int = 0) -> TinyModel:
    """Share a model with random weights of the usual sizes."""
    return share_model(config, random_values(config, seed))


def share_model(config: ModelConfig, values: Mapping[str, Any]) -> TinyModel:
    """Prove a model's ranges and share its weights.

    Raises:
        RangeError: it has none, or a weight is too large.
    """
    plan = calibrate(config, values)
    seeds = {1: os.urandom(32), 2: os.urandom(32)}
    known = {D: (1, 2), A: (1,), B: (2,), Role.TRACE: ()}
    held: dict[Role, dict[str, Any]] = {role: {} for role in known}
    for number, (name, p) in enumerate(parameters_of(config).items()):
        m = mask_parameter(name, number, p.kind, values[name], [seeds[1], seeds[2]])
        for role, which in known.items():
            sent = m if role in (A, B) else None
            held[role][name] = hold_parameter(role, number, p, sent, {w: seeds[w] for w in which})
    return TinyModel(config, plan, dict(values), held)


@dataclass
class Generation:
    """What the client got: one array of results (or of token indices) a chunk; and the run."""

    chunks: list[NDArray[np.float64]]
    outcome: Outcome


def batches_of(chunks: Sequence[Sequence[int]], rows: Rows = "all") -> list[Batch]:
    """One sequence a step."""
    return [Batch((len(chunk),), rows) for chunk in chunks]


async def steps(lane: Lane, model: TinyModel, batches: Sequence[Batch]) -> None:
    """What a computing party (or a tracing lane) runs for batches that share a cache."""
    cache = Cache.empty(model.config.num_layers)
    for strand, batch in zip(lane.fork(len(batches)), batches, strict=True):
        strand.clock = lane.clock
        await evaluate(strand, model.plan, model.held[lane.role], batch, cache)
        lane.join([strand])


def infer(
    model: TinyModel,
    chunks: Sequence[Sequence[int]],
    settings: Settings | None = None,
    *,
    rows: Rows = "all",
    batches: Sequence[Batch] | None = None,
) -> Generation:
    """Feed chunks of token ids, one after the other with one cache (prefill, then decode).

    Args:
        batches: what each chunk is; default: one sequence, of which `rows` are wanted.
    """
    wanted = batches_of(chunks, rows) if batches is None else batches

    async def client(lane: Lane) -> list[Any]:
        strands = lane.fork(len(chunks))
        return [
            await ask(strand, model.config, batch, chunk)
            for strand, batch, chunk in zip(strands, wanted, chunks, strict=True)
        ]

    programs: dict[Role, Any] = dict.fromkeys(COMPUTING, lambda lane: steps(lane, model, wanted))
    programs[Role.CLIENT] = client
    outcome = run_parties(programs, settings or Settings())
    return Generation(outcome.results[Role.CLIENT], outcome)


def infer_batch(
    model: TinyModel,
    sequences: Sequence[Sequence[int]],
    rows: Rows = "all",
    settings: Settings | None = None,
    types: tuple[int, ...] | None = None,
) -> NDArray[np.float64]:
    """The secure result for sequences of any lengths at once."""
    batch = Batch(tuple(len(ids) for ids in sequences), rows, types)
    joined = [token for ids in sequences for token in ids]
    return infer(model, [joined], settings, batches=[batch]).chunks[0]
