"""Requests in a session that prepares units, in a control frame's header.

Caller to parties: `make`. Parties to the caller: `refused`, or `progress` and `made`.
Parties to each other: `held`, before the first unit. Then for each unit: `begin` from evaluator A,
`ready` from the others; `words` and `index`, for each step, from each party to those it deals to;
`whole` once a party has its part.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, TypeAdapter

from puma_actors.base.strict import Strict
from puma_actors.base.texts import TEXT_CHARS
from puma_actors.prepare.unit import MOST_STEPS, Origin, Shape, UnitId
from puma_actors.roles.messages import checked

MOST_UNITS = 10_000
"""Most units that are made in one session."""
_Number: TypeAlias = Annotated[int, Field(ge=0, lt=MOST_UNITS)]


class _Message(Strict):
    def header(self) -> dict[str, Any]:
        """The header for the wire."""
        return self.model_dump()


class MakeMessage(_Message):
    """Make `count` units of a shape."""

    do: Literal["make"] = "make"
    shape: Shape
    count: int = Field(ge=1, le=MOST_UNITS)


class HeldMessage(_Message):
    """The sender has these units for the model. Those that another party lacks are of no use."""

    do: Literal["held"] = "held"
    units: list[UnitId] = Field(max_length=1 << 16)


class BeginMessage(_Message):
    """The sender begins unit `number` of the session."""

    do: Literal["begin"] = "begin"
    number: _Number
    unit: UnitId
    origin: Origin
    shape: Shape


class ReadyMessage(_Message):
    """The sender can take words of the unit."""

    do: Literal["ready"] = "ready"
    number: _Number


class WordsMessage(_Message):
    """Messages of a step, or a part of them, in the buffer."""

    do: Literal["words"] = "words"
    number: _Number
    step: int = Field(ge=0, lt=MOST_STEPS)


class IndexMessage(_Message):
    """Part of the index of a step's messages, in the buffer; `last`: the step is complete."""

    do: Literal["index"] = "index"
    number: _Number
    step: int = Field(ge=0, lt=MOST_STEPS)
    last: bool


class WholeMessage(_Message):
    """The sender has its whole part of the unit on its disk."""

    do: Literal["whole"] = "whole"
    number: _Number


class ProgressMessage(_Message):
    """The dealer has dealt so many steps of the unit."""

    do: Literal["progress"] = "progress"
    number: _Number
    steps: int = Field(ge=0, le=MOST_STEPS)


class MadeMessage(_Message):
    """The unit can be used; `nbytes`: on the disk of the sender."""

    do: Literal["made"] = "made"
    number: _Number
    nbytes: int = Field(ge=0)


class RefusedMessage(_Message):
    """The sender makes no units, for a reason. `busy`: it may later. `full`: its disk is full."""

    do: Literal["refused"] = "refused"
    text: str = Field(max_length=TEXT_CHARS)
    busy: bool
    full: bool


Message: TypeAlias = Annotated[
    MakeMessage
    | HeldMessage
    | BeginMessage
    | ReadyMessage
    | WordsMessage
    | IndexMessage
    | WholeMessage
    | ProgressMessage
    | MadeMessage
    | RefusedMessage,
    Field(discriminator="do"),
]
_ADAPTER: TypeAdapter[Any] = TypeAdapter(Message)


def parse(header: Mapping[str, Any]) -> Any:
    """The message in a control header.

    Raises:
        RemoteProtocolError: it is not one of these. The text names fields, never values.
    """
    return checked(_ADAPTER, header)
