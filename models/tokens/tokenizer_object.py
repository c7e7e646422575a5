"""Reads a transformers tokenizer that the user made, without importing the library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tokenizers

from models.tokens.chat_template import DEFAULT
from models.tokens.cleaning import SETTING, cleans
from protocols.errors import ConfigError

LIMIT = "model_max_length"
INPUTS = "model_input_names"
SIDE = "truncation_side"


def parts_of_object(tokenizer: object) -> tuple[bytes, dict[str, object], dict[str, str]]:
    """The parts of a tokenizer that `save_pretrained` would write. The object is not changed.

    They are `tokenizer.json`; the special tokens, the length limit, the side at which texts are
    cut, the model's inputs and whether decoded texts are cleaned, as in `tokenizer_config.json`;
    and the chat templates by name. Raises ConfigError for anything but a fast transformers
    tokenizer.
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
    config[SETTING] = cleans(found, backend)
    return backend.to_str().encode(), config, named_templates(found.chat_template)


def named_templates(found: object) -> dict[str, str]:
    """Chat templates by name, in any of transformers' forms: one, a mapping, or a list of
    `{"name": ..., "template": ...}`. Raises ConfigError for anything else.
    """
    if found is None:
        return {}
    if isinstance(found, list | tuple):
        entries = [each if isinstance(each, Mapping) else {} for each in found]
        pairs: list[tuple[object, object]] = [(e.get("name"), e.get("template")) for e in entries]
    else:
        pairs = [*found.items()] if isinstance(found, Mapping) else [(DEFAULT, found)]
    named = {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}
    if len(named) != len(pairs):
        raise ConfigError("chat_template is neither a text nor texts by name: correct it")
    return named


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
