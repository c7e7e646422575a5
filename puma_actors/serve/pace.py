"""What requests cost and how long they take: from their shapes, and from those before them."""

from dataclasses import dataclass

from starlette.requests import Request

from models.programs.program import Batch
from protocols.base.cost import Cost
from puma_actors.api.life import Cluster
from puma_actors.api.usage import Usage
from puma_actors.serve.errors import BAD, ApiError

ROUGH = 2.0
"""How many times too long a prediction may be that no answer has confirmed yet."""
_TIMEOUTS = ("x-stainless-read-timeout", "x-stainless-timeout")
"""Headers in which OpenAI's clients say how many seconds they wait."""


@dataclass
class Pace:
    """What the last answers of one model took, in seconds.

    Attributes:
        prefill: tokens of a prompt, and seconds for them; None: no answer yet.
        step: seconds of a further token; None: none yet.
    """

    prefill: tuple[int, float] | None = None
    step: float | None = None

    def note(self, usage: Usage) -> None:
        """Learn from an answer."""
        if "prefill" in usage.seconds and usage.prompt_ids:
            self.prefill = len(usage.prompt_ids), usage.seconds["prefill"]
        steps = len(usage.token_ids) - 1
        if steps > 0 and "decode" in usage.seconds:
            self.step = usage.seconds["decode"] / steps

    def seconds(self, prompt: int, new: int) -> float | None:
        """What a request of that many tokens is expected to take; None if nothing is known. A
        prompt that is longer than the last one is expected to take longer in proportion, one that
        is shorter as long, since much of the time does not depend on its length.
        """
        if self.prefill is None:
            return None
        tokens, spent = self.prefill
        first = spent * max(1.0, prompt / tokens)
        return first + max(0, new - 1) * (self.step or 0.0)


def predicted(cluster: Cluster, batch: Batch, new: int) -> tuple[Cost, list[Cost], float]:
    """What a request for `new` tokens costs, or for a batch alone if that is 1: its first step, a
    step after it (none if there is no other), and seconds in all, as far as shapes, the network and
    this machine's speed tell; 0.0 if they are unknown.
    """
    steps = min(2, new)
    choice = cluster.choose(batch, steps)
    first, *later = cluster.predict(batch, steps - 1, choice.settings)
    options = (choice.first, *[choice.further] * (new - 1))
    return first, later, sum(each[0].time.total for each in options if each)


def predicted_headers(cost: Cost, seconds: float | None) -> dict[str, str]:
    """Headers that say beforehand what a request may cost."""
    known = {} if seconds is None else {"x-puma-predicted-seconds": f"{seconds:.1f}"}
    return {
        "x-puma-predicted-rounds": str(cost.rounds),
        "x-puma-predicted-bytes": str(cost.online + cost.offline),
        **known,
    }


def check_patience(request: Request, seconds: float) -> None:
    """Refuse what cannot end while the client waits; a stream keeps its client waiting.

    Raises:
        ApiError: the client waits for a shorter time.
    """
    for name in _TIMEOUTS:
        given = request.headers.get(name, "")
        if given.replace(".", "", 1).isdecimal() and len(given) < 12:
            if seconds > float(given) > 0:
                raise ApiError(
                    BAD,
                    f"the answer is expected to take {seconds:.0f} s, and this client waits "
                    f"{float(given):.0f} s: ask for less, stream the answer if it is a text, or "
                    "raise the client's timeout",
                    code="timeout",
                )
            return
