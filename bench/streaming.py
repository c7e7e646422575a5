"""Products with private weights as they come from memory, from the page cache and from a disk."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from bench.stored import in_threads, thread_count
from bench.tools.harness import Benchmark, Options, Repeats, Result, timed
from protocols.base.prf import add_stream
from protocols.base.ring import Words
from protocols.base.shares import Role
from protocols.streamed import MaskedWords, Streamed
from puma_actors.roles.spool import spool_folder

_NAME = "kernels.stream"
_ROWS = (1, 8, 128)
_SHAPE, _QUICK = (4096, 11008), (256, 128)
_THREADS = (1, 2)
_KEYS = (bytes(16), bytes(range(16)))
_PART = 4 << 20  # bytes
_WORD = 8
_EXPANSIONS = 16


def stream(options: Options) -> Iterator[Result]:
    """At an evaluator, which reads words and expands one mask; at the dealer, which expands two;
    and what the disk and the processor's AES could do at most.
    """
    shape = _QUICK if options.quick else _SHAPE
    words = np.random.default_rng(1).integers(0, 2**64, shape[0] * shape[1], dtype=np.uint64)
    with tempfile.TemporaryFile(dir=spool_folder(), buffering=0) as file:
        file.write(words.data)
        os.fsync(file.fileno())
        stored = _InFile(file.fileno(), words.nbytes)
        for rows in _ROWS[:1] if options.quick else _ROWS:
            yield from _products("memory", shape, _InMemory(words), rows, options)
            yield from _products("page cache", shape, stored, rows, options)
            yield from _products("dealer, no words", shape, None, rows, options)
            yield _from_disk(shape, stored, rows, options)
        yield from _limits(words, stored, options)


@dataclass(frozen=True)
class _InMemory:
    words: Words

    def expect(self) -> None:
        """As `MaskedWords`."""

    def read(self, start: int, out: Words) -> None:
        """As `MaskedWords`."""
        out[:] = self.words[start : start + out.size]


@dataclass(frozen=True)
class _InFile:
    handle: int
    nbytes: int

    def expect(self) -> None:
        """As `MaskedWords`."""
        os.posix_fadvise(self.handle, 0, 0, os.POSIX_FADV_WILLNEED)

    def read(self, start: int, out: Words) -> None:
        """As `MaskedWords`."""
        self.fill(_WORD * start, out.data.cast("B"))

    def fill(self, at: int, view: memoryview) -> None:
        """Read bytes from `at` on."""
        while view.nbytes:
            done = os.preadv(self.handle, [view], at)
            at, view = at + done, view[done:]

    def drop(self) -> None:
        """Take the file out of the page cache."""
        os.posix_fadvise(self.handle, 0, 0, os.POSIX_FADV_DONTNEED)


def _product(shape: tuple[int, int], masked: MaskedWords | None, rows: int) -> Callable[[], Words]:
    """One party's product of `rows` rows, in a call."""
    role = Role.DEALER if masked is None else Role.EVALUATOR_A
    factor = Streamed(role, shape, _KEYS[: 2 if role.is_dealer else 1], masked)
    x = np.random.default_rng(2).integers(0, 2**64, (rows, shape[0]), dtype=np.uint64)
    return partial(factor.matmul, x)


def _products(
    place: str, shape: tuple[int, int], masked: MaskedWords | None, rows: int, options: Options
) -> Iterator[Result]:
    for threads in _THREADS:  # each with a product of its own, as the parties of one process
        jobs: list[Callable[[], Any]] = [_product(shape, masked, rows) for _ in range(threads)]
        with ThreadPoolExecutor(threads) as pool:
            seconds = timed(in_threads(pool, jobs), options)
        case = f"{rows}x{shape[0]} @ {shape[0]}x{shape[1]}, {place}, {thread_count(threads)}"
        yield Result(_NAME, case, seconds, threads * shape[0] * shape[1] * rows, "multiply-adds")


def _from_disk(shape: tuple[int, int], stored: _InFile, rows: int, options: Options) -> Result:
    """The whole product, with nothing in the page cache when it begins."""
    product, repeats = _product(shape, stored, rows), Repeats(options)
    while repeats.wanted():
        stored.drop()
        started = time.perf_counter()
        product()
        repeats.add(time.perf_counter() - started)
    case = f"{rows}x{shape[0]} @ {shape[0]}x{shape[1]}, disk, 1 thread"
    return Result(_NAME, case, repeats.spread(), shape[0] * shape[1] * rows, "multiply-adds")


def _limits(words: Words, stored: _InFile, options: Options) -> Iterator[Result]:
    """Bytes a second of the disk and of one mask."""
    room, repeats = memoryview(bytearray(_PART)), Repeats(options)
    while repeats.wanted():
        stored.drop()
        started = time.perf_counter()
        for at in range(0, stored.nbytes, _PART):
            stored.fill(at, room[: stored.nbytes - at])
        repeats.add(time.perf_counter() - started)
    yield Result(_NAME, "limit: reading the disk", repeats.spread(), stored.nbytes, "bytes")
    panel = np.zeros(min(words.size, 1 << 18), dtype=np.uint64)
    for threads in _THREADS:
        jobs: list[Callable[[], Any]] = [partial(_expand, panel.copy()) for _ in range(threads)]
        with ThreadPoolExecutor(threads) as pool:
            seconds = timed(in_threads(pool, jobs), options)
        case = f"limit: expanding one mask, {thread_count(threads)}"
        yield Result(_NAME, case, seconds, threads * _EXPANSIONS * panel.nbytes, "bytes")


def _expand(panel: Words) -> None:
    for _ in range(_EXPANSIONS):
        add_stream(_KEYS[0], 0, 1, panel)


BENCHMARKS = [
    Benchmark(_NAME, "products with private weights that are not in memory", stream),
]
