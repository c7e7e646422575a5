"""Reads a transformers tokenizer that the user made, without importing the library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tokenizers

from protocols.errors import ConfigError

LIMIT = "model_max_length"
INPUTS = "model_input_names"
SIDE = "truncation_side"


def parts_of_object(tokenizer: object) -> tuple[bytes, dict[str, object], str | None]:
    """The parts of a tokenizer that `save_pretrained` would write. The object is not changed.

    They are `tokenizer.json`; the special tokens, the length limit, the side at which texts are
    cut and the model's inputs as in `tokenizer_config.json`; and the chat template. Raises
    ConfigError for anything but a fast transformers tokenizer.
    """
    found: Any = tokenizer
    backend = getattr(found, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise ConfigError(f"the tokenizer is {type(found).__name__}{_remedy(found)}")
    if getattr(found, "split_special_tokens", False):
        raise ConfigError(
            "the tokenizer has split_special_tokens=True, which is not supported: set it to False"
        )
    config: dict[str, object] = {
        name: str(token)
        for name, token in found.special_tokens_map.items()
        if name.endswith("_token")
    }
    config |= {LIMIT: found.model_max_length, INPUTS: list(found.model_input_names)}
    config |= {SIDE: found.truncation_side}
    template = found.chat_template
    if isinstance(template, Mapping):  # several named templates; transformers takes "default"
        template = template.get("default")
    return backend.to_str().encode(), config, template


def _remedy(found: Any) -> str:
    """The end of an error message: what to pass instead of the object."""
    if isinstance(found, tokenizers.Tokenizer):
        return (
            " of the library tokenizers, which does not name its special tokens: give "
            "transformers.PreTrainedTokenizerFast(tokenizer_object=..., eos_token=...)"
        )
    if callable(getattr(found, "convert_tokens_to_ids", None)):
        return (
            ", which transformers runs in Python: load it with "
            "AutoTokenizer.from_pretrained(NAME), which gives a fast one if there is one"
        )
    if getattr(found, "tokenizer", None) is not None:
        return ": give the tokenizer inside it, its .tokenizer"
    return ": give a transformers tokenizer, such as AutoTokenizer.from_pretrained(NAME)"
