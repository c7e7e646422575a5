"""Tokens of a text, or of a pair of texts, and their places in the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

import tokenizers

from protocols.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, repr=False)
class Encoding:
    """Every field has one entry per token. Never padded. It has no repr: tokens are secret.

    Attributes:
        ids: token ids.
        types: token types as the tokenizer gives them; all 0 where it does not.
        offsets: first character and the one behind the last, in the text that `texts` names.
        special: whether the tokenizer added the token, as it does with a begin token.
        words: number of the word in its text, or None.
        texts: 0 for the first text, 1 for the second, None for added tokens.
    """

    ids: tuple[int, ...]
    types: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    special: tuple[bool, ...]
    words: tuple[int | None, ...]
    texts: tuple[int | None, ...]

    @classmethod
    def of(cls, encoded: tokenizers.Encoding, *, types: bool = True) -> Encoding:
        """From the library's own; `types`: with its token types, which are 0 otherwise."""
        return cls(
            tuple(encoded.ids),
            tuple(encoded.type_ids) if types else (0,) * len(encoded.ids),
            tuple(encoded.offsets),
            tuple(bool(flag) for flag in encoded.special_tokens_mask),
            tuple(encoded.word_ids),
            tuple(encoded.sequence_ids),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def places(self, text: int) -> list[int]:
        """The places of a text's tokens."""
        return [place for place, number in enumerate(self.texts) if number == text]

    def word_span(self, place: int) -> tuple[int, int]:
        """Characters of the whole word that a token belongs to; its own if it has no word."""
        word, text = self.words[place], self.texts[place]
        if word is None or text is None:
            return self.offsets[place]
        spans = [
            span
            for span, other, owner in zip(self.offsets, self.words, self.texts, strict=True)
            if (other, owner) == (word, text)
        ]
        return min(span[0] for span in spans), max(span[1] for span in spans)

    def shortened(self, limit: int) -> Encoding:
        """At most `limit` tokens: the texts are cut at their ends, the longer one first.

        Raises:
            ConfigError: the limit leaves no room for text.
        """
        if len(self) <= limit:
            return self
        first, second = self.places(0), self.places(1)
        room = limit - (len(self) - len(first) - len(second))
        if room < 1 + bool(second):
            raise ConfigError(f"a length of {limit} tokens leaves no room for text: allow more")
        sizes = _longest_first(len(first), len(second), room)
        return self._without({*first[sizes[0] :], *second[sizes[1] :]})

    def windows(self, limit: int, overlap: int, text: int = 1) -> list[Encoding]:
        """Encodings of at most `limit` tokens that slide over one text; all contain the other
        tokens.

        overlap: tokens of the text that a window shares with the previous one.

        Raises:
            ConfigError: the tokens common to all windows leave room for no more than `overlap`
            tokens.
        """
        places = self.places(text)
        size = limit - (len(self) - len(places))
        if len(places) <= size:
            return [self]
        if size <= overlap:
            raise ConfigError(
                f"windows of {limit} tokens have room for {max(size, 0)} of the context, which must"
                f" be more than their overlap of {overlap}: shorten the question, or use larger "
                "windows or a smaller doc_stride"
            )
        found = []
        for start in count(0, size - overlap):
            chosen = set(places[start : start + size])
            found.append(self._without(set(places) - chosen))
            if start + size >= len(places):
                return found
        raise AssertionError("unreachable")

    def _without(self, dropped: set[int]) -> Encoding:
        def kept(values: tuple[T, ...]) -> tuple[T, ...]:
            return tuple(value for place, value in enumerate(values) if place not in dropped)

        return Encoding(
            kept(self.ids),
            kept(self.types),
            kept(self.offsets),
            kept(self.special),
            kept(self.words),
            kept(self.texts),
        )


def check_length(encoding: Encoding | Sequence[int], limit: int, *, remedy: str) -> None:
    """Raise ConfigError if there are more tokens than `limit`."""
    if len(encoding) > limit:
        raise ConfigError(f"{len(encoding)} tokens do not fit the limit of {limit}: {remedy}")


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Tokens kept of two texts, divided as in the tokenizers library."""
    short, long = sorted((first, second))
    long = max(short, room - short) if short <= room else short
    if short + long > room:
        short = room // 2
        long = short + room % 2
    sizes = (short, long) if first <= second else (long, short)
    return min(first, sizes[0]), min(second, sizes[1])
