"""The common part of the tasks: the head they need, token sequences in, results out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from models.checkpoints.in_memory import config_of_model
from models.configs.architecture import ModelConfig
from models.configs.reading import load_config
from models.programs.program import Rows
from models.tokens.encoding import Encoding, check_length
from models.tokens.tokenizer import Tokenizer
from protocols.base.ring import Floats
from protocols.errors import ConfigError, ModelError

TASK_HEADS: Mapping[str, str] = {
    "text-classification": "sequence-classification",
    "token-classification": "token-classification",
    "question-answering": "question-answering",
    "fill-mask": "masked-lm",
    "text-generation": "causal-lm",
    "feature-extraction": "none",
    "sentence-embedding": "none",
}
"""The head that each task needs."""
_SYNONYMS = {"sentiment-analysis": "text-classification", "ner": "token-classification"}
_HEADLESS = tuple(task for task, head in TASK_HEADS.items() if head == "none")


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
        self.max_length = min(config.max_positions, tokenizer.max_length or config.max_positions)

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
        truncation: bool = False,
        max_length: int | None = None,
    ) -> Encoding:
        """The tokens of a text or a pair.

        Args:
            truncation: cut a text that is too long at its end, instead of refusing it.
            max_length: the largest number of tokens; default: as many as the model can take.

        Raises:
            ConfigError: there is no text, or it is too long.
        """
        if not isinstance(text, str) or not isinstance(pair, str | None):
            odd = text if not isinstance(text, str) else pair
            raise ConfigError(f"an input is {type(odd).__name__}, not text: give a string")
        encoding = self.tokenizer.encode_text(text, pair)
        if not encoding.ids:
            raise ConfigError("an input is empty: give some text")
        limit = self.max_length if max_length is None else min(max_length, self.max_length)
        if truncation:
            return encoding.shortened(limit)
        check_length(
            encoding,
            limit,
            remedy="shorten the text, or cut it: truncation=True, or --truncate",
        )
        return encoding

    def label(self, number: int) -> str:
        """Name of an output."""
        return self.config.labels[number] if self.config.labels else f"LABEL_{number}"


def canonical_task(task: str) -> str:
    """The name of a task with synonyms resolved. Raises ConfigError."""
    name = _SYNONYMS.get(task, task) if isinstance(task, str) else ""
    if name not in TASK_HEADS:
        known = ", ".join((*TASK_HEADS, *_SYNONYMS))
        raise ConfigError(f"task {task!r} is not known: use one of {known}")
    return name


def check_head(task: str, head: str, where: str = "this model") -> None:
    """Raise ModelError if a running model with that head cannot do the task."""
    if TASK_HEADS[task] != head:
        able = [name for name, needed in TASK_HEADS.items() if needed == head]
        raise _unable(task, head, where, able)


def check_checkpoint(task: str, path: Path, head: str | None = None) -> str:
    """The head to open a checkpoint with for a task; only its configuration is read.

    head: overrides the one that the checkpoint names. Raises ModelError when it is not the one that
    the task needs. A checkpoint with any head can also be opened without its head.
    """
    return _head_for(task, head, partial(load_config, path), str(path))


def check_config(task: str, config: ModelConfig, where: object) -> None:
    """Raises ModelError: no checkpoint of that configuration can do the task."""
    _head_for(task, None, lambda head: config, str(where))


def check_model(task: str, model: object, head: str | None = None) -> str:
    """As `check_checkpoint`, for a model in memory (see `models.checkpoints.in_memory`)."""
    return _head_for(task, head, partial(config_of_model, model), "this model")


def _head_for(task: str, head: str | None, config: Callable[..., ModelConfig], where: str) -> str:
    if TASK_HEADS[task] == "none" and head in (None, "none"):
        return "none"
    found = config(head=head).head
    if TASK_HEADS[task] != found:
        raise _unable(task, found, where, tasks_of_checkpoint(found))
    return found


def tasks_of_checkpoint(head: str) -> list[str]:
    """Tasks for a checkpoint with that head, with the head or without it."""
    own = [name for name, needed in TASK_HEADS.items() if needed == head != "none"]
    return [*own, *_HEADLESS]


def _unable(task: str, head: str, where: str, able: Sequence[str]) -> ModelError:
    return ModelError(
        f"{where}: {task} needs a model with head {TASK_HEADS[task]!r}, but this one has "
        f"{head!r}: it can do {', '.join(able)}"
    )


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
