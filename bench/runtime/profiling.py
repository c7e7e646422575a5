"""The cost of recording: the same decode steps with and without the profiler, in turn."""

import gc
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import anyio

from bench.tools.harness import Benchmark, Options, Result, Spread
from models.files.locate import demo_model_path
from models.programs.program import Batch
from puma_actors.api.local import LocalCluster
from puma_actors.profiling.profile import without_upload
from puma_actors.session.recorder import Recorder
from puma_actors.transports.delay.network import parse_network

ALLOWED = 0.03
"""Allowed overhead, as a fraction of a step's time."""
_NAME = "waiting.profile"
_PROMPT = 8
_STEPS = 4
_TURNS = 12
_NETWORKS = (None, "lan", "paper")
"""On slower networks the cost of recording disappears in the waiting time."""


async def _steps(cluster: LocalCluster, count: int) -> float:
    """Average seconds per decode step."""
    client = cluster.client
    batch = Batch((_PROMPT,), "last")
    settings = cluster.choose(batch, 1 + count).settings
    inference = await client.begin(batch, 1 + count, settings)
    try:
        await client.step(inference, list(range(_PROMPT)))
        gc.collect()
        started = time.perf_counter()
        for step in range(count):
            await client.step(inference, [step])
        return (time.perf_counter() - started) / count
    finally:
        await client.end(inference)


async def compare(
    model: Path, steps: int, turns: int, network: str | None = None
) -> tuple[list[float], list[float]]:
    """Seconds per step, recorded and not. The order alternates from turn to turn."""
    recorder = Recorder(network=network is not None)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    behind = without_upload(parse_network(network))
    async with LocalCluster.from_pretrained(model, network=behind) as cluster:
        await _steps(cluster, 1)
        for turn in range(turns):
            for on in (True, False) if turn % 2 else (False, True):
                cluster.observe(recorder if on else None)
                seconds[on].append(await _steps(cluster, steps))
                recorder.clear()
    return seconds[True], seconds[False]


def profile(options: Options) -> Iterator[Result]:
    steps, turns = (1 if options.quick else _STEPS), options.runs(_TURNS)
    for network in _NETWORKS[:1] if options.quick else _NETWORKS:
        on, off = anyio.run(compare, demo_model_path(), steps, turns, network)
        ratios = [recorded / plain for recorded, plain in zip(on, off, strict=True)]
        overhead = statistics.median(ratios) - 1
        note = f"{overhead:+.1%} (median of {len(ratios)} pairs), {ALLOWED:.0%} allowed"
        place = f"under {network}" if network else "without a network"
        yield Result(_NAME, f"a decode step, {place}", Spread.of(off))
        details = {"overhead": overhead, "ratios": ratios, "allowed": ALLOWED}
        yield Result(_NAME, f"recorded, {place}", Spread.of(on), note=note, details=details)


BENCHMARKS = [Benchmark(_NAME, "what recording a decode step costs", profile, False)]
