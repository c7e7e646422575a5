"""The configuration of a GGUF file of architecture `llama`, from its metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.configs.decoders.llama import LlamaConfig
from models.configs.validate import check_choice, check_size, required, unsupported
from models.files.gguf_reader import GgufFile

_HEADS = ("causal-lm", "none")


def config_of_gguf(file: GgufFile, *, head: str | None = None) -> LlamaConfig:
    """The configuration of an open GGUF file. Raises ModelError."""
    return llama_of_gguf(
        file.metadata, tie_embeddings="output.weight" not in file.tensors, head=head
    )


def llama_of_gguf(
    metadata: Mapping[str, Any], *, tie_embeddings: bool, head: str | None = None
) -> LlamaConfig:
    """From GGUF metadata. `tie_embeddings`: the file has no tensor `output.weight`.

    Raises ModelError for a missing key and for every setting that would change the function
    computed and is not supported.
    """
    _refuse_unsupported(metadata)
    head = "causal-lm" if head is None else head
    check_choice("head", head, _HEADS)
    heads = required(metadata, "llama.attention.head_count")
    hidden = required(metadata, "llama.embedding_length")
    check_size("llama.attention.head_count", heads)
    check_size("llama.embedding_length", hidden)
    head_dim = metadata.get("llama.attention.key_length", hidden // heads)
    for key in ("llama.rope.dimension_count", "llama.attention.value_length"):
        if metadata.get(key, head_dim) != head_dim:
            raise unsupported(key, metadata[key], f"the head size {head_dim}")
    tokens = metadata.get("tokenizer.ggml.tokens", ())
    return LlamaConfig(
        vocab_size=metadata.get("llama.vocab_size", len(tokens)),
        hidden_size=hidden,
        intermediate_size=required(metadata, "llama.feed_forward_length"),
        num_layers=required(metadata, "llama.block_count"),
        num_heads=heads,
        num_kv_heads=metadata.get("llama.attention.head_count_kv", heads),
        head_dim=head_dim,
        rms_norm_eps=required(metadata, "llama.attention.layer_norm_rms_epsilon"),
        rope_theta=metadata.get("llama.rope.freq_base", 10000.0),
        max_positions=required(metadata, "llama.context_length"),
        tie_embeddings=tie_embeddings,
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_ids=gguf_eos_token_ids(metadata),
        head=head,
    )


def check_architecture(name: object) -> None:
    """Raise ModelError unless GGUF files of that `general.architecture` can be read."""
    if name != LlamaConfig.family:
        wanted = f"{LlamaConfig.family} (other models from a folder with safetensors)"
        raise unsupported("general.architecture", name, wanted)


def gguf_eos_token_ids(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that end a text or a turn, as the metadata of a GGUF file names them."""
    names = ("eos_token_id", "eot_token_id", "eom_token_id")
    found = (metadata.get(f"tokenizer.ggml.{name}") for name in names)
    return tuple(dict.fromkeys(token for token in found if token is not None))


def _refuse_unsupported(metadata: Mapping[str, Any]) -> None:
    check_architecture(metadata.get("general.architecture"))
    if metadata.get("llama.expert_count"):
        raise unsupported("llama.expert_count", metadata["llama.expert_count"], "0 (dense)")
    scaling = metadata.get("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise unsupported("llama.rope.scaling.type", scaling, "'none'")
    for key in ("llama.rope.scaling.factor", "llama.rope.scale_linear"):
        if metadata.get(key, 1.0) not in (0, 1):
            raise unsupported(key, metadata[key], "1.0")
    window = metadata.get("llama.attention.sliding_window")
    if window and not _at_least(window, metadata.get("llama.context_length")):
        raise unsupported("llama.attention.sliding_window", window, "none (full attention)")


def _at_least(value: object, least: object) -> bool:
    return type(value) is int and type(least) is int and value >= least
