"""Run cells and print a table; `--help` says what can be chosen.

Only this module may be run with `python -m`: of any other, each forked process would import all of
it again, torch included.
"""

import json
import sys
import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path

from rich.console import Console
from rich.table import Table

from faults.cell import Result, run
from faults.harness import Cluster
from faults.matrix import ALL, QUICK


def table_of(results: list[Result]) -> Table:
    """One row per cell; seconds until all had noticed, and from then to the next answer."""
    table = Table(box=None, caption="seconds: until noticed by all, next answer, whole cell")
    for heading in ("fault", "where", "moment", "", "noticed", "next", "total"):
        table.add_column(heading, justify="right" if heading in ("noticed", "next") else "left")
    for r in results:
        state = "[red]FAILED[/]" if r.problem else "ok"
        times = (f"{r.noticed:.1f}", f"{r.next_answer:.2f}", f"{r.total:.1f}")
        table.add_row(r.cell.fault, r.cell.where, r.cell.moment, state, *times)
    return table


def main(arguments: list[str]) -> int:
    """Exit code 1 if a cell failed."""
    parser = ArgumentParser(
        prog="python -m faults",
        description="Every fault at every moment.",
        epilog="python -m faults soak --help: many clients at once, some of which are killed",
    )
    parser.add_argument("word", nargs="*", help="that the name of a cell must contain")
    parser.add_argument("--quick", action="store_true", help="only those that make test runs")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    chosen = parser.parse_args(arguments)
    cells = QUICK if chosen.quick else ALL
    cells = [cell for cell in cells if all(word in cell.name for word in chosen.word)]
    if chosen.list:
        print(*(cell.name for cell in cells), sep="\n")
        return 0
    console = Console()
    started, results = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="puma-") as folder, Cluster(Path(folder)) as cluster:
        for number, cell in enumerate(cells, 1):
            result = run(cell, cluster)
            results.append(result)
            state = f"FAILED: {result.problem}" if result.problem else f"ok {result.total:.1f} s"
            print(f"[{number}/{len(cells)}] {cell.name}: {state}", file=sys.stderr, flush=True)
    console.print(table_of(results))
    bad = [result for result in results if result.problem]
    for result in bad:
        console.print(f"{result.cell.name}: {result.problem}", style="red", markup=False)
    seconds = time.monotonic() - started
    console.print(f"{len(results)} cells, {len(bad)} failed, {seconds:.0f} s")
    _write(results)
    return 1 if bad else 0


def _write(results: list[Result]) -> None:
    folder = Path("fault-results")
    folder.mkdir(exist_ok=True)
    rows = [
        {
            "fault": r.cell.fault,
            "where": r.cell.where,
            "moment": r.cell.moment,
            "problem": r.problem,
            "noticed": round(r.noticed, 2),
            "next_answer": round(r.next_answer, 2),
            "seconds": round(r.total, 2),
        }
        for r in results
    ]
    (folder / "matrix.json").write_text(json.dumps(rows, indent=1))
    with (folder / "matrix.txt").open("w") as file:
        Console(file=file, width=110).print(table_of(results))


if __name__ == "__main__":
    if sys.argv[1:2] == ["soak"]:
        from faults import soak

        sys.exit(soak.main(sys.argv[2:]))
    sys.exit(main(sys.argv[1:]))
