"""A `tokenizers` tokenizer from the metadata of a GGUF file.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer; the splitting rules
behind `tokenizer.ggml.pre` are those of llama.cpp's `llama-vocab.cpp`, expressed with the
pre-tokenizers of the original `tokenizer.json` files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from protocols.errors import ModelError

_KEY = "tokenizer.ggml."
_TYPE_UNKNOWN, _TYPE_CONTROL, _TYPE_USER = 2, 3, 4
_SPECIALS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_SPACE = "\u2581"  # SentencePiece writes a space as this block

_GPT2 = ("gpt-2", "gpt2", "olmo", "jais", "mpt")
_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell")
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> tuple[Tokenizer, dict[str, str]]:
    """The tokenizer and its special tokens by name (`bos_token`, `eos_token`, ...).

    Raises ModelError when the metadata are incomplete or of an unsupported kind.
    """
    kind = metadata.get(f"{_KEY}model")
    tokens = metadata.get(f"{_KEY}tokens")
    if not isinstance(tokens, list) or not tokens:
        raise ModelError("the GGUF file has no tokenizer (tokenizer.ggml.tokens is missing)")
    special = _special_tokens(metadata, tokens)
    if kind == "gpt2":
        tokenizer = _byte_level(metadata, tokens)
    elif kind == "llama":
        tokenizer = _sentencepiece(metadata, tokens, special.get("unk_token"))
    else:
        raise ModelError(
            f"tokenizer.ggml.model: {kind!r} is not supported; supported: 'gpt2' (byte-level BPE), "
            "'llama' (SentencePiece BPE)"
        )
    _add_tokens(tokenizer, tokens, metadata.get(f"{_KEY}token_type", ()))
    default_bos = kind == "llama" or metadata.get(f"{_KEY}pre") in _LLAMA3
    if metadata.get(f"{_KEY}add_bos_token", default_bos):
        _prepend_begin(tokenizer, special)
    return tokenizer, special


def _byte_level(metadata: Mapping[str, Any], tokens: Sequence[str]) -> Tokenizer:
    pre = metadata.get(f"{_KEY}pre", "gpt-2")
    merges = metadata.get(f"{_KEY}merges")
    if not isinstance(merges, list):
        raise ModelError("the GGUF file has no merges (tokenizer.ggml.merges is missing)")
    prefix = bool(metadata.get(f"{_KEY}add_space_prefix", False))
    split: pre_tokenizers.PreTokenizer
    if pre in _GPT2:
        split = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    elif pre in _DIGITS:
        # transformers' GGUF reader drops the digits step, which changes e.g. "a  1"; the
        # model was trained with it.
        digits = pre_tokenizers.Digits(individual_digits=True)
        split = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=prefix)])
    elif pre in _LLAMA3:
        words = pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), "isolated")
        bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)
        split = pre_tokenizers.Sequence([words, bytes_only])
    else:
        known = ", ".join(sorted((*_GPT2, *_DIGITS, *_LLAMA3)))
        raise ModelError(
            f"tokenizer.ggml.pre: {pre!r} is not supported; supported: {known}; use the model's "
            "safetensors folder with its tokenizer.json"
        )
    vocab = {token: i for i, token in enumerate(tokens)}
    pairs = [_merge(pair) for pair in merges]
    with _fitting():
        model = models.BPE(vocab=vocab, merges=pairs, ignore_merges=pre in _LLAMA3)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(
    metadata: Mapping[str, Any], tokens: Sequence[str], unknown: str | None
) -> Tokenizer:
    vocab = {token: i for i, token in enumerate(tokens)}
    scores = metadata.get(f"{_KEY}scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise ModelError("the GGUF file has no token scores (tokenizer.ggml.scores is missing)")
    pairs = merges_from_scores(vocab, scores)
    with _fitting():
        model = models.BPE(
            vocab=vocab, merges=pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True
        )
    tokenizer = Tokenizer(model)
    prefix = bool(metadata.get(f"{_KEY}add_space_prefix", True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement=_SPACE, prepend_scheme="first" if prefix else "never", split=False
    )
    steps: list[decoders.Decoder] = [
        decoders.Replace(_SPACE, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def merges_from_scores(vocab: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """BPE merges, best first, of a SentencePiece vocabulary that stores only scores.

    SentencePiece joins the adjacent pair whose union has the highest score, so each way to split a
    token into two known ones is a merge with the token's rank.
    """
    ranked = []
    for token, index in vocab.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                ranked.append((scores[index], left, right))
    # The longer left part first, as in transformers' conversion; stable otherwise.
    ranked.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [(left, right) for _, left, right in ranked]


def _add_tokens(tokenizer: Tokenizer, tokens: Sequence[str], types: Sequence[int]) -> None:
    """Add the tokens that are matched in the text before it is split."""
    typed = list(zip(tokens, types, strict=False))
    tokenizer.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token, kind in typed
            if kind in (_TYPE_CONTROL, _TYPE_UNKNOWN)
        ]
    )
    tokenizer.add_tokens(
        [AddedToken(token, normalized=False) for token, kind in typed if kind == _TYPE_USER]
    )


def _special_tokens(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, str]:
    found = {}
    for name, key in _SPECIALS.items():
        index = metadata.get(f"{_KEY}{key}_token_id")
        if index is None:
            continue
        if type(index) is not int or not 0 <= index < len(tokens):
            raise ModelError(f"{_KEY}{key}_token_id: {index!r} is not the id of a token")
        found[name] = tokens[index]
    return found


def _prepend_begin(tokenizer: Tokenizer, special: Mapping[str, str]) -> None:
    begin = special.get("bos_token")
    if begin is None:
        raise ModelError("tokenizer.ggml.bos_token_id is missing, but a begin token is wanted")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A",
        pair=f"{begin} $A {begin} $B",
        special_tokens=[(begin, tokenizer.token_to_id(begin))],
    )


@contextmanager
def _fitting() -> Iterator[None]:
    """Raise ModelError if a vocabulary and its merges do not make a tokenizer."""
    try:
        yield
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"the GGUF file's vocabulary and merges do not fit ({error})") from None


def _merge(pair: str) -> tuple[str, str]:
    left, separator, right = pair.partition(" ")
    if not separator:
        raise ModelError(f"tokenizer.ggml.merges: {pair[:40]!r} is not a pair of tokens")
    return left, right
