"""The perplexity of a text, in plaintext and in private, over the same windows."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.checkpoints.checkpoint import Checkpoint
from models.owner.calibrate import plain_run
from models.owner.perplexity import Window, log_likelihoods, perplexity, scored, windows_of
from models.programs.families import load_parameters
from protocols.base.cost import Cost
from protocols.base.ring import Floats
from protocols.errors import ConfigError
from puma_actors.api.requests import Requests, check_logits

DEFAULT_WINDOW = 512

Told = Callable[[int, int, float], None]
"""Called with the number of windows done and in total, and the estimated seconds left."""


@dataclass(frozen=True)
class Scores:
    """Log-likelihoods of the scored tokens, and the cost of each window.

    Attributes:
        costs: costs of all parties together; empty for a plaintext run.
    """

    likelihoods: Floats
    seconds: tuple[float, ...]
    costs: tuple[Cost, ...] = ()

    @property
    def perplexity(self) -> float:
        return perplexity(self.likelihoods)


@dataclass(frozen=True)
class Perplexities:
    """The same windows of a text, scored twice."""

    windows: tuple[Window, ...]
    plain: Scores
    private: Scores

    @property
    def relative(self) -> float:
        """Relative difference of the private perplexity."""
        return self.private.perplexity / self.plain.perplexity - 1

    @property
    def mean_cost(self) -> Cost:
        """Of a window."""
        total, count = sum(self.private.costs, Cost()), len(self.private.costs)
        return Cost(total.rounds // count, total.online // count, total.offline // count)

    def to_json(self) -> dict[str, Any]:
        """JSON types only."""
        difference = np.abs(self.private.likelihoods - self.plain.likelihoods)
        costs = [
            {"rounds": c.rounds, "online_bytes": c.online, "offline_bytes": c.offline}
            for c in self.private.costs
        ]
        return {
            "plain": self.plain.perplexity,
            "private": self.private.perplexity,
            "relative_difference": self.relative,
            "max_log_likelihood_difference": float(difference.max()),
            "tokens_scored": len(self.plain.likelihoods),
            "plain_seconds": sum(self.plain.seconds),
            "private_seconds": sum(self.private.seconds),
            "windows": [
                {"start": w.start, "stop": w.stop, "scored": w.scored, "seconds": seconds, **cost}
                for w, seconds, cost in zip(self.windows, self.private.seconds, costs, strict=True)
            ],
        }


def plan_windows(
    requests: Requests, ids: Sequence[int], window: int | None = None, stride: int | None = None
) -> list[Window]:
    """The windows in which a model scores a text.

    Args:
        window: tokens; default: `DEFAULT_WINDOW`, or the model's positions if those are fewer.
        stride: default: the window.

    Raises:
        ConfigError: the model does not predict tokens or has fewer positions, or the text is too
        short.
    """
    config = requests.config
    check_logits(config)
    size = min(DEFAULT_WINDOW, config.max_positions) if window is None else window
    if size > config.max_positions:
        raise ConfigError(
            f"windows of {size} tokens do not fit the model's {config.max_positions} positions: "
            "give shorter ones"
        )
    return windows_of(len(ids), size, size if stride is None else stride)


def score_plain(
    checkpoint: Checkpoint, ids: Sequence[int], windows: Sequence[Window], told: Told
) -> Scores:
    """Score in float64, with the owner's original weights."""
    parameters = dict(load_parameters(checkpoint))
    found, seconds = [], []
    for window in windows:
        started = time.perf_counter()
        part = ids[window.start : window.stop]
        logits = plain_run(checkpoint.config, parameters, [part])
        found.append(scored(window, log_likelihoods(logits, part)))
        seconds.append(time.perf_counter() - started)
        told(len(found), len(windows), _rest(seconds, windows))
    return Scores(np.concatenate(found), tuple(seconds))


async def score_private(
    requests: Requests, ids: Sequence[int], windows: Sequence[Window], told: Told
) -> Scores:
    """Score on shares, one request per window."""
    found, seconds, costs = [], [], []
    for window in windows:
        started = time.perf_counter()
        part = ids[window.start : window.stop]
        found.append(scored(window, await requests.log_likelihoods(part)))
        seconds.append(time.perf_counter() - started)
        costs.append(requests.usage.total)
        told(len(found), len(windows), _rest(seconds, windows))
    return Scores(np.concatenate(found), tuple(seconds), tuple(costs))


def _rest(seconds: Sequence[float], windows: Sequence[Window]) -> float:
    """Estimated seconds of the remaining windows, at the speed so far."""
    sizes = [window.stop - window.start for window in windows]
    done = len(seconds)
    return sum(seconds) / sum(sizes[:done]) * sum(sizes[done:])
