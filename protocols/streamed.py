"""Factors that are not in memory: a matrix is made panel by panel while it is multiplied by.

A party's factor of a weight is m - 2 lam_i at an evaluator and lam_1 - lam_2 at the dealer (see
`protocols.arithmetic`). The masks come from seeds, so only m has to be kept, at the evaluators, and
it may be kept on a disk. A panel is a run of rows that fits the processor's cache: its words are
read, its masks expanded, and it is multiplied by before the next one takes its place. The words are
those of a factor in memory, so results are equal to the bit.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from protocols.base.prf import add_stream
from protocols.base.ring import Words
from protocols.base.shares import Role
from protocols.errors import LocalProtocolError
from protocols.kernels.matmul import add_matmul
from protocols.kernels.rows import matmul_rows

PANEL_WORDS = 1 << 18
"""Words of a panel, if a row is not longer: 2 MB."""


class MaskedWords(Protocol):
    """The masked words of one matrix, row by row, wherever they are kept."""

    def expect(self) -> None:
        """Prepare for `read` from the beginning to the end, such as by reading ahead."""

    def read(self, start: int, out: Words) -> None:
        """Fill `out`, a flat array, with the words from number `start` on. Safe in threads."""


@dataclass(frozen=True, slots=True)
class Streamed:
    """A factor of a (rows, columns) matrix.

    Attributes:
        keys: of the streams of its masks: the evaluator's own half, or both at the dealer.
        masked: None at the dealer.
    """

    role: Role
    shape: tuple[int, int]
    keys: tuple[bytes, ...] = field(repr=False)
    masked: MaskedWords | None = field(repr=False)

    def __post_init__(self) -> None:
        wanted = 2 if self.role.is_dealer else 1
        if len(self.keys) != wanted or (self.masked is None) is not self.role.is_dealer:
            raise LocalProtocolError(f"{self.role} cannot make a factor from these parts")

    def matmul(self, x: Words) -> Words:
        """x @ W modulo 2^64 for x (T, rows): (T, columns)."""
        out = np.zeros((x.shape[0], self.shape[1]), dtype=np.uint64)
        for rows, panel in self._panels():
            add_matmul(x[:, rows], panel, out)
        return out

    def matmul_rows(self, x: Words) -> Words:
        """x @ W^T modulo 2^64 for x (T, columns): (T, rows)."""
        out = np.empty((x.shape[0], self.shape[0]), dtype=np.uint64)
        for rows, panel in self._panels():
            out[:, rows] = matmul_rows(x, panel)
        return out

    def _panels(self) -> Iterator[tuple[slice, Words]]:
        """Runs of rows, each valid until the next one."""
        count, columns = self.shape
        height = min(count, max(1, PANEL_WORDS // columns))
        room = np.empty((height, columns), dtype=np.uint64)
        if self.masked is not None:
            self.masked.expect()
        for start in range(0, count, height):
            stop = min(count, start + height)
            panel = room[: stop - start]
            self._fill(start * columns, panel.reshape(-1))
            yield slice(start, stop), panel

    def _fill(self, start: int, panel: Words) -> None:
        if self.masked is None:
            one, two = self.keys
            panel[:] = 0
            add_stream(one, start, 1, panel)
            add_stream(two, start, -1, panel)
        else:
            self.masked.read(start, panel)
            add_stream(self.keys[0], start, -2, panel)
