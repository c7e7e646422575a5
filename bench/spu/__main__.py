"""Command line: `python -m bench.spu [NAME ...] [--quick] [--pairs N] [--docs FILE] ...`."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import anyio
from rich.console import Console

from bench.spu.install import spu_python
from bench.spu.pairs import compare
from bench.spu.report import draw, write_json, write_page
from bench.spu.table import Conditions, Row, Side, markdown, replaced, warning
from bench.spu.talk import Peer
from bench.spu.workloads import ITEMS, Item
from bench.tools.harness import machine, versions
from protocols.errors import ConfigError
from protocols.kernels import warm_up
from puma_actors.base.compute import available_cores
from puma_actors.base.logs import show_logs

SCHEMA = 1
"""Version of the JSON document."""
Log = Callable[[str], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 if a workload failed on either side, 2 for a wrong command line or no SPU."""
    given = _parsed(arguments)
    console = Console(stderr=True, highlight=False)

    def log(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    load = os.getloadavg()[0]
    try:
        if given.docs:
            replaced(given.docs.read_text("utf-8"), "")  # fails before minutes of work, not after
        _take_cores(given.threads)
        given.json.parent.mkdir(parents=True, exist_ok=True)
        python = spu_python(given.environment, log)
    except (ConfigError, OSError) as error:
        log(f"error: {error}")
        return 2
    if text := warning(load):
        console.print(f"WARNING: {text}", style="bold yellow", markup=False, soft_wrap=True)
    spu_log = given.json.with_suffix(".log").absolute()
    spu_log.write_text("")
    command = [str(python.absolute()), "-m", "bench.spu.peer", str(spu_log), str(given.threads)]
    peer = Peer(command, spu_log)
    with console.status("compiling kernels"):
        warm_up(lambda _: None)
    chosen = [item for item in ITEMS if not given.names or item.name in given.names]
    rows: list[Row] = []
    whole = True
    try:
        anyio.run(_all, chosen, peer, given, rows, log)
    except KeyboardInterrupt:
        log("stopped: what was measured is reported")
        whole = False
    written = _write(given, rows, _conditions(given, load, peer), log, whole=whole)
    failed = any(side.failed for row in rows for side in (row.ours, row.theirs))
    return 0 if whole and written and not failed else 1


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [item.name for item in ITEMS]
    parser = argparse.ArgumentParser(
        prog="python -m bench.spu", description="Side by side with SecretFlow-SPU."
    )
    parser.add_argument("names", nargs="*", help=f"workloads; default: all of {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="small shapes, to see that it works")
    parser.add_argument("--pairs", type=int, default=3, metavar="N", help="counted runs of each")
    parser.add_argument(
        "--model-pairs", type=int, default=1, metavar="N", help="the same for whole models"
    )
    cores = available_cores()
    parser.add_argument("--threads", type=int, default=cores, help="of each system; default: cores")
    parser.add_argument("--json", type=Path, default=Path("bench-results/spu.json"))
    parser.add_argument("--docs", type=Path, help="put the table and plots into this page, too")
    parser.add_argument("--environment", type=Path, default=Path(".venv-spu"), help="of SPU")
    given = parser.parse_args(arguments)
    for name in given.names:
        if name not in names:
            parser.error(f"no workload {name!r}: choose from {', '.join(names)}")
    if min(given.pairs, given.model_pairs) < 1:
        parser.error("--pairs and --model-pairs must be at least 1")
    if not 1 <= given.threads <= cores:
        parser.error(f"--threads {given.threads}: give 1 to {cores}, the cores of this process")
    if given.docs and (given.quick or given.names):
        parser.error("--docs takes a whole run: leave --quick and the names out")
    return given


def _take_cores(threads: int) -> None:
    """Leave both systems as many cores as threads: the other process inherits them."""
    if threads < available_cores():
        if not hasattr(os, "sched_setaffinity"):
            raise ConfigError("--threads: this system cannot limit a process to some cores")
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


async def _all(
    chosen: Sequence[Item], peer: Peer, given: argparse.Namespace, rows: list[Row], log: Log
) -> None:
    """Add all rows; a workload that cannot be set up gives one that says why."""
    async with peer:
        for item in chosen:
            pairs = given.model_pairs if item.whole else given.pairs
            try:
                rows += await compare(item, peer, pairs, log, quick=given.quick)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                log(f"{item.title}: failed: {reason}")
                rows.append(Row(item.title, Side(failed=reason), Side()))


def _conditions(given: argparse.Namespace, load: float, peer: Peer) -> Conditions:
    return Conditions(
        date=datetime.now(UTC).date().isoformat(),
        threads=given.threads,
        load=load,
        pairs=(given.pairs, given.model_pairs),
        machine=machine(),
        versions=versions(),
        spu_versions=peer.versions,
    )


def _write(
    given: argparse.Namespace,
    rows: Sequence[Row],
    conditions: Conditions,
    log: Log,
    *,
    whole: bool,
) -> bool:
    """Print the table, write the files; whether that went well. A page takes only a whole run."""
    if given.quick:
        print("Small shapes: the names tell the usual ones.\n")
    print(markdown(rows, conditions, []))
    try:
        write_json(given.json, rows, conditions, quick=given.quick)
        plots = draw(given.json.parent, given.json.stem, rows)
        log("written: " + ", ".join(map(str, (given.json, *plots))))
        if given.docs and whole:
            plots = write_page(given.docs, rows, conditions)
            log("written: " + ", ".join(map(str, (given.docs, *plots))))
    except (ConfigError, OSError) as error:
        log(f"error: {error}")
        return False
    return True


if __name__ == "__main__":
    show_logs(0)
    sys.exit(main())
