"""The tokens of a text, or of a pair of texts, and their positions in the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Literal, TypeVar

import tokenizers

from protocols.errors import ConfigError

T = TypeVar("T")
Side = Literal["left", "right"]
"""The end of a text at which tokens are left out: `truncation_side` of transformers."""


@dataclass(frozen=True, slots=True, repr=False)
class Encoding:
    """The tokens of a text or of a pair, never padded.

    Every field has one entry per token. There is no repr because tokens are secret.

    Attributes:
        ids: token ids.
        types: token types from the tokenizer; all 0 if it gives none.
        offsets: first character and the one after the last, in the text that `texts` names.
        special: whether the tokenizer added the token, such as a begin token.
        words: index of the word in its text, or None.
        texts: 0 for the first text, 1 for the second, None for added tokens.
        dropped: number of tokens that `shortened` left out.
    """

    ids: tuple[int, ...]
    types: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    special: tuple[bool, ...]
    words: tuple[int | None, ...]
    texts: tuple[int | None, ...]
    dropped: int = 0

    @classmethod
    def of(cls, encoded: tokenizers.Encoding, *, types: bool = True) -> Encoding:
        """Convert the library's encoding; without `types`, all token types are 0."""
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
        """Indices of the tokens of a text (0 or 1)."""
        return [place for place, number in enumerate(self.texts) if number == text]

    def word_span(self, place: int) -> tuple[int, int]:
        """Characters of the word that a token belongs to; of the token itself if it has no word."""
        word, text = self.words[place], self.texts[place]
        if word is None or text is None:
            return self.offsets[place]
        spans = [
            span
            for span, other, owner in zip(self.offsets, self.words, self.texts, strict=True)
            if (other, owner) == (word, text)
        ]
        return min(span[0] for span in spans), max(span[1] for span in spans)

    def shortened(self, limit: int, *, side: Side = "right", first_only: bool = False) -> Encoding:
        """Cut to at most `limit` tokens, the longer text first.

        side: the end at which a text loses tokens. first_only: cut only the first text of a pair.

        Raises:
            ConfigError: the limit leaves no room for text.
        """
        if len(self) <= limit:
            return self
        first, second = self.places(0), self.places(1)
        room = limit - (len(self) - len(first) - len(second))
        kept = room - len(second) if first_only else room - bool(second)
        if kept < 1:
            alone = " beside the second text of the pair" if first_only and second else ""
            raise ConfigError(
                f"a length of {limit} tokens leaves no room for text{alone}: allow more"
            )
        sizes = (kept, len(second)) if first_only else _longest_first(len(first), len(second), room)
        parts = [
            places[size:] if side == "right" else places[: len(places) - size]
            for places, size in zip((first, second), sizes, strict=True)
        ]
        return replace(self._without({*parts[0], *parts[1]}), dropped=len(self) - limit)

    def windows(
        self, limit: int, overlap: int, text: int = 1, *, side: Side = "right"
    ) -> list[Encoding]:
        """Split one text into overlapping encodings of at most `limit` tokens.

        Each of them also contains all tokens outside that text.

        overlap: number of the text's tokens that a window shares with the previous one.
        side: "left": the first window is the one at the end of the text.

        Raises:
            ConfigError: the tokens common to all windows leave room for no more than `overlap`
                tokens of the text.
        """
        places = self.places(text)
        size = limit - (len(self) - len(places))
        if len(places) <= size:
            return [self]
        if size <= overlap:
            remedy = "shorten the question, or use larger windows or a smaller doc_stride"
            raise ConfigError(
                f"windows of {limit} tokens have room for {max(size, 0)} of the text, which must"
                f" be more than their overlap of {overlap}: "
                f"{remedy if text else 'use a smaller stride'}"
            )
        found = []
        for start in count(0, size - overlap):
            span = places[start : start + size]
            if side == "left":
                stop = len(places) - start
                span = places[max(0, stop - size) : stop]
            found.append(self._without(set(places).difference(span)))
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
    """How many tokens of two texts to keep, divided as in the tokenizers library."""
    short, long = sorted((first, second))
    long = max(short, room - short) if short <= room else short
    if short + long > room:
        short = room // 2
        long = short + room % 2
    sizes = (short, long) if first <= second else (long, short)
    return min(first, sizes[0]), min(second, sizes[1])
