"""Float matrices in the shared form: (inputs, outputs), with a bias as their last row.

Exact foldings: the gain of a norm scales the rows of the matrix after it, its shift goes into that
matrix's bias, and 1 / sqrt(head size) into the queries.

A large matrix is described by a `Recipe` and made when it is needed, so that a model does not have
to fit into memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from models.checkpoints.checkpoint import Checkpoint

Matrix = NDArray[np.float32]
_BLOCK = 32


@runtime_checkable
class Lazy(Protocol):
    """A matrix that is made when it is asked for."""

    def values(self) -> Matrix:
        """Make the matrix, in memory of its own."""


Source: TypeAlias = Matrix | Lazy


def values_of(source: Source) -> Matrix:
    """The matrix itself."""
    return source.values() if isinstance(source, Lazy) else source


@dataclass(frozen=True, eq=False)
class Recipe:
    """Linear layers side by side, with what is folded into them.

    Attributes:
        names: of the layers, without `.weight`.
        gain, shift: of the norm before them, each (inputs,).
        turned: whether they are stored as (outputs, inputs).
        order: the stored column of each column, or None for the stored order.
        columns: a factor for each column (after `order`), or None for ones.
    """

    checkpoint: Checkpoint = field(repr=False)
    names: tuple[str, ...]
    gain: Matrix | None = field(default=None, repr=False)
    shift: Matrix | None = field(default=None, repr=False)
    turned: bool = True
    order: NDArray[np.int64] | None = field(default=None, repr=False)
    columns: Matrix | None = field(default=None, repr=False)

    def ordered(self, order: NDArray[np.int64]) -> Recipe:
        """With its columns in another order."""
        return replace(self, order=order)

    def scaled(self, factor: float, columns: int | None = None) -> Recipe:
        """With the first `columns` columns (default: all) multiplied by a factor."""
        if factor == 1:
            return self
        factors = np.full(self._outputs(), factor, dtype=np.float32)
        if columns is not None:
            factors[columns:] = 1
        return self.times(factors)

    def times(self, factors: Matrix) -> Recipe:
        """With each column multiplied by a factor."""
        return replace(self, columns=factors.astype(np.float32, copy=False))

    def _outputs(self) -> int:
        axis = 0 if self.turned else 1
        return sum(self.checkpoint.shape(f"{name}.weight")[axis] for name in self.names)

    def bias(self) -> Matrix | None:
        """The layers' own biases, (outputs,), in the order of the columns and without their
        factors; None if they have none.
        """
        known = set(self.checkpoint.names())
        names = [f"{name}.bias" for name in self.names if f"{name}.bias" in known]
        if not names:
            return None
        bias = np.concatenate([self.checkpoint.tensor(name) for name in names])
        return bias if self.order is None else bias[self.order]

    def values(self) -> Matrix:
        """(inputs, outputs), and one more row for the bias, if there is one. The memory order is
        that of the stored layers.
        """
        parts = []
        for name in self.names:
            weight = self.checkpoint.tensor(f"{name}.weight")
            parts.append(weight if self.turned else weight.T)
        weight = np.concatenate(parts) if len(parts) > 1 else parts[0]  # (outputs, inputs)
        if self.order is not None:
            weight = weight[self.order]
        made = _folded(weight, self.bias(), self.gain, self.shift)
        if self.columns is not None:
            made *= self.columns[:, None]
        return made.T


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor as it is stored, with one more column if there is a bias."""

    checkpoint: Checkpoint = field(repr=False)
    name: str
    bias: str = ""

    def values(self) -> Matrix:
        """(rows, columns)."""
        table = self.checkpoint.tensor(self.name)
        if not self.bias:
            return table
        return np.concatenate([table, self.checkpoint.tensor(self.bias)[:, None]], axis=1)


def dense(
    checkpoint: Checkpoint,
    names: str | Sequence[str],
    *,
    gain: Matrix | None = None,
    shift: Matrix | None = None,
    turned: bool = True,
) -> Recipe:
    """Linear layers side by side, with their biases if the checkpoint has them; see `Recipe`."""
    names = (names,) if isinstance(names, str) else tuple(names)
    return Recipe(checkpoint, names, gain, shift, turned)


def _folded(
    weight: Matrix, bias: Matrix | None, gain: Matrix | None, shift: Matrix | None
) -> Matrix:
    """(outputs, inputs) with the foldings, and with its bias, if any, as one more column."""
    if shift is not None:
        moved = weight @ shift.astype(np.float64)
        bias = (moved if bias is None else moved + bias).astype(np.float32)
    if gain is not None:
        weight *= gain
    return weight if bias is None else np.concatenate([weight, bias[:, None]], axis=1)


def row_major(matrix: Matrix) -> Matrix:
    """The same matrix in C order; copied by blocks that fit the cache."""
    if matrix.ndim < 2 or matrix.flags.c_contiguous:
        return np.ascontiguousarray(matrix)
    made = np.empty(matrix.shape, dtype=matrix.dtype)
    for start in range(0, matrix.shape[1], _BLOCK):
        made[:, start : start + _BLOCK] = matrix[:, start : start + _BLOCK]
    return made


def norm_of(checkpoint: Checkpoint, name: str) -> tuple[Matrix, Matrix]:
    """Gain and shift of a LayerNorm."""
    return checkpoint.tensor(f"{name}.weight"), checkpoint.tensor(f"{name}.bias")
