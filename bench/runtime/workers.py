"""A party's products at 1, 2 and 4 Dask workers of this machine, beside those in its own process.

The matrices are those of layers like LLaMA's, as evaluator A holds them. Results are compared, to
the bit. What a call costs beyond the product is measured with a matrix that has next to no words.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import numpy as np

from bench.runtime.hosts import free_ports
from bench.tools.harness import Benchmark, Options, Result, Spread
from protocols.base.prf import Stream
from protocols.base.ring import Words
from protocols.base.shares import Role
from protocols.kernels.matmul import matmul_into
from protocols.streamed import Streamed
from puma_actors.base.certs import create_authority, issue
from puma_actors.base.compute import Compute
from puma_actors.base.identity import PeerIdentity
from puma_actors.hosts.workers.connection import Connection
from puma_actors.hosts.workers.placement import Placed, Placement
from puma_actors.hosts.workers.settings import Reach

_NAME = "waiting.dask"
_ROLE, _HOST = Role.EVALUATOR_A, "127.0.0.1"
_HIDDEN, _INNER, _LAYERS = 2048, 5632, 2
_SMALL = (64, 8)
_KEY, _WORDS = b"k" * 16, b"w" * 16
_WORKERS, _ROWS = (1, 2, 4), (1, 8)
_SILENCE = 60.0

Product = Callable[[Words], Awaitable[Words]]


def shapes(hidden: int, inner: int, layers: int) -> list[tuple[int, int]]:
    """The matrices of a token's products, in their order: four a layer."""
    layer = [(hidden, 3 * hidden), (hidden, hidden), (hidden, 2 * inner), (inner, hidden)]
    return layers * layer


@dataclass(frozen=True)
class _Expanded:
    """Masked words that are made while they are read. Each matrix has its own place."""

    first: int

    def expect(self) -> None:
        """As `MaskedWords`."""

    def read(self, start: int, out: Words) -> None:
        """As `MaskedWords`."""
        out[:] = Stream(_WORDS, self.first + start).words(out.shape)


def _in_memory(shape: tuple[int, int], masked: _Expanded) -> Words:
    """A factor, as a party holds it that has no workers."""
    factor = Streamed(_ROLE, shape, (_KEY,), masked)
    return np.concatenate([panel.copy() for _, panel in factor.panels()])


@contextmanager
def machines(folder: Path) -> Iterator[tuple[Reach, Callable[[int], None]]]:
    """A scheduler over TLS, and what starts more workers. They end with the block."""
    create_authority(folder)
    for name in ("scheduler", "worker", "party"):
        issue(folder, PeerIdentity(_ROLE, name), [_HOST])
    (port,) = free_ports(1)
    address = f"tls://{_HOST}:{port}"
    running: list[subprocess.Popen[bytes]] = []

    def start(kind: str, *arguments: str) -> None:
        pair = folder / f"{_ROLE}.{kind}"
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *arguments]
        command += ["--host", _HOST, "--no-dashboard", "--dashboard-address", f"{_HOST}:0"]
        command += ["--tls-ca-file", f"{folder}/ca.pem"]
        command += ["--tls-cert", f"{pair}.pem", "--tls-key", f"{pair}.key"]
        environment = {**os.environ, "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "True"}
        with (folder / f"{kind}-{len(running)}.log").open("wb") as log:
            running.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))

    def workers(count: int) -> None:
        for _ in range(count):
            start(
                "worker", address, "--no-nanny", "--nthreads", "1",
                "--local-directory", str(folder),
            )  # fmt: skip

    try:
        start("scheduler", "--port", str(port), "--protocol", "tls")
        pair = folder / f"{_ROLE}.party"
        tls = (folder / "ca.pem", pair.with_name(f"{pair.name}.pem"), folder / f"{pair.name}.key")
        yield Reach(address, _ROLE, f"{_ROLE} 'bench'", tls, _SILENCE), workers
    finally:
        for process in running:
            process.kill()
            process.wait()


async def _timed(
    products: list[Product], inputs: list[Words], options: Options
) -> tuple[Spread, list[Words]]:
    """Seconds of all products, one after the other, and their results."""
    found, seconds = [], []
    for _ in range(options.runs(7) + 1):  # the first run is not counted
        start = time.perf_counter()
        found = [await product(x) for product, x in zip(products, inputs, strict=True)]
        seconds.append(time.perf_counter() - start)
    return Spread.of(seconds[1:]), found


def _local(factor: Words, compute: Compute) -> Product:
    async def product(x: Words) -> Words:
        out = np.empty((x.shape[0], factor.shape[1]), dtype=np.uint64)
        await compute.offload(matmul_into, x, factor, out, 0, out.shape[1])
        return out

    return product


async def _placed(
    connection: Connection, count: int, wanted: list[tuple[int, int]]
) -> list[Placed]:
    """All matrices, and last the one with next to no words."""
    while len(await connection.workers()) < count:
        await anyio.sleep(0.1)
    found = list(await connection.workers())
    actors = {each: await connection.actor(each) for each in found}
    for actor in actors.values():
        await actor.call("program")  # loads the kernels
    placement = Placement(_ROLE, connection, actors, Compute(1))
    del actors
    return [
        await placement.put(number, shape, _Expanded(number << 32), [_KEY])
        for number, shape in enumerate([*wanted, _SMALL])
    ]


async def _measure(folder: Path, options: Options) -> list[Result]:
    wanted = shapes(256, 512, 1) if options.quick else shapes(_HIDDEN, _INNER, _LAYERS)
    words = sum(rows * columns for rows, columns in wanted)
    rng, compute, results = np.random.default_rng(1), Compute(1), []
    inputs = {
        rows: [rng.integers(0, 2**64, (rows, shape[0]), dtype=np.uint64) for shape in wanted]
        for rows in _ROWS
    }
    alone: dict[int, tuple[Spread, list[Words]]] = {}
    factors = [_in_memory(shape, _Expanded(each << 32)) for each, shape in enumerate(wanted)]
    for rows in _ROWS:
        local = [_local(factor, compute) for factor in factors]
        alone[rows] = await _timed(local, inputs[rows], options)
        results.append(_result("no workers", rows, alone[rows][0], words, len(wanted), None, None))
    del factors, local
    with machines(folder) as (reach, start):
        connection = await Connection.open(reach)
        try:
            for before, count in zip((0, *_WORKERS), _WORKERS, strict=False):
                start(count - before)
                *held, small = await _placed(connection, count, wanted)
                tiny = [np.zeros((1, _SMALL[0]), dtype=np.uint64)] * 100
                call, _ = await _timed([small.matmul] * len(tiny), tiny, options)
                for rows in _ROWS:
                    seconds, found = await _timed([h.matmul for h in held], inputs[rows], options)
                    for one, other in zip(found, alone[rows][1], strict=True):
                        np.testing.assert_array_equal(one, other)
                    of = f"{count} worker{'s' * (count > 1)}"
                    each, base = call.median / len(tiny), alone[rows][0].median
                    results.append(_result(of, rows, seconds, words, len(held), each, base))
                del held, small
        finally:
            await connection.aclose()
    return results


def _result(
    who: str,
    rows: int,
    seconds: Spread,
    words: int,
    calls: int,
    call: float | None,
    alone: float | None,
) -> Result:
    """`call`: seconds of a call that multiplies next to nothing. `alone`: without workers."""
    details: dict[str, float] = {"words": words, "calls": calls, "rows": rows}
    note = f"{words / 1e6:.0f} M weights in {calls} products"
    if call is not None and alone is not None:
        details |= {"call_seconds": call, "times_alone": seconds.median / alone}
        note = f"a call {1e3 * call:.2f} ms, of all {100 * calls * call / seconds.median:.0f} %"
    case = f"{who}, {'a token' if rows == 1 else f'{rows} tokens at once'}"
    return Result(_NAME, case, seconds, rows * words, "multiply-adds", note=note, details=details)


def predicted(
    weights: float, machines: int, calls: int, call: float, bandwidth: float
) -> tuple[float, float]:
    """On paper: seconds a token takes one party for its products, and bytes at each machine.

    calls x (time of a call) + 8 bytes x weights / (machines x bytes a second that one multiplies).

    Args:
        call: seconds of a call, without its product. bandwidth: bytes of words that one machine
            multiplies by in a second, for one row.
    """
    each = 8 * weights / machines
    return calls * call + each / bandwidth, each


def products(options: Options) -> Iterator[Result]:
    """All of it, in one run; the last line is a prediction from it."""
    with tempfile.TemporaryDirectory(prefix="puma-") as name:
        results = anyio.run(_measure, Path(name), options)
    yield from results
    last = results[-len(_ROWS)]  # the most workers, a token
    assert last.seconds is not None
    seconds, calls = last.seconds.median, int(last.details["calls"])
    call = float(last.details["call_seconds"])
    bandwidth = 8 * float(last.details["words"]) / max(1e-9, seconds - calls * call)
    total, each = predicted(70e9, 4, 4 * 80 + 1, call, bandwidth)
    yield Result(
        _NAME,
        "predicted: 4 such machines, 70 G weights, 80 layers, a token",
        note=f"{total:.1f} s: 321 calls of {1e3 * call:.2f} ms, and {each / 1e9:.0f} GB at each "
        f"machine at {bandwidth / 1e9:.1f} GB/s",
        details={"seconds": total, "bytes_each": each, "bandwidth": bandwidth, "call": call},
    )


BENCHMARKS = [Benchmark(_NAME, "products at 1, 2 and 4 Dask workers", products, False)]
