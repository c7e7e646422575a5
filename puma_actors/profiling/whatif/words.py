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


def rate(mbit: float | None) -> str:
    """A bandwidth."""
    if mbit is None:
        return "unlimited"
    return f"{mbit / 1e3:g} Gbit/s" if mbit >= 1e3 else f"{mbit:g} Mbit/s"
