"""The demo model from file to token, all five roles in this process."""

import gc
import time
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio

from bench.tools.harness import Benchmark, Options, Result, Spread
from bench.tools.peaks import peak_bytes
from bench.tools.reference import PUMA_PAPER, SPU_GPT2
from models.files.locate import demo_model_path
from models.programs.plan import Plan
from models.programs.predict import predict
from models.programs.steps import StepSettings
from protocols.base.cost import Cost
from puma_actors.api.local import LocalCluster

PREFILL = 32
CONTEXT = 64
_NAME = "model.demo"
_LOADS, _PREFILLS, _STEPS = 2, 3, 5
_SPARE = 3
"""Steps requested beyond those timed: the dealer is always ahead, as in a long answer."""
_CLEAR_REFS = Path("/proc/self/clear_refs")


def reset_peak() -> bool:
    """Reset the process's peak memory, if the system can (Linux)."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def tokens_of(cluster: LocalCluster, count: int) -> list[int]:
    """`count` token ids of running text."""
    text = (
        "The three computing parties hold shares of every weight and of every activation, and "
        "none of them alone learns anything about the question or about the answer. The dealer "
        "sends correlated randomness ahead of time, so that the evaluators exchange no more "
        "than one short message for each product, comparison or selection."
    )
    ids = cluster.encode(text, raw=True)
    return (ids * (count // len(ids) + 1))[:count]


def layer_cost(plan: Plan, tokens: int, decode: int, settings: StepSettings) -> Cost:
    """Cost of one whole layer in the last step: the difference to a model with one layer fewer."""
    layers = plan.config.num_layers - 1
    shorter = Plan(replace(plan.config, num_layers=layers), plan.ranges)
    more = predict(plan, tokens, decode, settings)[-1].cost
    less = predict(shorter, tokens, decode, settings)[-1].cost
    return Cost(more.rounds - less.rounds, more.online - less.online, more.offline - less.offline)


def _cost_json(cost: Cost) -> dict[str, int]:
    return {"rounds": cost.rounds, "online_bytes": cost.online, "offline_bytes": cost.offline}


async def _prefills(cluster: LocalCluster, options: Options) -> Result:
    ids = tokens_of(cluster, PREFILL)
    seconds = []
    for _ in range(options.runs(_PREFILLS)):
        async for _token in cluster.generate(ids, max_new_tokens=1):
            pass
        seconds.append(cluster.usage.seconds["prefill"])
    layer = layer_cost(cluster.plan, PREFILL, 0, cluster.usage.settings)
    return Result(
        _NAME,
        f"prefill of {PREFILL} tokens",
        Spread.of(seconds),
        PREFILL,
        "tokens",
        approximation=cluster.settings.approximation,
        cost=cluster.usage.steps[0],
        details={"per_layer": _cost_json(layer)},
    )


async def _decode(cluster: LocalCluster, options: Options) -> Result:
    count = 2 if options.quick else options.repeat or _STEPS
    prompt = tokens_of(cluster, CONTEXT - 1 - count // 2)
    seconds: list[float] = []
    async with aclosing(cluster.generate(prompt, max_new_tokens=1 + count + _SPARE)) as tokens:
        started = 0.0
        async for _token in tokens:
            now = time.perf_counter()
            if started:
                seconds.append(now - started)
            if len(seconds) == count:
                break
            started = time.perf_counter()
    if not seconds:
        raise RuntimeError("the model ended its answer at once: no decode step to time")
    middle = len(seconds) // 2
    layer = layer_cost(cluster.plan, len(prompt), middle + 1, cluster.usage.settings)
    contexts = [len(prompt) + 1, len(prompt) + len(seconds)]
    return Result(
        _NAME,
        f"decode at a context of {CONTEXT}",
        Spread.of(seconds),
        1,
        "tokens",
        approximation=cluster.settings.approximation,
        cost=cluster.usage.steps[1 + middle],
        details={"per_layer": _cost_json(layer), "contexts": contexts},
    )


def _loading(sessions: list[dict[str, float]]) -> Iterator[Result]:
    """Results of loading and sharing, from the seconds of each session by phase."""
    load = ("kernels", "load", "calibrate")
    parts: dict[str, Any] = {
        phase: Spread.of([session[phase] for session in sessions]).median for phase in load
    }
    loaded = Spread.of([sum(session[phase] for phase in load) for session in sessions])
    yield Result(_NAME, "load the model", loaded, details={"median_by_phase": parts})
    yield Result(_NAME, "share the weights", Spread.of([session["share"] for session in sessions]))


async def _session(path: Path, options: Options | None) -> tuple[dict[str, float], list[Result]]:
    """Load and share; with options also prefill and decode."""
    results = []
    async with LocalCluster.from_pretrained(path) as cluster:
        if options is not None:
            results = [await _prefills(cluster, options), await _decode(cluster, options)]
        return dict(cluster.seconds), results


async def _measure(options: Options) -> list[Result]:
    path = demo_model_path()
    sessions: list[dict[str, float]] = []
    for _ in range(options.runs(_LOADS) - 1):
        sessions.append((await _session(path, None))[0])
        gc.collect()  # a cluster is full of reference cycles, and takes 5 GB
    reset = reset_peak()
    seconds, results = await _session(path, options)
    sessions.append(seconds)
    details = {
        "peak_rss_bytes": peak_bytes(),
        "peak_is_of_this_benchmark": reset,
        "model": path.name,
        "published": [SPU_GPT2, PUMA_PAPER],
    }
    memory = Result(_NAME, "peak memory, all five roles", details=details)
    return [*_loading(sessions), *results, memory]


def demo(options: Options) -> Iterator[Result]:
    yield from anyio.run(_measure, options)


BENCHMARKS = [Benchmark(_NAME, "demo model: load, share, prefill, decode, peak memory", demo)]
