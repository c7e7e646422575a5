"""The files of a run: JSON, plots, and the part of a page."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench.spu.plot import plot as plotted
from bench.spu.table import Conditions, Row, markdown, ratio, replaced
from protocols.errors import ConfigError

SCHEMA = 1
"""Version of the JSON document."""
_STEM = "spu"
"""Plots beside a page are named after it."""
_SECONDS, _MEGABYTES = "Seconds of a run", "Sent by all parties"


def write_json(file: Path, rows: Sequence[Row], conditions: Conditions, *, quick: bool) -> None:
    """Write all figures, every run's seconds included.

    Args:
        quick: the shapes were small.
    """
    document = {
        "schema": SCHEMA,
        "quick": quick,
        "conditions": asdict(conditions),
        "rows": [
            {**asdict(row), "time_ratio": row.time_ratio, "traffic_ratio": row.traffic_ratio}
            for row in rows
        ],
    }
    file.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


def draw(folder: Path, stem: str, rows: Sequence[Row]) -> list[Path]:
    """Write a plot of seconds and one of megabytes; none if no workload ran on both sides."""
    seconds, megabytes = [], []
    for row in rows:
        if row.time_ratio and row.traffic_ratio:
            name, ours, theirs = row.workload.replace("`", ""), row.ours, row.theirs
            seconds.append((name, ours.median, theirs.median, ratio(row.time_ratio)))
            megabytes.append((name, ours.megabytes, theirs.megabytes, ratio(row.traffic_ratio)))
    if not seconds:
        return []
    files = [folder / f"{stem}-seconds.svg", folder / f"{stem}-megabytes.svg"]
    files[0].write_text(plotted(_SECONDS, "seconds, logarithmic", seconds), "utf-8")
    files[1].write_text(plotted(_MEGABYTES, "MB, logarithmic", megabytes), "utf-8")
    return files


def write_page(page: Path, rows: Sequence[Row], conditions: Conditions) -> list[Path]:
    """Replace what stands between the markers of a page; its plots go beside it.

    Raises:
        ConfigError: no workload ran on both sides, or the page has no markers.
    """
    if not any(row.time_ratio and row.traffic_ratio for row in rows):
        raise ConfigError(f"{page} stays as it is: no workload ran on both sides")
    text = page.read_text("utf-8")
    replaced(text, "")
    plots = draw(page.parent, _STEM, rows)
    shown = [
        (f"{_SECONDS}, here and SPU", plots[0].name),
        (f"{_MEGABYTES}, here and SPU", plots[1].name),
    ]
    page.write_text(replaced(text, markdown(rows, conditions, shown)), "utf-8")
    return plots
