"""Texts from elsewhere, before they reach a log or a terminal."""

from collections.abc import Mapping
from typing import Any

TEXT_CHARS = 500
"""Bad news is no longer than this."""


def printable(text: str) -> str:
    """A text with "?" for line breaks, escape sequences and whatever else would not be seen."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def told(header: Mapping[str, Any]) -> str:
    """The text of bad news from the other side, empty if there is none."""
    text = header.get("text")
    return printable(text[:TEXT_CHARS]) if isinstance(text, str) else ""
