"""Public weights as they arrive from the owner.

matrices = Matrices(plan, kept)
matrices.describe(message) · matrices.piece(message, buffers)
matrices.check_complete()
"""

from collections.abc import Sequence
from typing import Protocol

from models.programs.families import parameters_of
from models.programs.opened import check_range, made_of
from models.programs.plan import Parameter, Plan
from protocols.base.shares import Role
from protocols.errors import LocalProtocolError, RangeError, RemoteProtocolError
from puma_actors.roles.described import Bytes, read_stored
from puma_actors.roles.messages import MatrixMessage, PieceMessage


class Shelf(Protocol):
    """A place for the files of public weights, one after another."""

    def append(self, number: int, data: bytes | memoryview) -> None:
        """Add bytes to the file of tensor `number`."""

    def head(self, number: int, size: int) -> bytes:
        """The first bytes of the file of tensor `number`."""

    def whole(self, number: int) -> Bytes:
        """The file of tensor `number`, mapped, when all its bytes are there."""


class Matrices:
    """The tensors of one upload, at an evaluator; each is checked against the plan before anything
    of it is kept, and looked through when it is complete.

    Args:
        held: bytes of each tensor's file that are there from an earlier attempt.

    Every method raises RemoteProtocolError when the owner strays from the plan, or sends numbers
    that do not fit.
    """

    def __init__(self, role: Role, plan: Plan, shelf: Shelf, held: Sequence[int] = ()) -> None:
        self._role = role
        self._shelf = shelf
        self._held = held
        self._wanted = [] if role.is_dealer else list(parameters_of(plan.config).items())
        self._next = 0
        self._missing = 0  # bytes of the tensor before `_next`
        self._at = 0

    def describe(self, message: MatrixMessage) -> None:
        """Begin the next tensor."""
        if self._missing:
            name, _ = self._wanted[self._next - 1]
            raise RemoteProtocolError(f"{name} came with {self._missing} bytes too few")
        if message.number != self._next or self._next >= len(self._wanted):
            raise RemoteProtocolError(f"tensor {message.number} is not expected here")
        name, parameter = self._wanted[self._next]
        try:
            self._missing = message.made.size(parameter)
        except RemoteProtocolError as error:
            raise RemoteProtocolError(f"{name} is described wrongly: {error}") from None
        self._at = self._begun(name, message.made.head())
        self._missing -= self._at
        self._next += 1
        if not self._missing:
            self._look(name, parameter, self._shelf.whole(message.number))

    def _begun(self, name: str, head: bytes) -> int:
        """Begin the next tensor's file, or continue it: the bytes behind its head."""
        number = self._next
        there = self._held[number] if number < len(self._held) else 0
        if not there:
            self._shelf.append(number, head)
            return 0
        behind = there - len(head)
        if not 0 <= behind <= self._missing or self._shelf.head(number, len(head)) != head:
            raise RemoteProtocolError(f"{name} was described otherwise before: start a new upload")
        return behind

    def piece(self, message: PieceMessage, buffers: Sequence[memoryview]) -> None:
        """Take the next bytes of the tensor that was described last."""
        number = self._next - 1
        if number < 0 or message.number != number:
            raise RemoteProtocolError(f"a piece of tensor {message.number} is not expected here")
        name, parameter = self._wanted[number]
        if message.start != self._at:
            raise RemoteProtocolError(
                f"{name} came with bytes from {message.start} on, {self._at} was the next"
            )
        if len(buffers) != 1 or not 0 < buffers[0].nbytes <= self._missing:
            size = sum(buffer.nbytes for buffer in buffers)
            raise RemoteProtocolError(f"{name} came with {size} bytes, {self._missing} are missing")
        self._shelf.append(number, buffers[0])
        self._at += buffers[0].nbytes
        self._missing -= buffers[0].nbytes
        if not self._missing:
            self._look(name, parameter, self._shelf.whole(number))

    def _look(self, name: str, parameter: Parameter, data: Bytes) -> None:
        try:
            check_range(name, made_of(self._role, parameter, read_stored(parameter, data)))
        except (LocalProtocolError, RangeError) as error:
            text = str(error).removeprefix(f"{name}: ")
            raise RemoteProtocolError(f"the owner's {name} is unusable: {text}") from None

    def check_complete(self) -> None:
        """Check that all tensors have arrived."""
        if self._missing or self._next < len(self._wanted):
            name, _ = self._wanted[self._next - bool(self._missing)]
            raise RemoteProtocolError(f"{name} is not complete")
