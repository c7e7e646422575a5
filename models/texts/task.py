"""The common part of the tasks: token sequences in, results out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from models.configs.architecture import ModelConfig
from models.programs.program import Rows
from models.tokens.encoding import Encoding, check_length
from models.tokens.tokenizer import Tokenizer
from protocols.base.ring import Floats
from protocols.errors import ConfigError

_CUT_IT = "shorten the text, or cut it: truncation=True, or --truncate"


@dataclass(frozen=True, slots=True, repr=False)
class Job:
    """Token sequences to be evaluated, and how to finish the results.

    Attributes:
        rows: which results are wanted for each sequence.
        finish: takes one array (rows, columns) per sequence, in order.
    """

    encodings: Sequence[Encoding]
    rows: Rows
    finish: Callable[[Sequence[Floats]], Any]

    @property
    def dropped(self) -> list[int]:
        """Number of tokens that were left out of each sequence because it was too long."""
        return [encoding.dropped for encoding in self.encodings]

    def batches(self, most: int) -> list[list[Encoding]]:
        """Neighbours in one batch, as long as they have no more than `most` tokens."""
        batches: list[list[Encoding]] = []
        room = 0
        for encoding in self.encodings:
            if len(encoding) > room:
                batches.append([])
                room = most
            batches[-1].append(encoding)
            room -= len(encoding)
        return batches

    def cut_note(self) -> str:
        """A sentence about texts that were cut; "" if none was."""
        cut = [encoding for encoding in self.encodings if encoding.dropped]
        if not cut:
            return ""
        most, limit = max(encoding.dropped for encoding in cut), len(cut[0])
        end = "truncation=False (--no-truncate) cuts nothing"
        if len(self.encodings) == 1:
            return (
                f"the text of {limit + most} tokens is cut to the limit of {limit}, which leaves "
                f"out {most}; {end}"
            )
        return (
            f"inputs over the limit of {limit} tokens are cut, {len(cut)} of "
            f"{len(self.encodings)}; tokens left out: {sum(self.dropped)}, at most {most} of one "
            f"input; {end}"
        )


class TextTask:
    """A task over the outputs of one head.

    Args:
        config: the model's configuration; its head must be the one that the task needs.
        tokenizer: the model's own.
    """

    name: ClassVar[str]
    job: Callable[..., Job]
    """Prepare the job for some inputs. Every task takes its own options as keywords: some of
    `TaskOptions`. Raises ConfigError for unusable inputs or values.
    """

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self._set_limit(tokenizer.max_length)

    def _set_limit(self, named: int | None) -> None:
        """named: the longest input by the model's own settings; None: they name none."""
        self.limit = named
        self.max_length = min(self.config.max_positions, named or self.config.max_positions)

    def wraps(self, inputs: Any, options: Mapping[str, Any]) -> bool:
        """Whether the result of a call with these options is wrapped in a list, as transformers
        does with the labels of one text.
        """
        return False

    def encode(
        self,
        text: object,
        pair: object = None,
        *,
        truncation: bool | None = None,
        max_length: int | None = None,
        first_only: bool = False,
        whole: bool = False,
    ) -> Encoding:
        """The tokens of a text or a pair.

        Args:
            truncation: True: cut a text that is too long, at the tokenizer's `truncation_side`;
                False: take as many tokens as the model has positions, and refuse more; None: cut
                to `max_length` or the model's own limit, and refuse if neither is given.
            max_length: the largest number of tokens; default: the model's own limit.
            first_only: cut only the first text of a pair.
            whole: allow any length, and cut nothing.

        Raises:
            ConfigError: there is no text, or it is too long.
        """
        if not isinstance(text, str) or not isinstance(pair, str | None):
            odd = text if not isinstance(text, str) else pair
            raise ConfigError(f"an input is {type(odd).__name__}, not text: give a string")
        encoding = self.tokenizer.encode_text(text, pair)
        if not encoding.ids:
            raise ConfigError("an input is empty: give some text")
        if whole:
            return encoding
        named = self.limit if max_length is None else max_length
        if truncation or (truncation is None and named is not None):
            limit = min(named or self.config.max_positions, self.config.max_positions)
            side = self.tokenizer.truncation_side
            return encoding.shortened(limit, side=side, first_only=first_only)
        check_length(encoding, self.config.max_positions, remedy=_CUT_IT)
        return encoding

    def label(self, number: int) -> str:
        """Name of an output."""
        return self.config.labels[number] if self.config.labels else f"LABEL_{number}"


def many(inputs: Any) -> tuple[list[Any], bool]:
    """The inputs as a list, and whether there was a single one, not a list. Raises ConfigError."""
    if isinstance(inputs, str | Mapping):
        return [inputs], True
    if not isinstance(inputs, Sequence) or not inputs:
        raise ConfigError("nothing was given: give a text, or a list of them")
    return list(inputs), False


def softmax(logits: Floats) -> Floats:
    """Softmax over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def check_count(name: str, value: object, least: int = 1) -> None:
    """Raise ConfigError unless the value is a whole number, at least `least`."""
    if type(value) is not int or value < least:
        raise ConfigError(f"{name}={str(value)[:40]}: give a whole number, at least {least}")


def check_words(name: str, value: object) -> list[str]:
    """A string or a sequence of strings as a list. Raises ConfigError for anything else."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list | tuple) or not all(isinstance(word, str) for word in found):
        raise ConfigError(f"{name}={str(value)[:40]!r}: give a string or a list of strings")
    return list(found)


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ConfigError unless the value is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"{name}={str(value)[:40]!r}: use one of {', '.join(choices)}")
