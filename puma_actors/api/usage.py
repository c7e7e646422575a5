"""A running request, and its cost."""

from dataclasses import dataclass, field

from models.programs.program import Batch
from protocols.base.cost import Cost
from protocols.base.lane import Settings


@dataclass
class Usage:
    """Cost of one request: seconds by phase; one cost for prefill and one for each later step.

    Attributes:
        dropped_tokens: number of tokens that a task on texts left out of each of its sequences
            because it was too long.
    """

    prompt_ids: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    steps: list[Cost] = field(default_factory=list)
    stop_reason: str = ""
    dropped_tokens: list[int] = field(default_factory=list)

    @property
    def total(self) -> Cost:
        """Sum over the steps."""
        return sum(self.steps, Cost())


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token: its id and the text that became final with it (often empty)."""

    id: int | None
    text: str


@dataclass(frozen=True, slots=True)
class Step:
    """A running step of a request.

    Attributes:
        number: its inference number, which no other step has.
        batch: the batch of the request's first step. steps: most steps of the request.
        index: 0 for the batch, then one for each decoded token.
        began: start time by `time.monotonic`.
    """

    number: int
    batch: Batch
    steps: int
    index: int
    settings: Settings
    began: float
