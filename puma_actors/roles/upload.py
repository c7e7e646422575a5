"""A model's shares at a computing party, while they arrive from the owner and when complete.

kept = InMemory(role)                        or any other `Destination`
upload = Upload(role, plan_message, kept)    checks everything that follows against the plan
upload.seed(1, buffers), upload.tensor(message, buffers), ...
upload.check_complete()
kept.hold(number, parameter)                 the form that the party computes with
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from models.programs.families import parameters_of
from models.programs.head_layers import default_rows
from models.programs.plan import Parameter, Plan, Weights
from models.programs.predict import predict
from models.programs.program import Batch
from models.programs.sharing import SEED_BYTES, hold_parameter, seeds_of
from protocols.base.ring import Words
from protocols.base.shares import Role
from protocols.errors import LocalProtocolError, ModelError, RemoteProtocolError
from puma_actors.roles.messages import PlanMessage, TensorMessage

_WORD = 8


@dataclass(frozen=True)
class Model:
    """A model that a party serves.

    Attributes:
        parameters: the shares it computes with, by canonical name.
        upload: the id of the owner's upload, in hex: shares of two uploads do not fit together.
        content: a digest of public weights at an evaluator, in hex; otherwise empty.
    """

    plan: Plan
    parameters: Mapping[str, Any] = field(repr=False)
    upload: str
    content: str = ""


def different_weights() -> str:
    """The reason to refuse evaluators whose public weights differ."""
    return (
        "evaluator-a and evaluator-b hold different public weights, as the owner sent them: run "
        "`puma models remove`, then `puma upload` again"
    )


class Destination(Protocol):
    """A place that keeps the shares of one upload. Its input has been checked."""

    @property
    def weights(self) -> Weights | Literal["any"]:
        """The kind of weights that are kept here."""

    def check_size(self, plan: Plan) -> None:
        """Check the plan's size, before anything of that size is allocated.

        Raises:
            RemoteProtocolError: the model is too large to be kept here.
        """

    def seed(self, which: int, seed: memoryview) -> None:
        """Keep seed 1 or 2, of `SEED_BYTES` bytes."""

    def words(self, number: int, at: int, size: int, data: memoryview) -> None:
        """Keep the words from `at` on of tensor `number`, which has `size` words of 8 bytes."""


class Kept(Destination, Protocol):
    """A `Destination` from which a party takes the tensors when everything has arrived."""

    def hold(self, number: int, parameter: Parameter) -> Any:
        """The form of tensor `number` that the party computes with. Call it once for each tensor,
        in order.
        """


class InMemory:
    """Keeps an upload of any size in memory, until `hold` has taken its tensors."""

    weights: Weights = "private"

    def __init__(self, role: Role) -> None:
        self._role = role
        self._seeds: dict[int, bytes] = {}
        self._masked: dict[int, Words] = {}

    def check_size(self, plan: Plan) -> None:
        """As `Destination`."""

    def seed(self, which: int, seed: memoryview) -> None:
        """As `Destination`."""
        self._seeds[which] = bytes(seed)

    def words(self, number: int, at: int, size: int, data: memoryview) -> None:
        """As `Destination`."""
        words = np.frombuffer(data, dtype="<u8").astype(np.uint64, copy=False)
        if len(words) == size:
            self._masked[number] = words  # the whole tensor: keep it as it came
        else:
            whole = self._masked.setdefault(number, np.empty(size, np.uint64))
            whole[at : at + len(words)] = words

    def hold(self, number: int, parameter: Parameter) -> Any:
        """As `Kept`."""
        m = None
        if not self._role.is_dealer:
            m = self._masked.pop(number).reshape(parameter.shape)
        return hold_parameter(self._role, number, parameter, m, self._seeds)


class Upload:
    """The shares of a model as they arrive.

    Every method raises RemoteProtocolError when the owner strays from the plan.

    Args:
        destination: keeps what has arrived.
    """

    def __init__(self, role: Role, message: PlanMessage, destination: Destination) -> None:
        try:
            self.plan = Plan.from_public(message.plan)
            if destination.weights not in ("any", self.plan.weights):
                raise RemoteProtocolError(
                    f"the owner's model has {self.plan.weights} weights, and {role} only takes "
                    f"{destination.weights} ones"
                )
            destination.check_size(self.plan)
            predict(self.plan, Batch((1,), default_rows(self.plan.config)))  # looks up each range
        except (ModelError, LocalProtocolError) as error:
            raise RemoteProtocolError(f"the owner's plan is unusable: {error}") from None
        self.digest = self.plan.digest()
        if self.digest != message.digest:
            raise RemoteProtocolError("the owner's plan does not have the digest it announced")
        self._role = role
        self._destination = destination
        self._seeds: set[int] = set()  # those that have arrived
        self._wanted = list(parameters_of(self.plan.config).items())
        self._filled: dict[int, int] = {}

    def resume(self, held: Sequence[int]) -> None:
        """Expect each tensor from behind the bytes that are there already; before any other comes.

        Raises:
            RemoteProtocolError: they are not whole rows of this plan's tensors.
        """
        for number, ((name, parameter), size) in enumerate(zip(self._wanted, held, strict=False)):
            self._filled[number] = held_rows(name, parameter, size)

    def seed(self, which: int, buffers: Sequence[memoryview]) -> None:
        """Take one of the seeds. An evaluator may have only its own."""
        self._check_private("a seed")
        if which not in seeds_of(self._role) or which in self._seeds:
            raise RemoteProtocolError(f"seed {which} is not for {self._role}, or came twice")
        if len(buffers) != 1 or buffers[0].nbytes != SEED_BYTES:
            raise RemoteProtocolError(f"a seed must be one buffer of {SEED_BYTES} bytes")
        self._seeds.add(which)
        self._destination.seed(which, buffers[0])

    def tensor(self, message: TensorMessage, buffers: Sequence[memoryview]) -> None:
        """Take rows of a masked tensor, in order."""
        self._check_private("masked words")
        if self._role.is_dealer or message.number >= len(self._wanted):
            raise RemoteProtocolError(f"tensor {message.number} is not expected here")
        name, parameter = self._wanted[message.number]
        rows, columns = _matrix(parameter)
        filled = self._filled.get(message.number, 0)
        if message.start != filled or filled + message.rows > rows or len(buffers) != 1:
            raise RemoteProtocolError(f"rows of {name} came out of order or twice")
        if buffers[0].nbytes != _WORD * message.rows * columns:
            raise RemoteProtocolError(
                f"{name} has {buffers[0].nbytes} bytes for {message.rows} rows"
            )
        self._destination.words(message.number, filled * columns, rows * columns, buffers[0])
        self._filled[message.number] = filled + message.rows

    def _check_private(self, what: str) -> None:
        if self.plan.weights == "public":
            raise RemoteProtocolError(f"the owner sent {what} for public weights")

    def check_complete(self) -> None:
        """Check that everything this party should have has arrived."""
        if self.plan.weights == "public":
            return  # they have no shares
        if len(self._seeds) != (2 if self._role.is_dealer else 1):
            raise RemoteProtocolError("a seed is missing")
        for number, (name, parameter) in enumerate(self._wanted):
            if not self._role.is_dealer and self._filled.get(number) != _matrix(parameter)[0]:
                raise RemoteProtocolError(f"{name} is not complete")


def held_rows(name: str, parameter: Parameter, size: int) -> int:
    """The rows of a tensor in its first `size` bytes.

    Raises:
        RemoteProtocolError: it has fewer bytes, or they do not end with a row.
    """
    rows, columns = _matrix(parameter)
    found, rest = divmod(size, _WORD * columns)
    if rest or found > rows:
        raise RemoteProtocolError(f"{size} bytes are not the first rows of {name}")
    return found


def _matrix(parameter: Parameter) -> tuple[int, int]:
    """Rows and columns of a tensor; a vector is sent as one entry per row."""
    shape = parameter.shape
    return shape[0], shape[1] if len(shape) > 1 else 1
