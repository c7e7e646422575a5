"""Notes on the cost of a request, before it runs."""

from collections.abc import Sequence

from models.tokens.sampling import SamplingConfig
from puma_actors.api.requests import Requests
from puma_actors.cli.output import amount, tell

LONG = 200
"""Prompts of this many tokens or more get a note: the cost grows with the square of the length."""


def announce(requests: Requests, ids: Sequence[int], sampling: SamplingConfig) -> None:
    """Print notes on stderr: fewer new tokens fit than requested; a long prompt is expensive."""
    most = requests.most_new_tokens(len(ids))
    if 0 < most < sampling.max_new_tokens:
        tell(
            f"note: {most} new tokens fit after this prompt of {len(ids)}, not "
            f"{sampling.max_new_tokens}: {requests.limit_text()}"
        )
    if len(ids) >= LONG:
        cost = requests.predict(len(ids))[0]
        tell(
            f"note: this prompt of {len(ids)} tokens takes {amount(cost.online)} online and "
            f"{amount(cost.offline)} dealt ahead, in {cost.rounds:,} rounds"
        )
