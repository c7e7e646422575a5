"""The LLaMA family: LLaMA 1 to 3, Mistral, Qwen2, Qwen3, and models saved as one of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from models.configs.architecture import DecoderConfig, activation, linear
from models.configs.names import Naming, Shape
from models.configs.rope import Rope, RopeScaling, read_rope, rotary_turns
from models.configs.validate import (
    check_choice,
    check_divides,
    check_flag,
    check_size,
    number,
    required,
    short,
)
from models.configs.windows import read_windows
from protocols.base.ring import Words
from protocols.errors import ModelError
from protocols.functions.softcap import MAX_POWER

_MAX_SCALE = 2.0**16
ROTARY = ("global", "local", "none")
"""Kinds of rotation that a layer may apply to queries and keys."""
# Defaults of transformers' configuration classes, for absent keys.
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


_RANGES = {
    "rms_norm_eps": (0, 1),
    "rope_theta": (1, 1e12),
    "local_rope_theta": (1, 1e12),
    "score_scale": (0, _MAX_SCALE),
    "embedding_scale": (2.0**-10, _MAX_SCALE),
    "residual_scale": (0, _MAX_SCALE),
    "logits_scale": (0, _MAX_SCALE),
    "score_cap": (1, 2.0**MAX_POWER),
    "logits_cap": (1, 2.0**MAX_POWER),
}
_REQUIRED = ("rms_norm_eps", "rope_theta", "embedding_scale", "residual_scale", "logits_scale")


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(DecoderConfig):
    """A decoder of the LLaMA family: RMSNorm, rotary positions, grouped queries, gated MLP.

    Attributes:
        qkv_bias: the projections to queries, keys and values have a bias (Qwen2).
        output_bias: the output projection of the attention has a bias.
        mlp_bias: the three projections of the MLP have biases.
        qk_norm: each head's query and key go through an RMSNorm before the rotation (Qwen3).
        windows: for each layer, the number of positions that a token attends to (itself and those
            before it), or None for all; None when no layer is limited below max_positions.
        rope_scaling: None for the plain frequencies of rope_theta.
        rotary_dim: how many of a head's entries, from the first, are rotated; None: all.
        rotary: for each layer one of `ROTARY`: rotated by rope_theta with rope_scaling, by
            local_rope_theta, or not at all; None: "global" in all layers.
        post_norms: each block's result goes through a norm before it is added to the residual
            stream.
        score_scale: factor on queries; None: 1 / sqrt(head_dim).
        embedding_scale, residual_scale, logits_scale: factors on the embedding, on each block's
            result and on the logits.
        score_cap, logits_cap: soft caps, c tanh(x / c) (Gemma 2).
    """

    gain_offset: ClassVar[float] = 0.0  # added to the gains of all norms
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
        other_prefixes=("transformer.",),  # used by the classes for question answering
    )
    neutral: ClassVar[Mapping[str, tuple[object, ...]]] = {"token_classification_bias": (True,)}

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
    rotary_dim: int | None = None
    rotary: tuple[str, ...] | None = None
    local_rope_theta: float | None = None
    post_norms: bool = False
    score_scale: float | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logits_scale: float = 1.0
    score_cap: float | None = None
    logits_cap: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, (low, high) in _RANGES.items():
            if name in _REQUIRED or getattr(self, name) is not None:
                object.__setattr__(self, name, number(name, getattr(self, name), low, high))
        for name in ("qkv_bias", "output_bias", "mlp_bias", "qk_norm", "post_norms"):
            check_flag(name, getattr(self, name))
        check_divides("num_kv_heads", self.num_kv_heads, "num_heads", self.num_heads)
        check_rotary(self.head_dim, self.rope_scaling, self.rotary_dim)
        self._check_windows()
        self._check_rotary()

    def _check_rotary(self) -> None:
        if self.rotary is None:
            return
        if not isinstance(self.rotary, tuple) or len(self.rotary) != self.num_layers:
            raise ModelError(f"rotary: {short(self.rotary)} has no entry for each layer")
        for kind in self.rotary:
            check_choice("rotary", kind, ROTARY)
        if "local" in self.rotary and self.local_rope_theta is None:
            raise ModelError("local_rope_theta: None, but there are layers that turn by it")

    def _check_windows(self) -> None:
        if self.windows is None:
            return
        if not isinstance(self.windows, tuple) or len(self.windows) != self.num_layers:
            raise ModelError(f"windows: {short(self.windows)} has no entry for each layer")
        for window in self.windows:
            if window is not None:
                check_size("windows", window)

    @property
    def rotated(self) -> int:
        """Number of entries of a head that are rotated."""
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    @property
    def query_scale(self) -> float:
        """The factor on queries, without the factors for rotary positions and soft caps."""
        return self.head_dim**-0.5 if self.score_scale is None else self.score_scale

    def turns(self, length: int, kind: str = "global") -> Words:
        """Rotary angles per position, (head_dim // 2,), in units of 2^-64 of a turn.

        `length` is the number of tokens in the sequence so far, `kind` the kind of the layers.
        Entries that are not rotated have the angle 0.
        """
        theta, scaling = self.rope_theta, self.rope_scaling
        if kind == "local":
            assert self.local_rope_theta is not None
            theta, scaling = self.local_rope_theta, None
        found = rotary_turns(theta, self.rotated, scaling, length)
        return np.pad(found, (0, (self.head_dim - self.rotated) // 2))

    def rotary_of(self, layer: int) -> str:
        """The kind of rotation in a layer, counted from 0: one of `ROTARY`."""
        return "global" if self.rotary is None else self.rotary[layer]

    def window_of(self, layer: int) -> int | None:
        """The window of a layer, counted from 0; None: it sees all tokens."""
        return None if self.windows is None else self.windows[layer]

    def rotary_kinds(self) -> tuple[str, ...]:
        """The kinds of rotary angles that the layers use."""
        return tuple(sorted({*(self.rotary or ("global",))} - {"none"}))

    def part_names(self) -> dict[str, tuple[str, ...]]:
        """Part of a layer -> names of its tensors, without `.weight`."""
        names: dict[str, tuple[str, ...]] = {
            "attention_norm": ("input_layernorm",),
            "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "output": ("self_attn.o_proj",),
            "mlp_norm": ("post_attention_layernorm",),
            "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
            "down": ("mlp.down_proj",),
        }
        if self.qk_norm:
            names.update(q_norm=("self_attn.q_norm",), k_norm=("self_attn.k_norm",))
        return names

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
        fields = cls._read_common(data)
        layers, positions = fields["num_layers"], fields["max_positions"]
        return {
            **fields,
            "qk_norm": model_type == "qwen3",
            "windows": read_windows(model_type, data, layers, positions),
            **_biases(model_type, data),
        }

    @classmethod
    def _read_rope(cls, data: Mapping[str, Any], positions: int) -> Rope:
        return read_rope(data, positions)

    @classmethod
    def _read_common(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """Fields whose keys are the same in all model types of this family and related ones."""
        layers, heads = required(data, "num_hidden_layers"), required(data, "num_attention_heads")
        hidden, kv_heads = required(data, "hidden_size"), data.get("num_key_value_heads")
        check_size("num_hidden_layers", layers)
        positions = required(data, "max_position_embeddings")
        check_size("max_position_embeddings", positions)
        rope = cls._read_rope(data, positions)
        return {
            "hidden_size": hidden,
            "intermediate_size": required(data, "intermediate_size"),
            "num_layers": layers,
            "num_heads": heads,
            "num_kv_heads": heads if kv_heads is None else kv_heads,
            "head_dim": head_size(hidden, heads, data.get("head_dim")),
            "rms_norm_eps": data.get("rms_norm_eps", 1e-6),
            "rope_theta": rope.theta,
            "rope_scaling": rope.scaling,
            "max_positions": rope.context(positions),
            "tie_embeddings": data.get("tie_word_embeddings", False),
            "hidden_act": activation(data.get("hidden_act", "silu")),
        }


def head_size(hidden: object, heads: object, given: object = None) -> Any:
    """Number of entries of a head: `given`, or the hidden size divided by the number of heads."""
    if given is not None:
        return given
    check_size("hidden_size", hidden)
    check_size("num_attention_heads", heads)
    assert isinstance(hidden, int) and isinstance(heads, int)
    check_divides("num_attention_heads", heads, "hidden_size", hidden)
    return hidden // heads


def check_rotary(head_dim: int, scaling: object, rotated: int | None = None) -> None:
    """Raise ModelError unless heads of this size can be rotated with this scaling.

    rotated: number of entries, from the first, that are rotated; None: all.
    """
    if rotated is not None:
        check_size("rotary_dim", rotated, head_dim, least=2)
    for name, size in (("head_dim", head_dim), ("rotary_dim", rotated or 2)):
        if size % 2:
            raise ModelError(f"{name} {size} is odd; rotary positions need it even")
    if scaling is None:
        return
    if not isinstance(scaling, RopeScaling):
        raise ModelError(f"rope_scaling: {short(scaling)} is not a rotary scaling or null")
    size = head_dim if rotated is None else rotated
    if scaling.kind == "dynamic" and size == 2:
        raise ModelError("head_dim 2 is too small for rope_scaling of kind 'dynamic'")
    if scaling.factors is not None and len(scaling.factors) != size // 2:
        raise ModelError(
            f"rope_scaling.factors: {len(scaling.factors)} numbers where {size} entries are rotated"
        )


def _biases(model_type: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Which projections have a bias, as in transformers' classes."""
    attention = data.get("attention_bias", False)
    if model_type == "qwen2":  # constants of its class
        return {"qkv_bias": True, "output_bias": False}
    if model_type == "mistral":
        return {}
    mlp = data.get("mlp_bias", False) if model_type == "llama" else False
    return {"qkv_bias": attention, "output_bias": attention, "mlp_bias": mlp}
