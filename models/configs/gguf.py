"""The configuration of a GGUF file, from its metadata, for every supported architecture.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A new architecture needs an entry
in `_READERS` here and one in `LAYOUTS` in `models.checkpoints.gguf_weights`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from models.configs.architecture import ModelConfig
from models.configs.gguf_families import gguf_eos_token_ids, read_gemma, read_llama, read_phi3
from models.configs.gguf_header import ROPE_TENSORS, GgufHeader, Numbers
from models.configs.other_kinds import other_kind
from models.configs.validate import check_choice, short, unsupported
from models.files.gguf_reader import GgufFile
from protocols.errors import ModelError

__all__ = ["check_architecture", "config_of_gguf", "config_of_metadata", "gguf_eos_token_ids"]

_HEADS = ("causal-lm", "none")
# Settings that change the function unless they are absent or have one of these values. The keys
# are without the name of the architecture.
_NEUTRAL: dict[str, tuple[object, ...]] = {
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
# Those of them that an architecture's reader reads itself.
_READ = {
    "gemma2": ("attn_logit_softcapping", "final_logit_softcapping"),
    "gemma3": ("final_logit_softcapping",),
    "phi3": ("rope.scaling.attn_factor",),
}
_READERS: dict[str, Callable[[GgufHeader, str], ModelConfig]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), read_llama),
    **dict.fromkeys(("gemma", "gemma2", "gemma3"), read_gemma),
    "phi3": read_phi3,
}
_MAX_FACTORS = 1 << 10


def config_of_gguf(file: GgufFile, *, head: str | None = None) -> ModelConfig:
    """The configuration of an open GGUF file. Raises ModelError."""
    factors: dict[str, Numbers] = {}
    for name in ROPE_TENSORS:
        if (entry := file.tensors.get(name)) is None:
            continue
        if len(entry.shape) != 1 or entry.shape[0] > _MAX_FACTORS:
            raise ModelError(f"{file.path}: {name} of shape {entry.shape} is no list")
        factors[name] = tuple(float(value) for value in file.tensor(name))
    return config_of_metadata(file.metadata, file.tensors, factors=factors, head=head)


def config_of_metadata(
    metadata: Mapping[str, Any],
    tensors: Collection[str],
    *,
    factors: Mapping[str, Numbers] | None = None,
    head: str | None = None,
) -> ModelConfig:
    """The configuration from GGUF metadata, tensor names and the values of `ROPE_TENSORS`.

    Raises ModelError for a missing key and for every unsupported setting that would change the
    function.
    """
    architecture, kind = metadata.get("general.architecture"), metadata.get("general.type")
    if kind not in (None, "model"):
        raise ModelError(
            f"general.type: {short(kind)} is no model; an adapter must be merged into its base "
            "model (llama-export-lora), or used with a base model in safetensors"
        )
    check_architecture(architecture)
    header = GgufHeader(str(architecture), metadata, tensors, factors or {})
    if experts := header.get("expert_count"):
        raise ModelError(
            f"{header.key('expert_count')}: {short(experts)}: mixtures of experts, whose choice of "
            "experts depends on the text, are not supported"
        )
    for name, values in _NEUTRAL.items():
        value = header.get(name)
        if name in _READ.get(header.architecture, ()) or value is None or value in values:
            continue
        wanted = " or ".join(repr(v).lower() for v in values) or "none"
        raise unsupported(header.key(name), value, wanted)
    head = "causal-lm" if head is None else head
    check_choice("head", head, _HEADS)
    return _READERS[header.architecture](header, head)


def check_architecture(name: object) -> None:
    """Raise ModelError unless GGUF files with this `general.architecture` are supported."""
    if isinstance(name, str) and name in _READERS:
        return
    supported = ", ".join(_READERS)
    if (kind := other_kind(name)) is not None:
        raise ModelError(
            f"general.architecture: {name!r} is {kind}; supported in GGUF files: {supported}"
        )
    wanted = f"{supported} (other models from a folder with safetensors)"
    raise unsupported("general.architecture", name, wanted)
