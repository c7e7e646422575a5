"""Common parts of all benchmarks: repeated timing, results, a description of the machine."""

import gc
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.tools.reference import Reference
from protocols.base.cost import Cost
from puma_actors.base.compute import available_cores
from puma_actors.base.machine import processor

SCHEMA = 1
"""Version of the JSON document."""
_BUDGET = 1.5  # seconds after which no further run of a case starts ...
_FEWEST, _MOST = 3, 9  # ... within these bounds
_DISTRIBUTIONS = ("puma-actors", "numpy", "numba", "llvmlite", "cryptography")


@dataclass(frozen=True, slots=True)
class Options:
    """Attributes:
    quick: small shapes and one run, to see that everything works.
    repeat: runs of each case; None: three to nine, as many as fit a second and a half.
    """

    quick: bool = False
    repeat: int | None = None

    def runs(self, default: int) -> int:
        """Number of runs of a long case, whose time is not limited."""
        return self.repeat or (1 if self.quick else default)


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, smallest and largest of several runs."""

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values), len(values))

    def rate(self, amount: float) -> "Spread":
        """`amount` per second, for a spread of seconds."""
        median, slowest, fastest = (
            amount / max(seconds, 1e-9) for seconds in (self.median, self.high, self.low)
        )
        return Spread(median, slowest, fastest, self.runs)


@dataclass(frozen=True, slots=True)
class Errors:
    """Distance from the same computation in float64; `meaning` says which distance."""

    largest: float
    mean: float
    meaning: str = "absolute"


@dataclass(frozen=True, slots=True)
class Result:
    """One line of a table.

    Attributes:
        name: of the benchmark, `group.what`.
        case: shape and variant.
        approximation: set of approximations, if any were used.
        seconds: time of one run, whose work is `work` times `unit`.
        online_seconds: time of the evaluators alone, when the dealer has finished before them.
        reference: another system's figures for the same work, on another machine.
        details: anything else, in JSON types.
    """

    name: str
    case: str
    seconds: Spread | None = None
    work: float = 0.0
    unit: str = ""
    approximation: str = ""
    online_seconds: float | None = None
    cost: Cost | None = None
    errors: Errors | None = None
    reference: Reference | None = None
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def group(self) -> str:
        return self.name.partition(".")[0]

    @property
    def rate(self) -> Spread | None:
        """Work a second."""
        return self.seconds.rate(self.work) if self.seconds and self.work else None

    @property
    def traffic_ratio(self) -> float | None:
        """Bytes of all parties, as a fraction of the reference's."""
        if self.cost is None or self.reference is None:
            return None
        return (self.cost.online + self.cost.offline) / (self.reference.megabytes * 1e6)

    def to_json(self) -> dict[str, Any]:
        """The result as JSON types; fields that do not apply are null."""
        cost = self.cost
        return {
            "name": self.name,
            "case": self.case,
            "approximation": self.approximation or None,
            "seconds": asdict(self.seconds) if self.seconds else None,
            "online_seconds": self.online_seconds,
            "rate": {**asdict(self.rate), "unit": f"{self.unit}/s"} if self.rate else None,
            "rounds": cost.rounds if cost else None,
            "online_bytes": cost.online if cost else None,
            "offline_bytes": cost.offline if cost else None,
            "errors": asdict(self.errors) if self.errors else None,
            "reference": asdict(self.reference) if self.reference else None,
            "traffic_ratio": self.traffic_ratio,
            "note": self.note or None,
            "details": self.details,
        }


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A named function that yields results as they become available.

    Attributes:
        default: part of the selection when no names are given.
    """

    name: str
    summary: str
    run: Callable[[Options], Iterator[Result]]
    default: bool = True


class Repeats:
    """Counts the runs of one case: `while repeats.wanted(): repeats.add(seconds)`."""

    def __init__(self, options: Options) -> None:
        self._fixed = options.repeat or (1 if options.quick else None)
        self._began = time.perf_counter()
        self.values: list[float] = []

    def wanted(self) -> bool:
        done = len(self.values)
        if self._fixed is not None:
            return done < self._fixed
        spent = time.perf_counter() - self._began
        return done < _FEWEST or (done < _MOST and spent < _BUDGET)

    def add(self, seconds: float) -> None:
        self.values.append(seconds)

    def spread(self) -> Spread:
        return Spread.of(self.values)


def timed(function: Callable[[], Any], options: Options) -> Spread:
    """Seconds of a call, after one uncounted call."""
    function()
    gc.collect()
    repeats = Repeats(options)
    while repeats.wanted():
        started = time.perf_counter()
        function()
        repeats.add(time.perf_counter() - started)
    return repeats.spread()


# -- where it ran ----------------------------------------------------------------------------------


def document(
    options: Options, results: list[Result], failures: dict[str, str], seconds: float
) -> dict[str, Any]:
    """The whole document that `--json` writes."""
    return {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "machine": machine(),
        "versions": versions(),
        "options": asdict(options),
        "failures": failures,
        "results": [result.to_json() for result in results],
    }


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory, operating system."""
    pages, page = _sysconf("SC_PHYS_PAGES"), _sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "cores": available_cores(),
        "memory_bytes": pages * page if pages and page else None,
        "os": platform.platform(),
    }


def _sysconf(name: str) -> int | None:
    return os.sysconf(name) if name in getattr(os, "sysconf_names", ()) else None


def _cpu_model() -> str:
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or processor()
    return processor()


def versions() -> dict[str, str | None]:
    """Python, the libraries that matter for speed, and the state of this repository."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    commit = _output("git", "describe", "--always", "--dirty", "--abbrev=12")
    return {**found, "commit": commit}


def _output(*command: str) -> str | None:
    """The output of a program, or None if there is no such program or it fails."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=here)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None
