"""What a vocabulary of 128,256 tokens costs (as in LLaMA 3): look-ups, a tied head, the arg-max.

The table of 128,256 x 4,096 entries takes 20 bytes an entry here, for all parties: 11 GB.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bench.protocols import measure
from bench.tools.harness import Benchmark, Options, Result
from bench.tools.sharing import Shared, share
from bench.tools.workloads import Workload, away_from, largest
from protocols.base.lane import Lane
from protocols.base.ring import FRACTION_BITS, RESIDUAL_BITS, Words
from protocols.base.shares import COMPUTING, Role, SecretTensor
from protocols.embedding import embed, request_rows
from protocols.linear import Table, table_product
from protocols.streamed import Derived, Split, Sum

_NAME = "protocols.vocabulary"
_SHAPE, _QUICK = (128_256, 4096), (300, 16)
_COUNTS = (1, 8)
_ROWS = 1024
"""Rows that are shared at a time."""


def _values(rows: NDArray[np.int64], columns: int) -> NDArray[np.int64]:
    """Made-up entries of a table, as integers with `RESIDUAL_BITS` fraction bits."""
    mixed = rows[:, None] * 2_654_435_761 + np.arange(columns) * 40_503
    return mixed * mixed // 64 % 2**18 - 2**17


def _table(rows: int, columns: int) -> Shared:
    """The parties' tables, each half once: see `puma_actors.roles.common`."""
    half = {name: np.empty((rows, columns), dtype=np.uint32) for name in ("m", "one", "two")}
    high = {role: np.empty((rows, columns), dtype=np.uint32) for role in COMPUTING[:2]}
    random = np.random.Generator(np.random.SFC64(1))
    for start in range(0, rows, _ROWS):
        part = slice(start, min(rows, start + _ROWS))
        number = np.arange(part.start, part.stop)
        one, two = (_words(random, len(number), columns) for _ in range(2))
        words = _values(number, columns).view(np.uint64) + one + two
        given = {Role.DEALER: (one, two), Role.EVALUATOR_A: (words, one)}
        for role in high:
            factor = Table.of(SecretTensor(role, *given[role], frac=RESIDUAL_BITS)).factor
            assert isinstance(factor, Split)
            high[role][part] = factor.high
        for name, value in (("m", words), ("one", one), ("two", two)):
            half[name][part] = value
    return _parties((rows, columns), half, high)


def _words(random: np.random.Generator, rows: int, columns: int) -> Words:
    return random.integers(0, 2**64, (rows, columns), dtype=np.uint64)


def _parties(
    shape: tuple[int, int],
    half: dict[str, NDArray[np.uint32]],
    high: dict[Role, NDArray[np.uint32]],
) -> Shared:
    halves = {
        Role.DEALER: (half["one"], half["two"]),
        Role.EVALUATOR_A: (half["m"], half["one"]),
        Role.EVALUATOR_B: (half["m"], half["two"]),
    }
    split = {role: Split(role, high[role], halves[role]) for role in high}
    derived = Derived(shape, Sum(split[Role.EVALUATOR_A], split[Role.DEALER]))
    return {role: Table(role, shape, split.get(role, derived), halves[role]) for role in COMPUTING}


def vocabulary(options: Options) -> Iterator[Result]:
    rows, columns = _QUICK if options.quick else _SHAPE
    table = _table(rows, columns)
    for workload in (*_look_ups(table, rows, columns), _logits(table, rows, columns)):
        yield measure(_NAME, workload, options)
    del table
    for workload in largest(options.quick, rows):
        yield measure(_NAME, workload, options)


def _look_ups(table: Shared, rows: int, columns: int) -> Iterator[Workload]:
    for count in _COUNTS:
        ids = np.arange(count) * 7919 % rows
        yield Workload(
            f"look-up of {count} of {rows:,} rows, {columns:,} columns",
            partial(_looked_up, count),
            (table,),
            away_from(_values(ids, columns) / 2.0**RESIDUAL_BITS),
            count,
            "tokens",
            client=partial(_asked, ids, rows),
            note="including the wait for the client",
        )


async def _looked_up(count: int, lane: Lane, table: Table) -> SecretTensor:
    return await embed(lane, table, count)


async def _asked(ids: NDArray[np.int64], rows: int, lane: Lane) -> None:
    await request_rows(lane, ids, rows)


def _logits(table: Shared, rows: int, columns: int) -> Workload:
    x = np.random.default_rng(3).normal(size=(1, columns)).round(3)
    exact = np.concatenate(
        [
            x @ _values(np.arange(start, min(rows, start + _ROWS)), columns).T
            for start in range(0, rows, _ROWS)
        ],
        axis=1,
    )
    return Workload(
        f"1x{columns:,} @ {columns:,}x{rows:,}, logits",
        table_product,
        (share(x, FRACTION_BITS), table),
        away_from(exact / 2.0**RESIDUAL_BITS),
        rows * columns,
        "multiply-adds",
    )


BENCHMARKS = [
    Benchmark(_NAME, "a vocabulary of 128,256 tokens (needs 14 GB)", vocabulary, default=False)
]
