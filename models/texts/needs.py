"""The head and labels that each task needs, checked before any weight is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from models.checkpoints.in_memory import config_of_model
from models.configs.architecture import ModelConfig
from models.configs.reading import load_config
from protocols.errors import ConfigError, ModelError

TASK_HEADS: Mapping[str, str] = {
    "text-classification": "sequence-classification",
    "zero-shot-classification": "sequence-classification",
    "text-ranking": "sequence-classification",
    "token-classification": "token-classification",
    "question-answering": "question-answering",
    "fill-mask": "masked-lm",
    "text-generation": "causal-lm",
    "feature-extraction": "none",
    "sentence-embedding": "none",
}
"""The head that each task needs."""
_SYNONYMS = {
    "sentiment-analysis": "text-classification",
    "ner": "token-classification",
    "reranking": "text-ranking",
}
_HEADLESS = tuple(task for task, head in TASK_HEADS.items() if head == "none")


def canonical_task(task: str) -> str:
    """The name of a task with synonyms resolved. Raises ConfigError."""
    name = _SYNONYMS.get(task, task) if isinstance(task, str) else ""
    if name not in TASK_HEADS:
        known = ", ".join((*TASK_HEADS, *_SYNONYMS))
        raise ConfigError(f"task {task!r} is not known: use one of {known}")
    return name


def check_running(task: str, config: ModelConfig) -> None:
    """Raise ModelError if a running model of that configuration cannot do the task."""
    if TASK_HEADS[task] != config.head:
        able = [name for name in TASK_HEADS if not _lacks(name, config)]
        raise _unable(task, config, "this model", able)
    _check_labels(task, config, "this model")


def check_checkpoint(task: str, path: Path, head: str | None = None) -> str:
    """The head to open a checkpoint with for a task; only its configuration is read.

    head: overrides the one that the checkpoint names. Raises ModelError when the model has not what
    the task needs. A checkpoint with any head can also be opened without its head.
    """
    return _head_for(task, head, partial(load_config, path), str(path))


def check_config(task: str, config: ModelConfig, where: object) -> None:
    """Raises ModelError: no checkpoint of that configuration can do the task."""
    _head_for(task, None, lambda head: config, str(where))


def check_model(task: str, model: object, head: str | None = None) -> str:
    """As `check_checkpoint`, for a model in memory (see `models.checkpoints.in_memory`)."""
    return _head_for(task, head, partial(config_of_model, model), "this model")


def tasks_of_checkpoint(config: ModelConfig) -> list[str]:
    """Tasks for a checkpoint of that configuration, with its head or without it."""
    own = [name for name in TASK_HEADS if config.head != "none" and not _lacks(name, config)]
    return [*own, *_HEADLESS]


def _head_for(task: str, head: str | None, config: Callable[..., ModelConfig], where: str) -> str:
    if TASK_HEADS[task] == "none" and head in (None, "none"):
        return "none"
    found = config(head=head)
    if TASK_HEADS[task] != found.head:
        raise _unable(task, found, where, tasks_of_checkpoint(found))
    _check_labels(task, found, where)
    return found.head


def _unable(task: str, config: ModelConfig, where: str, able: list[str]) -> ModelError:
    return ModelError(
        f"{where}: {task} needs a model with head {TASK_HEADS[task]!r}, but this one has "
        f"{config.head!r}: it can do {', '.join(able)}"
    )


def _check_labels(task: str, config: ModelConfig, where: str) -> None:
    if reason := _lacks(task, config):
        raise ModelError(f"{where}: {reason}")


def _lacks(task: str, config: ModelConfig) -> str:
    """Why a model of that configuration, with its head, cannot do the task; "" if it can."""
    if TASK_HEADS[task] != config.head:
        return "it has another head"
    if task == "zero-shot-classification" and config.entailment is None:
        shown = ", ".join(config.labels[:8]) or "no names"
        return (
            "zero-shot-classification needs a model for natural language inference, with a label "
            f"'entailment', but the labels of this one are {shown}: use another, or name them in "
            "id2label and label2id of "
            "config.json"
        )
    if task == "text-ranking" and config.num_labels != 1:
        return (
            f"text-ranking needs a model with one output, but this one has {config.num_labels}: "
            "use another, or text-classification with pairs"
        )
    return ""
