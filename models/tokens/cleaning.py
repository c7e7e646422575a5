"""Spaces before punctuation that transformers takes out of a decoded text.

The setting is `clean_up_tokenization_spaces`. It was made for tokenizers that put a space between
all words, so transformers ignores it for BPE, which knows where spaces belong.
"""

from __future__ import annotations

import re
from typing import Any

import tokenizers

SETTING = "clean_up_tokenization_spaces"
_EVEN_BPE = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"

_CHANGES = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
"""What is replaced, one after the other in the whole text, as in transformers."""
_OPEN = sum(len(old) - 1 for old, _ in _CHANGES)
_BEGIN = re.compile(r" [ .?!,'n]")


def cleans(tokenizer: Any, backend: tokenizers.Tokenizer) -> bool:
    """Whether a transformers tokenizer cleans the texts that it decodes."""
    if type(backend.model).__name__ == "BPE" and not getattr(tokenizer, _EVEN_BPE, False):
        return False
    return bool(getattr(tokenizer, SETTING, False))


def clean(text: str) -> str:
    """A decoded text without the spaces that do not belong there."""
    for old, new in _CHANGES:
        text = text.replace(old, new)
    return text


def settled(text: str) -> str:
    """The beginning of `clean(text)` that stays the same whatever follows the text.

    Each replacement looks ahead by less than its own length, so only so many characters at the end
    may still change, and of those only a space that may begin one, and what follows it.
    """
    found = clean(text.rstrip(" "))
    space = _BEGIN.search(found, max(0, len(found) - _OPEN))
    return found if space is None else found[: space.start()]
