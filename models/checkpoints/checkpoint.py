"""An open checkpoint in any format: weights under canonical names, checked on opening."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from models.checkpoints.packed import Packed
from models.configs.architecture import ModelConfig
from models.configs.heads import LABELLED_HEADS
from models.configs.names import Shape
from models.configs.tasks.ranking import RankingSettings
from models.configs.tasks.sentences import SentenceSettings
from protocols.errors import ModelError


class Checkpoint(ABC):
    """Weights and configuration of one model; a context manager that closes its files.

    `where` is the checkpoint's name in messages, `nbytes` the size of the weights as stored.
    `sentences` and `ranking` are the settings of those tasks, if the model has any.
    """

    where: str
    config: ModelConfig
    nbytes: int
    sentences: SentenceSettings | None = None
    ranking: RankingSettings | None = None

    _holder: ClassVar[str] = "the model"

    @cached_property
    def _shapes(self) -> dict[str, Shape]:
        return self.config.tensors()

    def names(self) -> tuple[str, ...]:
        """Canonical names of all weights: the names in transformers' class with the head.

        A head that is tied to the embedding table is left out. The names are the same if the file
        holds the bare model.
        """
        return tuple(self._shapes)

    def shape(self, name: str) -> Shape:
        """Shape of a weight as stored, usually (outputs, inputs). Raises ModelError."""
        if name not in self._shapes:
            raise ModelError(f"{self.where}: the model has no tensor {name!r}")
        return self._shapes[name]

    def tensor(self, name: str) -> NDArray[np.float32]:
        """A weight as a fresh C-contiguous float32 array of `shape(name)`; safe in threads.

        Raises ModelError if the name is unknown or a value is NaN or infinite.
        """
        shape = self.shape(name)
        values = self._read(name)
        assert values.shape == shape, (name, values.shape, shape)
        if not np.isfinite(values).all():
            raise ModelError(
                f"{self.where}: {name} contains NaN or infinity; {self._holder} is damaged"
            )
        return values

    def packed(self, name: str) -> Packed | None:
        """A matrix as the file stores it; None if `tensor` would give something else, or it has no
        file.
        """
        return None

    @abstractmethod
    def close(self) -> None:
        """Close the files; no tensor can be read afterwards."""

    @abstractmethod
    def _read(self, name: str) -> NDArray[np.float32]:
        """Read the weight `name`, whose existence and shape were checked on opening."""

    def _check_tensors(self, found: Mapping[str, Shape]) -> None:
        """Raise ModelError unless all weights of the configuration are present.

        Other tensors may only be buffers, copies of tied weights or unused heads: to ignore a bias
        or an adapter silently would change the answers.
        """
        expected, config, tied = self._shapes, self.config, self.config.tied()
        for name, shape in expected.items():
            if name not in found:
                raise ModelError(
                    f"{self.where}: tensor {name} is missing, expected shape {shape}"
                    f"{self._because(name, found)}"
                )
            if found[name] != shape:
                raise ModelError(
                    f"{self.where}: tensor {name} has shape {found[name]}, expected {shape}"
                )
        for name in found:
            if name in expected or name in tied or config.is_ignored(name):
                continue
            if not config.naming.is_of_other_head(name, expected):
                raise ModelError(
                    f"{self.where}: tensor {name[:80]} is not part of family {config.family!r} "
                    f"with the settings in its configuration and head {config.head!r}; adapters, "
                    "experts and further biases are not supported"
                )

    def _because(self, name: str, found: Mapping[str, Shape]) -> str:
        """The end of an error message: a likely reason why a tensor is missing."""
        if any(".lora_" in other for other in found):
            return (
                f"; {self._holder} holds adapters of PEFT that are unmerged: save what "
                "model.merge_and_unload() returns, or the adapter alone with save_pretrained"
            )
        config = self.config
        if not config.tie_embeddings and name in replace(config, tie_embeddings=True).tied():
            return (
                " (tie_word_embeddings is false, and transformers would make it up; set it to true "
                f"in config.json if the embedding is meant){self._other_heads(found)}"
            )
        return self._other_heads(found)

    def _other_heads(self, found: Mapping[str, Shape]) -> str:
        """The end of an error message: the heads whose weights are all present."""
        heads = [head for head in self.config.heads if self._has_head(head, found)]
        return f"; {self._holder} has the weights of head: {', '.join(heads)}" if heads else ""

    def _has_head(self, head: str, found: Mapping[str, Shape]) -> bool:
        labels = 2 if head in LABELLED_HEADS else 0
        other = self.config.with_head(head, labels)
        return head != self.config.head and found.keys() >= other.adapted(found).tensors().keys()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class StoredCheckpoint(Checkpoint):
    """A checkpoint in files. `path` is the opened file; the tokenizer is in the same folder."""

    path: Path

    _holder: ClassVar[str] = "the file"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.where = str(path)
