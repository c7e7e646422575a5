"""How well a causal language model predicts a text: windows over the text, and their scores."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from protocols.base.ring import Floats
from protocols.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Window:
    """The tokens [start, stop) are evaluated, and [first, stop) of them are scored."""

    start: int
    stop: int
    first: int

    @property
    def scored(self) -> int:
        """Number of tokens whose likelihood counts."""
        return self.stop - self.first


def windows_of(tokens: int, size: int, stride: int) -> list[Window]:
    """Windows of up to `size` tokens that begin `stride` tokens apart, as in transformers' guide to
    the perplexity of fixed-length models.

    A token is scored once, in the first window that contains it, and never without a token before
    it: with a stride of the window's size, the first token of each window goes unscored; with a
    shorter one, only that of the text.

    Raises:
        ConfigError: nothing to score, or a stride outside 1 to `size`.
    """
    if tokens < 2:
        raise ConfigError(f"a text of {tokens} tokens scores nothing: give at least 2")
    if size < 2:
        raise ConfigError(f"a window of {size} tokens scores nothing: give at least 2")
    if not 1 <= stride <= size:
        raise ConfigError(
            f"stride {stride} does not fit windows of {size} tokens: give 1 to {size}, or "
            "tokens would be left out"
        )
    windows, done = [], 1
    for start in range(0, tokens, stride):
        stop = min(start + size, tokens)
        first = max(done, start + 1)
        if first < stop:
            windows.append(Window(start, stop, first))
        done = stop
        if stop == tokens:
            break
    return windows


def log_likelihoods(logits: Floats, ids: Sequence[int]) -> Floats:
    """Natural logarithm of the probability of each token except the first, given those before it.

    Args:
        logits: (tokens, vocabulary), of the tokens `ids`.
    """
    rows = np.asarray(logits[:-1], dtype=np.float64)
    chosen = rows[np.arange(len(rows)), np.asarray(ids[1:], dtype=np.int64)]
    peak = rows.max(axis=1)
    total = np.exp(rows - peak[:, None]).sum(axis=1)
    return np.asarray(chosen - peak - np.log(total))


def scored(window: Window, likelihoods: Floats) -> Floats:
    """The part of a window's `log_likelihoods` that counts."""
    return likelihoods[window.first - window.start - 1 :]


def perplexity(likelihoods: Floats) -> float:
    """exp of minus the mean; infinite where it is beyond floating point."""
    with np.errstate(over="ignore"):
        return float(np.exp(-np.mean(likelihoods)))
