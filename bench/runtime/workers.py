"""A party's products at 1, 2 and 4 Dask workers of this machine, beside those in its own process.

The matrices are those of layers like LLaMA's, as evaluator A holds them. Results are compared, to
the bit. What a call costs beyond the product is measured with a matrix that has next to no words.
"""

import os
import statistics
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
from protocols.base.prf import Stream, add_stream
from protocols.base.ring import Words
from protocols.base.shares import Role
from protocols.kernels.matmul import matmul_into
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
    words = np.empty(shape, dtype=np.uint64)
    masked.read(0, words.reshape(-1))
    add_stream(_KEY, 0, -2, words.reshape(-1))
    return words


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


async def _all(products: list[Product], inputs: list[Words]) -> tuple[float, list[Words]]:
    """Seconds of all products, one after the other, and their results."""
    start = time.perf_counter()
    found = [await product(x) for product, x in zip(products, inputs, strict=True)]
    return time.perf_counter() - start, found


async def _call_seconds(product: Product, options: Options) -> float:
    """The median of calls that multiply by next to nothing."""
    x = [np.zeros((1, _SMALL[0]), dtype=np.uint64)]
    return statistics.median([(await _all([product], x))[0] for _ in range(options.runs(200))])


async def _side_by_side(
    alone: list[Product], away: list[Product], inputs: list[Words], options: Options
) -> tuple[list[float], list[float]]:
    """Seconds of all products in this process and at the workers, in turn: whatever else the
    machine does, it does to both. The first of each is not counted.
    """
    here, there = [], []
    for _ in range(options.runs(7) + 1):
        for products, seconds in ((alone, here), (away, there)):
            taken, found = await _all(products, inputs)
            seconds.append(taken)
            if products is alone:
                wanted = found
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one, other)
    return here[1:], there[1:]


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
    rng, compute, results = np.random.default_rng(1), Compute(1), []
    inputs = {
        rows: [rng.integers(0, 2**64, (rows, shape[0]), dtype=np.uint64) for shape in wanted]
        for rows in _ROWS
    }
    local = [
        _local(_in_memory(shape, _Expanded(each << 32)), compute)
        for each, shape in enumerate(wanted)
    ]
    with machines(folder) as (reach, start):
        connection = await Connection.open(reach)
        try:
            for before, count in zip((0, *_WORKERS), _WORKERS, strict=False):
                start(count - before)
                *held, small = await _placed(connection, count, wanted)
                call = await _call_seconds(small.matmul, options)
                for rows in _ROWS:
                    away = [each.matmul for each in held]
                    here, there = await _side_by_side(local, away, inputs[rows], options)
                    results += _results(count, rows, wanted, here, there, call)
                del held, small, away
        finally:
            await connection.aclose()
    return results


def _results(
    count: int,
    rows: int,
    wanted: list[tuple[int, int]],
    here: list[float],
    there: list[float],
    call: float,
) -> Iterator[Result]:
    words = sum(depth * columns for depth, columns in wanted)
    calls, of = len(wanted), "a token" if rows == 1 else f"{rows} tokens at once"
    ratio = statistics.median(one / other for one, other in zip(there, here, strict=True))
    yield Result(_NAME, f"no workers, {of}", Spread.of(here), rows * words, "multiply-adds")
    yield Result(
        _NAME,
        f"{count} worker{'s' * (count > 1)}, {of}",
        Spread.of(there),
        rows * words,
        "multiply-adds",
        note=f"{ratio:.2f} x the time without; {calls} calls of {1e3 * call:.2f} ms each besides "
        "the product",
        details={
            "workers": count, "rows": rows, "words": words, "calls": calls, "call_seconds": call,
            "ratio": ratio,
        },
    )  # fmt: skip


_LARGE = [*80 * [(8192, 10240), (8192, 8192), (8192, 57344), (28672, 8192)], (8192, 32000)]
"""The matrices of LLaMA-2-70B."""
_NETWORK = 1.25e9
"""Bytes a second: 10 Gbit/s."""


def predicted(
    wanted: list[tuple[int, int]], machines: int, call: float, bandwidth: float
) -> tuple[float, float, float]:
    """On paper: seconds of one party's products for a token, on machines with a network between.

    Args:
        call: seconds of a call besides its product. bandwidth: bytes of words that a machine
            multiplies by in a second.

    Returns:
        len(wanted) * call; 8 * weights / machines / bandwidth; and
        8 * machines * columns / network, which all machines send back to the party.
    """
    weights = sum(depth * columns for depth, columns in wanted)
    back = machines * sum(columns for _, columns in wanted)
    return len(wanted) * call, 8 * weights / machines / bandwidth, 8 * back / _NETWORK


def products(options: Options) -> Iterator[Result]:
    """All of it, in one run; the last line is a prediction from it."""
    with tempfile.TemporaryDirectory(prefix="puma-") as name:
        results = anyio.run(_measure, Path(name), options)
    yield from results
    tokens = [each for each in results if each.details.get("rows") == 1]
    call = float(tokens[-1].details["call_seconds"])  # of the most workers
    bandwidth = max(  # of this machine, with as many workers as suit it
        8 * each.work / (each.seconds.median if each.seconds else 0.0) for each in tokens
    )
    parts = predicted(_LARGE, 4, call, bandwidth)
    yield Result(
        _NAME,
        "predicted: 4 such machines, LLaMA-2-70B, a token",
        note=f"{sum(parts):.1f} s: calls {parts[0]:.1f}, products {parts[1]:.1f} at "
        f"{bandwidth / 1e9:.1f} GB/s each, 10 Gbit/s {parts[2]:.1f}",
        details={"seconds": sum(parts), "parts": list(parts), "call": call, "bandwidth": bandwidth},
    )


BENCHMARKS = [Benchmark(_NAME, "products at 1, 2 and 4 Dask workers", products, False)]
