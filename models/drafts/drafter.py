"""What proposes the next tokens of an answer, and how many."""

from bisect import bisect_right
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
"""How much longer the parties compute at a step with a draft, and for each token of it, in per cent
of their time without one: on two cores (one token: 20 % more on the event loop, 36 % more processor
time; four: 21 % and 71 %).
"""
_ALLOWED = 2
"""Per cent by which drafts may lengthen an answer of which nothing is accepted."""
_FIRST = 4
"""Tokens proposed in the first step of an answer, at most."""
_SAVED = 45
"""The time that an answer begins with for drafts, in per cent of a step."""
_KEPT = 200
"""The most time that is saved up for drafts, in per cent of a step, if no draft takes longer."""


def computing(tokens: int) -> int:
    """How much longer the parties compute at a step that proposes so many tokens, in per cent."""
    return _DRAFTED + _ROW * tokens if tokens else 0


class Pace:
    """How many tokens to propose: more after good proposals, fewer after bad ones, because each
    costs traffic and work whether or not it is accepted.

    Drafts must earn their time: an accepted token saves a step. So an answer of n steps, without
    drafts, takes at most `_ALLOWED` n / 100 + `_SAVED` / 100 steps more with drafts: 5 % of 16
    tokens. What is saved up is limited, so that good drafts long ago do not pay for many bad ones.

    Args:
        costs: by how many per cent of a step one is longer that proposes 0 (0), 1, 2, ... tokens,
            as many as may be proposed; never less for more tokens.
    """

    def __init__(self, costs: Sequence[int]) -> None:
        self._costs = costs
        self._most = max(0, len(costs) - 1)
        self._wanted = min(self._most, _FIRST)
        self._saved = _SAVED

    @property
    def next(self) -> int:
        """Tokens to propose, at most; perhaps 0."""
        affordable = bisect_right(self._costs, self._saved) - 1
        return max(0, min(self._wanted, affordable))

    def note(self, proposed: int, accepted: int) -> None:
        """Learn from a step."""
        if not self._most:
            return
        gained = (100 + _ALLOWED) * accepted + _ALLOWED - self._costs[proposed]
        self._saved = min(self._saved + gained, max(_KEPT, self._costs[-1]))
        if proposed:
            grown = 2 * accepted + 2 if accepted == proposed else accepted + 1
            self._wanted = min(self._most, grown)
