"""What evaluator A tells the other parties in a joint session: which steps are taken as one."""

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Annotated, Any, Literal

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
    """Take the steps of these members as one, under inference `number` of the joint session."""

    do: Literal["joint"] = "joint"
    number: int = Field(ge=0, lt=1 << 62)
    members: Annotated[list[MemberMessage], Field(min_length=1, max_length=MAX_BATCH)]
    approximation: Approximation = APPROXIMATIONS[0]
    tree: Tree = "rounds"
    lanes: int = Field(default=1, ge=1, le=1024)
    block: int = Field(default=Settings().block, ge=1, le=1 << 32)

    def header(self) -> dict[str, Any]:
        """The header for the wire."""
        return self.model_dump()

    def settings(self) -> Settings:
        """Settings of all members' steps."""
        return Settings(self.approximation, self.tree, self.lanes, "logits", self.block)

    def binding(self) -> tuple[int, ...]:
        """Four words that represent the whole message (SHA-256). All masks are drawn under them, so
        parties that were told different things draw unrelated ones.
        """
        text = json.dumps(self.header(), sort_keys=True, separators=(",", ":"))
        return struct.unpack("<4Q", hashlib.sha256(text.encode()).digest())


def parse(header: Mapping[str, Any]) -> JointMessage:
    """The message in a control header.

    Raises:
        RemoteProtocolError: it is not one. The text names fields, never values.
    """
    try:
        found = JointMessage.model_validate(dict(header))
    except ValidationError as error:
        fault = first_fault(error)
        raise RemoteProtocolError(
            f"malformed joint step, {fault.place or 'do'}: {fault.problem}"
        ) from None
    if len({(each.session, each.number) for each in found.members}) < len(found.members):
        raise RemoteProtocolError("a joint step has a member twice")
    return found
