"""GPT-NeoX and Pythia: Falcon's layers with two norms and partly rotated heads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from models.configs.architecture import activation, layer_norm, linear, vocabulary_token
from models.configs.decoders.falcon import FalconConfig
from models.configs.decoders.llama import head_size
from models.configs.names import Naming, Shape
from models.configs.rope import read_rope
from models.configs.validate import check_flag, check_size, number, required
from protocols.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class GptNeoxConfig(FalconConfig):
    """A decoder of the GPT-NeoX family.

    It has as many key heads as query heads, biases everywhere and two norms per layer. Attention
    and MLP run in parallel (`parallel_attn`) or one after the other.
    """

    family: ClassVar[str] = "gpt_neox"
    model_types: ClassVar[Mapping[str, str]] = {"gpt_neox": "GPTNeoX"}
    windowless: ClassVar[tuple[str, ...]] = ("gpt_neox",)
    naming: ClassVar[Naming] = Naming(
        prefix="gpt_neox.",
        children=frozenset({"embed_in", "layers", "final_layer_norm"}),
        heads=frozenset({"lm_head", "score", "classifier", "qa_outputs"}),
        ignored=re.compile(
            r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)"
        ),
        renamed={"embed_out": "lm_head"},
    )
    neutral: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "attention_bias": (True,),
        "is_decoder": (False, True),
    }
    table: ClassVar[str] = "gpt_neox.embed_in"
    layer: ClassVar[str] = "gpt_neox.layers"
    attention: ClassVar[str] = "attention"
    last_norm: ClassVar[str] = "gpt_neox.final_layer_norm"

    def _check_layout(self) -> None:
        wanted = {
            "alibi": False,
            "bias": True,
            "new_decoder_architecture": False,
            "num_kv_heads": self.num_heads,
            "parallel_norms": 2 if self.parallel_attn else 0,
        }
        for name, value in wanted.items():
            if getattr(self, name) != value:
                raise ModelError(f"{name}: must be {str(value).lower()} in this family")

    def norm_names(self) -> tuple[str, ...]:
        return "input_layernorm", "post_attention_layernorm"

    def _base_tensors(self) -> dict[str, Shape]:
        hidden, inner = self.hidden_size, self.intermediate_size
        layer: dict[str, Shape] = {
            **layer_norm("input_layernorm", hidden),
            **layer_norm("post_attention_layernorm", hidden),
            **linear("attention.query_key_value", 3 * hidden, hidden),
            **linear("attention.dense", hidden, hidden),
            **linear("mlp.dense_h_to_4h", inner, hidden),
            **linear("mlp.dense_4h_to_h", hidden, inner),
        }
        shapes: dict[str, Shape] = {f"{self.table}.weight": (self.vocab_size, hidden)}
        for i in range(self.num_layers):
            shapes.update({f"{self.layer}.{i}.{name}": shape for name, shape in layer.items()})
        return {**shapes, **layer_norm(self.last_norm, hidden)}

    @classmethod
    def _read_hf(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        # For all of these keys, null means the same as absent.
        data = {name: value for name, value in data.items() if value is not None}
        hidden, heads = required(data, "hidden_size"), required(data, "num_attention_heads")
        size = head_size(hidden, heads)
        positions = data.get("max_position_embeddings", 2048)
        check_size("max_position_embeddings", positions)
        # Older names of the frequencies' base and of the rotated fraction.
        names = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
        older = {name: data[old] for name, old in names.items() if old in data}
        rope = read_rope({"partial_rotary_factor": 0.25, **data, **older}, positions, partial=True)
        parallel = data.get("use_parallel_residual", True)
        check_flag("use_parallel_residual", parallel)
        fraction = number("partial_rotary_factor", rope.fraction, 0, 1)
        return {
            "hidden_size": hidden,
            "intermediate_size": required(data, "intermediate_size"),
            "num_layers": required(data, "num_hidden_layers"),
            "num_heads": heads,
            "num_kv_heads": heads,
            "max_positions": rope.context(positions),
            "hidden_act": activation(data.get("hidden_act", "gelu")),
            "layer_norm_eps": data.get("layer_norm_eps", 1e-5),
            "tie_embeddings": data.get("tie_word_embeddings", False),
            "pad_token_id": vocabulary_token(data.get("pad_token_id"), data.get("vocab_size")),
            "bias": True,
            "parallel_attn": parallel,
            "parallel_norms": 2 if parallel else 0,
            "rope_theta": rope.theta,
            "rope_scaling": rope.scaling,
            "rotary_dim": None if fraction == 1 else int(size * fraction),
        }
