"""Factors that are made panel by panel while they are multiplied by.

A party's factor of a weight is m - 2 lam_i at an evaluator and lam_1 - lam_2 at the dealer (see
`protocols.arithmetic`). The masks come from seeds, so only m has to be kept, at the evaluators, and
it may be kept on a disk. A panel is a run of rows that fits the processor's cache: its words are
read, its masks expanded, and it is multiplied by before the next one takes its place. The words are
those of a factor in memory, so results are equal to the bit.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from protocols.base.prf import add_stream
from protocols.base.ring import Words
from protocols.base.shares import Role
from protocols.errors import LocalProtocolError
from protocols.kernels.elementwise import add_twice, joined_factor
from protocols.kernels.matmul import add_matmul, matmul_of_sum
from protocols.kernels.rows import matmul_rows
from protocols.kernels.stored.halves import half_products
from protocols.kernels.sums import Half

PANEL_WORDS = 1 << 18
"""Words of a panel, if a row is not longer: 2 MB."""


class MaskedWords(Protocol):
    """The masked words of one matrix, row by row, wherever they are kept."""

    def expect(self) -> None:
        """Prepare for `read` from the beginning to the end, such as by reading ahead."""

    def read(self, start: int, out: Words) -> None:
        """Fill `out`, a flat array, with the words from number `start` on. Safe in threads."""


class Panels(ABC):
    """A factor of a (rows, columns) matrix that is made panel by panel."""

    __slots__ = ()
    shape: tuple[int, int]

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
        self._expect()
        for start in range(0, count, height):
            stop = min(count, start + height)
            panel = room[: stop - start]
            self.fill(start * columns, panel.reshape(-1))
            yield slice(start, stop), panel

    def _expect(self) -> None:  # noqa: B027, what is in memory needs nothing
        """Prepare for reading the matrix from the beginning to the end."""

    @abstractmethod
    def fill(self, start: int, panel: Words) -> None:
        """Fill a flat panel with the words from number `start` on."""


@dataclass(frozen=True, slots=True)
class Streamed(Panels):
    """A factor whose masks come from seeds.

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

    def _expect(self) -> None:
        if self.masked is not None:
            self.masked.expect()

    def fill(self, start: int, panel: Words) -> None:
        """As `Panels`."""
        if self.masked is None:
            one, two = self.keys
            panel[:] = 0
            add_stream(one, start, 1, panel)
            add_stream(two, start, -1, panel)
        else:
            self.masked.read(start, panel)
            add_stream(self.keys[0], start, -2, panel)


@dataclass(slots=True)
class Sum:
    """The factors of evaluator A and the dealer, where one process has both."""

    first: Words | Panels | None = field(default=None, repr=False)
    dealer: Words | Panels | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Derived(Panels):
    """Evaluator B's factor in a process that also has the others', from which it follows:
    m - 2 lam_2 = (m - 2 lam_1) + 2 (lam_1 - lam_2).
    """

    shape: tuple[int, int]
    parts: Sum = field(repr=False)

    def matmul(self, x: Words) -> Words:
        """As `Panels`. If both parts are in memory, their sum is never stored."""
        first, dealer = self.parts.first, self.parts.dealer
        if not (isinstance(first, np.ndarray) and isinstance(dealer, np.ndarray)):
            return Panels.matmul(self, x)
        return matmul_of_sum(x, first, dealer)

    def matmul_rows(self, x: Words) -> Words:
        """As `Panels`. Each part that is a table in halves is multiplied by as it is."""
        first, dealer = self.parts.first, self.parts.dealer
        if not (isinstance(first, Split) and isinstance(dealer, Split)):
            return Panels.matmul_rows(self, x)
        product = dealer.matmul_rows(x)
        return first.matmul_rows(x) + product + product

    def _expect(self) -> None:
        if self.parts.first is None or self.parts.dealer is None:
            raise LocalProtocolError("the other parties of this process do not have the weight yet")

    def fill(self, start: int, panel: Words) -> None:
        """As `Panels`."""
        assert self.parts.first is not None and self.parts.dealer is not None
        first, dealer = (
            _words(part, start, panel.size) for part in (self.parts.first, self.parts.dealer)
        )
        add_twice(first, dealer, panel)


def _words(factor: Words | Panels, start: int, count: int) -> Words:
    """Words of a factor from number `start` on."""
    if not isinstance(factor, Panels):
        return factor.reshape(-1)[start : start + count]
    words = np.empty(count, dtype=np.uint64)
    factor.fill(start, words)
    return words


@dataclass(frozen=True, slots=True)
class Split(Panels):
    """A table's factor, without the half of each word that follows from the table's halves.

    Attributes:
        high: the upper 32 bits of its words, (rows, columns).
        halves: the table's, see `protocols.linear.Table`.
    """

    role: Role
    high: Half = field(repr=False)
    halves: tuple[Half, Half] = field(repr=False)

    @classmethod
    def of(cls, role: Role, factor: Words, halves: tuple[Half, Half]) -> "Split":
        """From the factor itself."""
        return cls(role, (factor >> np.uint64(32)).astype(np.uint32), halves)

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        """Rows and columns."""
        rows, columns = self.high.shape
        return rows, columns

    def matmul_rows(self, x: Words) -> Words:
        """As `Panels`, without panels."""
        return half_products(x, self.high, *self.halves, self.role.is_dealer)

    def fill(self, start: int, panel: Words) -> None:
        """As `Panels`."""
        part = slice(start, start + panel.size)
        high, one, two = (half.reshape(-1)[part] for half in (self.high, *self.halves))
        joined_factor(high, one, two, self.role.is_dealer, panel)
