"""SmolLM3: LLaMA in which some layers do not rotate queries and keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from models.configs.decoders.llama import LlamaConfig
from models.configs.validate import check_size, unsupported
from models.configs.windows import layer_windows


@dataclass(frozen=True, kw_only=True)
class SmolLm3Config(LlamaConfig):
    """A decoder of the SmolLM3 family: every fourth layer has no positions (NoPE)."""

    family: ClassVar[str] = "smollm3"
    model_types: ClassVar[Mapping[str, str]] = {"smollm3": "SmolLM3"}

    @classmethod
    def _read_hf(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        data = {
            "max_position_embeddings": 32768,
            "num_key_value_heads": 4,
            "rope_theta": 2e6 if data.get("rope_parameters") is None else None,
            **data,
        }
        fields = cls._read_common(data)
        layers, attention = fields["num_layers"], data.get("attention_bias", False)
        turned = _turned(data, layers)
        window = data.get("sliding_window") if data.get("use_sliding_window") else None
        kinds = data.get("layer_types")
        if kinds is None:
            slides = [window is not None and not each for each in turned]
            kinds = ["sliding_attention" if each else "full_attention" for each in slides]
        return {
            **fields,
            "tie_embeddings": data.get("tie_word_embeddings", True),
            "qkv_bias": attention,
            "output_bias": attention,
            "mlp_bias": data.get("mlp_bias", False),
            "windows": layer_windows(kinds, layers, window, fields["max_positions"]),
            "rotary": None if all(turned) else tuple(("none", "global")[each] for each in turned),
        }


def _turned(data: Mapping[str, Any], layers: int) -> list[int]:
    """Whether each layer is rotated; despite its name, `no_rope_layers` has 1 for such layers."""
    given = data.get("no_rope_layers")
    if given is None:
        interval = data.get("no_rope_layer_interval", 4)
        check_size("no_rope_layer_interval", interval)
        return [int((i + 1) % interval != 0) for i in range(layers)]
    if not isinstance(given, list) or len(given) != layers or not all(x in (0, 1) for x in given):
        raise unsupported("no_rope_layers", given, "0 or 1 for each layer")
    return [int(each) for each in given]
