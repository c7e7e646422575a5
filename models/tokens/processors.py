"""Changes of the scores of the next token, as transformers' logits processors make them.

Pure functions: scores are (vocabulary,) in float64; what is ruled out becomes -inf. Ids outside of
the vocabulary have no effect unless it is said otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from protocols.errors import ConfigError

Floats = NDArray[np.float64]
Words = Iterable[tuple[int, ...]]


def softmax(scores: Floats) -> Floats:
    """Probabilities of the scores; -inf gets 0. scores: (n,) with one finite value at least."""
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
    """Divide positive and multiply negative scores of ids that occurred by `penalty`.

    scores: (vocabulary,). Raises ConfigError when an id is outside of the vocabulary.
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


def forbid_ngrams(scores: Floats, ids: Sequence[int], size: int) -> Floats:
    """Rule out what would repeat a run of `size` tokens; 0: nothing."""
    if size < 1 or len(ids) + 1 < size:
        return scores
    end = tuple(ids[len(ids) + 1 - size :])
    runs = (tuple(ids[at : at + size]) for at in range(len(ids) - size + 1))
    return suppress(scores, {run[-1] for run in runs if run[:-1] == end})


def forbid_words(scores: Floats, ids: Sequence[int], words: Words, ends: Iterable[int]) -> Floats:
    """Rule out the last token of each word whose other tokens have just occurred; a word that is
    an end token alone is allowed.
    """
    single = {(end,) for end in ends}
    return bias_sequences(scores, ids, [(word, -np.inf) for word in words if word not in single])


def suppress(scores: Floats, tokens: Iterable[int]) -> Floats:
    """Rule these tokens out."""
    chosen = [token for token in tokens if 0 <= token < scores.size]
    result = scores.copy()
    result[chosen] = -np.inf
    return result


def force(scores: Floats, tokens: Sequence[int]) -> Floats:
    """Rule out all other tokens; raises ConfigError where none of these is in the vocabulary."""
    chosen = [token for token in tokens if 0 <= token < scores.size]
    if not chosen:
        raise ConfigError(f"a forced token, {tokens}, is not in the vocabulary of {scores.size}")
    result = np.full_like(scores, -np.inf)
    result[chosen] = 0.0
    return result


def raise_ends(scores: Floats, ends: Iterable[int], factor: float, steps: int) -> Floats:
    """Make the end likelier by the magnitude of its score times `factor` ** steps - 1."""
    chosen = [end for end in ends if 0 <= end < scores.size and np.isfinite(scores[end])]
    result = scores.copy()
    result[chosen] += np.abs(scores[chosen]) * (factor**steps - 1)
    return result


# -- for a draw ------------------------------------------------------------------------------------


def keep_top_k(scores: Floats, count: int) -> Floats:
    """The `count` best, and all that tie with the last of them; 0: all."""
    if not 0 < count < scores.size:
        return scores
    least = np.partition(scores, -count)[-count]
    return np.where(scores < least, -np.inf, scores)


def keep_top_p(scores: Floats, mass: float) -> Floats:
    """The best that together reach `mass`; of ties at the edge the last ones by id."""
    if mass >= 1:
        return scores
    order = np.argsort(scores, kind="stable")
    # From the least likely on, drop what together stays within 1 - mass; never the last.
    drop = np.cumsum(softmax(scores[order])) <= 1 - mass
    drop[-1] = False
    result = scores.copy()
    result[order[drop]] = -np.inf
    return result


def keep_min_p(scores: Floats, share: float) -> Floats:
    """What is at least `share` times as likely as the best."""
    chances = softmax(scores)
    return _without(scores, chances < share * chances.max())


def keep_typical(scores: Floats, mass: float) -> Floats:
    """What is closest to the expected surprise and reaches `mass` (https://arxiv.org/abs/2202.00666)."""
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
    """What is at least as likely as `least`, and the best (https://arxiv.org/abs/2210.15191)."""
    return _without(scores, softmax(scores) < least) if least > 0 else scores


def keep_eta(scores: Floats, least: float) -> Floats:
    """The same with a limit that follows the entropy (https://arxiv.org/abs/2210.15191)."""
    if least <= 0:
        return scores
    chances = softmax(scores)
    _, entropy = _surprise(chances)
    return _without(scores, chances < min(least, np.sqrt(least) * np.exp(-entropy)))


def _surprise(chances: Floats) -> tuple[Floats, float]:
    """-log of each probability (inf for 0), and its mean."""
    surprise = np.full_like(chances, np.inf)
    there = chances > 0
    surprise[there] = -np.log(chances[there])
    return surprise, float((chances[there] * surprise[there]).sum())


def _without(scores: Floats, dropped: NDArray[np.bool_]) -> Floats:
    """The best stay in any case."""
    return np.where(dropped & (scores < scores.max()), -np.inf, scores)
