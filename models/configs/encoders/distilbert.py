"""The DistilBERT family: BERT without token types or a pooler, and with other tensor names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from models.configs.architecture import activation, layer_norm, linear
from models.configs.encoders.encoder import EncoderConfig
from models.configs.names import Naming, Shape
from models.configs.validate import check_size, required
from protocols.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class DistilBertConfig(EncoderConfig):
    """An encoder of the DistilBERT family.

    Its classifier applies a dense layer, ReLU and a projection to the first token. Sinusoidal
    positions are stored like learned ones.
    """

    family: ClassVar[str] = "distilbert"
    model_types: ClassVar[Mapping[str, str]] = {"distilbert": "DistilBert"}
    naming: ClassVar[Naming] = Naming(
        prefix="distilbert.",
        children=frozenset({"embeddings", "transformer"}),
        heads=frozenset(
            {
                "vocab_transform",
                "vocab_layer_norm",
                "vocab_projector",
                "pre_classifier",
                "classifier",
                "qa_outputs",
            }
        ),
        ignored=re.compile(r"distilbert\.embeddings\.position_ids"),
    )

    neutral: ClassVar[Mapping[str, tuple[object, ...]]] = {"is_causal": (False,)}

    layer_norm_eps: float = 1e-12
    type_vocab_size: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        # Constants of transformers' class.
        check_size("type_vocab_size", self.type_vocab_size, 0, least=0)
        check_size("position_offset", self.position_offset, 0, least=0)
        if self.pooler or self.layer_norm_eps != 1e-12:
            raise ModelError("pooler, layer_norm_eps: must be false and 1e-12 in this family")

    def decoder(self) -> tuple[str, str]:
        return "vocab_projector", "vocab_projector.bias"

    def tied(self) -> dict[str, str]:
        return self._tied_head("vocab_projector")

    def _base_tensors(self) -> dict[str, Shape]:
        hidden, inner = self.hidden_size, self.intermediate_size
        layer: dict[str, Shape] = {
            **linear("attention.q_lin", hidden, hidden),
            **linear("attention.k_lin", hidden, hidden),
            **linear("attention.v_lin", hidden, hidden),
            **linear("attention.out_lin", hidden, hidden),
            **layer_norm("sa_layer_norm", hidden),
            **linear("ffn.lin1", inner, hidden),
            **linear("ffn.lin2", hidden, inner),
            **layer_norm("output_layer_norm", hidden),
        }
        shapes = self._embedding_tensors()
        for i in range(self.num_layers):
            name = f"distilbert.transformer.layer.{i}"
            shapes.update({f"{name}.{part}": shape for part, shape in layer.items()})
        return shapes

    def _head_tensors(self) -> dict[str, Shape]:
        hidden, outputs = self.hidden_size, self.num_labels
        if self.head == "masked-lm":
            return {
                **linear("vocab_transform", hidden, hidden),
                **layer_norm("vocab_layer_norm", hidden),
                **self._vocabulary_tensors(*self.decoder()),
            }
        if self.head == "sequence-classification":
            return {
                **linear("pre_classifier", hidden, hidden),
                **linear("classifier", outputs, hidden),
            }
        if self.head == "token-classification":
            return linear("classifier", outputs, hidden)
        return linear("qa_outputs", outputs, hidden) if self.head == "question-answering" else {}

    @classmethod
    def _read_hf(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "hidden_size": required(data, "dim", "hidden_size"),
            "intermediate_size": required(data, "hidden_dim"),
            "num_layers": required(data, "n_layers", "num_hidden_layers"),
            "num_heads": required(data, "n_heads", "num_attention_heads"),
            "max_positions": data.get("max_position_embeddings", 512),
            "hidden_act": activation(data.get("activation", "gelu")),
            "tie_embeddings": data.get("tie_word_embeddings", True),
        }
