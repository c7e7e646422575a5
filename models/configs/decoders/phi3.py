"""Phi-3 and Phi-4: LLaMA with fused projections, longrope and partly rotated heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from models.configs.architecture import linear
from models.configs.decoders.llama import LlamaConfig
from models.configs.names import Shape
from models.configs.rope import Rope, read_rope
from models.configs.validate import check_size, number, unsupported
from models.configs.windows import layer_windows


@dataclass(frozen=True, kw_only=True)
class Phi3Config(LlamaConfig):
    """A decoder of the Phi-3 family.

    With longrope, max_positions is the training context (4096 tokens for Phi-3 and Phi-4-mini),
    and longer texts are refused.
    """

    family: ClassVar[str] = "phi3"
    model_types: ClassVar[Mapping[str, str]] = {"phi3": "Phi3"}
    heads: ClassVar[tuple[str, ...]] = (
        "none",
        "causal-lm",
        "sequence-classification",
        "token-classification",
    )

    def part_names(self) -> dict[str, tuple[str, ...]]:
        names = super().part_names()
        return {**names, "qkv": ("self_attn.qkv_proj",), "gate_up": ("mlp.gate_up_proj",)}

    def _layer_tensors(self) -> dict[str, Shape]:
        hidden, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            "input_layernorm.weight": (hidden,),
            **linear("self_attn.qkv_proj", queries + 2 * keys, hidden, bias=False),
            **linear("self_attn.o_proj", hidden, queries, bias=False),
            "post_attention_layernorm.weight": (hidden,),
            **linear("mlp.gate_up_proj", 2 * inner, hidden, bias=False),
            **linear("mlp.down_proj", hidden, inner, bias=False),
        }

    @classmethod
    def _read_hf(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        data = {
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            **data,
        }
        fields = cls._read_common(data)
        layers, positions, size = (
            fields[name] for name in ("num_layers", "max_positions", "head_dim")
        )
        rope = cls._read_rope(data, data["max_position_embeddings"])
        fraction = number("partial_rotary_factor", rope.fraction, 0, 1)
        window = data.get("sliding_window")
        check_size("head_dim", size)
        kinds = ["full_attention" if window is None else "sliding_attention"] * layers
        given = data.get("layer_types")
        if given is not None and given != kinds:  # only transformers' cache would follow it
            raise unsupported("layer_types", given, f"{kinds[0]!r} for each layer")
        return {
            **fields,
            "windows": layer_windows(kinds, layers, window, positions),
            "rotary_dim": None if fraction == 1 else int(size * fraction),
        }

    @classmethod
    def _read_rope(cls, data: Mapping[str, Any], positions: int) -> Rope:
        return read_rope(_renamed(data), positions, partial=True)


def _renamed(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings with longrope under its current name; older files call it "yarn"."""
    for where in ("rope_scaling", "rope_parameters"):
        rope = data.get(where)
        if isinstance(rope, Mapping) and rope.get("rope_type", rope.get("type")) == "yarn":
            return {**data, where: {**rope, "rope_type": "longrope", "type": "longrope"}}
    return data
