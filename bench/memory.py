"""Memory of a party: predicted from shapes, compared with the exact count (`bench.tools.solo`)."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from bench.tools.harness import Benchmark, Options, Result
from bench.tools.solo import peak_of
from models.configs.reading import LlamaConfig
from models.programs.families import parameters_of
from models.programs.inference import evaluate
from models.programs.memory import footprint
from models.programs.plan import draft_plan
from models.programs.program import Batch, Cache
from models.programs.sharing import hold_parameter
from protocols.base.lane import Lane, Settings
from protocols.base.shares import COMPUTING, Role

WITHIN = 0.25
"""Allowed error of a prediction, as a fraction of the counted peak."""
_NAME = "memory.party"
_LENGTHS = (64, 256, 1024, 2048)
_SEEDS = {Role.DEALER: (1, 2), Role.EVALUATOR_A: (1,), Role.EVALUATOR_B: (2,)}


def small_model(heads: int = 4, *, layers: int = 2, positions: int = 4096) -> LlamaConfig:
    """An architecture whose attention takes more memory than everything else."""
    return LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        num_layers=layers,
        num_heads=heads,
        max_positions=positions,
        bos_token_id=None,
        eos_token_ids=(),
        intermediate_size=128,
        num_kv_heads=heads,
        head_dim=8,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_embeddings=True,
    )


def counted(config: LlamaConfig, batch: Batch, role: Role, settings: Settings | None = None) -> int:
    """Peak bytes of a party that evaluates a batch, without its weights."""
    seeds = {which: os.urandom(32) for which in _SEEDS[role]}
    held: dict[str, Any] = {}
    for number, (name, parameter) in enumerate(parameters_of(config).items()):
        m = None if role.is_dealer else np.zeros(parameter.shape, dtype=np.uint64)
        held[name] = hold_parameter(role, number, parameter, m, seeds)
    plan = draft_plan(config)

    async def program(lane: Lane) -> None:
        await evaluate(lane, plan, held, batch, Cache.empty(config.num_layers))

    return peak_of(role, program, settings)


def compare(config: LlamaConfig, batch: Batch, role: Role) -> Result:
    """One line: predicted and counted."""
    need = footprint(config, batch, dealer=role.is_dealer)
    found = counted(config, batch, role)
    ratio = need.work / found
    return Result(
        _NAME,
        f"{role}, {batch.tokens} tokens, {config.num_heads} heads",
        note=f"predicted {need.work / 1e6:,.0f} MB, counted {found / 1e6:,.0f} MB: {ratio:.2f}; "
        f"dealt ahead {need.waiting / 1e6:,.0f} MB more",
        details={"predicted": need.work, "counted": found, "waiting": need.waiting},
    )


def party(options: Options) -> Iterator[Result]:
    """Lengths at which the whole matrix is the peak, and lengths at which one block is."""
    for tokens in _LENGTHS[:2] if options.quick else _LENGTHS:
        for role in COMPUTING[:2] if options.quick else COMPUTING:
            yield compare(small_model(), Batch((tokens,), "last"), role)
    if not options.quick:
        for role in COMPUTING:
            yield compare(small_model(32), Batch((4096,), "last"), role)


BENCHMARKS = [Benchmark(_NAME, "peak of a party, predicted and counted", party, False)]
