"""How long requests take, from those before them."""

from dataclasses import dataclass

from puma_actors.api.usage import Usage


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
