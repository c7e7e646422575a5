"""The encoders BERT and RoBERTa (with CamemBERT and XLM-RoBERTa): LayerNorm after each block."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from models.configs.architecture import ModelConfig, activation, layer_norm, linear
from models.configs.names import Naming, Shape
from models.configs.validate import check_divides, check_flag, check_size, number, required
from protocols.errors import ModelError

_MAX_TOKEN_TYPES = 1 << 10


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(ModelConfig):
    """The fields and tensors that all encoder families share.

    Attributes:
        type_vocab_size: rows of the token type table; 0 if there is none (DistilBERT).
        position_offset: row of the position table for the first token. The table has
            max_positions + position_offset rows.
        pooler: the first token's last hidden state goes through a dense layer and tanh. BERT
            classifiers have a pooler, and so do base models whose checkpoint contains one.
    """

    heads: ClassVar[tuple[str, ...]] = (
        "none",
        "masked-lm",
        "sequence-classification",
        "token-classification",
        "question-answering",
    )
    neutral: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "is_decoder": (False,),
        "add_cross_attention": (False,),
        # transformers 4 computes the others, transformers 5 ignores the setting.
        "position_embedding_type": ("absolute",),
        "is_causal": (False,),
    }

    layer_norm_eps: float
    type_vocab_size: int
    position_offset: int = 0
    pooler: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        eps = number("layer_norm_eps", self.layer_norm_eps, 0, 1)
        object.__setattr__(self, "layer_norm_eps", eps)
        check_size("type_vocab_size", self.type_vocab_size, _MAX_TOKEN_TYPES, least=0)
        check_size("position_offset", self.position_offset, least=0)
        check_flag("pooler", self.pooler)
        check_divides("num_heads", self.num_heads, "hidden_size", self.hidden_size)

    @property
    def head_dim(self) -> int:
        """Number of entries of an attention head."""
        return self.hidden_size // self.num_heads

    @property
    def embedding_size(self) -> int:
        """Number of columns of the embedding table."""
        return self.hidden_size

    @property
    def transform_act(self) -> str:
        """The activation inside the head for masked tokens."""
        return self.hidden_act

    def decoder(self) -> tuple[str, str]:
        """Names of the last layer of the head for masked tokens, and of its bias."""
        return "cls.predictions.decoder", "cls.predictions.bias"

    def _embedding_tensors(self) -> dict[str, Shape]:
        hidden, name = self.embedding_size, f"{self.naming.prefix}embeddings"
        shapes: dict[str, Shape] = {
            f"{name}.word_embeddings.weight": (self.vocab_size, hidden),
            f"{name}.position_embeddings.weight": (
                self.max_positions + self.position_offset,
                hidden,
            ),
        }
        if self.type_vocab_size:
            shapes[f"{name}.token_type_embeddings.weight"] = (self.type_vocab_size, hidden)
        return {**shapes, **layer_norm(f"{name}.LayerNorm", hidden)}

    def _vocabulary_tensors(self, decoder: str, bias: str) -> dict[str, Shape]:
        """The last layer of a head for masked tokens; its weight is absent when it is tied."""
        shapes: dict[str, Shape] = {bias: (self.vocab_size,)}
        if not self.tie_embeddings:
            shapes[f"{decoder}.weight"] = (self.vocab_size, self.embedding_size)
        return shapes

    def _tied_head(self, decoder: str) -> dict[str, str]:
        if self.head != "masked-lm" or not self.tie_embeddings:
            return {}
        return {f"{decoder}.weight": f"{self.naming.prefix}embeddings.word_embeddings.weight"}


@dataclass(frozen=True, kw_only=True)
class BertConfig(EncoderConfig):
    """An encoder of the BERT family."""

    typed: ClassVar[bool] = True  # there is a token type table
    family: ClassVar[str] = "bert"
    model_types: ClassVar[Mapping[str, str]] = {"bert": "Bert"}
    naming: ClassVar[Naming] = Naming(
        prefix="bert.",
        children=frozenset({"embeddings", "encoder", "pooler"}),
        heads=frozenset({"cls", "classifier", "qa_outputs"}),
        # The second pre-training head predicts whether one sentence follows another.
        ignored=re.compile(
            r"bert\.embeddings\.(position_ids|token_type_ids)|cls\.seq_relationship\..*"
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        types = _MAX_TOKEN_TYPES if self.typed else 0
        check_size("type_vocab_size", self.type_vocab_size, types, least=int(self.typed))
        wanted = self.head in self._pooled_heads()
        if self.head != "none" and self.pooler != wanted:
            raise ModelError(f"pooler: must be {str(wanted).lower()} with head {self.head!r}")
        first = self._first_position()
        if self.position_offset != first:
            raise ModelError(f"position_offset: {self.position_offset} must be {first}")

    def _first_position(self) -> int:
        return 0

    @classmethod
    def _pooled_heads(cls) -> tuple[str, ...]:
        return ("sequence-classification",)

    def tied(self) -> dict[str, str]:
        if self.head != "masked-lm":
            return {}
        decoder, bias = self.decoder()
        return {**self._tied_head(decoder), f"{decoder}.bias": bias}

    def adapted(self, found: Mapping[str, Shape]) -> Self:
        if self.head != "none":
            return self
        return replace(self, pooler=f"{self.naming.prefix}pooler.dense.weight" in found)

    @classmethod
    def _settings_of_head(cls, head: str) -> dict[str, Any]:
        # Whether a base model has a pooler depends on its file, see `adapted`.
        return {"pooler": head in ("none", *cls._pooled_heads())}

    def is_ignored(self, name: str) -> bool:
        # Base models have a pooler by default; most heads do not use it.
        unused = not self.pooler and name.startswith(f"{self.naming.prefix}pooler.dense.")
        return unused or super().is_ignored(name)

    def _layer_tensors(self) -> dict[str, Shape]:
        hidden, inner = self.hidden_size, self.intermediate_size
        return {
            **linear("attention.self.query", hidden, hidden),
            **linear("attention.self.key", hidden, hidden),
            **linear("attention.self.value", hidden, hidden),
            **linear("attention.output.dense", hidden, hidden),
            **layer_norm("attention.output.LayerNorm", hidden),
            **linear("intermediate.dense", inner, hidden),
            **linear("output.dense", hidden, inner),
            **layer_norm("output.LayerNorm", hidden),
        }

    def _base_tensors(self) -> dict[str, Shape]:
        hidden, prefix, layer = self.hidden_size, self.naming.prefix, self._layer_tensors()
        shapes = self._embedding_tensors()
        for i in range(self.num_layers):
            name = f"{prefix}encoder.layer.{i}"
            shapes.update({f"{name}.{part}": shape for part, shape in layer.items()})
        return {
            **shapes,
            **(linear(f"{prefix}pooler.dense", hidden, hidden) if self.pooler else {}),
        }

    def _head_tensors(self) -> dict[str, Shape]:
        hidden, outputs = self.hidden_size, self.num_labels
        if self.head == "masked-lm":
            return self._masked_tensors()
        if self.head in ("sequence-classification", "token-classification"):
            return linear("classifier", outputs, hidden)
        return linear("qa_outputs", outputs, hidden) if self.head == "question-answering" else {}

    def _masked_tensors(self) -> dict[str, Shape]:
        name, hidden = "cls.predictions.transform", self.hidden_size
        return {
            **linear(f"{name}.dense", hidden, hidden),
            **layer_norm(f"{name}.LayerNorm", hidden),
            **self._vocabulary_tensors(*self.decoder()),
        }

    @classmethod
    def _read_hf(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "hidden_size": required(data, "hidden_size"),
            "intermediate_size": required(data, "intermediate_size"),
            "num_layers": required(data, "num_hidden_layers"),
            "num_heads": required(data, "num_attention_heads"),
            "max_positions": data.get("max_position_embeddings", 512),
            "type_vocab_size": data.get("type_vocab_size", 2),
            "hidden_act": activation(data.get("hidden_act", "gelu")),
            "layer_norm_eps": data.get("layer_norm_eps", 1e-12),
            "tie_embeddings": data.get("tie_word_embeddings", True),
        }


@dataclass(frozen=True, kw_only=True)
class RobertaConfig(BertConfig):
    """An encoder of the RoBERTa family: BERT with other tensor names, positions and heads.

    Positions are numbered from pad_token_id + 1, and padding tokens are not counted. The
    classifier applies a dense layer, tanh and a projection to the first token.
    """

    family: ClassVar[str] = "roberta"
    model_types: ClassVar[Mapping[str, str]] = {
        "camembert": "Camembert",
        "roberta": "Roberta",
        "xlm-roberta": "XLMRoberta",
    }
    naming: ClassVar[Naming] = Naming(
        prefix="roberta.",
        children=frozenset({"embeddings", "encoder", "pooler"}),
        heads=frozenset({"lm_head", "classifier", "qa_outputs"}),
        ignored=re.compile(r"roberta\.embeddings\.(position_ids|token_type_ids)"),
    )

    def _first_position(self) -> int:
        if self.pad_token_id is None:
            raise ModelError("pad_token_id: None, but the positions of this family begin after it")
        return self.pad_token_id + 1

    @property
    def skipped_token(self) -> int | None:
        return self.pad_token_id

    @property
    def transform_act(self) -> str:
        return "gelu"  # whatever hidden_act is

    @classmethod
    def _pooled_heads(cls) -> tuple[str, ...]:
        return ()

    def decoder(self) -> tuple[str, str]:
        return "lm_head.decoder", "lm_head.bias"

    def _head_tensors(self) -> dict[str, Shape]:
        hidden = self.hidden_size
        if self.head != "sequence-classification":
            return super()._head_tensors()
        return {
            **linear("classifier.dense", hidden, hidden),
            **linear("classifier.out_proj", self.num_labels, hidden),
        }

    def _masked_tensors(self) -> dict[str, Shape]:
        hidden = self.hidden_size
        return {
            **linear("lm_head.dense", hidden, hidden),
            **layer_norm("lm_head.layer_norm", hidden),
            **self._vocabulary_tensors(*self.decoder()),
        }

    @classmethod
    def _read_hf(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        padding = data.get("pad_token_id", 1)
        check_size("pad_token_id", padding, least=0)
        rows = data.get("max_position_embeddings", 512)
        check_size("max_position_embeddings", rows, least=padding + 2)
        return {
            **super()._read_hf(data),
            "pad_token_id": padding,
            "position_offset": padding + 1,
            "max_positions": rows - padding - 1,
        }
