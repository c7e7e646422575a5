"""What proposes the next tokens of an answer, and how many."""

from collections.abc import Collection, Sequence
from typing import Protocol

from models.tokens.sampling import Proposal, SamplingConfig

DRAFT_TOKENS = 8
"""Tokens proposed a step, at most, unless a request says otherwise."""


class Drafter(Protocol):
    """Proposes tokens of one answer. Everything happens at the client, in the clear."""

    def propose(self, ids: Sequence[int], most: int) -> list[Proposal]:
        """Up to `most` tokens that may follow the prompt and the answer so far."""


class Drafting(Protocol):
    """A way to draft. It serves any number of answers, one after the other.

    Attributes:
        name: its name in reports.
    """

    name: str

    def begin(self, sampling: SamplingConfig, prompt: int, ends: Collection[int]) -> Drafter:
        """A drafter for one answer.

        Args:
            sampling: how the answer's tokens are chosen.
            prompt: number of tokens in the prompt.
            ends: ids that end the answer.
        """


class Pace:
    """How many tokens to propose: more after good proposals, fewer after bad ones, because each
    costs traffic and work whether or not it is accepted.

    Args:
        most: tokens a step, at least 1.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.next = min(most, 4)

    def note(self, proposed: int, accepted: int) -> None:
        """Learn from a step."""
        if proposed == 0:
            return
        grown = 2 * accepted + 2 if accepted == proposed else accepted + 1
        self.next = min(self._most, grown)
