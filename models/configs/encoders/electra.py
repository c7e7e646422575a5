"""ELECTRA: BERT's encoder over an embedding that may be narrower than the hidden state."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from models.configs.architecture import layer_norm, linear
from models.configs.encoders.encoder import BertConfig
from models.configs.names import Naming, Shape
from models.configs.validate import check_size

_MAX_SIZE = 1 << 16


@dataclass(frozen=True, kw_only=True)
class ElectraConfig(BertConfig):
    """An encoder of the ELECTRA family: a generator, a discriminator, or a fine-tuned model.

    A pre-trained discriminator (`ElectraForPreTraining`) is read as a base model: its head detects
    replaced tokens, which no task here needs.

    Attributes:
        embedding_columns: columns of the embedding tables. If this is not hidden_size, a linear
            layer follows their LayerNorm.
    """

    family: ClassVar[str] = "electra"
    model_types: ClassVar[Mapping[str, str]] = {"electra": "Electra"}
    class_heads: ClassVar[Mapping[str, str]] = {"ForPreTraining": "none"}
    naming: ClassVar[Naming] = Naming(
        prefix="electra.",
        children=frozenset({"embeddings", "embeddings_project", "encoder"}),
        heads=frozenset(
            {
                "classifier",
                "discriminator_predictions",
                "generator_lm_head",
                "generator_predictions",
                "qa_outputs",
                "sequence_summary",
            }
        ),
        ignored=re.compile(r"electra\.embeddings\.(position_ids|token_type_ids)"),
    )
    embedding_columns: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size("embedding_columns", self.embedding_columns, _MAX_SIZE)

    @property
    def embedding_size(self) -> int:
        return self.embedding_columns

    @property
    def transform_act(self) -> str:
        return "gelu"  # whatever hidden_act is

    def activation_of(self, module: str) -> str:
        first = module.partition(".")[0]
        return "gelu" if first in ("generator_predictions", "classifier") else self.hidden_act

    @classmethod
    def _pooled_heads(cls) -> tuple[str, ...]:
        return ()

    @classmethod
    def _settings_of_head(cls, head: str) -> dict[str, Any]:
        return {}

    def adapted(self, found: Mapping[str, Shape]) -> Self:
        return self

    def decoder(self) -> tuple[str, str]:
        return "generator_lm_head", "generator_lm_head.bias"

    def tied(self) -> dict[str, str]:
        return self._tied_head("generator_lm_head")

    def _base_tensors(self) -> dict[str, Shape]:
        shapes = super()._base_tensors()
        if self.embedding_columns != self.hidden_size:
            name = "electra.embeddings_project"
            shapes.update(linear(name, self.hidden_size, self.embedding_columns))
        return shapes

    def _head_tensors(self) -> dict[str, Shape]:
        hidden = self.hidden_size
        if self.head != "sequence-classification":
            return super()._head_tensors()
        return {
            **linear("classifier.dense", hidden, hidden),
            **linear("classifier.out_proj", self.num_labels, hidden),
        }

    def _masked_tensors(self) -> dict[str, Shape]:
        name, columns = "generator_predictions", self.embedding_columns
        return {
            **linear(f"{name}.dense", columns, self.hidden_size),
            **layer_norm(f"{name}.LayerNorm", columns),
            **self._vocabulary_tensors(*self.decoder()),
        }

    @classmethod
    def _read_hf(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        columns = data.get("embedding_size")
        return {
            **super()._read_hf(data),
            "embedding_columns": 128 if columns is None else columns,
        }
