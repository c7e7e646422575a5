"""Make foreign text safe before it reaches a log or a terminal."""

import unicodedata
from collections.abc import Mapping
from typing import Any

TEXT_CHARS = 500
"""Longest error message accepted from the other side."""


def printable(text: str) -> str:
    """A text with "?" for line breaks, escape sequences and other invisible characters."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


_HARMLESS = frozenset("\n\t\u200c\u200d")
"""Unprintable characters that stay: line breaks, and those that join or separate letters and emoji.
"""


def shown(text: str) -> str:
    """A text of several lines with "?" for characters that control a terminal or change the writing
    direction. Characters that are merely unknown here stay.
    """
    if text.isprintable():
        return text
    return "".join(c if c in _HARMLESS or _safe(c) else "?" for c in text)


def _safe(character: str) -> bool:
    return unicodedata.category(character) not in ("Cc", "Cf", "Zl", "Zp")


def told(header: Mapping[str, Any]) -> str:
    """The text of an error message from the other side, empty if there is none."""
    text = header.get("text")
    return printable(text[:TEXT_CHARS]) if isinstance(text, str) else ""
