"""What two parties must agree on before they serve a model: otherwise they would compute noise."""

from protocols.base.shares import EVALUATORS, Role
from protocols.drivers.public import differing, refusal
from protocols.errors import RemoteProtocolError
from puma_actors.roles.messages import AgreeMessage
from puma_actors.roles.upload import different_weights


def check_same(role: Role, mine: AgreeMessage, other: Role, theirs: AgreeMessage) -> None:
    """Compare what two parties announced.

    Raises:
        RemoteProtocolError: they serve different uploads, compute with different public numbers, or
        are configured differently where they must not.
    """
    if (theirs.digest, theirs.upload) != (mine.digest, mine.upload):
        raise RemoteProtocolError(
            f"{other} and {role} hold different uploads of the model: run `puma models remove`, "
            "then `puma upload` again"
        )
    if {role, other} == set(EVALUATORS) and theirs.content != mine.content:
        raise RemoteProtocolError(different_weights())
    if theirs.max_batch != mine.max_batch:
        raise RemoteProtocolError(
            f"{other} has limits.max_batch = {theirs.max_batch} and {role} has {mine.max_batch}: "
            "set the same at all parties"
        )
    if names := differing(mine.tables, theirs.tables):
        raise RemoteProtocolError(refusal(str(other), names))
