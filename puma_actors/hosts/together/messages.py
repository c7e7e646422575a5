"""What evaluator A tells the other parties in a joint session.

joint    these steps are taken as one, now
ahead    to the dealer: these will probably be; it may deal for them
drop     they will not be, not as told before, or not to the end, since all of them are gone: what
         was dealt and computed is forgotten
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, ValidationError

from protocols.base.lane import APPROXIMATIONS, Approximation, Settings, Tree
from protocols.errors import RemoteProtocolError
from puma_actors.base.strict import Strict, first_fault
from puma_actors.roles.messages import MAX_BATCH


class MemberMessage(Strict):
    """A request's step: the client's session, in hex, the step's number there, and the number of
    tokens in its cache.
    """

    session: str = Field(pattern=r"^[0-9a-f]{32}$")
    number: int = Field(ge=0, lt=1 << 62)
    context: int = Field(ge=0, lt=1 << 20)


class JointMessage(Strict):
    """Take the steps of these members as one, under inference `number` of the joint session.
    `gone`: those of them, by place, whose step will not come; they go on as zeros.
    """

    do: Literal["joint"] = "joint"
    number: int = Field(ge=0, lt=1 << 62)
    members: Annotated[list[MemberMessage], Field(min_length=1, max_length=MAX_BATCH)]
    approximation: Approximation = APPROXIMATIONS[0]
    tree: Tree = "rounds"
    lanes: int = Field(default=1, ge=1, le=1024)
    block: int = Field(default=Settings().block, ge=1, le=1 << 32)
    gone: Annotated[list[int], Field(max_length=MAX_BATCH)] = Field(default=[])

    def header(self) -> dict[str, Any]:
        """The header for the wire."""
        return self.model_dump()

    def settings(self) -> Settings:
        """Settings of all members' steps."""
        return Settings(self.approximation, self.tree, self.lanes, "logits", self.block)

    def binding(self) -> tuple[int, ...]:
        """Four words that represent the message (SHA-256). All masks are drawn under them, so
        parties that were told different things draw unrelated ones. Who is gone is not known yet
        when the dealer begins, and no mask depends on it.
        """
        told = self.model_dump(exclude={"gone"})
        text = json.dumps(told, sort_keys=True, separators=(",", ":"))
        return struct.unpack("<4Q", hashlib.sha256(text.encode()).digest())


class AheadMessage(Strict):
    """This step will probably be taken, and announced as it stands here: the dealer may begin."""

    do: Literal["ahead"] = "ahead"
    step: JointMessage

    def header(self) -> dict[str, Any]:
        """The header for the wire."""
        return self.model_dump()


class DropMessage(Strict):
    """A step that was foretold will not be taken, or one that runs will not be taken to its end.
    Its number is not used again.
    """

    do: Literal["drop"] = "drop"
    number: int = Field(ge=0, lt=1 << 62)

    def header(self) -> dict[str, Any]:
        """The header for the wire."""
        return self.model_dump()


Message: TypeAlias = JointMessage | AheadMessage | DropMessage
_KINDS: dict[object, type[AheadMessage] | type[DropMessage]] = {
    "ahead": AheadMessage,
    "drop": DropMessage,
}


def parse(header: Mapping[str, Any]) -> Message:
    """The message in a control header.

    Raises:
        RemoteProtocolError: it is not one. The text names fields, never values.
    """
    try:
        kind = _KINDS.get(header.get("do"), JointMessage)
        found: Message = kind.model_validate(dict(header))
    except ValidationError as error:
        fault = first_fault(error)
        raise RemoteProtocolError(
            f"malformed joint step, {fault.place or 'do'}: {fault.problem}"
        ) from None
    step = found.step if isinstance(found, AheadMessage) else found
    if isinstance(step, JointMessage):
        _check(step)
    return found


def _check(step: JointMessage) -> None:
    members = len(step.members)
    if len({(each.session, each.number) for each in step.members}) < members:
        raise RemoteProtocolError("a joint step has a member twice")
    if not all(0 <= place < members for place in step.gone):
        raise RemoteProtocolError(f"a joint step of {members} requests names another as gone")
