"""A `tokenizers` tokenizer from the metadata of a GGUF file.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer. The splitting rules
for `tokenizer.ggml.pre` are in `models.tokens.gguf_splits`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, processors

from models.tokens.chat_template import DEFAULT
from models.tokens.gguf_sentencepiece import fitting, sentencepiece_of_gguf
from models.tokens.gguf_splits import UNNAMED, WARNING, split_named
from protocols.errors import ModelError

_KEY = "tokenizer.ggml."
_TYPE_UNKNOWN, _TYPE_CONTROL, _TYPE_USER = 2, 3, 4
_SPECIALS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> tuple[Tokenizer, dict[str, str]]:
    """The tokenizer and its special tokens by name (`bos_token`, `eos_token`, ...).

    Raises ModelError if the metadata is incomplete or of an unsupported kind.
    """
    kind = metadata.get(f"{_KEY}model")
    tokens = metadata.get(f"{_KEY}tokens")
    if not isinstance(tokens, list) or not tokens:
        raise ModelError("the GGUF file has no tokenizer (tokenizer.ggml.tokens is missing)")
    special = _special_tokens(metadata, tokens)
    if kind == "gpt2":
        tokenizer = _byte_level(metadata, tokens)
    elif kind == "llama":
        tokenizer = sentencepiece_of_gguf(metadata, tokens, special.get("unk_token"))
    else:
        raise ModelError(
            f"tokenizer.ggml.model: {kind!r} is not supported; supported: 'gpt2' (byte-level BPE), "
            "'llama' (SentencePiece BPE)"
        )
    _add_tokens(tokenizer, tokens, metadata.get(f"{_KEY}token_type", ()))
    begins = kind == "llama" or split_named(metadata.get(f"{_KEY}pre")).begins
    begins = bool(metadata.get(f"{_KEY}add_bos_token", begins))
    ends = bool(metadata.get(f"{_KEY}add_eos_token", False))
    if begins or ends:
        _surround(tokenizer, special, begins=begins, ends=ends)
    return tokenizer, special


def warning_of_gguf(metadata: Mapping[str, Any]) -> str | None:
    """A sentence for the user about a possible fault in a file's tokenizer, or None."""
    byte_level = metadata.get(f"{_KEY}model") == "gpt2"
    return WARNING if byte_level and metadata.get(f"{_KEY}pre") in UNNAMED else None


def _byte_level(metadata: Mapping[str, Any], tokens: Sequence[str]) -> Tokenizer:
    split = split_named(metadata.get(f"{_KEY}pre"))
    merges = metadata.get(f"{_KEY}merges")
    if not isinstance(merges, list):
        raise ModelError("the GGUF file has no merges (tokenizer.ggml.merges is missing)")
    vocab = {token: i for i, token in enumerate(tokens)}
    pairs = [_merge(pair) for pair in merges]
    with fitting():
        model = models.BPE(vocab=vocab, merges=pairs, ignore_merges=split.whole_first)
    tokenizer = Tokenizer(model)
    prefix = bool(metadata.get(f"{_KEY}add_space_prefix", False))
    tokenizer.pre_tokenizer = split.pre_tokenizer(prefix=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _add_tokens(tokenizer: Tokenizer, tokens: Sequence[str], types: Sequence[int]) -> None:
    """Add the tokens that are matched in the text before it is split."""
    typed = list(zip(tokens, types, strict=False))
    known = tokenizer.get_vocab()  # Gemma's spaces are spelt in another way there
    tokenizer.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token, kind in typed
            if kind in (_TYPE_CONTROL, _TYPE_UNKNOWN)
        ]
    )
    tokenizer.add_tokens(
        [
            AddedToken(token, normalized=False)
            for token, kind in typed
            if kind == _TYPE_USER and token in known
        ]
    )


def _special_tokens(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, str]:
    found = {}
    for name, key in _SPECIALS.items():
        index = metadata.get(f"{_KEY}{key}_token_id")
        if index is None:
            continue
        if type(index) is not int:
            raise ModelError(f"{_KEY}{key}_token_id: {index!r} is not the id of a token")
        if 0 <= index < len(tokens):  # some converters write -1 for none
            found[name] = tokens[index]
    return found


def _surround(
    tokenizer: Tokenizer, special: Mapping[str, str], *, begins: bool, ends: bool
) -> None:
    """Add a begin token before a text and an end token after it, as requested."""
    parts = {"bos_token": begins, "eos_token": ends}
    for name, wanted in parts.items():
        if wanted and name not in special:
            raise ModelError(f"{_KEY}{_SPECIALS[name]}_token_id is missing though it is wanted")
    begin = f"{special['bos_token']} " if begins else ""
    end = f" {special['eos_token']}" if ends else ""
    used = {special[name] for name, wanted in parts.items() if wanted}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin}$A{end}",
        pair=f"{begin}$A{end} {begin}$B{end}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in used],
    )


def _merge(pair: str) -> tuple[str, str]:
    left, separator, right = pair.partition(" ")
    if not separator:
        raise ModelError(f"tokenizer.ggml.merges: {pair[:40]!r} is not a pair of tokens")
    return left, right


def templates_of_gguf(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The chat templates by name: `tokenizer.chat_template`, and those with a name after a dot."""
    key = "tokenizer.chat_template"
    found = {k.removeprefix(f"{key}."): v for k, v in metadata.items() if k.startswith(f"{key}.")}
    found[DEFAULT] = metadata.get(key)
    return {name: text for name, text in found.items() if isinstance(text, str)}
