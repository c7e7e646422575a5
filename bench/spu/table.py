"""The side-by-side figures as Markdown, and their place in a page."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from protocols.errors import ConfigError

BEGIN, END = "<!-- spu: begin -->", "<!-- spu: end -->"
"""The lines of a page between which the figures stand; `make bench-spu` replaces what is there."""
QUIET = 1.0
"""Load average above which figures are not to be trusted."""
_COLUMNS = (
    *("workload", "seconds here", "seconds SPU", "ratio", "MB here", "MB SPU", "ratio"),
    *("rounds here", "sends SPU", "error here", "error SPU"),
)


@dataclass
class Side:
    """One system's figures for a workload.

    Attributes:
        seconds: of every counted run.
        megabytes: sent by all parties together, ours with what is dealt ahead (10^6 bytes).
        steps: our rounds; the sends of SPU's busiest party, which counts no rounds.
        error: largest distance from the exact result.
        failed: why there are no figures, or no more.
    """

    seconds: list[float] = field(default_factory=list)
    megabytes: float = 0.0
    steps: int = 0
    error: float = 0.0
    failed: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Row:
    """A workload, and both systems' figures for it; run `n` of one is next to run `n` of the
    other.
    """

    workload: str
    ours: Side
    theirs: Side

    @property
    def time_ratio(self) -> float | None:
        """How often ours runs in the time of SPU's: the median over the pairs."""
        pairs = list(zip(self.theirs.seconds, self.ours.seconds, strict=False))
        if not pairs:
            return None
        return statistics.median(theirs / max(ours, 1e-9) for theirs, ours in pairs)

    @property
    def traffic_ratio(self) -> float | None:
        """SPU's bytes as a multiple of ours."""
        if not (self.theirs.seconds and self.ours.seconds and self.ours.megabytes):
            return None
        return self.theirs.megabytes / self.ours.megabytes


@dataclass(frozen=True)
class Conditions:
    """Where and how the figures were made.

    Attributes:
        threads: of each system.
        load: average of the minute before it began.
        pairs: counted runs of each, for operations and whole models.
        machine, versions, spu_versions: as in the JSON document.
    """

    date: str
    threads: int
    load: float
    pairs: tuple[int, int]
    machine: dict[str, Any]
    versions: dict[str, str | None]
    spu_versions: dict[str, str]


def warning(load: float) -> str:
    """That other work was running, for a load average before the run, or nothing."""
    if load <= QUIET:
        return ""
    return (
        f"the load average was {load:.1f} before the run: other work was running, so the seconds "
        "are not to be trusted"
    )


def markdown(rows: Sequence[Row], conditions: Conditions, plots: Sequence[tuple[str, str]]) -> str:
    """Everything between the markers.

    Args:
        plots: description and file of each.
    """
    lines = [_described(conditions), ""]
    if text := warning(conditions.load):
        lines += [f"**Warning**: {text}.", ""]
    lines += ["| " + " | ".join(_COLUMNS) + " |", "|---" * len(_COLUMNS) + "|"]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    for row in rows:
        for name, side in (("here", row.ours), ("SPU", row.theirs)):
            if side.failed:
                reason = " ".join(side.failed.split()).replace("|", "/")
                lines += ["", f"{row.workload}, {name}: failed: {reason}"]
    for text, file in plots:
        lines += ["", f"![{text}]({file})"]
    return "\n".join(lines)


def replaced(page: str, block: str) -> str:
    """A page with the text between its markers replaced.

    Raises:
        ConfigError: the page does not have each marker once, in this order.
    """
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    if [page.count(BEGIN), rest.count(END), page.count(END)] != [1, 1, 1]:
        raise ConfigError(f"the page needs the lines {BEGIN} and {END} once each, in this order")
    return f"{before}{BEGIN}\n{block}\n{END}{after}"


def _described(conditions: Conditions) -> str:
    machine, versions, spu = conditions.machine, conditions.versions, conditions.spu_versions
    memory = f", {size / 2**30:.0f} GiB" if (size := machine.get("memory_bytes")) else ""
    few, whole = conditions.pairs
    return (
        f"{conditions.date}, {machine['cpu']}, {machine['cores']} cores{memory}, "
        f"{conditions.threads} threads for each system, load average {conditions.load:.2f} before "
        f"the run. Counted runs of each: {few}, whole models {whole}. "
        f"Here: commit {versions.get('commit')}, Python {versions.get('python')}, "
        f"NumPy {versions.get('numpy')}, Numba {versions.get('numba')}. "
        f"SPU {spu.get('spu', '?')}: Python {spu.get('python', '?')}, jax {spu.get('jax', '?')}, "
        f"NumPy {spu.get('numpy', '?')}."
    )


def _cells(row: Row) -> list[str]:
    ours, theirs = row.ours, row.theirs
    return [
        row.workload,
        _seconds(ours),
        _seconds(theirs),
        ratio(row.time_ratio),
        _figure(ours, _megabytes(ours.megabytes)),
        _figure(theirs, _megabytes(theirs.megabytes)),
        ratio(row.traffic_ratio),
        _figure(ours, f"{ours.steps:,}"),
        _figure(theirs, f"{theirs.steps:,}"),
        _figure(ours, f"{ours.error:.2g}"),
        _figure(theirs, f"{theirs.error:.2g}"),
    ]


def _megabytes(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def _figure(side: Side, text: str) -> str:
    return text if side.seconds else ""


def _seconds(side: Side) -> str:
    """Median, and the span if there are several."""
    if not side.seconds:
        return "failed" if side.failed else ""
    median = f"{side.median:.3g}"
    if len(side.seconds) == 1:
        return median
    return f"{median} ({min(side.seconds):.3g} to {max(side.seconds):.3g})"


def ratio(value: float | None) -> str:
    """2.3 x; nothing if there is none."""
    if value is None:
        return ""
    return f"{value:.1f} x" if value < 9.95 else f"{value:.0f} x"
