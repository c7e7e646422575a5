"""A running request, and its cost."""

from dataclasses import dataclass, field

from models.programs.program import Batch, Drafted
from models.programs.steps import StepSettings
from protocols.base.cost import Cost
from protocols.base.lane import Settings
from protocols.base.ring import Floats


@dataclass
class Usage:
    """Cost of one request: seconds by phase; one cost for prefill and one for each later step.

    Attributes:
        settings: of the first step, and of those after it.
        prepared: how many steps used a prepared unit, so that nothing was dealt for them.
        draft: what proposed tokens, or "none".
        drafts: proposed and accepted tokens of each step after the first.
        decoded: number of tokens that those steps yielded.
        dropped_tokens: number of tokens that a task on texts left out of each of its sequences
            because it was too long.
    """

    prompt_ids: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    steps: list[Cost] = field(default_factory=list)
    prepared: int = 0
    stop_reason: str = ""
    draft: str = "none"
    drafts: list[Drafted] = field(default_factory=list)
    decoded: int = 0
    dropped_tokens: list[int] = field(default_factory=list)
    settings: StepSettings = field(default_factory=lambda: StepSettings.of(None))

    def took(self, token: int, accepted: int) -> None:
        """Count a token of the answer; `accepted`: how many of its step's draft are by now."""
        self.token_ids.append(token)
        if self.drafts:
            self.decoded += 1
            self.drafts[-1] = Drafted(self.drafts[-1].proposed, accepted)

    @property
    def tokens_a_step(self) -> float:
        """Tokens that a step yields on average, without the first step; 0 if there are none."""
        return self.decoded / len(self.drafts) if self.drafts else 0.0

    @property
    def total(self) -> Cost:
        """Sum over the steps."""
        return sum(self.steps, Cost())


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token: its id and the text that became final with it (often empty).

    Attributes:
        logits: those it was chosen from, (vocabulary,), before any setting changed them; None at
            the end of a text, and where the parties reveal only the best token.
    """

    id: int | None
    text: str
    logits: Floats | None = field(default=None, repr=False, compare=False)


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
