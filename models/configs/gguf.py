"""The configuration of a GGUF file, from its metadata, for every supported architecture.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A new architecture needs an entry
in `_READERS` here and one in `LAYOUTS` in `models.checkpoints.gguf_weights`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from models.configs.architecture import ModelConfig
from models.configs.decoders.llama import LlamaConfig
from models.configs.rope import RopeScaling
from models.configs.validate import check_choice, check_size, required, unsupported
from models.files.gguf_reader import GgufFile
from protocols.errors import ModelError

ROPE_FREQS = "rope_freqs.weight"
"""A tensor that belongs to the configuration: the divisor of each rotary frequency."""
_HEADS = ("causal-lm", "none")
# Settings that change the function unless they are absent or have one of these values. The keys
# are without the name of the architecture.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "expert_count": (0,),
    "attention.causal": (True,),
    "attention.scale": (),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "embedding_scale": (1,),
    "residual_scale": (1,),
    "logit_scale": (1,),
    "rope.scale_linear": (0, 1),
    "rope.scaling.attn_factor": (1,),
    "attention.temperature_scale": (),
}


@dataclass(frozen=True)
class GgufHeader:
    """The parts of a file that its configuration is read from.

    Attributes:
        architecture: its name in llama.cpp, with which the keys begin.
        tensors: names of all tensors.
        freqs: values of `ROPE_FREQS`, or None if the file does not have it.
    """

    architecture: str
    metadata: Mapping[str, Any]
    tensors: Collection[str]
    freqs: tuple[float, ...] | None = None

    def key(self, name: str) -> str:
        """The full key of a setting of the architecture."""
        return f"{self.architecture}.{name}"

    def get(self, name: str, default: Any = None) -> Any:
        """A setting of the architecture, or the default if it is absent."""
        return self.metadata.get(self.key(name), default)

    def required(self, name: str) -> Any:
        """A setting of the architecture. Raises ModelError if it is missing."""
        return required(self.metadata, self.key(name))

    def has_layer_tensor(self, name: str) -> bool:
        """Whether the first layer has a tensor with this name."""
        return f"blk.0.{name}" in self.tensors


def config_of_gguf(file: GgufFile, *, head: str | None = None) -> ModelConfig:
    """The configuration of an open GGUF file. Raises ModelError."""
    freqs = None
    if (entry := file.tensors.get(ROPE_FREQS)) is not None:
        if len(entry.shape) != 1 or entry.shape[0] > 1 << 10:
            raise ModelError(f"{file.path}: {ROPE_FREQS} of shape {entry.shape} is no list")
        freqs = tuple(float(value) for value in file.tensor(ROPE_FREQS))
    return config_of_metadata(file.metadata, file.tensors, freqs=freqs, head=head)


def config_of_metadata(
    metadata: Mapping[str, Any],
    tensors: Collection[str],
    *,
    freqs: tuple[float, ...] | None = None,
    head: str | None = None,
) -> ModelConfig:
    """The configuration from GGUF metadata, tensor names and the values of `ROPE_FREQS`.

    Raises ModelError for a missing key and for every unsupported setting that would change the
    function.
    """
    architecture = metadata.get("general.architecture")
    check_architecture(architecture)
    header = GgufHeader(str(architecture), metadata, tensors, freqs)
    for name, values in _NEUTRAL.items():
        value = header.get(name)
        if value is not None and value not in values:
            wanted = " or ".join(repr(v).lower() for v in values) or "none"
            raise unsupported(header.key(name), value, wanted)
    head = "causal-lm" if head is None else head
    check_choice("head", head, _HEADS)
    return _READERS[header.architecture](header, head)


def check_architecture(name: object) -> None:
    """Raise ModelError unless GGUF files with this `general.architecture` are supported."""
    if not isinstance(name, str) or name not in _READERS:
        wanted = f"{', '.join(_READERS)} (other models from a folder with safetensors)"
        raise unsupported("general.architecture", name, wanted)


def _llama(header: GgufHeader, head: str) -> LlamaConfig:
    """LLaMA, Mistral, Qwen2 and Qwen3: one family; the tensors present show the differences."""
    heads, hidden = header.required("attention.head_count"), header.required("embedding_length")
    check_size(header.key("attention.head_count"), heads)
    check_size(header.key("embedding_length"), hidden)
    head_dim = header.get("attention.key_length", hidden // heads)
    for name in ("rope.dimension_count", "attention.value_length"):
        if header.get(name, head_dim) != head_dim:
            raise unsupported(header.key(name), header.get(name), f"the head size {head_dim}")
    window, context = header.get("attention.sliding_window"), header.required("context_length")
    if window and not _at_least(window, context):
        key = header.key("attention.sliding_window")
        raise unsupported(key, window, "none (full attention)")
    metadata = header.metadata
    return LlamaConfig(
        vocab_size=header.get("vocab_size", len(metadata.get("tokenizer.ggml.tokens", ()))),
        hidden_size=hidden,
        intermediate_size=header.required("feed_forward_length"),
        num_layers=header.required("block_count"),
        num_heads=heads,
        num_kv_heads=header.get("attention.head_count_kv", heads),
        head_dim=head_dim,
        rms_norm_eps=header.required("attention.layer_norm_rms_epsilon"),
        rope_theta=header.get("rope.freq_base", 10000.0),
        rope_scaling=_rope_scaling(header),
        max_positions=context,
        tie_embeddings="output.weight" not in header.tensors,
        qkv_bias=header.has_layer_tensor("attn_q.bias"),
        output_bias=header.has_layer_tensor("attn_output.bias"),
        mlp_bias=header.has_layer_tensor("ffn_up.bias"),
        qk_norm=header.has_layer_tensor("attn_q_norm.weight"),
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_ids=gguf_eos_token_ids(metadata),
        head=head,
    )


_READERS: dict[str, Callable[[GgufHeader, str], ModelConfig]] = {
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
    "qwen3": _llama,
}


def _rope_scaling(header: GgufHeader) -> RopeScaling | None:
    """The rotary scaling, from the metadata or from the values of `ROPE_FREQS`.

    LLaMA 3.1 and later have that tensor (https://github.com/ggml-org/llama.cpp/pull/8676).
    """
    kind, factor = header.get("rope.scaling.type", "none"), header.get("rope.scaling.factor")
    check_choice(header.key("rope.scaling.type"), kind, ("none", "linear"))
    if kind == "none" and factor not in (None, 0, 1):
        raise unsupported(header.key("rope.scaling.factor"), factor, "1.0 without a type")
    if header.freqs is not None:
        if kind != "none":
            raise unsupported(header.key("rope.scaling.type"), kind, f"'none' with {ROPE_FREQS}")
        if all(value == 1 for value in header.freqs):
            return None
        return RopeScaling(
            kind="longrope",
            attention_factor=1.0,
            factors=header.freqs,
            original_max_positions=header.required("context_length"),
        )
    if kind == "none":
        return None
    if factor is None:
        raise unsupported(header.key("rope.scaling.factor"), factor, "a number for type 'linear'")
    return RopeScaling(kind="linear", factor=factor)


def gguf_eos_token_ids(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids of the tokens that end a text or a turn, from the metadata of a GGUF file."""
    names = ("eos_token_id", "eot_token_id", "eom_token_id")
    found = (metadata.get(f"tokenizer.ggml.{name}") for name in names)
    return tuple(dict.fromkeys(token for token in found if token is not None))


def _at_least(value: object, least: object) -> bool:
    return type(value) is int and type(least) is int and value >= least
