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


_DRAFTED, _ROW = 25, 5
"""How much longer a step takes with a draft, and with each token of it, in per cent of a step: on
two cores without a network, where it is most (one token: 20 % more on the event loop, 36 % more
processor time; four: 21 % and 71 %).
"""
_ALLOWED = 4
"""Per cent by which drafts may lengthen an answer of which nothing is accepted."""
_SAVED = 200
"""The most time that is saved up for drafts, in per cent of a step, if no draft takes longer."""
_FIRST = 4
"""Tokens proposed in the first step of an answer, at most."""


class Pace:
    """How many tokens to propose: more after good proposals, fewer after bad ones, because each
    costs traffic and work whether or not it is accepted.

    Drafts must earn their time: an accepted token saves a step. So an answer of n steps, without
    drafts, takes at most `_ALLOWED` n / 100 steps more with drafts, and half a step. What is
    saved up is limited, so that good drafts long ago do not pay for many bad ones.

    Args:
        most: tokens a step, at least 1.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._wanted = min(most, _FIRST)
        self._saved = _DRAFTED + _ROW * self._wanted  # per cent of a step

    @property
    def next(self) -> int:
        """Tokens to propose, at most; perhaps 0."""
        return max(0, min(self._wanted, (self._saved - _DRAFTED) // _ROW))

    def note(self, proposed: int, accepted: int) -> None:
        """Learn from a step."""
        spent = _DRAFTED + _ROW * proposed if proposed else 0
        gained = (100 + _ALLOWED) * accepted + _ALLOWED - spent
        self._saved = min(self._saved + gained, max(_SAVED, _DRAFTED + _ROW * self._most))
        if proposed:
            grown = 2 * accepted + 2 if accepted == proposed else accepted + 1
            self._wanted = min(self._most, grown)
