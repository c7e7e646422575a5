"""OPT: learned positions, ReLU, and an embedding that may be narrower than the hidden state."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from models.configs.architecture import (
    DecoderConfig,
    activation,
    layer_norm,
    linear,
    vocabulary_token,
)
from models.configs.names import Naming, Shape
from models.configs.validate import check_divides, check_flag, check_size, required

_MAX_SIZE = 1 << 16
FIRST_POSITION = 2
"""Row of the position table for the first token: a constant of transformers' class."""


@dataclass(frozen=True, kw_only=True)
class OptConfig(DecoderConfig):
    """A decoder of the OPT family.

    Attributes:
        embedding_columns: columns of the embedding table and inputs of the heads. If this is not
            hidden_size, one linear map converts to hidden_size and another one back.
        norm_first: norms come before the blocks (all sizes but 350M), otherwise after them.
        final_norm: a norm follows the last layer; it has no effect without norm_first.
    """

    family: ClassVar[str] = "opt"
    model_types: ClassVar[Mapping[str, str]] = {"opt": "OPT"}
    heads: ClassVar[tuple[str, ...]] = (
        "none",
        "causal-lm",
        "sequence-classification",
        "question-answering",
    )
    windowless: ClassVar[tuple[str, ...]] = ("opt",)
    naming: ClassVar[Naming] = Naming(
        prefix="model.",
        children=frozenset({"decoder"}),
        heads=frozenset({"lm_head", "score", "qa_outputs"}),
        ignored=re.compile(r"model\.decoder\.version"),
    )
    neutral: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "enable_bias": (True,),
        "layer_norm_elementwise_affine": (True,),
    }
    layer_norm_eps: ClassVar[float] = 1e-5  # torch's default

    embedding_columns: int
    norm_first: bool = True
    final_norm: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size("embedding_columns", self.embedding_columns, _MAX_SIZE)
        for name in ("norm_first", "final_norm"):
            check_flag(name, getattr(self, name))
        check_divides("num_heads", self.num_heads, "hidden_size", self.hidden_size)

    @property
    def head_dim(self) -> int:
        """Number of entries of an attention head."""
        return self.hidden_size // self.num_heads

    @property
    def head_inputs(self) -> int:
        return self.embedding_columns

    @property
    def projects(self) -> bool:
        """Whether the embedding and the hidden state have different widths."""
        return self.embedding_columns != self.hidden_size

    @property
    def ends_in_norm(self) -> bool:
        """Whether there is a norm after the last layer."""
        return self.norm_first and self.final_norm

    def _base_tensors(self) -> dict[str, Shape]:
        hidden, inner, columns = self.hidden_size, self.intermediate_size, self.embedding_columns
        layer: dict[str, Shape] = {
            **linear("self_attn.q_proj", hidden, hidden),
            **linear("self_attn.k_proj", hidden, hidden),
            **linear("self_attn.v_proj", hidden, hidden),
            **linear("self_attn.out_proj", hidden, hidden),
            **layer_norm("self_attn_layer_norm", hidden),
            **linear("fc1", inner, hidden),
            **linear("fc2", hidden, inner),
            **layer_norm("final_layer_norm", hidden),
        }
        name = "model.decoder"
        shapes: dict[str, Shape] = {
            f"{name}.embed_tokens.weight": (self.vocab_size, columns),
            f"{name}.embed_positions.weight": (self.max_positions + FIRST_POSITION, hidden),
        }
        if self.projects:
            shapes.update(linear(f"{name}.project_in", hidden, columns, bias=False))
            shapes.update(linear(f"{name}.project_out", columns, hidden, bias=False))
        for i in range(self.num_layers):
            shapes.update({f"{name}.layers.{i}.{part}": shape for part, shape in layer.items()})
        return {
            **shapes,
            **(layer_norm(f"{name}.final_layer_norm", hidden) if self.ends_in_norm else {}),
        }

    @classmethod
    def _read_hf(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        hidden, columns = required(data, "hidden_size"), data.get("word_embed_proj_dim")
        return {
            "hidden_size": hidden,
            "embedding_columns": hidden if columns is None else columns,
            "intermediate_size": required(data, "ffn_dim"),
            "num_layers": required(data, "num_hidden_layers"),
            "num_heads": required(data, "num_attention_heads"),
            "max_positions": data.get("max_position_embeddings", 2048),
            "hidden_act": activation(data.get("activation_function", "relu")),
            "tie_embeddings": data.get("tie_word_embeddings", True),
            "pad_token_id": vocabulary_token(data.get("pad_token_id"), data.get("vocab_size")),
            "norm_first": data.get("do_layer_norm_before", True),
            "final_norm": not data.get("_remove_final_layer_norm", False),
        }
