"""Requests between roles, in a control frame's header; they are checked before any action.

Owner to parties: `plan`, then `seed` and `tensor` for each tensor in upload order, then `uploaded`;
where models are stored also `file` before the plan, which is answered with `held`, and `commit`
after every party is `ready`. For public weights `matrix` and `piece` instead of `seed` and
`tensor`, to the evaluators alone.
Parties to each other: `agree`, before they serve a model; where requests of several sessions step
together, evaluator A then says `join`; `unit`, before a request that may use a prepared one. After
`agree`, to all waiting roles: `ready`.
Client to parties: `infer`, `end`, `close`; with a draft also `next`, before each step except the
first. Parties to the client: `step` after each step, `ended` after the last, and `refused` instead
of all steps of an inference for which they have no memory.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, TypeAdapter, ValidationError

from models.programs.program import Batch, Rows
from models.programs.steps import StepSettings
from protocols.base.lane import APPROXIMATIONS, Approximation, Reveal, Settings, Tree
from protocols.errors import ConfigError, RemoteProtocolError
from puma_actors.base.strict import Strict, first_fault
from puma_actors.base.texts import TEXT_CHARS
from puma_actors.prepare.unit import Prepared, Shape, UnitMessage, shape_of
from puma_actors.roles.described import Description

MAX_TOKENS = 1 << 20
MAX_SEQUENCES = 1 << 12
MAX_BATCH = 1 << 10
MAX_DRAFT = 64
"""Most tokens that a step may propose."""
_Short: TypeAlias = Annotated[str, Field(max_length=16)]


class _Message(Strict):
    def header(self) -> dict[str, Any]:
        """The header for the wire."""
        return self.model_dump()


class PlanMessage(_Message):
    """The public description of a model; `digest` is `Plan.digest`."""

    do: Literal["plan"] = "plan"
    plan: dict[str, Any]
    digest: str = Field(min_length=64, max_length=64)


class SeedMessage(_Message):
    """A seed from which masks are expanded; `which` is 1 or 2. The buffer holds it."""

    do: Literal["seed"] = "seed"
    which: Literal[1, 2]


class TensorMessage(_Message):
    """Rows of a masked tensor, in the buffer: little-endian uint64, `rows` from `start` on."""

    do: Literal["tensor"] = "tensor"
    number: int = Field(ge=0, lt=1 << 20)
    start: int = Field(ge=0)
    rows: int = Field(ge=1)


class MatrixMessage(_Message):
    """What a tensor of public weights is made of. Its bytes follow, in pieces."""

    do: Literal["matrix"] = "matrix"
    number: int = Field(ge=0, lt=1 << 20)
    made: Description


class PieceMessage(_Message):
    """Bytes of a tensor of public weights from byte `start` on, in the buffer."""

    do: Literal["piece"] = "piece"
    number: int = Field(ge=0, lt=1 << 20)
    start: int = Field(ge=0)


class UploadedMessage(_Message):
    """The last tensor has been sent."""

    do: Literal["uploaded"] = "uploaded"


class HeldMessage(_Message):
    """The answer to a plan where models are stored: the bytes of each tensor that the sender has
    from an earlier attempt of this upload, in upload order; those that are left out have none.
    """

    do: Literal["held"] = "held"
    tensors: list[Annotated[int, Field(ge=0)]] = Field(max_length=1 << 16)


class FileMessage(_Message):
    """A file that the owner publishes with the model; the buffer holds it."""

    do: Literal["file"] = "file"
    name: Literal["tokenizer.json", "tokenizer_config.json"]


class CommitMessage(_Message):
    """Every party has the whole model on its disk: publish it in the store. The second time: every
    party has published it, so keep it.
    """

    do: Literal["commit"] = "commit"


class AgreeMessage(_Message):
    """Between parties: the upload and plan that the sender serves in this session, and digests of
    the public numbers that it will compute with (see `models.programs.public`). An evaluator with
    public weights adds a digest of them (`content`). `max_batch`: how many requests may step
    together, of all sessions.
    """

    do: Literal["agree"] = "agree"
    digest: str = Field(min_length=64, max_length=64)
    upload: str = Field(min_length=32, max_length=32)
    tables: dict[_Short, _Short] = Field(max_length=16)
    content: str = Field(default="", max_length=64)
    max_batch: int = Field(default=1, ge=1, le=MAX_BATCH)


class JoinMessage(_Message):
    """From evaluator A: steps of this session are taken together with others in the joint session
    that began, or begins, with the client's session of this id, in hex.
    """

    do: Literal["join"] = "join"
    session: str = Field(pattern=r"^[0-9a-f]{32}$")


class ReadyMessage(_Message):
    """The sender holds its shares of the model with this plan digest."""

    do: Literal["ready"] = "ready"
    digest: str = Field(min_length=64, max_length=64)


class InferMessage(_Message):
    """Evaluate sequences of these `lengths` (see `models.programs.program.Batch`), and decode up to
    `steps` - 1 more tokens of the only one: one per step or, with a draft of up to `draft` proposed
    tokens a step, several. `tree` and `lanes` are those of the first step, `further_tree` and
    `further_lanes` of the others.

    Step k is inference number `number` + k, which no party may have seen before. `prepared`: does
    it use a prepared unit?
    """

    do: Literal["infer"] = "infer"
    number: int = Field(ge=0, lt=1 << 62)
    lengths: list[Annotated[int, Field(ge=1, le=MAX_TOKENS)]] = Field(
        min_length=1, max_length=MAX_SEQUENCES
    )
    rows: Rows = "all"
    types: list[Annotated[int, Field(ge=0, lt=1 << 16)]] | None = None
    steps: int = Field(ge=1, le=MAX_TOKENS)
    draft: int = Field(default=0, ge=0, le=MAX_DRAFT)
    approximation: Approximation = APPROXIMATIONS[0]
    tree: Tree = "rounds"
    lanes: int = Field(default=1, ge=1, le=1024)
    further_tree: Tree = "rounds"
    further_lanes: int = Field(default=1, ge=1, le=1024)
    reveal: Reveal = "logits"
    block: int = Field(default=Settings().block, ge=1, le=1 << 32)
    prepared: Prepared = "never"

    def shape(self) -> Shape | None:
        """The shape of the unit that it could use, if any."""
        return shape_of(self.batch(), self.steps, self.settings(), self.draft)

    def settings(self) -> StepSettings:
        """Settings for the lanes."""
        first = Settings(self.approximation, self.tree, self.lanes, self.reveal, self.block)
        further = replace(first, tree=self.further_tree, lanes=self.further_lanes)
        return StepSettings(first, further)

    def binding(self) -> tuple[int, ...]:
        """Four words that represent the whole request (SHA-256). All masks are drawn under them, so
        a client that sends the parties different requests only gets noise.
        """
        text = json.dumps(self.header(), sort_keys=True, separators=(",", ":"))
        return struct.unpack("<4Q", hashlib.sha256(text.encode()).digest())

    def batch(self) -> Batch:
        """The batch of the first step.

        Raises:
            RemoteProtocolError: its parts are inconsistent.
        """
        if sum(self.lengths) > MAX_TOKENS or (self.steps > 1 and len(self.lengths) > 1):
            raise RemoteProtocolError("an inference of too many tokens, or that decodes a batch")
        try:
            types = None if self.types is None else tuple(self.types)
            return Batch(tuple(self.lengths), self.rows, types)
        except ConfigError as error:
            raise RemoteProtocolError(f"unusable batch: {error}") from None


class NextMessage(_Message):
    """Begin step `number` of a request with a draft: of the tokens that the step before it proposed
    the first `accepted` stay, and this one proposes `proposed`.
    """

    do: Literal["next"] = "next"
    number: int = Field(ge=0, lt=1 << 62)
    accepted: int = Field(ge=0, le=MAX_DRAFT)
    proposed: int = Field(ge=0, le=MAX_DRAFT)


def infer_message(
    number: int,
    batch: Batch,
    steps: int,
    settings: Settings | StepSettings,
    draft: int = 0,
    prepared: Prepared = "never",
) -> InferMessage:
    """The request for an inference with these settings, and up to `draft` proposed tokens a step.

    Raises:
        ConfigError: one of them is unusable.
    """
    chosen = StepSettings.of(settings)
    first, further = chosen.first, chosen.further
    try:
        return InferMessage(
            number=number,
            lengths=list(batch.lengths),
            rows=batch.rows,
            types=None if batch.types is None else list(batch.types),
            steps=steps,
            draft=draft,
            approximation=first.approximation,
            tree=first.tree,
            lanes=first.lanes,
            further_tree=further.tree,
            further_lanes=further.lanes,
            reveal=first.reveal,
            block=first.block,
            prepared=prepared,
        )
    except ValidationError as error:
        raise ConfigError(f"unusable request, {_first(error)}") from None


class StepMessage(_Message):
    """Cost of one step at the sender: payload bytes it sent; rounds on its longest chain.
    `prepared`: what is dealt was dealt before. `joint`: the step was taken together with others, or
    could have been; then only what is the request's own is counted here, the look-up of its input
    and its result.
    """

    do: Literal["step"] = "step"
    number: int = Field(ge=0)
    rounds: int = Field(ge=0)
    online_bytes: int = Field(ge=0)
    offline_bytes: int = Field(ge=0)
    prepared: bool
    joint: bool


class ProgressMessage(_Message):
    """Rounds of a running step that the sender has completed, on its longest chain."""

    do: Literal["progress"] = "progress"
    number: int = Field(ge=0)
    rounds: int = Field(ge=0)


class RefusedMessage(_Message):
    """The sender does not take part in an inference, with the reason. `busy`: it may later."""

    do: Literal["refused"] = "refused"
    number: int = Field(ge=0)
    text: str = Field(max_length=TEXT_CHARS)
    busy: bool


class EndMessage(_Message):
    """The client wants no more steps of the inference that began with `number`."""

    do: Literal["end"] = "end"
    number: int = Field(ge=0)


class EndedMessage(_Message):
    """The sender has dropped everything of that inference."""

    do: Literal["ended"] = "ended"
    number: int = Field(ge=0)


class CloseMessage(_Message):
    """The client is done with the session."""

    do: Literal["close"] = "close"


Message: TypeAlias = Annotated[
    PlanMessage
    | SeedMessage
    | TensorMessage
    | MatrixMessage
    | PieceMessage
    | UploadedMessage
    | HeldMessage
    | FileMessage
    | CommitMessage
    | AgreeMessage
    | JoinMessage
    | ReadyMessage
    | InferMessage
    | UnitMessage
    | NextMessage
    | StepMessage
    | ProgressMessage
    | RefusedMessage
    | EndMessage
    | EndedMessage
    | CloseMessage,
    Field(discriminator="do"),
]
_ADAPTER: TypeAdapter[Any] = TypeAdapter(Message)


def parse(header: Mapping[str, Any]) -> Any:
    """The message in a control header.

    Raises:
        RemoteProtocolError: it is not one of our messages. The text names fields, never values.
    """
    return checked(_ADAPTER, header)


def checked(adapter: TypeAdapter[Any], header: Mapping[str, Any]) -> Any:
    """As `parse`, for messages of another kind."""
    try:
        return adapter.validate_python(dict(header))
    except ValidationError as error:
        raise RemoteProtocolError(f"malformed request, {_first(error)}") from None


def _first(error: ValidationError) -> str:
    """The first validation error, in one line."""
    fault = first_fault(error)
    if fault.kind == "union_tag_invalid":  # pydantic's text repeats the value
        return "do: no such request"
    return f"{fault.place or 'do'}: {fault.problem}"
