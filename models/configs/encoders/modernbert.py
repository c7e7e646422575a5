"""ModernBERT: norms before blocks, gated MLPs, rotary positions, some sliding-window layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from models.configs.architecture import ACTIVATIONS, activation, linear
from models.configs.decoders.llama import check_rotary
from models.configs.encoders.encoder import EncoderConfig
from models.configs.names import Naming, Shape
from models.configs.rope import read_layer_ropes, rotary_turns
from models.configs.validate import check_choice, check_size, number, required, short, unsupported
from models.configs.windows import layer_windows
from protocols.base.ring import Words
from protocols.errors import ModelError

_POOLING = ("cls", "mean")
_KINDS = ("full_attention", "sliding_attention")


@dataclass(frozen=True, kw_only=True)
class ModernBertConfig(EncoderConfig):
    """An encoder of the ModernBERT family. Only the last layers of its heads have biases.

    Attributes:
        windows: for each layer, how many tokens a token sees on either side, itself included, or
            None for the whole text; None when no layer is limited.
        local: for each layer, whether it is rotated by local_rope_theta (sliding-window layers)
            and not by rope_theta.
        pooling: input of the sequence classifier: the first token, or the mean of all.
        classifier_act: the activation inside every head.
    """

    family: ClassVar[str] = "modernbert"
    model_types: ClassVar[Mapping[str, str]] = {"modernbert": "ModernBert"}
    naming: ClassVar[Naming] = Naming(
        prefix="model.",
        children=frozenset({"embeddings", "layers", "final_norm"}),
        heads=frozenset({"head", "decoder", "classifier"}),
        ignored=re.compile(r"model\.(layers\.\d+\.attn\.)?rotary_emb\..*"),
    )
    neutral: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "is_causal": (False,),
        "norm_bias": (False,),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "classifier_bias": (False,),
        "decoder_bias": (True,),
    }

    rope_theta: float
    local_rope_theta: float
    local: tuple[bool, ...]
    windows: tuple[int | None, ...] | None
    pooling: str
    classifier_act: str
    type_vocab_size: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rope_theta", "local_rope_theta"):
            object.__setattr__(self, name, number(name, getattr(self, name), 1, 1e12))
        check_choice("pooling", self.pooling, _POOLING)
        check_choice("classifier_act", self.classifier_act, ACTIVATIONS)
        check_rotary(self.head_dim, None)
        check_size("type_vocab_size", self.type_vocab_size, 0, least=0)
        check_size("position_offset", self.position_offset, 0, least=0)
        if self.pooler:
            raise ModelError("pooler: must be false in this family")
        for name, kinds in (("local", (bool,)), ("windows", (int, type(None)))):
            self._check_layers(name, getattr(self, name), kinds)

    def _check_layers(self, name: str, value: object, kinds: tuple[type, ...]) -> None:
        if value is None and name == "windows":
            return
        if not isinstance(value, tuple) or len(value) != self.num_layers:
            raise ModelError(f"{name}: {short(value)} has no entry for each layer")
        for each in value:
            if type(each) not in kinds:
                raise ModelError(f"{name}: {short(each)} is of a wrong type")
            if type(each) is int:
                check_size(name, each)

    @property
    def transform_act(self) -> str:
        return self.classifier_act

    def activation_of(self, module: str) -> str:
        return self.classifier_act if module.startswith("head.") else self.hidden_act

    def turns(self, length: int, kind: str = "global") -> Words:
        """Rotary angles per position of a kind of layer, (head_dim // 2,), in 2^-64 of a turn."""
        theta = self.local_rope_theta if kind == "local" else self.rope_theta
        return np.asarray(rotary_turns(theta, self.head_dim, None, length))

    def rotary_kinds(self) -> tuple[str, ...]:
        """The kinds of rotary angles that the layers use."""
        return tuple(sorted({("global", "local")[each] for each in self.local}))

    def decoder(self) -> tuple[str, str]:
        return "decoder", "decoder.bias"

    def tied(self) -> dict[str, str]:
        if self.head != "masked-lm" or not self.tie_embeddings:
            return {}
        return {"decoder.weight": "model.embeddings.tok_embeddings.weight"}

    def _base_tensors(self) -> dict[str, Shape]:
        hidden, inner = self.hidden_size, self.intermediate_size
        shapes: dict[str, Shape] = {
            "model.embeddings.tok_embeddings.weight": (self.vocab_size, hidden),
            "model.embeddings.norm.weight": (hidden,),
        }
        for i in range(self.num_layers):
            name = f"model.layers.{i}"
            if i:  # the first layer reads the normalised embedding
                shapes[f"{name}.attn_norm.weight"] = (hidden,)
            shapes.update(linear(f"{name}.attn.Wqkv", 3 * hidden, hidden, bias=False))
            shapes.update(linear(f"{name}.attn.Wo", hidden, hidden, bias=False))
            shapes[f"{name}.mlp_norm.weight"] = (hidden,)
            shapes.update(linear(f"{name}.mlp.Wi", 2 * inner, hidden, bias=False))
            shapes.update(linear(f"{name}.mlp.Wo", hidden, inner, bias=False))
        return {**shapes, "model.final_norm.weight": (hidden,)}

    def _head_tensors(self) -> dict[str, Shape]:
        hidden = self.hidden_size
        if self.head == "none":
            return {}
        shapes = linear("head.dense", hidden, hidden, bias=False)
        shapes["head.norm.weight"] = (hidden,)
        if self.head == "masked-lm":
            return {**shapes, **self._vocabulary_tensors(*self.decoder())}
        return {**shapes, **linear("classifier", self.num_labels, hidden)}

    @classmethod
    def _read_hf(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        layers, positions = required(data, "num_hidden_layers"), data.get("max_position_embeddings")
        check_size("num_hidden_layers", layers)
        positions = 8192 if positions is None else positions
        kinds = data.get("layer_types")
        if kinds is None:
            every = data.get("global_attn_every_n_layers", 3)
            check_size("global_attn_every_n_layers", every)
            kinds = [_KINDS[i % every != 0] for i in range(layers)]
        window = data.get("local_attention", 128)
        check_size("local_attention", window, least=2)
        half = data.get("sliding_window")
        if half not in (None, window // 2):
            raise unsupported("sliding_window", half, f"half of local_attention: {window // 2}")
        older = {"rope_theta": "global_rope_theta", "rope_local_base_freq": "local_rope_theta"}
        ropes = read_layer_ropes(
            {
                "rope_theta": 160_000.0,
                **{k: data[v] for k, v in older.items() if v in data},
                **data,
            },
            positions,
        )
        if any(rope.scaling is not None for rope in ropes):
            raise ModelError("rope_parameters: must be of kind 'default' in this family")
        return {
            "hidden_size": required(data, "hidden_size"),
            "intermediate_size": required(data, "intermediate_size"),
            "num_layers": layers,
            "num_heads": required(data, "num_attention_heads"),
            "max_positions": positions,
            "hidden_act": activation(data.get("hidden_activation", "gelu")),
            "classifier_act": activation(data.get("classifier_activation", "gelu")),
            "layer_norm_eps": data.get("norm_eps", 1e-5),
            "tie_embeddings": data.get("tie_word_embeddings", True),
            "pooling": data.get("classifier_pooling", "cls"),
            "rope_theta": ropes[0].theta,
            "local_rope_theta": ropes[1].theta,
            "local": tuple(kind == _KINDS[1] for kind in kinds),
            "windows": layer_windows(kinds, layers, window // 2 + 1, positions),
        }
