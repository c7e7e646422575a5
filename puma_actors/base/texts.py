"""Texts from elsewhere, before they reach a log or a terminal."""

import unicodedata
from collections.abc import Mapping
from typing import Any

TEXT_CHARS = 500
"""Bad news is no longer than this."""


def printable(text: str) -> str:
    """A text with "?" for line breaks, escape sequences and whatever else would not be seen."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


_HARMLESS = frozenset("\n\t\u200c\u200d")
"""Of what is not printable: line breaks, and what joins or parts letters and emoji."""


def shown(text: str) -> str:
    """A text of several lines with "?" for what a terminal would obey or what turns writing around.
    Characters that are merely unknown here stay.
    """
    if text.isprintable():
        return text
    return "".join(c if c in _HARMLESS or _safe(c) else "?" for c in text)


def _safe(character: str) -> bool:
    return unicodedata.category(character) not in ("Cc", "Cf", "Zl", "Zp")


def told(header: Mapping[str, Any]) -> str:
    """The text of bad news from the other side, empty if there is none."""
    text = header.get("text")
    return printable(text[:TEXT_CHARS]) if isinstance(text, str) else ""
