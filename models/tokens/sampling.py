"""The client's choice of the next token.

Everything here is computed from logits that the client received. The semantics, including ties and
the order of the steps, are those of transformers' logits processors.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from models.tokens.processors import (
    Floats,
    bias_sequences,
    discourage,
    forbid_ngrams,
    forbid_words,
    force,
    keep_epsilon,
    keep_eta,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical,
    penalize,
    raise_ends,
    softmax,
    suppress,
)
from models.tokens.sampling_config import SamplingConfig, SamplingOptions, settings_of_model
from models.tokens.stopping import StopWatcher
from protocols.errors import ConfigError, RangeError

__all__ = [
    "Proposal",
    "Sampler",
    "SamplingConfig",
    "SamplingOptions",
    "StopWatcher",
    "filter_logits",
    "penalize",
    "settings_of_model",
    "softmax",
]


@dataclass(frozen=True, slots=True)
class Proposal:
    """A token that a draft proposes.

    Attributes:
        token: its id.
        chances: the distribution that it was drawn from, (vocabulary,); None: it was not drawn.
    """

    token: int
    chances: Floats | None = None


class Sampler:
    """Chooses tokens; holds the random generator of one generation.

    With a seed, the same logits give the same tokens on every machine with IEEE doubles.

    Args:
        prompt: number of tokens in the prompt.
        ends: ids that end a text.
        stream: generators of different names are independent, also with the same seed.
    """

    def __init__(
        self,
        config: SamplingConfig,
        *,
        prompt: int = 0,
        ends: Collection[int] = (),
        stream: str = "",
    ) -> None:
        self.config = config
        self._prompt = prompt
        self._ends = tuple(ends)
        # An insecure generator is fine: the draw only decides what the client reads. It masks
        # nothing, no party depends on it, and it must be repeatable with a seed.
        seed = config.seed if not stream else f"{stream} {config.seed}"
        self._random = (
            random.SystemRandom() if config.seed is None else random.Random(seed)  # noqa: S311
        )

    def next(
        self,
        logits: ArrayLike,
        previous_ids: Sequence[int],
        proposal: Proposal | None = None,
    ) -> int:
        """Choose the next token and return its id. It is a proposed token if that is accepted, and
        another one if not; either way its distribution is that of no proposal.

        logits: (vocabulary,); previous_ids: prompt and answer so far. Raises RangeError if a logit
        is NaN or +inf. Raises ConfigError if a previous id is not in the vocabulary, or if the
        settings rule out every token when sampling.
        """
        if self.config.temperature == 0:
            return int(np.argmax(self._processed(_as_scores(logits), previous_ids)))
        chances = self.chances(logits, previous_ids)
        if proposal is None or proposal.chances is None:
            # A proposal that was not drawn is accepted with its probability. So it is if a token
            # is drawn as ever and happens to be the proposed one.
            return self._draw(chances)
        return self._judged(chances, proposal.token, proposal.chances)

    def chances(self, logits: ArrayLike, previous_ids: Sequence[int]) -> Floats:
        """The distribution of the next token when sampling: (vocabulary,). Raises as `next`."""
        scores = self._processed(_as_scores(logits), previous_ids)
        if not scores.max() > -math.inf:
            raise ConfigError("the settings rule out every token: suppress fewer")
        return softmax(filter_logits(scores, self.config))

    def propose(self, logits: ArrayLike, previous_ids: Sequence[int]) -> Proposal:
        """The token that this sampler would choose, as a proposal. Raises as `next`."""
        if self.config.temperature == 0:
            return Proposal(self.next(logits, previous_ids))
        chances = self.chances(logits, previous_ids)
        return Proposal(self._draw(chances), chances)

    def _judged(self, chances: Floats, token: int, proposed: Floats) -> int:
        """Speculative sampling (Leviathan et al., "Fast Inference from Transformers via Speculative
        Decoding", ICML 2023, section 2.3): the token, drawn from `proposed`, or another one.
        """
        if self._random.random() * proposed[token] < chances[token]:
            return token
        rest = np.maximum(chances - proposed, 0.0)
        # Rounding may leave nothing where both distributions are equal; then the token is as good.
        return self._draw(rest) if rest.any() else token

    def _processed(self, scores: Floats, ids: Sequence[int]) -> Floats:
        """Scores after the steps that greedy decoding also has, in transformers' order."""
        config, ends = self.config, self._ends
        if config.sequence_bias:
            scores = bias_sequences(scores, ids, config.sequence_bias)
        scores = penalize(scores, ids, config.repetition_penalty)
        answer = ids[self._prompt :]
        scores = discourage(scores, answer, config.frequency_penalty, config.presence_penalty)
        scores = forbid_ngrams(scores, ids, config.no_repeat_ngram_size)
        if config.bad_words_ids:
            scores = forbid_words(scores, ids, config.bad_words_ids, ends)
        if len(ids) < self._least():
            scores = suppress(scores, ends)
        scores = self._forced(scores, len(ids))
        if config.exponential_decay_length_penalty is not None:
            start, factor = config.exponential_decay_length_penalty
            steps = len(ids) - self._prompt - start
            scores = raise_ends(scores, ends, factor, steps) if steps > 0 else scores
        if config.suppress_tokens:
            scores = suppress(scores, config.suppress_tokens)
        late = self._prompt == 1 and config.forced_bos_token_id is not None
        if config.begin_suppress_tokens and len(ids) == self._prompt + late:
            scores = suppress(scores, config.begin_suppress_tokens)
        return scores

    def _least(self) -> int:
        """Number of tokens, including the prompt, before which a text must not end."""
        config = self.config
        new = config.min_new_tokens
        return self._prompt + new if new else config.min_length

    def _forced(self, scores: Floats, length: int) -> Floats:
        config = self.config
        first, last = config.forced_bos_token_id, config.forced_eos_token_id
        if first is not None and length == 1:
            scores = force(scores, (first,))
        if last is not None and length == self._prompt + config.max_new_tokens - 1:
            scores = force(scores, last if isinstance(last, tuple) else (last,))
        return scores

    def _draw(self, probabilities: Floats) -> int:
        (kept,) = np.nonzero(probabilities)
        edges = np.cumsum(probabilities[kept])
        # The sum may miss 1 by rounding: scale the draw by it, and never go past the last token.
        at = np.searchsorted(edges, self._random.random() * edges[-1], side="right")
        return int(kept[min(int(at), len(kept) - 1)])


def filter_logits(scores: Floats, config: SamplingConfig) -> Floats:
    """Apply the temperature, which must not be 0, and the steps after it.

    scores: (vocabulary,); tokens that are ruled out get -inf. Ties at the k-th score are all kept;
    of ties at the edge of top-p, the highest ids are kept.
    """
    scores = (scores - scores.max()) / config.temperature  # a tiny temperature must not overflow
    scores = keep_top_k(scores, config.top_k)
    scores = keep_top_p(scores, config.top_p)
    scores = keep_min_p(scores, config.min_p)
    scores = keep_typical(scores, config.typical_p)
    scores = keep_epsilon(scores, config.epsilon_cutoff)
    return keep_eta(scores, config.eta_cutoff)


def _as_scores(logits: ArrayLike) -> Floats:
    scores = np.asarray(logits, dtype=np.float64)
    if scores.ndim != 1 or not scores.size:
        raise ConfigError(f"logits of shape {scores.shape} are not those of one position")
    if np.isnan(scores).any() or not scores.max() > -math.inf or scores.max() == math.inf:
        raise RangeError("the logits contain NaN or infinity; the evaluation has overflowed")
    return scores
