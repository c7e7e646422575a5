"""Accuracy and cost of every function in every set of approximations.

Errors are those of the protocol on shares, fixed point included, against float64.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from bench.tools import workloads
from bench.tools.harness import Benchmark, Options, Result, Spread
from bench.tools.reference import PAPER_ERRORS
from bench.tools.sharing import Reals, share
from bench.tools.workloads import NARROW, Workload, away_from
from protocols.base.lane import APPROXIMATIONS, Lane, Settings
from protocols.base.shares import SecretTensor
from protocols.drivers.lockstep import run_parties
from protocols.functions.activations import ACTIVATIONS, activate
from protocols.functions.elementary import exp_negative

_COUNT, _FEW = 100_000, 2_000
_COLUMNS = 128
_REACH = 17.0

Inputs = dict[str, Reals]


def _rng() -> np.random.Generator:
    return np.random.default_rng(2307_12533)


def _activation_inputs(name: str, count: int) -> Inputs:
    """A grid over the function's bent part, and typical inputs in real models."""
    rng = _rng()
    inputs = {f"grid, |x| <= {_REACH:g}": np.linspace(-_REACH, _REACH, count)}
    if name in ("gelu", "gelu_new", "quick_gelu"):
        inputs["N(0, 1.5), as in BERT"] = rng.normal(0, 1.5, count)
    elif name == "silu":
        wide = rng.random(count) < 0.05
        gates = np.where(wide, rng.normal(0, 6, count), rng.normal(-0.5, 1.2, count))
        inputs["0.95 N(-0.5, 1.2) + 0.05 N(0, 6), as gates are"] = gates
    elif name == "tanh":
        inputs["N(0, 1), as in BERT's pooler"] = rng.normal(0, 1, count)
    return inputs


def _activation(name: str) -> Callable[[bool], Iterator[Workload]]:
    activation = ACTIVATIONS[name]

    async def function(lane: Lane, x: SecretTensor) -> SecretTensor:
        return await activate(lane, x, activation)

    def build(small: bool) -> Iterator[Workload]:
        for case, x in _activation_inputs(name, _FEW if small else _COUNT).items():
            check = away_from(activation.exact(x))
            base = Workload(case, function, (share(x, width=NARROW),), check, x.size)
            yield from (replace(base, approximation=kind) for kind in APPROXIMATIONS)

    return build


def _exponential(small: bool) -> Iterator[Workload]:
    count = _FEW if small else _COUNT
    scores = _rng().normal(0, 3, (count // _COLUMNS, _COLUMNS))
    shifted = (scores - scores.max(axis=-1, keepdims=True)).reshape(-1)
    inputs = {
        "grid, -16 .. 0": np.linspace(-16, 0, count),
        f"rows of {_COLUMNS} from N(0, 3), less their maximum": shifted,
    }
    for case, x in inputs.items():
        base = Workload(case, exp_negative, (share(x, width=32),), away_from(np.exp(x)), x.size)
        yield from (replace(base, approximation=kind) for kind in APPROXIMATIONS)


def _softmax(small: bool) -> Iterator[Workload]:
    for workload in workloads.softmax(small):
        if workload.tree != "traffic":
            yield replace(workload, case=f"{workload.case}, scores N(0, 3)")


def measure(name: str, workload: Workload) -> Result:
    """One run in lockstep: errors, cost, and the seconds of the three parties in turn."""
    settings = Settings(
        approximation=workload.approximation or APPROXIMATIONS[0], tree=workload.tree
    )
    started = time.perf_counter()
    outcome = run_parties(workload.programs(), settings)
    seconds = time.perf_counter() - started
    known = PAPER_ERRORS.get(name.partition(".")[2])
    paper = known.to_json() if known and workload.approximation == "puma" else None
    return Result(
        name,
        workload.case,
        Spread.of([seconds]),
        workload.work,
        workload.unit,
        approximation=workload.approximation,
        cost=outcome.cost,
        errors=workload.check(outcome.results),
        details={"paper": paper},
    )


def _benchmark(name: str, build: Callable[[bool], Iterator[Workload]]) -> Benchmark:
    full = f"errors.{name}"

    def run(options: Options) -> Iterator[Result]:
        for workload in build(options.quick):
            yield measure(full, workload)

    return Benchmark(full, f"accuracy and cost of {name}", run)


BENCHMARKS = [
    *(
        _benchmark(name, _activation(name))
        for name in dict.fromkeys(each.name for each in ACTIVATIONS.values())
    ),
    _benchmark("exp", _exponential),
    _benchmark("reciprocal", workloads.inverse),
    _benchmark("rsqrt", workloads.inverse_root),
    _benchmark("softmax", _softmax),
    _benchmark("rms_norm", workloads.norm),
]
