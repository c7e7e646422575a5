"""Prompt look-up: what followed the last few tokens where they occurred before.

The method is prompt look-up decoding (A. Saxena, 2023). It helps where an answer copies from the
prompt or repeats itself, and costs nothing where it does not.
"""

from collections.abc import Collection, Sequence

from models.tokens.sampling import Proposal, SamplingConfig

LONGEST, SHORTEST = 4, 2
"""Tokens of the runs that are looked up. Longer ones come first; a single token says too little."""


class NgramDrafting:
    """As `Drafting`."""

    name = "ngram"

    def begin(self, sampling: SamplingConfig, prompt: int, ends: Collection[int]) -> "NgramDrafter":
        """As `Drafting.begin`."""
        return NgramDrafter()


class NgramDrafter:
    """As `Drafter`: remembers where each run of tokens last ended."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}
        self._known = 0  # tokens whose runs have been entered

    def propose(self, ids: Sequence[int], most: int) -> list[Proposal]:
        """As `Drafter.propose`."""
        # The run at the very end is entered in the next step: now it would find itself.
        for end in range(self._known + 1, len(ids)):
            for size in range(SHORTEST, min(LONGEST, end) + 1):
                self._ends[tuple(ids[end - size : end])] = end
        self._known = max(self._known, len(ids) - 1)
        for size in range(min(LONGEST, len(ids)), SHORTEST - 1, -1):
            found = self._ends.get(tuple(ids[len(ids) - size :]))
            if found is not None:
                return [Proposal(token) for token in _continued(ids, found, most)]
        return []


def _continued(ids: Sequence[int], end: int, most: int) -> list[int]:
    """`most` tokens copied from place `end` on; a copy that reaches its own beginning goes on."""
    found = list(ids[end : end + most])
    while len(found) < most:
        found.append(found[len(found) - (len(ids) - end)])
    return found
