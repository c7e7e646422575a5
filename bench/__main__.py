"""Command line: `python -m bench [NAME ...] [--json FILE] [--quick] [--list] [--repeat N]`."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bench import (
    decode,
    embeddings,
    errors,
    fidelity,
    kernels,
    memory,
    model,
    paper,
    perplexity,
    protocols,
    streaming,
    vocabulary,
)
from bench.runtime import (
    calls,
    drafts,
    hosts,
    network,
    overlap,
    prepared,
    profiling,
    resident,
    speeds,
    together,
    whatif,
    workers,
)
from bench.serve import closing, load
from bench.tools.harness import Benchmark, Options, Result, document, machine
from bench.tools.report import console, show
from protocols.errors import ConfigError, PumaError
from protocols.kernels import warm_up
from puma_actors.base.logs import show_logs

BENCHMARKS: list[Benchmark] = [
    *kernels.BENCHMARKS,
    *streaming.BENCHMARKS,
    *protocols.BENCHMARKS,
    *vocabulary.BENCHMARKS,
    *network.BENCHMARKS,
    *decode.BENCHMARKS,
    *drafts.BENCHMARKS,
    *calls.BENCHMARKS,
    *hosts.BENCHMARKS,
    *prepared.BENCHMARKS,
    *together.BENCHMARKS,
    *profiling.BENCHMARKS,
    *whatif.BENCHMARKS,
    *speeds.BENCHMARKS,
    *errors.BENCHMARKS,
    *model.BENCHMARKS,
    *overlap.BENCHMARKS,
    *paper.BENCHMARKS,
    *fidelity.BENCHMARKS,
    *perplexity.BENCHMARKS,
    *embeddings.BENCHMARKS,
    *memory.BENCHMARKS,
    *resident.BENCHMARKS,
    *workers.BENCHMARKS,
    *load.BENCHMARKS,
    *closing.BENCHMARKS,
]


def select(names: Sequence[str]) -> list[Benchmark]:
    """Benchmarks by group (`protocols`), full name (`protocols.gelu`) or its end (`gelu`).

    Raises:
        ConfigError: a name matches no benchmark.
    """
    if not names:
        return [item for item in BENCHMARKS if item.default]
    wanted = set()
    for name in names:
        fitting = [b.name for b in BENCHMARKS if name in (b.name, *b.name.split("."))]
        if not fitting:
            known = ", ".join(item.name for item in BENCHMARKS)
            raise ConfigError(f"no benchmark {name!r}: choose from {known}, or one of their groups")
        wanted.update(fitting)
    return [item for item in BENCHMARKS if item.name in wanted]


def run(
    chosen: Sequence[Benchmark],
    options: Options,
    log: Console,
    results: list[Result],
    failures: dict[str, str],
) -> None:
    """Add all results, and the reason for each benchmark that failed; the others still run."""
    with log.status("compiling kernels") as status:
        warm_up(lambda line: status.update(line), public_weights=True)
        for number, item in enumerate(chosen, 1):
            place = f"[{number}/{len(chosen)}] {item.name}"
            status.update(place)
            if not log.is_terminal:
                log.print(place, markup=False)
            try:
                for result in item.run(options):
                    results.append(result)
                    status.update(f"{place}: done with {result.case}")
            except Exception as error:
                failures[item.name] = f"{type(error).__name__}: {error}"
                log.print(f"{item.name} failed: {failures[item.name]}", markup=False)
                if not isinstance(error, PumaError):
                    log.print_exception()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 if a benchmark failed, 2 for a wrong command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Benchmarks.")
    parser.add_argument("names", nargs="*", help="groups or benchmarks; default: all short ones")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    parser.add_argument("--quick", action="store_true", help="small shapes, one run")
    parser.add_argument("--list", action="store_true", help="list the benchmarks and stop")
    parser.add_argument("--repeat", type=int, metavar="N", help="runs of each case")
    given = parser.parse_args(arguments)
    log = Console(stderr=True, highlight=False)
    if given.repeat is not None and given.repeat < 1:
        parser.error(f"--repeat {given.repeat}: give a number of at least 1")
    try:
        chosen = select(given.names)
        if given.json is not None:
            _check_writable(given.json)
    except ConfigError as error:
        log.print(f"error: {error}", markup=False, soft_wrap=True)
        return 2
    if given.list:
        _list(given.names, chosen)
        return 0
    options = Options(given.quick, given.repeat)
    started = time.perf_counter()
    results: list[Result] = []
    failures: dict[str, str] = {}
    try:
        run(chosen, options, log, results, failures)
    except KeyboardInterrupt:
        failures["interrupted"] = "stopped by the user"
    seconds = time.perf_counter() - started
    if given.json is not None:
        text = json.dumps(document(options, results, failures, seconds), indent=2)
        given.json.write_text(text + "\n")
    show(console(), machine(), results)
    log.print(f"{len(chosen)} benchmarks in {seconds:.0f} s", style="dim")
    return 1 if failures else 0


def _check_writable(file: Path) -> None:
    """Check this before minutes of work, not after."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("a").close()
    except OSError as error:
        raise ConfigError(f"--json {file}: cannot be written ({error.strerror})") from None


def _list(names: Sequence[str], chosen: Sequence[Benchmark]) -> None:
    for item in chosen if names else BENCHMARKS:
        long = "" if item.default else " [only when named]"
        print(f"{item.name:<22}{item.summary}{long}")


if __name__ == "__main__":
    show_logs(0)
    sys.exit(main())
