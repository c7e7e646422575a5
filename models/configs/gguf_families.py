"""Configurations from the headers of GGUF files, one function for each kind of architecture.

Values that llama.cpp's files do not have are those of its `src/models/`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from models.configs.architecture import ModelConfig, vocabulary_token, vocabulary_tokens
from models.configs.decoders.gemma import GemmaConfig
from models.configs.decoders.llama import LlamaConfig, head_size
from models.configs.decoders.phi3 import Phi3Config
from models.configs.gguf_header import ROPE_FREQS, ROPE_LONG, ROPE_SHORT, GgufHeader
from models.configs.rope import RopeScaling
from models.configs.validate import check_choice, check_size, number, unsupported
from models.configs.windows import layer_windows
from protocols.errors import ModelError

_FULL, _SLIDING = "full_attention", "sliding_attention"
# Every how many layers one sees the whole text.
_PERIODS = {"gemma2": 2, "gemma3": 6}
# The models with 27 billion weights divide scores by another number than the root of the head
# size; the files only tell their number of layers.
_LARGE = {"gemma2": 46, "gemma3": 62}


def read_llama(header: GgufHeader, head: str) -> ModelConfig:
    """LLaMA, Mistral, Qwen2 and Qwen3: one family; the tensors present show the differences."""
    fields = _common(header, head)
    _check_rotated(header, fields["head_dim"])
    window = header.get("attention.sliding_window")
    if window and not _at_least(window, fields["max_positions"]):
        key = header.key("attention.sliding_window")
        raise unsupported(key, window, "none (full attention)")
    return LlamaConfig(
        **fields,
        rope_theta=header.get("rope.freq_base", 10000.0),
        rope_scaling=_rope_scaling(header),
        qkv_bias=header.has_layer_tensor("attn_q.bias"),
        output_bias=header.has_layer_tensor("attn_output.bias"),
        mlp_bias=header.has_layer_tensor("ffn_up.bias"),
        qk_norm=header.has_layer_tensor("attn_q_norm.weight"),
    )


def read_gemma(header: GgufHeader, head: str) -> ModelConfig:
    """Gemma, Gemma 2 and Gemma 3."""
    fields = _common(header, head)
    _check_rotated(header, fields["head_dim"])
    theta = header.get("rope.freq_base", 1e6 if header.architecture == "gemma3" else 1e4)
    return GemmaConfig(
        **fields,
        hidden_act="gelu_pytorch_tanh",
        embedding_scale=math.sqrt(fields["hidden_size"]),
        rope_theta=theta,
        rope_scaling=_rope_scaling(header),
        **({} if header.architecture == "gemma" else _newer_gemma(header, fields, theta)),
    )


def _newer_gemma(header: GgufHeader, fields: Mapping[str, Any], theta: object) -> dict[str, Any]:
    """What Gemma 2 and 3 add: windows, soft caps, norms, and another rotary base."""
    second, layers = header.architecture == "gemma2", fields["num_layers"]
    check_size(header.key("block_count"), layers)
    window = header.get("attention.sliding_window", 4096 if second else None)
    kinds = _layer_kinds(header, layers) if window else [_FULL] * layers
    large = layers == _LARGE[header.architecture]
    wide = head_size(fields["hidden_size"], fields["num_heads"]) if large else fields["head_dim"]
    check_size(header.key("attention.key_length"), wide)
    found = {
        "post_norms": True,
        "score_scale": wide**-0.5,
        "windows": layer_windows(kinds, layers, window, fields["max_positions"]),
        "logits_cap": header.get("final_logit_softcapping", 30.0 if second else None) or None,
    }
    near = header.get("rope.freq_base_swa", theta if second else 1e4)
    if second:
        if near != theta:
            raise unsupported(header.key("rope.freq_base_swa"), near, "the same as rope.freq_base")
        return {**found, "score_cap": header.get("attn_logit_softcapping", 50.0) or None}
    return {
        **found,
        "qk_norm": True,
        "rotary": tuple("local" if kind == _SLIDING else "global" for kind in kinds),
        "local_rope_theta": near,
    }


def _layer_kinds(header: GgufHeader, layers: int) -> list[str]:
    """The kind of each layer: every so many see the whole text, or a list says which."""
    key = "attention.sliding_window_pattern"
    pattern = header.get(key, _PERIODS[header.architecture])
    if isinstance(pattern, list):
        if len(pattern) != layers or not all(each in (0, 1) for each in pattern):
            raise unsupported(header.key(key), pattern, "true or false for each layer")
        return [_SLIDING if each else _FULL for each in pattern]
    check_size(header.key(key), pattern)
    return [_SLIDING if (i + 1) % pattern else _FULL for i in range(layers)]


def read_phi3(header: GgufHeader, head: str) -> ModelConfig:
    """Phi-3 and Phi-4. The window is applied, as in transformers; llama.cpp ignores it."""
    fields = _common(header, head)
    size, layers, context = (fields[name] for name in ("head_dim", "num_layers", "max_positions"))
    rotated = header.get("rope.dimension_count", size)
    check_size(header.key("rope.dimension_count"), rotated, size, least=2)
    check_size(header.key("block_count"), layers)
    window = header.get("attention.sliding_window") or None
    scaling = _long_rope(header, context)
    if scaling is not None:
        assert scaling.original_max_positions is not None
        fields["max_positions"] = min(context, scaling.original_max_positions)
    kinds = [_FULL if window is None else _SLIDING] * layers
    return Phi3Config(
        **fields,
        rope_theta=header.get("rope.freq_base", 10000.0),
        rope_scaling=scaling,
        rotary_dim=None if rotated == size else rotated,
        windows=layer_windows(kinds, layers, window, fields["max_positions"]),
    )


def _long_rope(header: GgufHeader, context: object) -> RopeScaling | None:
    """Longrope up to the training context, as in `models.configs.rope`; None without factors."""
    short, long = header.factors.get(ROPE_SHORT), header.factors.get(ROPE_LONG)
    if short is None and long is None:
        return _rope_scaling(header)
    if short is None or long is None:
        missing = ROPE_SHORT if short is None else ROPE_LONG
        raise ModelError(f"tensor {missing} is missing; convert the model again")
    original = header.required("rope.scaling.original_context_length")
    check_size(header.key("rope.scaling.original_context_length"), original, least=2)
    check_size(header.key("context_length"), context)
    assert isinstance(context, int)
    scale = context / original
    factor = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    key = header.key("rope.scaling.attn_factor")
    given = number(key, header.get("rope.scaling.attn_factor", factor), 0, 1e3)
    if not math.isclose(given, factor, rel_tol=1e-5):
        raise unsupported(key, given, f"{factor:.6f}, which transformers computes for longrope")
    return RopeScaling(
        kind="longrope", attention_factor=factor, factors=short, original_max_positions=original
    )


def _common(header: GgufHeader, head: str) -> dict[str, Any]:
    """The fields whose keys are the same in all architectures."""
    heads, hidden = header.required("attention.head_count"), header.required("embedding_length")
    check_size(header.key("attention.head_count"), heads)
    check_size(header.key("embedding_length"), hidden)
    metadata = header.metadata
    vocabulary = header.get("vocab_size", len(metadata.get("tokenizer.ggml.tokens", ())))
    begin, ends = metadata.get("tokenizer.ggml.bos_token_id"), gguf_eos_token_ids(metadata)
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": header.required("feed_forward_length"),
        "num_layers": header.required("block_count"),
        "num_heads": heads,
        "num_kv_heads": header.get("attention.head_count_kv", heads),
        "head_dim": header.get("attention.key_length", hidden // heads),
        "rms_norm_eps": header.required("attention.layer_norm_rms_epsilon"),
        "max_positions": header.required("context_length"),
        "tie_embeddings": "output.weight" not in header.tensors,
        "bos_token_id": vocabulary_token(begin, vocabulary),
        "eos_token_ids": vocabulary_tokens(ends, vocabulary),
        "head": head,
    }


def _check_rotated(header: GgufHeader, head_dim: object) -> None:
    """Raise ModelError unless all entries of a head are rotated, and values are as long as keys."""
    for name in ("rope.dimension_count", "attention.value_length"):
        if header.get(name, head_dim) != head_dim:
            raise unsupported(header.key(name), header.get(name), f"the head size {head_dim}")


def _rope_scaling(header: GgufHeader) -> RopeScaling | None:
    """The rotary scaling, from the metadata or from the values of `ROPE_FREQS`.

    LLaMA 3.1 and later have that tensor (https://github.com/ggml-org/llama.cpp/pull/8676).
    """
    kind, factor = header.get("rope.scaling.type", "none"), header.get("rope.scaling.factor")
    freqs = header.factors.get(ROPE_FREQS)
    check_choice(header.key("rope.scaling.type"), kind, ("none", "linear"))
    if kind == "none" and factor not in (None, 0, 1):
        raise unsupported(header.key("rope.scaling.factor"), factor, "1.0 without a type")
    if freqs is not None:
        if kind != "none":
            raise unsupported(header.key("rope.scaling.type"), kind, f"'none' with {ROPE_FREQS}")
        if all(value == 1 for value in freqs):
            return None
        return RopeScaling(
            kind="longrope",
            attention_factor=1.0,
            factors=freqs,
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
