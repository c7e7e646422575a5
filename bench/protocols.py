"""Speed, traffic and accuracy of every protocol, with all parties in this process."""

import gc
from collections.abc import Callable, Iterator

import anyio

from bench.tools import workloads
from bench.tools.harness import Benchmark, Options, Repeats, Result
from bench.tools.parties import Parties, Run
from bench.tools.workloads import Workload
from protocols.base.lane import Settings
from protocols.base.shares import COMPUTING, Role

Builder = Callable[[bool], Iterator[Workload]]


def measure(name: str, workload: Workload, options: Options) -> Result:
    """Time a workload: once to warm up, then repeatedly, then with the dealer ahead."""
    roles = (*COMPUTING, Role.CLIENT) if workload.client else COMPUTING
    settings = Settings(approximation=workload.approximation or "tight", tree=workload.tree)
    repeats = Repeats(options)

    async def run() -> tuple[Run, float | None]:
        async with Parties(roles) as parties:
            last = await parties.run(workload.programs(), settings)
            while repeats.wanted():
                del last  # so that only one run's results are held at a time
                gc.collect()
                last = await parties.run(workload.programs(), settings)
                repeats.add(last.seconds)
            if workload.client:  # the dealer's part waits for its message
                return last, None
            ahead = await parties.run(workload.programs(), settings, dealer_first=True)
            return last, ahead.seconds

    last, online = anyio.run(run)
    return Result(
        name,
        workload.case,
        repeats.spread(),
        workload.work,
        workload.unit,
        approximation=workload.approximation,
        online_seconds=online,
        cost=last.cost,
        errors=workload.check(last.results),
        reference=workload.reference,
        note=workload.note,
        details={"tree": workload.tree},
    )


def _benchmark(name: str, summary: str, build: Builder) -> Benchmark:
    full = f"protocols.{name}"

    def run(options: Options) -> Iterator[Result]:
        for workload in build(options.quick):
            yield measure(full, workload, options)

    return Benchmark(full, summary, run)


BENCHMARKS = [
    _benchmark("product", "elementwise product with truncation", workloads.product),
    _benchmark("matmul", "matrix product, weight or two secrets", workloads.matrix_product),
    _benchmark("comparison", "x < 0", workloads.comparison),
    _benchmark("selection", "secret bit times secret number", workloads.selection),
    _benchmark("gelu", "GeLU, every set", workloads.gelu),
    _benchmark("silu", "SiLU, every set", workloads.silu),
    _benchmark("exp", "exp of a negative number, every set", workloads.exponential),
    _benchmark("softmax", "softmax by rows, every set", workloads.softmax),
    _benchmark("norm", "RMSNorm, small and massive activations", workloads.norm),
    _benchmark("reciprocal", "1 / x over fourteen powers of two", workloads.inverse),
    _benchmark("rsqrt", "1 / sqrt(x) over thirty-eight powers of two", workloads.inverse_root),
    _benchmark("embedding", "rows of a secret table at secret indices", workloads.embedding),
    _benchmark("argmax", "best token of a secret row of logits", workloads.largest),
]
