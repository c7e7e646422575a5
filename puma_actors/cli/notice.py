"""Notes about a request, such as its cost, before it runs."""

from collections.abc import Mapping, Sequence
from typing import Any

from models.configs.validate import short
from models.tokens.sampling import SamplingConfig
from models.tokens.tokenizer import Tokenizer
from puma_actors.api.requests import Requests
from puma_actors.base.texts import printable
from puma_actors.cli.output import amount, tell

LONG = 200
"""Prompts of this many tokens or more get a note: the cost grows with the square of the length."""


def warn(tokenizer: Tokenizer | None) -> None:
    """Print a tokenizer's warning to stderr, if it has one."""
    if tokenizer is not None and tokenizer.warning is not None:
        tell(f"warning: {printable(tokenizer.warning)}")


def announce(
    requests: Requests,
    ids: Sequence[int],
    sampling: SamplingConfig,
    of_model: Mapping[str, Any] | None = None,
) -> None:
    """Print notes to stderr: which sampling settings come from the model, that fewer new tokens fit
    than were requested, and what a long prompt costs.
    """
    if of_model:
        said = ", ".join(f"{name} {short(value)}" for name, value in of_model.items())
        tell(
            f"note: the model's generation_config.json says {printable(said)}: options win over "
            "it, and --ignore-generation-config takes nothing from it"
        )
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
