"""Gemma, Gemma 2 and Gemma 3 (its text models): LLaMA with a scaled embedding and gains of 1 + w.

Gemma 2 and 3 have a norm before and after each block, and mix layers with a sliding window and
layers with full attention. Gemma 2 applies soft caps to scores and logits. Gemma 3 normalises
queries and keys, and its sliding-window layers have a separate rotary base.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from models.configs.architecture import activation
from models.configs.decoders.llama import LlamaConfig
from models.configs.names import Shape
from models.configs.rope import Rope, read_layer_ropes, read_rope
from models.configs.validate import check_size, required
from models.configs.windows import layer_windows
from protocols.errors import ModelError

_KINDS = ("sliding_attention", "full_attention")
# Defaults of transformers' configuration classes, for absent keys.
_DEFAULTS: dict[str, dict[str, object]] = {
    "gemma": {"max_position_embeddings": 8192, "num_key_value_heads": 16},
    "gemma2": {
        "max_position_embeddings": 8192,
        "num_key_value_heads": 4,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
        "sliding_window": 4096,
    },
    "gemma3_text": {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 4,
        "sliding_window": 4096,
    },
}


@dataclass(frozen=True, kw_only=True)
class GemmaConfig(LlamaConfig):
    """A decoder of the Gemma family. Its embedding is multiplied by sqrt(hidden_size)."""

    gain_offset: ClassVar[float] = 1.0
    family: ClassVar[str] = "gemma"
    model_types: ClassVar[Mapping[str, str]] = {
        "gemma": "Gemma",
        "gemma2": "Gemma2",
        "gemma3_text": "Gemma3",
    }
    class_heads: ClassVar[Mapping[str, str]] = {
        "TextModel": "none",
        "TextForSequenceClassification": "sequence-classification",
    }
    heads: ClassVar[tuple[str, ...]] = (
        "none",
        "causal-lm",
        "sequence-classification",
        "token-classification",
    )
    windowless: ClassVar[tuple[str, ...]] = ("gemma",)
    neutral: ClassVar[Mapping[str, tuple[object, ...]]] = {
        **LlamaConfig.neutral,
        "use_bidirectional_attention": (False,),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isclose(self.embedding_scale, math.sqrt(self.hidden_size)):
            raise ModelError(
                f"embedding_scale: {self.embedding_scale} is not the root of {self.hidden_size}"
            )

    def part_names(self) -> dict[str, tuple[str, ...]]:
        names = super().part_names()
        if self.post_norms:
            names["output_norm"] = names["mlp_norm"]
            names["mlp_norm"] = ("pre_feedforward_layernorm",)
            names["down_norm"] = ("post_feedforward_layernorm",)
        return names

    def _layer_tensors(self) -> dict[str, Shape]:
        norm: Shape = (self.hidden_size,)
        tensors = super()._layer_tensors()
        if self.post_norms:
            tensors["pre_feedforward_layernorm.weight"] = norm
            tensors["post_feedforward_layernorm.weight"] = norm
        return tensors

    @classmethod
    def _read_hf(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        model_type = str(data["model_type"])
        data = {"head_dim": 256, **_DEFAULTS[model_type], **data}
        fields = cls._read_common(data)
        fields["embedding_scale"] = math.sqrt(fields["hidden_size"])
        fields["tie_embeddings"] = data.get("tie_word_embeddings", True)
        fields["qkv_bias"] = fields["output_bias"] = data.get("attention_bias", False)
        if model_type == "gemma":
            act = data.get("hidden_act", "gelu_pytorch_tanh")
            # Files say "gelu" but mean the tanh approximation; transformers reads it that way.
            act = "gelu_pytorch_tanh" if act == "gelu" else activation(act)
            return {**fields, "hidden_act": act}
        act = activation(data.get("hidden_activation", "gelu_pytorch_tanh"))
        scalar = data.get("query_pre_attn_scalar", 256)
        check_size("query_pre_attn_scalar", scalar)
        return {
            **fields,
            "hidden_act": act,
            "post_norms": True,
            "score_scale": scalar**-0.5,
            "logits_cap": data.get("final_logit_softcapping"),
            **_layers(model_type, data, fields),
        }

    @classmethod
    def _read_rope(cls, data: Mapping[str, Any], positions: int) -> Rope:
        if data["model_type"] == "gemma3_text":
            return read_layer_ropes(data, positions)[0]
        return read_rope(data, positions)


def _layers(model_type: str, data: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Windows per layer, and the score cap (Gemma 2) or norms and rotary kinds (Gemma 3)."""
    layers, positions = fields["num_layers"], required(data, "max_position_embeddings")
    every = 2 if model_type == "gemma2" else data.get("sliding_window_pattern")
    every = 6 if every is None else every
    check_size("sliding_window_pattern", every)
    kinds = data.get("layer_types")
    if kinds is None:
        kinds = [_KINDS[(i + 1) % every == 0] for i in range(layers)]
    windows = layer_windows(kinds, layers, data.get("sliding_window"), fields["max_positions"])
    if model_type == "gemma2":
        return {"windows": windows, "score_cap": data.get("attn_logit_softcapping")}
    local = read_layer_ropes(data, positions)[1]
    if local.scaling is not None:
        raise ModelError("rope_parameters: sliding_attention must be of kind 'default'")
    return {
        "windows": windows,
        "qk_norm": True,
        "rotary": tuple("local" if kind == _KINDS[0] else "global" for kind in kinds),
        "local_rope_theta": local.theta,
    }
