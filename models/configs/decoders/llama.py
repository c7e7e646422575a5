"""The LLaMA family: LLaMA 1 to 3, Mistral, Qwen2, Qwen3 and what else is saved as one of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from models.configs.architecture import DecoderConfig, activation, linear, vocabulary_token
from models.configs.names import Naming, Shape
from models.configs.rope import RopeScaling, read_rope, rotary_turns
from models.configs.validate import (
    check_divides,
    check_flag,
    check_size,
    number,
    refuse_unless_neutral,
    required,
    short,
    unsupported,
)
from protocols.base.ring import Words
from protocols.errors import ModelError

_MAX_WINDOW = 1 << 24
# Where a key is absent, the value that transformers' configuration class would take.
_DEFAULTS: dict[str, dict[str, object]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "qwen2": {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    "qwen3": {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
}


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(DecoderConfig):
    """A decoder of the LLaMA family: RMSNorm, rotary positions, grouped queries, gated MLP.

    Attributes:
        qkv_bias: the projections to queries, keys and values have a bias (Qwen2).
        output_bias: so does the projection after the attention.
        mlp_bias: so do the three projections of the MLP.
        qk_norm: each head's query and key pass an RMSNorm before the rotation (Qwen3).
        windows: for each layer, the number of positions that a token attends to, itself and the
            ones before it, or None for all; None when no layer is limited below max_positions.
        rope_scaling: None for the plain frequencies of rope_theta.
    """

    family: ClassVar[str] = "llama"
    model_types: ClassVar[Mapping[str, str]] = {
        "llama": "Llama",
        "mistral": "Mistral",
        "qwen2": "Qwen2",
        "qwen3": "Qwen3",
    }
    tagger: ClassVar[str] = "score"
    naming: ClassVar[Naming] = Naming(
        prefix="model.",
        children=frozenset({"embed_tokens", "layers", "norm"}),
        heads=frozenset({"lm_head", "score", "qa_outputs"}),
        ignored=re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"),
        other_prefixes=("transformer.",),  # of the classes for question answering
    )
    neutral: ClassVar[Mapping[str, tuple[object, ...]]] = {
        # Mixtures of experts.
        "num_experts": (0,),
        "num_local_experts": (0,),
        "n_routed_experts": (0,),
        "moe_intermediate_size": (),
        # Granite, MiniCPM, Cohere, Gemma and relations, saved under a name of this family.
        "embedding_multiplier": (1,),
        "residual_multiplier": (1,),
        "attention_multiplier": (),
        "logits_scaling": (1,),
        "logit_scale": (1,),
        "scale_emb": (1,),
        "scale_depth": (),
        "dim_model_base": (),
        "attn_logit_softcapping": (),
        "final_logit_softcapping": (),
        "query_pre_attn_scalar": (),
        # Other attention, positions or norms.
        "alibi": (False,),
        "clip_qkv": (),
        "no_rope_layers": ([],),
        "no_rope_layer_interval": (),
        "attn_temperature_tuning": (False, 0),
        "rotary_pct": (1,),
        "use_mrope": (False,),
        "use_parallel_residual": (False,),
        "use_qk_norm": (False,),
        "use_bidirectional_attention": (False,),
        "token_classification_bias": (True,),
    }

    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    hidden_act: str = "silu"
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    windows: tuple[int | None, ...] | None = None
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "rms_norm_eps", number("rms_norm_eps", self.rms_norm_eps, 0, 1))
        object.__setattr__(self, "rope_theta", number("rope_theta", self.rope_theta, 1, 1e12))
        for name in ("qkv_bias", "output_bias", "mlp_bias", "qk_norm"):
            check_flag(name, getattr(self, name))
        check_divides("num_kv_heads", self.num_kv_heads, "num_heads", self.num_heads)
        check_rotary(self.head_dim, self.rope_scaling)
        self._check_windows()

    def _check_windows(self) -> None:
        if self.windows is None:
            return
        if not isinstance(self.windows, tuple) or len(self.windows) != self.num_layers:
            raise ModelError(f"windows: {short(self.windows)} has no entry for each layer")
        for window in self.windows:
            if window is not None:
                check_size("windows", window, _MAX_WINDOW)

    def turns(self, length: int) -> Words:
        """Angles per position, (head_dim // 2,), in 2^-64 of a turn, in a sequence of `length`
        tokens so far.
        """
        return rotary_turns(self.rope_theta, self.head_dim, self.rope_scaling, length)

    def _base_tensors(self) -> dict[str, Shape]:
        hidden = self.hidden_size
        layer = self._layer_tensors()
        shapes: dict[str, Shape] = {"model.embed_tokens.weight": (self.vocab_size, hidden)}
        for i in range(self.num_layers):
            shapes.update({f"model.layers.{i}.{name}": shape for name, shape in layer.items()})
        return {**shapes, "model.norm.weight": (hidden,)}

    def _layer_tensors(self) -> dict[str, Shape]:
        hidden, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        norm: dict[str, Shape] = {"self_attn.q_norm.weight": (self.head_dim,)}
        norm["self_attn.k_norm.weight"] = (self.head_dim,)
        return {
            "input_layernorm.weight": (hidden,),
            **linear("self_attn.q_proj", queries, hidden, bias=self.qkv_bias),
            **linear("self_attn.k_proj", keys, hidden, bias=self.qkv_bias),
            **linear("self_attn.v_proj", keys, hidden, bias=self.qkv_bias),
            **(norm if self.qk_norm else {}),
            **linear("self_attn.o_proj", hidden, queries, bias=self.output_bias),
            "post_attention_layernorm.weight": (hidden,),
            **linear("mlp.gate_proj", inner, hidden, bias=self.mlp_bias),
            **linear("mlp.up_proj", inner, hidden, bias=self.mlp_bias),
            **linear("mlp.down_proj", hidden, inner, bias=self.mlp_bias),
        }

    @classmethod
    def _value_from_public(cls, name: str, value: object) -> Any:
        if name == "rope_scaling" and value is not None:
            return RopeScaling.from_public(value)
        return super()._value_from_public(name, value)

    @classmethod
    def _read_hf(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        model_type = str(data["model_type"])
        data = {**_DEFAULTS[model_type], **data}
        layers, heads = required(data, "num_hidden_layers"), required(data, "num_attention_heads")
        hidden, kv_heads = required(data, "hidden_size"), data.get("num_key_value_heads")
        check_size("num_hidden_layers", layers)
        positions = required(data, "max_position_embeddings")
        check_size("max_position_embeddings", positions)
        theta, scaling = read_rope(data, positions)
        if scaling is not None and scaling.kind == "dynamic":
            positions = int(positions * scaling.factor)
        return {
            "hidden_size": hidden,
            "intermediate_size": required(data, "intermediate_size"),
            "num_layers": layers,
            "num_heads": heads,
            "num_kv_heads": heads if kv_heads is None else kv_heads,
            "head_dim": head_size(hidden, heads, data.get("head_dim")),
            "rms_norm_eps": data.get("rms_norm_eps", 1e-6),
            "rope_theta": theta,
            "rope_scaling": scaling,
            "max_positions": positions,
            "tie_embeddings": data.get("tie_word_embeddings", False),
            "pad_token_id": vocabulary_token(data.get("pad_token_id"), data.get("vocab_size")),
            "hidden_act": activation(data.get("hidden_act", "silu")),
            "qk_norm": model_type == "qwen3",
            "windows": _windows(model_type, data, layers, positions),
            **_biases(model_type, data),
        }


def head_size(hidden: object, heads: object, given: object = None) -> Any:
    """Entries of an attention head: `given`, or the heads' share of the hidden state."""
    if given is not None:
        return given
    check_size("hidden_size", hidden)
    check_size("num_attention_heads", heads)
    assert isinstance(hidden, int) and isinstance(heads, int)
    check_divides("num_attention_heads", heads, "hidden_size", hidden)
    return hidden // heads


def check_rotary(head_dim: int, scaling: object) -> None:
    """Raise ModelError unless heads of this size can be rotated with this scaling."""
    if head_dim % 2:
        raise ModelError(f"head_dim {head_dim} is odd; rotary positions need it even")
    if scaling is None:
        return
    if not isinstance(scaling, RopeScaling):
        raise ModelError(f"rope_scaling: {short(scaling)} is not a rotary scaling or null")
    if scaling.kind == "dynamic" and head_dim == 2:
        raise ModelError("head_dim 2 is too small for rope_scaling of kind 'dynamic'")
    if scaling.factors is not None and len(scaling.factors) != head_dim // 2:
        raise ModelError(
            f"rope_scaling.factors: {len(scaling.factors)} numbers where {head_dim} entries are "
            "rotated"
        )


def _biases(model_type: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Which projections have a bias, as the classes of transformers decide it."""
    if model_type == "mistral":
        refuse_unless_neutral(data, {"attention_bias": (False,)})
    if model_type != "llama":
        refuse_unless_neutral(data, {"mlp_bias": (False,)})
    attention = data.get("attention_bias", False)
    if model_type == "qwen2":  # a constant of its class
        return {"qkv_bias": True, "output_bias": False}
    if model_type == "mistral":
        return {}
    mlp = data.get("mlp_bias", False) if model_type == "llama" else False
    return {"qkv_bias": attention, "output_bias": attention, "mlp_bias": mlp}


def _windows(
    model_type: str, data: Mapping[str, Any], layers: int, positions: int
) -> tuple[int | None, ...] | None:
    """Sliding windows, a layer each; None when no window is shorter than the context."""
    window: Any = data.get("sliding_window")
    if model_type.startswith("qwen") and not data.get("use_sliding_window", False):
        window = None
    if window is not None:
        check_size("sliding_window", window, _MAX_WINDOW)
        if window >= positions:  # full attention
            return None
        if model_type == "llama":
            raise unsupported("sliding_window", window, "null (full attention) for 'llama'")
    kinds = _layer_types(model_type, data, layers, window)
    if window is None or "sliding_attention" not in kinds:
        return None
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _layer_types(
    model_type: str, data: Mapping[str, Any], layers: int, window: int | None
) -> list[str]:
    first = required(data, "max_window_layers") if "max_window_layers" in data else 0
    check_size("max_window_layers", first, _MAX_WINDOW, least=0)
    sliding = "full_attention" if window is None else "sliding_attention"
    default = ["full_attention" if i < first else sliding for i in range(layers)]
    kinds = data.get("layer_types")
    if kinds is None:
        return default
    allowed = {"full_attention", sliding}
    same = isinstance(kinds, list) and len(kinds) == layers and all(k in allowed for k in kinds)
    if not same or (not model_type.startswith("qwen") and kinds != default):
        raise unsupported("layer_types", kinds, f"for each layer one of {sorted(allowed)}")
    return list(kinds)
