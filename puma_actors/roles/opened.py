"""Parties of one process that share its checkpoint: public weights are not sent, but opened."""

from collections.abc import Sequence
from typing import Any

from models.programs.folding import Source
from models.programs.opened import open_parameter
from models.programs.plan import Parameter, Plan, Weights
from protocols.base.shares import Role
from protocols.errors import RemoteProtocolError


class Opened:
    """A party's `Kept` weights of a checkpoint that everybody knows.

    Args:
        sources: what its matrices are made of (`sources_of`), the same for all parties.
    """

    weights: Weights = "public"

    def __init__(self, role: Role, sources: Sequence[tuple[str, Source]]) -> None:
        self._role = role
        self._sources = sources

    def check_size(self, plan: Plan) -> None:
        """As `Destination`."""

    def seed(self, which: int, seed: memoryview) -> None:
        """As `Destination`; public weights have no masks."""
        raise RemoteProtocolError("the owner sent a seed for public weights")

    def words(self, number: int, at: int, size: int, data: memoryview) -> None:
        """As `Destination`; public weights are not sent."""
        raise RemoteProtocolError("the owner sent masked words of public weights")

    def hold(self, number: int, parameter: Parameter) -> Any:
        """As `Kept`. Raises RangeError if a number does not fit its fraction bits."""
        name, source = self._sources[number]
        return open_parameter(self._role, name, parameter, source)
