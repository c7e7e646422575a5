"""A request while it runs, and what it took."""

from dataclasses import dataclass, field

from models.programs.program import Batch
from protocols.base.cost import Cost
from protocols.base.lane import Settings


@dataclass
class Usage:
    """What one request took. Seconds by phase; one cost for prefill and one for each later step."""

    prompt_ids: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    steps: list[Cost] = field(default_factory=list)
    stop_reason: str = ""

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
    """A step of a request, while it runs.

    Attributes:
        number: of the inference that it is, which no other step has.
        batch: what the request's first step evaluates. steps: the request takes at most so many.
        index: 0 is the batch; then one decoded token each.
        began: by `time.monotonic`.
    """

    number: int
    batch: Batch
    steps: int
    index: int
    settings: Settings
    began: float
