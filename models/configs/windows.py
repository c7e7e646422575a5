"""The sliding windows of a model's layers, read from a `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.configs.validate import check_choice, check_size, required, unsupported


def layer_windows(
    kinds: object, layers: int, window: Any, positions: int
) -> tuple[int | None, ...] | None:
    """The sliding window of each layer, from `layer_types`.

    None when no layer has a window shorter than the context of `positions` tokens. Raises
    ModelError.
    """
    allowed = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list | tuple) or len(kinds) != layers:
        raise unsupported("layer_types", kinds, "one of " + ", ".join(allowed) + " for each layer")
    for kind in kinds:
        check_choice("layer_types", kind, allowed)
    if "sliding_attention" not in kinds:
        return None
    check_size("sliding_window", window)
    if window >= positions:
        return None
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def read_windows(
    model_type: str, data: Mapping[str, Any], layers: int, positions: int
) -> tuple[int | None, ...] | None:
    """The sliding window of each layer of LLaMA, Mistral and Qwen models.

    None when no layer has a window shorter than the context. Raises ModelError.
    """
    window: Any = data.get("sliding_window")
    if model_type.startswith("qwen") and not data.get("use_sliding_window", False):
        window = None
    if window is not None:
        check_size("sliding_window", window)
        if window >= positions:  # full attention
            return None
        if model_type == "llama":
            raise unsupported("sliding_window", window, "null (full attention) for 'llama'")
    kinds = _layer_types(model_type, data, layers, window)
    if window is None or "sliding_attention" not in kinds:
        return None
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def refuse_windows(data: Mapping[str, Any], layers: int, positions: int) -> None:
    """Raise ModelError for a window in a model whose class has none: when it generates,
    transformers' cache would still drop what lies outside.
    """
    _at_least("sliding_window", data.get("sliding_window"), positions)
    kinds = data.get("layer_types")
    if kinds is not None and kinds != ["full_attention"] * layers:
        raise unsupported("layer_types", kinds, "null, or 'full_attention' for each layer")


def refuse_chunks(data: Mapping[str, Any], positions: int) -> None:
    """Raise ModelError if transformers' cache would drop tokens outside a chunk."""
    _at_least("attention_chunk_size", data.get("attention_chunk_size"), positions)


def _at_least(name: str, size: object, positions: int) -> None:
    if size is not None and (type(size) is not int or size < positions):
        raise unsupported(name, size, f"null, or at least the context of {positions} tokens")


def _layer_types(
    model_type: str, data: Mapping[str, Any], layers: int, window: int | None
) -> list[str]:
    first = required(data, "max_window_layers") if model_type.startswith("qwen") else 0
    check_size("max_window_layers", first, least=0)
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
