"""The GPT-2 family: LayerNorm before each block, learned positions, one fused qkv matrix."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from models.configs.architecture import (
    DecoderConfig,
    activation,
    layer_norm,
)
from models.configs.names import Naming, Shape
from models.configs.validate import check_divides, check_flag, check_size, number, required


@dataclass(frozen=True, kw_only=True)
class Gpt2Config(DecoderConfig):
    """A decoder of the GPT-2 family.

    Its matrices are stored as (inputs, outputs), unlike in every other family. The outputs of
    `attn.c_attn` are all queries, then all keys, then all values, each in the order of the heads.

    Attributes:
        scale_attn_weights: scores are divided by sqrt(head_dim).
        scale_attn_by_inverse_layer_idx: the scores of layer i, counted from 0, are also divided
            by i + 1.
    """

    family: ClassVar[str] = "gpt2"
    model_types: ClassVar[Mapping[str, str]] = {"gpt2": "GPT2"}
    windowless: ClassVar[tuple[str, ...]] = ("gpt2",)
    naming: ClassVar[Naming] = Naming(
        prefix="transformer.",
        children=frozenset({"wte", "wpe", "h", "ln_f"}),
        heads=frozenset({"lm_head", "score", "classifier", "qa_outputs", "multiple_choice_head"}),
        # Causal masks that old checkpoints contain.
        ignored=re.compile(r"transformer\.h\.\d+\.attn\.(masked_)?bias"),
        transposed=re.compile(r"transformer\.h\.\d+\.(attn|mlp)\.c_\w+\.weight"),
    )

    neutral: ClassVar[Mapping[str, tuple[object, ...]]] = {"add_cross_attention": (False,)}

    layer_norm_eps: float
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        eps = number("layer_norm_eps", self.layer_norm_eps, 0, 1)
        object.__setattr__(self, "layer_norm_eps", eps)
        for name in ("scale_attn_weights", "scale_attn_by_inverse_layer_idx"):
            check_flag(name, getattr(self, name))
        check_divides("num_heads", self.num_heads, "hidden_size", self.hidden_size)

    @property
    def head_dim(self) -> int:
        """Number of entries of an attention head."""
        return self.hidden_size // self.num_heads

    def attention_scale(self, layer: int) -> float:
        """The factor on the scores of a layer, counted from 0."""
        scale = self.head_dim**-0.5 if self.scale_attn_weights else 1.0
        return scale / (layer + 1) if self.scale_attn_by_inverse_layer_idx else scale

    def _base_tensors(self) -> dict[str, Shape]:
        hidden, inner = self.hidden_size, self.intermediate_size
        layer: dict[str, Shape] = {
            **layer_norm("ln_1", hidden),
            **_conv1d("attn.c_attn", hidden, 3 * hidden),
            **_conv1d("attn.c_proj", hidden, hidden),
            **layer_norm("ln_2", hidden),
            **_conv1d("mlp.c_fc", hidden, inner),
            **_conv1d("mlp.c_proj", inner, hidden),
        }
        shapes: dict[str, Shape] = {
            "transformer.wte.weight": (self.vocab_size, hidden),
            "transformer.wpe.weight": (self.max_positions, hidden),
        }
        for i in range(self.num_layers):
            shapes.update({f"transformer.h.{i}.{name}": shape for name, shape in layer.items()})
        return {**shapes, **layer_norm("transformer.ln_f", hidden)}

    @classmethod
    def _read_hf(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        hidden, inner = required(data, "n_embd", "hidden_size"), data.get("n_inner")
        check_size("n_embd", hidden)
        return {
            "hidden_size": hidden,
            "intermediate_size": 4 * hidden if inner is None else inner,
            "num_layers": required(data, "n_layer", "num_hidden_layers"),
            "num_heads": required(data, "n_head", "num_attention_heads"),
            "max_positions": required(
                {"n_positions": 1024, **data}, "n_positions", "max_position_embeddings"
            ),
            "hidden_act": activation(data.get("activation_function", "gelu_new")),
            "layer_norm_eps": data.get("layer_norm_epsilon", 1e-5),
            "tie_embeddings": data.get("tie_word_embeddings", True),
            "scale_attn_weights": data.get("scale_attn_weights", True),
            "scale_attn_by_inverse_layer_idx": data.get("scale_attn_by_inverse_layer_idx", False),
        }


def _conv1d(name: str, inputs: int, outputs: int) -> dict[str, Shape]:
    """transformers' Conv1D: a linear layer whose weight is stored as (inputs, outputs)."""
    return {f"{name}.weight": (inputs, outputs), f"{name}.bias": (outputs,)}
