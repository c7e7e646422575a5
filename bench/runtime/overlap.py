"""Separate lanes for attention heads: how much of the transfer they hide, and their cost.

A BERT-base layer's attention (128 tokens, 12 heads of 64, random weights) over actors, with
everything dealt ahead, and the prefill of the demo model.
"""

from collections.abc import Iterator
from typing import Any

import anyio
import numpy as np

from bench.tools.harness import Benchmark, Options, Result, Spread
from bench.tools.parties import Parties, Program
from bench.tools.sharing import share, share_weight
from models.files.locate import demo_model_path
from models.programs.program import Batch
from protocols.base.lane import Lane, Settings
from protocols.base.shares import COMPUTING, Role
from protocols.drivers.observed import Observed, ObservedLane
from protocols.drivers.ops import Heads, Ranges, Span
from protocols.functions.attention import AttentionRange
from puma_actors.api.local import LocalCluster
from puma_actors.profiling.analysis import transfer_of, window_of
from puma_actors.profiling.profile import record, without_upload
from puma_actors.session.recorder import Recorder
from puma_actors.transports.delay.network import PRESETS

NETWORKS = ("lan", "paper", "wan")
_NAME = "overlap"
_RUNS = 3


def _layer(tokens: int, heads: int, size: int) -> dict[Role, Program]:
    """Queries to output projection, with attention between; every party's program."""
    hidden, rng = heads * size, np.random.default_rng(2307)
    ranges = Ranges({}, {"layers.0": AttentionRange(score_bits=8, value_bits=6, rope_frac=0)})
    x = share(rng.normal(size=(tokens, hidden)))
    qkv = share_weight(rng.normal(size=(hidden, 3 * hidden)) * 0.5 / np.sqrt(hidden))
    out = share_weight(rng.normal(size=(hidden, hidden)) / np.sqrt(hidden))
    span = Span(slice(0, tokens), slice(0, tokens), np.ones((tokens, tokens), dtype=np.bool_))

    def program(role: Role) -> Program:
        async def layer(lane: Lane) -> Any:
            assert isinstance(lane, ObservedLane)
            ops = Observed(lane, ranges)
            q, k, v = await ops.project(x[role], qkv[role], "layers.0", Heads(heads, heads, size))
            y = await ops.attention(q, k, v, "layers.0", [span])
            return await ops.linear(y, out[role], "layers.0.output")

        return layer

    return {role: program(role) for role in COMPUTING}


def _result(case: str, seconds: list[float], shares: list[float], details: Any = None) -> Result:
    hidden = float(np.median(shares))
    return Result(
        f"{_NAME}.{case.partition(',')[0]}",
        case,
        Spread.of(seconds),
        note=f"{hidden:.0%} of the transfer hidden",
        details={"hidden_share": hidden, **(details or {})},
    )


async def _attention(options: Options, network: str) -> list[Result]:
    tokens, heads, size = (16, 4, 16) if options.quick else (128, 12, 64)
    programs = _layer(tokens, heads, size)
    recorder, results = Recorder(), []
    async with Parties(network=PRESETS[network], recorder=recorder) as parties:
        for lanes in sorted({1, 2, 4, heads}):
            settings, seconds, shares = Settings(lanes=lanes), [], []
            for _ in range(options.runs(_RUNS) + 1):
                recorder.clear()
                run = await parties.run(programs, settings, dealer_first=True)
                transfer, hidden = transfer_of(recorder, [parties.number])
                seconds.append(run.seconds)
                shares.append(hidden / transfer)
            case = f"attention, {network}, {lanes} lanes"
            cost = {"rounds": run.cost.rounds, "online_bytes": run.cost.online}
            results.append(_result(case, seconds[1:], shares[1:], cost))
    return results


async def _prefill(options: Options, network: str) -> list[Result]:
    recorder, results = Recorder(), []
    tokens = 4 if options.quick else 32
    async with LocalCluster.from_pretrained(
        demo_model_path(), network=without_upload(PRESETS[network]), recorder=recorder
    ) as cluster:
        await record(cluster, Batch((tokens,), "last"), 1)
        for lanes in (1, 3):  # the model has three key heads
            cluster.settings = Settings(lanes=lanes)
            recorder.clear()
            number = await record(cluster, Batch((tokens,), "last"), 1)
            start, end = window_of(recorder, number)
            transfer, hidden = transfer_of(recorder, [number])
            case = f"prefill, {network}, {lanes} lanes"
            results.append(_result(case, [end - start], [hidden / transfer]))
    return results


def attention(options: Options) -> Iterator[Result]:
    for network in NETWORKS:
        yield from anyio.run(_attention, options, network)


def prefill(options: Options) -> Iterator[Result]:
    for network in NETWORKS:
        yield from anyio.run(_prefill, options, network)


BENCHMARKS = [
    Benchmark(f"{_NAME}.attention", "lanes of a BERT-base attention layer", attention, False),
    Benchmark(f"{_NAME}.prefill", "lanes of the demo model's prefill", prefill, False),
]
