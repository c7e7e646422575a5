"""A prepared unit: what it is good for, and what is said about it.

Everything that the dealer would send for one request of one shape. Each of the three parties keeps
its part in a file of its own; the parts of one unit have the same id, and keys that no other unit
has.
"""

import hashlib
import json
from functools import cache
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field

from models.programs.plan import Plan
from models.programs.program import Batch, Rows
from models.programs.steps import RequestSettings, StepSettings
from protocols.base.lane import APPROXIMATIONS, Approximation, Reveal, Settings, Tree
from protocols.base.shares import Role
from protocols.drivers.public import table_digests
from puma_actors.base.build import program_digest
from puma_actors.base.strict import Strict

ID_BYTES = 16
UnitId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Prepared: TypeAlias = Literal["auto", "never", "require"]
"""Whether a request uses a unit: if there is one, never, or else it is refused."""
MOST_STEPS = 1 << 16


class Shape(Strict):
    """The requests that a unit can serve: one sequence of exactly `tokens` tokens, and at most
    `steps` steps. All else about a request must be the same, since every dealt word depends on it.
    """

    tokens: int = Field(ge=1, le=1 << 20)
    steps: int = Field(ge=1, le=MOST_STEPS)
    rows: Rows = "last"
    approximation: Approximation = APPROXIMATIONS[0]
    tree: Tree = "rounds"
    lanes: int = Field(default=1, ge=1, le=1024)
    further_tree: Tree = "rounds"
    further_lanes: int = Field(default=1, ge=1, le=1024)
    reveal: Reveal = "logits"
    block: int = Field(default=Settings().block, ge=1, le=1 << 32)

    @property
    def kind(self) -> Self:
        """What must be the same of a unit and a request: everything but the steps."""
        return self.model_copy(update={"steps": 1})

    def serves(self, wanted: "Shape") -> bool:
        """Whether a unit of this shape can serve a request of another."""
        return self.steps >= wanted.steps and self.kind == wanted.kind

    def batch(self) -> Batch:
        """The batch of the first step."""
        return Batch((self.tokens,), self.rows)

    def settings(self) -> StepSettings:
        """The settings of a request that fits."""
        return StepSettings(
            Settings(self.approximation, self.tree, self.lanes, self.reveal, self.block),
            Settings(
                self.approximation, self.further_tree, self.further_lanes, self.reveal, self.block
            ),
        )

    def allowed(self, wished: RequestSettings) -> bool:
        """Whether these settings are among those that a wish leaves open."""
        counts = (self.lanes, self.further_lanes)
        trees = (self.tree, self.further_tree)
        return (
            (wished.approximation, wished.reveal, wished.block)
            == (self.approximation, self.reveal, self.block)
            and (wished.tree == "auto" or set(trees) == {wished.tree})
            and (wished.lanes == "auto" or set(counts) == {wished.lanes})
        )

    def describe(self) -> str:
        """For people."""
        return f"{self.tokens} tokens in, {self.steps} out"


def shape_of(batch: Batch, steps: int, settings: StepSettings, draft: int = 0) -> Shape | None:
    """The shape of a request; None if there are no units for such requests: with several sequences,
    token types or a draft.
    """
    if len(batch.lengths) != 1 or batch.types is not None or draft or steps > MOST_STEPS:
        return None
    first, further = settings.first, settings.further
    return Shape(
        tokens=batch.tokens,
        steps=steps,
        rows=batch.rows,
        approximation=first.approximation,
        tree=first.tree,
        lanes=first.lanes,
        further_tree=further.tree if steps > 1 else first.tree,
        further_lanes=further.lanes if steps > 1 else first.lanes,
        reveal=first.reveal,
        block=first.block,
    )


class Origin(Strict):
    """What a unit was made with: an upload of a model, the digest of its plan, and the program.
    With any other, it would be noise.
    """

    upload: str = Field(pattern=r"^[0-9a-f]{32}$")
    plan: str = Field(pattern=r"^[0-9a-f]{64}$")
    program: str = Field(pattern=r"^[0-9a-f]{32}$")


class Label(Strict):
    """What is written on a party's part of a unit."""

    format: Literal[1] = 1
    unit: UnitId
    role: Role = Field(strict=False)
    origin: Origin
    shape: Shape


class UnitMessage(Strict):
    """Between parties, for the request `number`. To evaluator A, without a name: the sender takes
    part. From A: the name of a unit that it holds, or none. Then from the others: whether they hold
    it (`puma_actors.prepare.using`).
    """

    do: Literal["unit"] = "unit"
    number: int = Field(ge=0, lt=1 << 62)
    unit: str = Field(pattern=r"^(?:[0-9a-f]{32})?$")
    held: bool

    def header(self) -> dict[str, Any]:
        """The header for the wire."""
        return self.model_dump()


def origin_of(upload: str, plan: Plan) -> Origin:
    """What this program makes units with, of an upload and its plan."""
    return Origin(upload=upload, plan=plan.digest(), program=program_version())


@cache
def program_version() -> str:
    """32 hexadecimal digits: the program and its public tables."""
    text = json.dumps([program_digest(), sorted(table_digests().items())])
    return hashlib.sha256(text.encode()).hexdigest()[:32]
