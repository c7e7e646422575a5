"""The constants in `puma_actors.planning.machine`, measured again on this machine.

On a quiet machine, `python -m bench speeds`; then the lines of its notes that read `"rounds":
Speed(...)` go into `REFERENCE` there, "an entry" and "a row more" into `_ENTRY` and
`_MULTIPLICATION`, and "the piece of work" into `_WORK`.
"""

from collections.abc import Iterator

import anyio

from bench.tools.harness import Benchmark, Options, Result, Spread
from bench.tools.moment import measure
from protocols.base.lane import TREES
from puma_actors.api.speed import seconds_per_entry
from puma_actors.base.compute import available_cores
from puma_actors.planning.machine import piece

_NAME = "waiting.speeds"
_RUNS = 3
_ROWS = 32


def speeds(options: Options) -> Iterator[Result]:
    """Seconds of a round and of a byte with each tree, of a matrix's entry, and of `piece`."""
    cores = available_cores()
    for tree in TREES:
        found = [anyio.run(measure, tree) for _ in range(options.runs(_RUNS))]
        rounds = Spread.of([each.exchange for each in found])
        nbytes = Spread.of([each.byte for each in found])
        note = f"{1e6 * rounds.median:.0f} us a round, {1e9 * nbytes.median:.2f} ns a byte"
        yield Result(_NAME, f"a round, {tree}", rounds, note=note)
        speed = f"Speed({1e6 * rounds.median / cores:.0f}e-6, {1e9 * nbytes.median / cores:.1f}e-9)"
        yield Result(_NAME, f"a byte, {tree}", nbytes, note=f'"{tree}": {speed},')
    one, many = (seconds_per_entry("memory", rows, "bf16") for rows in (1, _ROWS))
    yield Result(_NAME, "an entry", Spread.of([one / cores]), note=f"{1e9 * one / cores:.3f} ns")
    row = (many - one) / (_ROWS - 1) / cores
    yield Result(_NAME, "a row more", Spread.of([row]), note=f"{1e9 * row:.3f} ns")
    yield Result(_NAME, "the piece of work", Spread.of([piece() for _ in range(9)]))


BENCHMARKS = [Benchmark(_NAME, "what a round, a byte and a product take", speeds, False)]
