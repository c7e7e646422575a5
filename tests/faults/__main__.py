"""Run cells and print a table. Arguments: words that a cell's name must contain; `--quick`. With
`soak` as the first argument: see `faults.soak`.

Only this module may be run with `python -m`: of any other, each forked process would import all of
it again, torch included.
"""

import json
import sys
import tempfile
import time
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
    words = [word for word in arguments if not word.startswith("-")]
    cells = QUICK if "--quick" in arguments else ALL
    cells = [cell for cell in cells if all(word in cell.name for word in words)]
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
