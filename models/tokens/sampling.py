"""Choice of the next token by the client, and detection of stop strings.

Pure functions of the logits that the client received. The semantics, including ties and the order
penalty, temperature, top-k, top-p, are those of transformers' logits processors.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from protocols.errors import ConfigError, RangeError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SamplingConfig:
    """How to choose tokens and when to stop. Raises ConfigError naming an unusable value.

    temperature 0 is greedy decoding; top_k 0 and top_p 1 switch those filters off.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        number, whole = _is_number, _is_whole
        _require(self, "temperature", number(self.temperature) and self.temperature >= 0, ">= 0")
        _require(self, "top_k", whole(self.top_k) and self.top_k >= 0, "a whole number >= 0")
        _require(self, "top_p", number(self.top_p) and 0 < self.top_p <= 1, "in (0, 1]")
        penalty = self.repetition_penalty
        _require(self, "repetition_penalty", number(penalty) and penalty > 0, "> 0")
        _require(self, "seed", self.seed is None or whole(self.seed), "a whole number or none")
        texts = isinstance(self.stop, tuple) and all(s and isinstance(s, str) for s in self.stop)
        _require(self, "stop", texts, "a tuple of strings that are not empty")
        tokens = self.max_new_tokens
        _require(self, "max_new_tokens", whole(tokens) and tokens >= 1, "a whole number >= 1")


class SamplingOptions(TypedDict, total=False):
    """The fields of a `SamplingConfig`, as keywords."""

    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    seed: int | None
    stop: tuple[str, ...]
    max_new_tokens: int


class Sampler:
    """Chooses tokens; holds the random generator of one generation.

    With a seed, the same logits give the same tokens on every machine with IEEE doubles.
    """

    def __init__(self, config: SamplingConfig) -> None:
        self.config = config
        # Harmless: this draw only decides what the client itself reads. It masks nothing, no party
        # depends on it, and it must be repeatable with a seed.
        self._random = (
            random.SystemRandom() if config.seed is None else random.Random(config.seed)  # noqa: S311
        )

    def next(self, logits: ArrayLike, previous_ids: Sequence[int]) -> int:
        """The next token's id.

        logits: (vocabulary,); previous_ids: prompt and answer so far, for the penalty. Raises
        RangeError when a logit is NaN, ConfigError when a previous id is not in the vocabulary.
        """
        scores = penalize(_as_scores(logits), previous_ids, self.config.repetition_penalty)
        if self.config.temperature == 0:
            return int(np.argmax(scores))
        return self._draw(softmax(filter_logits(scores, self.config)))

    def _draw(self, probabilities: Floats) -> int:
        (kept,) = np.nonzero(probabilities)
        edges = np.cumsum(probabilities[kept])
        # The sum may miss 1 by rounding: scale the draw by it, and never go past the last token.
        at = np.searchsorted(edges, self._random.random() * edges[-1], side="right")
        return int(kept[min(int(at), len(kept) - 1)])


def penalize(scores: Floats, previous_ids: Sequence[int], penalty: float) -> Floats:
    """Divide positive and multiply negative scores of ids that have occurred by `penalty`.

    scores: (vocabulary,). Raises ConfigError when an id is outside the vocabulary.
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


def filter_logits(scores: Floats, config: SamplingConfig) -> Floats:
    """Apply temperature, top-k and top-p; tokens ruled out become -inf. temperature must not be 0.

    scores: (vocabulary,). Ties at the k-th score are all kept; of ties at the edge of top-p the
    last ones by id are kept.
    """
    scores = (scores - scores.max()) / config.temperature  # a tiny temperature must not overflow
    if 0 < config.top_k < scores.size:
        least = np.partition(scores, -config.top_k)[-config.top_k]
        scores = np.where(scores < least, -np.inf, scores)
    if config.top_p < 1:
        order = np.argsort(scores, kind="stable")
        # From the least likely on, drop tokens that together stay within 1 - top_p; never the last.
        drop = np.cumsum(softmax(scores[order])) <= 1 - config.top_p
        drop[-1] = False
        scores = scores.copy()
        scores[order[drop]] = -np.inf
    return scores


def softmax(scores: Floats) -> Floats:
    """Probabilities of the scores; -inf gets 0. scores: (n,) with at least one finite value."""
    weights: Floats = np.exp(scores - scores.max())
    weights /= weights.sum()
    return weights


class StopWatcher:
    """Passes on text up to the first stop string, which may be spread over several pieces.

    Text that could be the beginning of a stop string is held back. If two match, the one that ends
    first counts, so the result does not depend on how the text was split.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stops = tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Take a piece; return the text that is safe to show. After a stop string, always empty."""
        if self.stopped:
            return ""
        self._held += text
        found = [(at + len(s), at) for s in self._stops if (at := self._held.find(s)) >= 0]
        if found:
            self.stopped = True
            return self._release(min(found)[1])
        return self._release(len(self._held) - self._pending())

    def finish(self) -> str:
        """The text held back, when the text has ended without a stop string."""
        return "" if self.stopped else self._release(len(self._held))

    def _release(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        return text

    def _pending(self) -> int:
        """Length of the longest suffix of the held text that begins a stop string."""
        longest = max((len(s) - 1 for s in self._stops), default=0)
        for size in range(min(longest, len(self._held)), 0, -1):
            tail = self._held[-size:]
            if any(s.startswith(tail) for s in self._stops):
                return size
        return 0


def _as_scores(logits: ArrayLike) -> Floats:
    scores = np.asarray(logits, dtype=np.float64)
    if scores.ndim != 1 or not scores.size:
        raise ConfigError(f"logits of shape {scores.shape} are not those of one position")
    if np.isnan(scores).any() or not scores.max() > -math.inf or scores.max() == math.inf:
        raise RangeError("the logits contain NaN or infinity; the evaluation has overflowed")
    return scores


def _require(config: Any, name: str, holds: bool, wanted: str) -> None:
    if not holds:
        raise ConfigError(f"{name}: {getattr(config, name)!r} is not usable; it must be {wanted}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
