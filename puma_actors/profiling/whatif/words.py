"""Words that the tables and the page have in common."""

from collections.abc import Mapping
from typing import Any

TITLES = {
    "prefill": "until the first token",
    "decode": "a further token",
    "forward": "until the answer",
}
"""What a step's time is, by the step's name."""

TYPICAL = "predicted with typical ranges: those proven from the weights may change rounds and bytes"


def name_of(variant: Mapping[str, Any]) -> str:
    """A variant: its tree, the lanes if there are several, and the draft if there is one."""
    lanes, draft = variant["lanes"], variant["draft"]
    several = f", {lanes} lanes" if lanes > 1 else ""
    return str(variant["tree"]) + several + (f", {draft} drafted" if draft else "")


def shown(found: Mapping[str, Any], index: int) -> list[tuple[str, Mapping[str, Any]]]:
    """Names and steps of the variants that are worth a row for the step `index`: a draft changes
    nothing until the first token, so there it is left out beside the same without one.
    """
    variants = found["variants"]
    least = min(each["draft"] for each in variants)
    kept = [each for each in variants if index or each["draft"] == least]
    return [(name_of(each), each["steps"][index]) for each in kept]


def duration(seconds: float) -> str:
    """A time with three digits, in microseconds at least."""
    if seconds >= 999.5:
        return f"{seconds:,.0f} s"
    # 0.9995: what would be rounded to a thousand of the smaller unit.
    for unit, size, least in (("s", 1.0, 0.9995), ("ms", 1e-3, 1e-4), ("µs", 1e-6, 0.9995e-6)):
        if seconds >= least:
            return f"{seconds / size:.3g} {unit}"
    return "0 s"


def rate(mbit: float | None) -> str:
    """A bandwidth."""
    if mbit is None:
        return "unlimited"
    return f"{mbit / 1e3:g} Gbit/s" if mbit >= 1e3 else f"{mbit:g} Mbit/s"
