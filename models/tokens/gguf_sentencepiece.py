"""A SentencePiece tokenizer from the metadata of a GGUF file.

The file does not say how its model writes spaces and which pairs of tokens are joined first. As in
transformers, this follows from the architecture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from protocols.errors import ModelError

_SPACE = "\u2581"  # SentencePiece writes spaces as this character
_GEMMA = ("gemma", "gemma2", "gemma3")


def sentencepiece_of_gguf(
    metadata: Mapping[str, Any], tokens: Sequence[str], unknown: str | None
) -> Tokenizer:
    """The tokenizer without its added tokens. Raises ModelError if the metadata is incomplete."""
    architecture = metadata.get("general.architecture")
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise ModelError("the GGUF file has no token scores (tokenizer.ggml.scores is missing)")
    if architecture in _GEMMA:
        # The file has real spaces in tokens that consist of them, and Gemma's tokens were joined
        # in their own order, not in that of their scores.
        tokens = [_SPACE * len(t) if " " in t and not t.strip() else t for t in tokens]
        scores = [-float(index) for index in range(len(tokens))]
    vocab = {token: i for i, token in enumerate(tokens)}
    pairs = merges_from_scores(vocab, scores)
    with fitting():
        model = models.BPE(
            vocab=vocab, merges=pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True
        )
    tokenizer = Tokenizer(model)
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    if architecture in _GEMMA:
        prefix = False
        tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    elif architecture == "phi3":
        prefix = True
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
            replacement=_SPACE, prepend_scheme="first" if prefix else "never", split=False
        )
    tokenizer.decoder = _decoder(prefix=prefix)
    return tokenizer


def _decoder(*, prefix: bool) -> decoders.Decoder:
    steps: list[decoders.Decoder] = [
        decoders.Replace(_SPACE, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)


def merges_from_scores(vocab: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """BPE merges, best first, for a SentencePiece vocabulary that has only scores.

    SentencePiece joins the adjacent pair whose union has the highest score, so each way to split a
    token into two known ones is a merge with the token's rank.
    """
    ranked = []
    for token, index in vocab.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                ranked.append((scores[index], left, right))
    # Of equal scores, longer left parts come first, as in transformers' conversion; else stable.
    ranked.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [(left, right) for _, left, right in ranked]


@contextmanager
def fitting() -> Iterator[None]:
    """Raise ModelError if a vocabulary and its merges do not make a tokenizer."""
    try:
        yield
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"the GGUF file's vocabulary and merges do not fit ({error})") from None
