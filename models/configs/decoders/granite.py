"""Granite: LLaMA with multipliers on the embedding, the scores, the blocks and the logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from models.configs.decoders.llama import LlamaConfig
from models.configs.validate import number

_MULTIPLIERS = (
    "embedding_multiplier",
    "residual_multiplier",
    "attention_multiplier",
    "logits_scaling",
)


@dataclass(frozen=True, kw_only=True)
class GraniteConfig(LlamaConfig):
    """A dense decoder of the Granite family (3.0 to 3.3)."""

    family: ClassVar[str] = "granite"
    model_types: ClassVar[Mapping[str, str]] = {"granite": "Granite"}
    heads: ClassVar[tuple[str, ...]] = ("none", "causal-lm")
    windowless: ClassVar[tuple[str, ...]] = ("granite",)

    @classmethod
    def _read_hf(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        data = {"max_position_embeddings": 2048, **dict.fromkeys(_MULTIPLIERS, 1.0), **data}
        embedding, residual, scores, logits = (
            number(name, data[name], 0, 2.0**16) for name in _MULTIPLIERS
        )
        attention = data.get("attention_bias", False)
        return {
            **cls._read_common(data),
            "qkv_bias": attention,
            "output_bias": attention,
            "mlp_bias": data.get("mlp_bias", False),
            "embedding_scale": embedding,
            "residual_scale": residual,
            "score_scale": scores,
            "logits_scale": 1 / logits,
        }
