"""Changes to the scores of the next token, as in transformers' logits processors.

Pure functions on scores of shape (vocabulary,) in float64. Tokens that are ruled out get -inf. Ids
outside the vocabulary have no effect unless a function says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from protocols.errors import ConfigError

Floats = NDArray[np.float64]
Words = Iterable[tuple[int, ...]]


def softmax(scores: Floats) -> Floats:
    """Probabilities of the scores; -inf gives 0. scores: (n,) with at least one finite value."""
    weights: Floats = np.exp(scores - scores.max())
    weights /= weights.sum()
    return weights


# -- for every choice ------------------------------------------------------------------------------


def bias_sequences(
    scores: Floats, ids: Sequence[int], biases: Iterable[tuple[tuple[int, ...], float]]
) -> Floats:
    """Add a bias to the last token of each sequence whose other tokens have just occurred."""
    result = scores.copy()
    for sequence, bias in biases:
        before, last = sequence[:-1], sequence[-1]
        if tuple(ids[len(ids) - len(before) :]) == before and 0 <= last < scores.size:
            result[last] += bias
    return result


def penalize(scores: Floats, previous_ids: Sequence[int], penalty: float) -> Floats:
    """For ids that have occurred, divide positive scores and multiply negative ones by `penalty`.

    scores: (vocabulary,). Raises ConfigError if an id is outside the vocabulary.
    """
    if penalty == 1 or not len(previous_ids):
        return scores
    seen = np.unique(np.asarray(previous_ids, dtype=np.int64))
    if seen[0] < 0 or seen[-1] >= scores.size:
        odd = seen[0] if seen[0] < 0 else seen[-1]
        raise ConfigError(f"token id {odd} is not in the vocabulary of {scores.size} tokens")
    result = scores.copy()
    old = scores[seen]
    result[seen] = np.where(old < 0, old * penalty, old / penalty)
    return result


def discourage(scores: Floats, answer: Sequence[int], frequency: float, presence: float) -> Floats:
    """Subtract `frequency` for each occurrence of a token in the answer so far, and `presence` once
    for all of them (OpenAI's API reference, "Create chat completion").
    """
    known = [token for token in answer if 0 <= token < scores.size]
    if not known or not (frequency or presence):
        return scores
    tokens, counts = np.unique(np.asarray(known, dtype=np.int64), return_counts=True)
    result = scores.copy()
    result[tokens] -= counts * frequency + presence
    return result


def forbid_ngrams(scores: Floats, ids: Sequence[int], size: int) -> Floats:
    """Rule out tokens that would repeat a run of `size` tokens; 0: rule out none."""
    if size < 1 or len(ids) + 1 < size:
        return scores
    end = tuple(ids[len(ids) + 1 - size :])
    runs = (tuple(ids[at : at + size]) for at in range(len(ids) - size + 1))
    return suppress(scores, {run[-1] for run in runs if run[:-1] == end})


def forbid_words(scores: Floats, ids: Sequence[int], words: Words, ends: Iterable[int]) -> Floats:
    """Rule out the last token of each word whose other tokens have just occurred.

    A word that is a single end token has no effect.
    """
    single = {(end,) for end in ends}
    return bias_sequences(scores, ids, [(word, -np.inf) for word in words if word not in single])


def suppress(scores: Floats, tokens: Iterable[int]) -> Floats:
    """Rule out these tokens."""
    chosen = [token for token in tokens if 0 <= token < scores.size]
    result = scores.copy()
    result[chosen] = -np.inf
    return result


def force(scores: Floats, tokens: Sequence[int]) -> Floats:
    """Rule out all other tokens. Raises ConfigError if none of these is in the vocabulary."""
    chosen = [token for token in tokens if 0 <= token < scores.size]
    if not chosen:
        raise ConfigError(f"a forced token, {tokens}, is not in the vocabulary of {scores.size}")
    result = np.full_like(scores, -np.inf)
    result[chosen] = 0.0
    return result


def raise_ends(scores: Floats, ends: Iterable[int], factor: float, steps: int) -> Floats:
    """Raise the score of each end token by its magnitude times (`factor` ** `steps` - 1)."""
    chosen = [end for end in ends if 0 <= end < scores.size and np.isfinite(scores[end])]
    result = scores.copy()
    result[chosen] += np.abs(scores[chosen]) * (factor**steps - 1)
    return result


# -- for a draw ------------------------------------------------------------------------------------


def keep_top_k(scores: Floats, count: int) -> Floats:
    """Keep the `count` best tokens and all that tie with the last of them; 0: keep all."""
    if not 0 < count < scores.size:
        return scores
    least = np.partition(scores, -count)[-count]
    return np.where(scores < least, -np.inf, scores)


def keep_top_p(scores: Floats, mass: float) -> Floats:
    """Keep the best tokens that together reach `mass`; of ties at the edge, the highest ids."""
    if mass >= 1:
        return scores
    order = np.argsort(scores, kind="stable")
    # Drop the least likely tokens while their sum is at most 1 - mass; never drop the best one.
    drop = np.cumsum(softmax(scores[order])) <= 1 - mass
    drop[-1] = False
    result = scores.copy()
    result[order[drop]] = -np.inf
    return result


def keep_min_p(scores: Floats, share: float) -> Floats:
    """Keep the tokens that are at least `share` times as likely as the best one."""
    chances = softmax(scores)
    return _without(scores, chances < share * chances.max())


def keep_typical(scores: Floats, mass: float) -> Floats:
    """Keep the tokens closest to the expected surprise that together reach `mass`.

    See https://arxiv.org/abs/2202.00666.
    """
    if mass >= 1:
        return scores
    chances = softmax(scores)
    surprise, entropy = _surprise(chances)
    distance = np.abs(surprise - entropy)
    order = np.argsort(distance, kind="stable")
    last = min(int((np.cumsum(chances[order]) < mass).sum()), scores.size - 1)
    drop = distance > distance[order[last]]
    drop[order[0]] = False
    return np.where(drop, -np.inf, scores)


def keep_epsilon(scores: Floats, least: float) -> Floats:
    """Keep tokens of probability `least` or more, and the best (arxiv.org/abs/2210.15191)."""
    return _without(scores, softmax(scores) < least) if least > 0 else scores


def keep_eta(scores: Floats, least: float) -> Floats:
    """Like `keep_epsilon`, but the limit depends on the entropy (arxiv.org/abs/2210.15191)."""
    if least <= 0:
        return scores
    chances = softmax(scores)
    _, entropy = _surprise(chances)
    return _without(scores, chances < min(least, np.sqrt(least) * np.exp(-entropy)))


def _surprise(chances: Floats) -> tuple[Floats, float]:
    """-log of each probability (inf for 0), and the entropy, which is their mean."""
    surprise = np.full_like(chances, np.inf)
    there = chances > 0
    surprise[there] = -np.log(chances[there])
    return surprise, float((chances[there] * surprise[there]).sum())


def _without(scores: Floats, dropped: NDArray[np.bool_]) -> Floats:
    """Rule out the dropped tokens, but never the best ones."""
    return np.where(dropped & (scores < scores.max()), -np.inf, scores)
