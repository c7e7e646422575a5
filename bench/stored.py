"""Products with public weights as checkpoints store them, beside what the machine can do."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, pairwise
from typing import Any, TypeAlias

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import quantize

from bench.tools.harness import Options, Result, timed
from protocols.base.ring import Bytes, Words
from protocols.kernels.matmul import matmul_into
from protocols.kernels.stored.formats import FORMATS, PLAIN, FormatName
from protocols.kernels.stored.matrix import Stored
from protocols.kernels.stored.product import multiply_into
from protocols.kernels.stored.reader import lanes
from protocols.kernels.stored.vectors import PLANES, make_split_dots

_SHOWN: tuple[FormatName, ...] = ("bf16", "q8_0", "q4_0", "q4_k")
_ROWS = (8, 16, 128)
_THREADS = (1, 2)
_SQUARE, _LONG, _QUICK = (4096, 4096), (4096, 8192), (256, 128)
_GROUPS, _TIMES = 64, 20_000

Held: TypeAlias = Words | Stored


def in_threads(pool: ThreadPoolExecutor, jobs: list[Callable[[], Any]]) -> Callable[[], None]:
    """A call that runs the jobs side by side (a single job runs in the calling thread)."""
    if len(jobs) == 1:
        return jobs[0]

    def together() -> None:
        for done in [pool.submit(job) for job in jobs]:
            done.result()

    return together


def thread_count(threads: int) -> str:
    """The number of threads, for a case."""
    return "1 thread" if threads == 1 else f"{threads} threads"


def _stored(kind: FormatName, inputs: int, outputs: int) -> Stored:
    values = np.random.default_rng(1).normal(0, 0.02, (outputs, inputs)).astype(np.float32)
    data: Bytes
    if kind == "bf16":
        data = (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16).view(np.uint8)
    elif kind in PLAIN:
        data = values.astype(np.float16 if kind == "f16" else np.float32).view(np.uint8)
    elif FORMATS[kind].entries == 32:
        data = quantize(values, GGMLQuantizationType[kind.upper()])
    else:  # speed does not depend on the bits
        size = FORMATS[kind].row_bytes(inputs)
        data = np.random.default_rng(1).integers(0, 64, (outputs, size), dtype=np.uint8)
    factors = np.ones(inputs, np.float32), np.full(outputs, 2.0**20, np.float32)
    return Stored.of(data.reshape(outputs, -1), FORMATS[kind], *factors)


def _words(*shape: int) -> Words:
    return np.random.default_rng(2).integers(0, 2**64, shape, dtype=np.uint64)


def _multiply(x: Words, held: Held, out: Words, lo: int, hi: int) -> None:
    if isinstance(held, Stored):
        multiply_into(x, held, out, 0, lo, hi)
    else:
        matmul_into(x, held, out, lo, hi)


def _products(
    name: str, rows: tuple[int, ...], shape: tuple[int, int], options: Options
) -> Iterator[Result]:
    """A private weight as one party multiplies by it, and a public one in each format."""
    matrices: Iterator[tuple[str, Held]] = chain(
        [("private", _words(*shape))], ((kind, _stored(kind, *shape)) for kind in _SHOWN)
    )
    for kind, held in matrices:
        for count in rows:
            x, out = _words(count, shape[0]), np.empty((count, shape[1]), np.uint64)
            for threads in _THREADS:
                cuts = [shape[1] * part // threads for part in range(threads + 1)]
                jobs: list[Callable[[], Any]] = [
                    partial(_multiply, x, held, out, lo, hi) for lo, hi in pairwise(cuts)
                ]
                with ThreadPoolExecutor(threads) as pool:
                    seconds = timed(in_threads(pool, jobs), options)
                case = f"{count}x{shape[0]} @ {shape[0]}x{shape[1]} {kind}, {thread_count(threads)}"
                yield Result(name, case, seconds, count * shape[0] * shape[1], "multiply-adds")


def gemm(options: Options) -> Iterator[Result]:
    """Several rows, and the multiplications that the kernels' innermost loop can do."""
    rows, shape = (_ROWS[:1], _QUICK) if options.quick else (_ROWS, _SQUARE)
    yield from _products("kernels.gemm", rows, shape, options)
    yield from _limit_of_products(options)


def gemv(options: Options) -> Iterator[Result]:
    """One row, and what could be done if only reading memory took time. There are more bytes than
    the caches hold.
    """
    yield from _products("kernels.gemv", (1,), _QUICK if options.quick else _LONG, options)
    yield from _limit_of_memory(options)


def _limit_of_products(options: Options) -> Iterator[Result]:
    """Two rows by two from the first-level cache, over and over."""
    from numba import njit

    dots = make_split_dots(2, 2).compiled()

    @njit(nogil=True)
    def repeat(
        x: Words, w: Any, out: Words, groups: int, step: int, numbers_of: int, times: int
    ) -> None:
        for _ in range(times):
            dots(x, 0, groups * step, w, 0, groups * numbers_of, groups, out, 0, 2)

    words, numbers = _GROUPS * PLANES * lanes(), _GROUPS * 2 * lanes()
    x, w = _words(2 * words), _words(2 * numbers).astype(np.int32)
    times = _TIMES // 100 if options.quick else _TIMES
    run = partial(
        repeat, x, w, np.zeros(4, np.uint64), _GROUPS, PLANES * lanes(), 2 * lanes(), times
    )
    seconds = timed(run, options)
    case = "limit: 64 x 32 bits from the first-level cache, 1 thread"
    yield Result("kernels.gemm", case, seconds, 4 * numbers * times, "multiply-adds")


def _limit_of_memory(options: Options) -> Iterator[Result]:
    held = _words(1 << 14 if options.quick else 1 << 25)
    for threads in _THREADS:
        jobs: list[Callable[[], Any]] = [
            partial(np.bitwise_xor.reduce, part) for part in np.array_split(held, threads)
        ]
        with ThreadPoolExecutor(threads) as pool:
            seconds = timed(in_threads(pool, jobs), options)
        sizes = {kind: FORMATS[kind].nbytes / FORMATS[kind].entries for kind in _SHOWN}
        for kind, size in {"private": 8.0, **sizes}.items():
            case = f"limit: reading memory, {kind}, {thread_count(threads)}"
            yield Result("kernels.gemv", case, seconds, held.nbytes / size, "multiply-adds")
