"""Read a transformers tokenizer that the user made; the library is not imported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import tokenizers

from protocols.errors import ConfigError


def parts_of_object(
    tokenizer: object, names: Iterable[str]
) -> tuple[bytes, dict[str, object], str | None]:
    """What `save_pretrained` would write: `tokenizer.json`, the settings `names` as in
    `tokenizer_config.json`, and the chat template. Nothing is changed.

    Raises ConfigError for anything but a fast transformers tokenizer.
    """
    found: Any = tokenizer
    backend = getattr(found, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise ConfigError(f"the tokenizer is {type(found).__name__}{_remedy(found)}")
    if getattr(found, "split_special_tokens", False):
        raise ConfigError(
            "the tokenizer has split_special_tokens=True, which is not supported: set it to False"
        )
    config = {name: _plain(getattr(found, name, None)) for name in names}
    template = found.chat_template
    if isinstance(template, Mapping):  # several named templates; transformers takes "default"
        template = template.get("default")
    return backend.to_str().encode(), config, template


def _plain(value: object) -> object:
    """An AddedToken as its text."""
    return value if isinstance(value, str | int | None) else str(value)


def _remedy(found: Any) -> str:
    """The end of a message: what to pass instead of the object."""
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
