"""Conversations with a cluster on the small model of `conftest.py`."""

from collections.abc import Collection, Sequence

from models.tokens.sampling import Proposal, SamplingConfig

PROMPT = "I see the red cat"
IDS = [1, 3, 7, 14, 16, 19, 2]
"""What the template makes of `PROMPT`."""
TOLERANCE = 0.02


async def generated(cluster, prompt=PROMPT, **options) -> list[int]:
    async for _ in cluster.generate(prompt, **options):
        pass
    return cluster.usage.token_ids


async def text_of(cluster, prompt=PROMPT, **options) -> str:
    return "".join([token.text async for token in cluster.generate(prompt, **options)])


class Scripted:
    """A `Drafting` that knows an answer, except at some places.

    Args:
        answer: what it proposes.
        wrong: places in the answer, from 0 on, where it proposes another token.
    """

    name = "scripted"

    def __init__(self, answer: Sequence[int], wrong: Collection[int] = ()) -> None:
        self._answer = [token ^ (place in wrong) for place, token in enumerate(answer)]
        self._prompt = 0

    def begin(self, sampling: SamplingConfig, prompt: int, ends: Collection[int]) -> "Scripted":
        self._prompt = prompt
        return self

    def propose(self, ids: Sequence[int], most: int) -> list[Proposal]:
        at = len(ids) - self._prompt
        return [Proposal(token) for token in self._answer[at : at + most]]
