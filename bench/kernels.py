"""Speed of the arithmetic of one party, without protocol or network."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from bench import stored
from bench.stored import in_threads, thread_count
from bench.tools.harness import Benchmark, Options, Result, timed
from protocols.base.prf import Stream
from protocols.base.ring import Bytes, Words
from protocols.dpf import generate, spline_shares
from protocols.functions import ladder
from protocols.functions.activation_tables import ACTIVATIONS
from protocols.functions.elementary import power_spline
from protocols.kernels.matmul import matmul_into
from protocols.kernels.packing import pack, packed_bytes, unpack
from protocols.kernels.waves import add_waves, first_turns, harmonics
from protocols.waves import Waves

_GEMM = ((32, 576, 3072), (128, 768, 3072), (1024, 1024, 1024))
_GEMV = ((1, 576, 960), (1, 576, 3072), (1, 1536, 576), (1, 576, 49152))
_THREADS = (1, 2)


def _random(*shape: int) -> Words:
    return np.random.default_rng(1).integers(0, 2**64, shape, dtype=np.uint64)


def _roots(seed: int, count: int) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, (count, 16), dtype=np.uint8)


PANEL = 64
"""Columns; ranges that start on a panel keep threads on separate cache lines."""


def column_ranges(n: int, parts: int) -> list[tuple[int, int]]:
    """At most `parts` ranges [lo, hi) that cover n columns, of equal size up to one panel."""
    panels = -(-n // PANEL)
    parts = max(1, min(parts, panels))
    cuts = [min(n, panels * part // parts * PANEL) for part in range(parts + 1)]
    return list(pairwise(cuts))


def _matrix_products(
    name: str, shapes: tuple[tuple[int, int, int], ...], options: Options
) -> Iterator[Result]:
    for rows, depth, columns in shapes[:1] if options.quick else shapes:
        x, w = _random(rows, depth), _random(depth, columns)
        out = np.empty((rows, columns), dtype=np.uint64)
        for threads in _THREADS:
            jobs: list[Callable[[], Any]] = [
                partial(matmul_into, x, w, out, lo, hi)
                for lo, hi in column_ranges(columns, threads)
            ]
            with ThreadPoolExecutor(threads) as pool:
                seconds = timed(in_threads(pool, jobs), options)
            case = f"{rows}x{depth} @ {depth}x{columns}, {thread_count(threads)}"
            work = rows * depth * columns
            yield Result(name, case, seconds, work, "multiply-adds")


def gemm(options: Options) -> Iterator[Result]:
    yield from _matrix_products("kernels.gemm", _GEMM, options)
    yield from stored.gemm(options)


def gemv(options: Options) -> Iterator[Result]:
    yield from _matrix_products("kernels.gemv", _GEMV, options)
    yield from stored.gemv(options)


def _draw(stream: Stream, size: int, calls: int) -> None:
    for _ in range(calls):
        stream.fill(size)


def prf(options: Options) -> Iterator[Result]:
    for size, label in ((1 << 12, "4 KiB"), (1 << 26, "64 MiB")):
        size = min(size, 1 << 16) if options.quick else size
        calls = max(1, (1 << 22) // size)
        for threads in _THREADS if size > 1 << 20 else (1,):
            streams = [Stream(bytes(15) + bytes([number])) for number in range(threads)]

            jobs: list[Callable[[], Any]] = [partial(_draw, s, size, calls) for s in streams]
            with ThreadPoolExecutor(threads) as pool:
                seconds = timed(in_threads(pool, jobs), options)
            case = f"draws of {label}, {thread_count(threads)}"
            yield Result("kernels.prf", case, seconds, size * calls * threads, "bytes")


def packing(options: Options) -> Iterator[Result]:
    count = 10_000 if options.quick else 1_000_000
    words = _random(count)
    for width in (1, 18, 20, 46):
        seconds = timed(partial(pack, words, width), options)
        yield Result("kernels.packing", f"pack {width} bits", seconds, count, "words")
        packed = pack(words, width)
        assert packed.size == packed_bytes(count, width)
        seconds = timed(partial(unpack, packed, width, count), options)
        yield Result("kernels.packing", f"unpack {width} bits", seconds, count, "words")


def dpf(options: Options) -> Iterator[Result]:
    """Point functions as an embedding uses them: one word at each of 2^v places."""
    count = 32
    one, two = _roots(1, count), _roots(2, count)
    ones = np.ones((count, 1), dtype=np.uint64)
    for v in (8,) if options.quick else (15, 16):
        alpha = _random(count) & np.uint64((1 << v) - 1)
        seconds = timed(partial(generate, alpha, ones, one, two, v), options)
        yield Result("kernels.dpf", f"deal, 2^{v} places", seconds, count, "elements")


def scales(options: Options) -> Iterator[Result]:
    """Splines at a number's own scale, as inverse roots use them."""
    fitted = power_spline(1, 1.0)
    low, high = 18, 29
    shape = 2 * high + 1, high - low, fitted.local_bits
    for count in (1, 32) if options.quick else (1, 32, 701):
        one, two, lam = _roots(1, count), _roots(2, count), _random(count)
        deal = partial(ladder.generate, lam, one, two, *shape)
        case = f"{high - low} powers of four, {count} rows"
        yield Result("kernels.ladder", f"deal {case}", timed(deal, options), count, "elements")
        m = lam + np.uint64(3 << 50)
        evaluate = partial(ladder.evaluate, 0, one, deal(), m, fitted.tables[0], *shape, 1)
        seconds = timed(evaluate, options)
        yield Result("kernels.ladder", f"evaluate {case}", seconds, count, "elements")


def spline(options: Options) -> Iterator[Result]:
    count = 2_000 if options.quick else 65_536
    fitted = power_spline(1, 1.0)
    v, terms = fitted.segment_bits, fitted.degree + 1
    one, two = _roots(1, count), _roots(2, count)
    alpha = _random(count) & np.uint64((1 << v) - 1)
    payload = _random(count, terms)
    low = _random(count) & np.uint64((1 << fitted.local_bits) - 1)
    case = f"2^{v} segments, degree {fitted.degree}"
    deal = partial(generate, alpha, payload, one, two, v)
    yield Result("kernels.spline", f"deal {case}", timed(deal, options), count, "elements")
    evaluate = partial(spline_shares, 0, one, deal(), v, alpha, low, fitted.tables)
    yield Result("kernels.spline", f"evaluate {case}", timed(evaluate, options), count, "elements")


def waves(options: Options) -> Iterator[Result]:
    count = 2_000 if options.quick else 393_216
    x = _random(count)
    for name in ("gelu", "silu"):
        centre = ACTIVATIONS[name].tight
        assert centre is not None
        fitted = centre.waves
        case = f"{name}, {fitted.count} waves"
        yield from _waves(case, fitted, x, options)


def _waves(case: str, fitted: Waves, x: Words, options: Options) -> Iterator[Result]:
    def deal() -> Words:
        return harmonics(first_turns(x, fitted.bits), fitted.count, fitted.dealt)

    shares, out = deal(), np.zeros_like(x)

    def evaluate() -> None:
        turns = first_turns(x, fitted.bits)
        add_waves(turns, fitted.weights, shares, fitted.down, 0, out)

    yield Result("kernels.waves", f"deal {case}", timed(deal, options), x.size, "elements")
    yield Result("kernels.waves", f"evaluate {case}", timed(evaluate, options), x.size, "elements")


BENCHMARKS = [
    Benchmark("kernels.gemm", "matrix products over Z_2^64, private and public weights", gemm),
    Benchmark("kernels.gemv", "one row times a matrix, private and public weights", gemv),
    Benchmark("kernels.prf", "drawing masks (AES-128-CTR)", prf),
    Benchmark("kernels.packing", "packing ring words for the wire", packing),
    Benchmark("kernels.dpf", "dealing point functions", dpf),
    Benchmark("kernels.ladder", "dealing and evaluating splines at every scale", scales),
    Benchmark("kernels.spline", "dealing and evaluating splines", spline),
    Benchmark("kernels.waves", "dealing and evaluating sums of waves", waves),
]
