"""The Falcon family: 7B (multi-query, parallel), RW (ALiBi, sequential) and 40B, 11B, 180B."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from models.configs.architecture import (
    DecoderConfig,
    activation,
    layer_norm,
    linear,
)
from models.configs.decoders.llama import check_rotary, head_size
from models.configs.names import Naming, Shape
from models.configs.rope import Rope, RopeScaling, read_rope, rotary_turns
from models.configs.validate import check_divides, check_flag, check_size, number, required
from protocols.base.ring import Words
from protocols.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class FalconConfig(DecoderConfig):
    """A decoder of the Falcon family.

    The outputs of `self_attention.query_key_value` are blocks of head_dim entries, one per head:

    - new_decoder_architecture: for each key head its num_heads / num_kv_heads queries, then its
      key, then its value;
    - multi-query (num_kv_heads 1): all queries, the key, the value;
    - otherwise (num_kv_heads = num_heads): for each head its query, its key, its value.

    Attributes:
        parallel_attn: attention and MLP read the same residual, and both are added to it.
        parallel_norms: number of norms in a parallel layer: 1 (`input_layernorm`) or 2 (`ln_attn`,
            `ln_mlp`). 0 in a sequential layer (`input_layernorm`, `post_attention_layernorm`).
        bias: the matrices of the layers have biases.
        alibi: scores get a bias that grows with the position, instead of rotary positions.
        rope_scaling: None for the plain frequencies of rope_theta.
        rotary_dim: how many of a head's entries, from the first, are rotated; None: all.
    """

    table: ClassVar[str] = "transformer.word_embeddings"
    layer: ClassVar[str] = "transformer.h"
    attention: ClassVar[str] = "self_attention"
    last_norm: ClassVar[str] = "transformer.ln_f"

    family: ClassVar[str] = "falcon"
    model_types: ClassVar[Mapping[str, str]] = {"falcon": "Falcon"}
    windowless: ClassVar[tuple[str, ...]] = ("falcon",)
    naming: ClassVar[Naming] = Naming(
        prefix="transformer.",
        children=frozenset({"word_embeddings", "h", "ln_f", "rotary_emb"}),
        heads=frozenset({"lm_head", "score", "classifier", "qa_outputs"}),
        ignored=re.compile(
            r"transformer\.(h\.\d+\.self_attention\.(maybe_rotary|rotary_emb)|rotary_emb)\.inv_freq"
        ),
    )
    neutral: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "apply_residual_connection_post_layernorm": (False,),
        # The class then takes another way, which attends to later tokens.
        "output_attentions": (False,),
    }

    num_kv_heads: int
    layer_norm_eps: float
    rope_theta: float
    new_decoder_architecture: bool = False
    parallel_attn: bool = True
    parallel_norms: int = 1
    bias: bool = False
    alibi: bool = False
    rope_scaling: RopeScaling | None = None
    rotary_dim: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        eps = number("layer_norm_eps", self.layer_norm_eps, 0, 1)
        object.__setattr__(self, "layer_norm_eps", eps)
        object.__setattr__(self, "rope_theta", number("rope_theta", self.rope_theta, 1, 1e12))
        for name in ("new_decoder_architecture", "parallel_attn", "bias", "alibi"):
            check_flag(name, getattr(self, name))
        check_divides("num_heads", self.num_heads, "hidden_size", self.hidden_size)
        check_divides("num_kv_heads", self.num_kv_heads, "num_heads", self.num_heads)
        if not self.alibi:
            check_rotary(self.head_dim, self.rope_scaling, self.rotary_dim)
        self._check_layout()

    def _check_layout(self) -> None:
        if self.rotary_dim is not None:
            raise ModelError("rotary_dim: must be null in this family")
        if self.alibi and self.rope_scaling is not None:
            raise ModelError("alibi: has no rotary positions, so rope_scaling must be null")
        most = 2 if self.new_decoder_architecture else 1
        if self.parallel_attn:
            check_size("parallel_norms", self.parallel_norms, most)
        else:
            check_size("parallel_norms", self.parallel_norms, 0, least=0)
        if self.new_decoder_architecture and not self.parallel_attn:
            raise ModelError("parallel_attn: must be true with new_decoder_architecture")
        if not self.new_decoder_architecture and self.num_kv_heads not in (1, self.num_heads):
            raise ModelError(
                f"num_kv_heads: {self.num_kv_heads} is neither 1 nor num_heads {self.num_heads}, "
                "which needs new_decoder_architecture"
            )

    @property
    def head_dim(self) -> int:
        """Number of entries of an attention head."""
        return self.hidden_size // self.num_heads

    def turns(self, length: int, kind: str = "global") -> Words:
        """Rotary angles per position, (head_dim // 2,), in units of 2^-64 of a turn.

        `length` is the number of tokens in the sequence so far. All layers have the same angles.
        """
        found = rotary_turns(self.rope_theta, self.rotated, self.rope_scaling, length)
        return np.pad(found, (0, (self.head_dim - self.rotated) // 2))

    @property
    def rotated(self) -> int:
        """Number of entries of a head that are rotated."""
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    def norm_names(self) -> tuple[str, ...]:
        """Names of a layer's LayerNorms: the attention's, then the MLP's if it is separate."""
        if not self.parallel_attn:
            return "input_layernorm", "post_attention_layernorm"
        return ("ln_attn", "ln_mlp") if self.parallel_norms == 2 else ("input_layernorm",)

    def _base_tensors(self) -> dict[str, Shape]:
        hidden, inner, bias = self.hidden_size, self.intermediate_size, self.bias
        fused = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        layer: dict[str, Shape] = {}
        for name in self.norm_names():
            layer.update(layer_norm(name, hidden))
        layer.update(linear("self_attention.query_key_value", fused, hidden, bias=bias))
        layer.update(linear("self_attention.dense", hidden, hidden, bias=bias))
        layer.update(linear("mlp.dense_h_to_4h", inner, hidden, bias=bias))
        layer.update(linear("mlp.dense_4h_to_h", hidden, inner, bias=bias))
        shapes: dict[str, Shape] = {
            "transformer.word_embeddings.weight": (self.vocab_size, hidden),
        }
        for i in range(self.num_layers):
            shapes.update({f"transformer.h.{i}.{name}": shape for name, shape in layer.items()})
        return {**shapes, **layer_norm("transformer.ln_f", hidden)}

    @classmethod
    def _value_from_public(cls, name: str, value: object) -> Any:
        if name == "rope_scaling" and value is not None:
            return RopeScaling.from_public(value)
        return super()._value_from_public(name, value)

    @classmethod
    def _read_hf(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        # Null means the same as absent, but for these two, where it means false.
        falsy = {name: False for name in ("multi_query", "parallel_attn") if name in data}
        data = {**falsy, **{name: value for name, value in data.items() if value is not None}}
        hidden, heads = (
            required(data, "hidden_size", "n_embed"),
            required(data, "num_attention_heads"),
        )
        head_size(hidden, heads)
        positions = data.get("max_position_embeddings", 2048)
        check_size("max_position_embeddings", positions)
        alibi = data.get("alibi", False)
        rope = Rope(10000.0, None) if alibi else read_rope(data, positions)
        return {
            "hidden_size": hidden,
            "intermediate_size": data.get("ffn_hidden_size", 4 * hidden),
            "num_layers": required(data, "num_hidden_layers"),
            "num_heads": heads,
            "max_positions": rope.context(positions),
            "hidden_act": activation(data.get("activation", "gelu")),
            "layer_norm_eps": data.get("layer_norm_epsilon", 1e-5),
            "tie_embeddings": data.get("tie_word_embeddings", True),
            "bias": data.get("bias", False),
            "alibi": alibi,
            "rope_theta": rope.theta,
            "rope_scaling": rope.scaling,
            **_layout(data, heads),
        }


def _layout(data: Mapping[str, Any], heads: int) -> dict[str, Any]:
    """Heads and norms, derived as in transformers' class from settings that affect each other."""
    new, parallel = data.get("new_decoder_architecture", False), data.get("parallel_attn", True)
    check_flag("new_decoder_architecture", new)
    check_flag("parallel_attn", parallel)
    check_flag("multi_query", data.get("multi_query", True))
    kv_heads, norms = data.get("num_kv_heads", heads), 1
    if new:
        norms = data.get("num_ln_in_parallel_attn", 2)
    elif data.get("multi_query", True):
        kv_heads = 1
    if not new and data.get("num_ln_in_parallel_attn", 1) != 1:
        raise ModelError("num_ln_in_parallel_attn: must be null or 1 in the old architecture")
    return {
        "new_decoder_architecture": new,
        "parallel_attn": parallel,
        "parallel_norms": norms if parallel else 0,
        "num_kv_heads": kv_heads,
    }
