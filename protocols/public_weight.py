"""Matrices that every party knows: the weights of open models, as their checkpoint stores them.

A product with such a matrix is local: evaluator A multiplies m - lam1, B multiplies -lam2, and the
dealer has nothing to do but deal the truncation. Only x is secret. What is stored is decoded in the
cache while it is multiplied (`protocols.kernels.stored`), so that a number takes no more memory
than in the checkpoint, which may be memory-mapped.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from protocols.base.lane import Lane
from protocols.base.ring import RESIDUAL_BITS, WEIGHT_BITS, Words, encode, signed
from protocols.base.shares import Role, SecretTensor
from protocols.errors import LocalProtocolError, RangeError
from protocols.kernels.jit import Bytes
from protocols.kernels.stored.formats import BATCH, FORMATS, FormatName
from protocols.kernels.stored.matrix import Stored, room_for
from protocols.kernels.stored.panels import integers, largest
from protocols.kernels.stored.product import multiply_into
from protocols.kernels.sums import Half, chosen_sums

Vector = NDArray[np.float32]

INTEGER_LIMIT = 2.0**31
"""Ring integers of a public matrix must stay below this."""
TABLE_LIMIT = 2.0**30
"""The same for a table: a look-up works modulo 2^32, with one bit to spare."""
_FACTOR_LIMIT = 2.0**60
_SHIFT_BITS = 30  # fraction bits of a norm's shift, in its product with the matrix
_SPLIT = 1 << 24  # multiply-adds of a product that is worth a second thread
_THREADS = 2
_TABLE_NUMBERS = 1 << 18  # numbers of a table decoded at a time: 1 MB


@dataclass(frozen=True, slots=True)
class Part:
    """Some outputs of a matrix, as a checkpoint stores them.

    Attributes:
        data: (stored rows, bytes of a row) uint8 without gaps; a memory map will do.
        kind: the format of the numbers.
        across: stored as (inputs, outputs), as GPT-2's `Conv1D`; otherwise (outputs, inputs).
        order: the stored row of each output, a permutation; not with `across`.
    """

    data: Bytes = field(repr=False)
    kind: FormatName
    across: bool = False
    order: NDArray[np.intp] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.kind not in FORMATS:
            raise LocalProtocolError(f"{self.kind!r} is not decoded here: use {', '.join(FORMATS)}")
        if self.data.ndim != 2 or self.data.dtype != np.uint8:
            raise LocalProtocolError(
                f"rows of bytes are needed, not {self.data.dtype} {self.data.shape}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(inputs, outputs)"""
        known = FORMATS[self.kind]
        lines, numbers = self.data.shape[0], self.data.shape[1] // known.nbytes * known.entries
        return (lines, numbers) if self.across else (numbers, lines)


@dataclass(frozen=True, slots=True)
class PublicWeight:
    """A public (depth, columns) matrix W.

    With r an input's factor and c an output's, its ring integers are

        rint((stored * r) * (c * 2^frac)),

    each operation in float32, in this order. A bias, if any, is the last row, whose r is 1.

    Attributes:
        parts: the columns, side by side; none while tracing.
        bias: ring words (columns,) with `frac` fraction bits.
        expect: called before each use of the parts; it may refuse by an error.
    """

    role: Role
    shape: tuple[int, int]
    parts: tuple[Stored, ...] = field(repr=False, default=())
    bias: Words | None = field(repr=False, default=None)
    frac: int = WEIGHT_BITS
    expect: Callable[[], None] | None = field(repr=False, default=None)

    @classmethod
    def of(
        cls,
        role: Role,
        parts: Sequence[Part],
        *,
        row: Vector | None = None,
        column: Vector | None = None,
        bias: Vector | None = None,
        shift: Vector | None = None,
        frac: int = WEIGHT_BITS,
    ) -> "PublicWeight":
        """A party's handle.

        Args:
            row: factors (inputs,), such as the gain of the norm before; ones by default.
            column: factors (columns,), such as 1 / sqrt(head size); ones by default.
            bias: (columns,), in the order of the outputs; the column factors apply to it.
            shift: the shift of the norm before, (inputs,). It adds shift @ W to the bias, where W
                has the column factors, but not the row factors.

        Raises:
            LocalProtocolError: sizes do not fit.
            RangeError: a factor or the bias is not finite or too large.
        """
        if not parts or len({part.shape[0] for part in parts}) != 1:
            raise LocalProtocolError("the parts of a matrix must have the same number of inputs")
        inputs, columns = parts[0].shape[0], sum(part.shape[1] for part in parts)
        rows = _factors(row, inputs, 0, "row")
        scales = _factors(column, columns, frac, "column")

        def stored(row_factors: Vector) -> tuple[Stored, ...]:
            made, start = [], 0
            for part in parts:
                end = start + part.shape[1]
                made.append(_stored(part, row_factors, scales[start:end]))
                start = end
            return tuple(made)

        words = None
        if bias is not None:
            with np.errstate(over="ignore", invalid="ignore"):  # refused by `encode`
                scaled = _sized(bias, columns, "bias").astype(np.float32) * scales
            words = encode(scaled * np.float32(2.0**-frac), frac)
        if shift is not None:
            bare = cls(role, (inputs, columns), stored(np.ones(inputs, np.float32)), frac=frac)
            moved = bare.moved_by(_sized(shift, inputs, "shift"))
            words = moved if words is None else words + moved
        return cls(role, (inputs + (words is not None), columns), stored(rows), words, frac)

    @classmethod
    def blank(cls, shape: tuple[int, int], frac: int = WEIGHT_BITS) -> "PublicWeight":
        """A matrix without content, for `TRACE`."""
        return cls(Role.TRACE, shape, frac=frac)

    @property
    def inputs(self) -> int:
        """Rows without the bias."""
        return self.shape[0] - (self.bias is not None)

    @property
    def nbytes(self) -> int:
        """Bytes of the stored numbers."""
        return sum(part.data.nbytes for part in self.parts)

    def multiply(self, x: Words, out: Words, lo: int, hi: int) -> None:
        """out[:, lo:hi] = x @ W[:, lo:hi] modulo 2^64, for x (T, depth) and out (T, columns).

        Threads may fill disjoint ranges of columns.
        """
        if not self.parts:
            raise LocalProtocolError("this party does not have the public weight")
        if x.shape[1] != self.shape[0]:
            raise LocalProtocolError(f"cannot multiply {x.shape} by {self.shape}")
        self._expect()
        for start, part in self._placed():
            first, last = max(lo - start, 0), min(hi - start, part.shape[1])
            if first < last:
                multiply_into(x, part, out, start, first, last)
        if self.bias is not None:
            out[:, lo:hi] += x[:, -1:] * self.bias[lo:hi]

    def moved_by(self, shift: Vector) -> Words:
        """shift @ W without its bias, (columns,) with `frac` fraction bits, from integers.

        Raises:
            RangeError: the shift is not finite, or the product too large.
        """
        words = encode(shift, _SHIFT_BITS)
        total = sum(abs(int(value)) for value in signed(words))
        if not total * self._largest() < 2.0**62:
            raise RangeError(
                f"a norm's shift with entries up to {np.abs(shift).max():g} is too large"
            )
        out = np.empty((1, self.shape[1]), np.uint64)
        PublicWeight(self.role, (self.inputs, self.shape[1]), self.parts).multiply(
            words[None], out, 0, self.shape[1]
        )
        half = np.int64(1 << (_SHIFT_BITS - 1))
        return ((signed(out[0]) + half) >> np.int64(_SHIFT_BITS)).view(np.uint64)

    def check(self, name: str, limit: float = INTEGER_LIMIT) -> None:
        """Read the whole matrix once, panel by panel, and see that its integers fit.

        Args:
            name: of the tensor, for the error.

        Raises:
            RangeError: a number is not finite, or its integer not below the limit.
        """
        found = self._largest()
        if not found < limit:
            size = f"reach {found / 2.0**self.frac:.6g}" if np.isfinite(found) else "are not finite"
            raise RangeError(
                f"{name}: entries {size}, but must stay below {limit / 2.0**self.frac:g} with"
                f" {self.frac} fraction bits"
            )

    def _largest(self) -> float:
        return max((largest(part, 0, part.shape[1]) for part in self.parts), default=0.0)

    def _expect(self) -> None:
        if self.expect is not None:
            self.expect()

    def _placed(self) -> list[tuple[int, Stored]]:
        """The parts with their first columns."""
        starts = np.cumsum([0, *(part.shape[1] for part in self.parts)]).tolist()
        return list(zip(starts, self.parts, strict=False))

    def integers(self, lo: int, hi: int) -> NDArray[np.int64]:
        """The ring integers of columns lo..hi, transposed: (columns, depth)."""
        found = np.empty((hi - lo, self.shape[0]), np.int64)
        for start, part in self._placed():
            first, last = max(lo - start, 0), min(hi - start, part.shape[1])
            if first < last:
                rows = slice(start + first - lo, start + last - lo)
                found[rows, : self.inputs] = integers(part, first, last)
        if self.bias is not None:
            found[:, -1] = signed(self.bias[lo:hi])
        return found

    def halves(self, step: int) -> Iterator[tuple[int, Half]]:
        """Blocks of `step` columns at most, with their first one: as `integers`, modulo 2^32. A
        block is overwritten by the next one.
        """
        self._expect()
        for start, part in self._placed():
            room, held = room_for(part, step), np.empty((step, self.shape[0]), np.uint32)
            for lo in range(0, part.shape[1], step):
                hi = min(lo + step, part.shape[1])
                made = integers(part, lo, hi, room).view(np.uint32)
                if self.bias is None and made.flags.c_contiguous:
                    yield start + lo, made
                    continue
                held[: hi - lo, : self.inputs] = made
                if self.bias is not None:
                    held[: hi - lo, -1] = self.bias[start + lo : start + hi].astype(np.uint32)
                yield start + lo, held[: hi - lo]


@dataclass(frozen=True, slots=True)
class PublicTable:
    """A public (rows, columns) embedding table, for look-ups and for products as in a tied head.

    In a look-up it is a sharing with zero masks: the parties' messages are those of a secret table,
    and the index stays as hidden.

    Attributes:
        weight: the transposed table, whose outputs are the rows. Its bias is a last column.
    """

    weight: PublicWeight

    @classmethod
    def of(
        cls,
        role: Role,
        parts: Sequence[Part],
        *,
        row: Vector | None = None,
        column: Vector | None = None,
        bias: Vector | None = None,
    ) -> "PublicTable":
        """Args as in `PublicWeight.of`: the columns are the inputs, the rows the outputs."""
        weight = PublicWeight.of(role, parts, row=row, column=column, bias=bias, frac=RESIDUAL_BITS)
        return cls(weight)

    @classmethod
    def blank(cls, shape: tuple[int, int]) -> "PublicTable":
        """A table without content, for `TRACE`."""
        return cls(PublicWeight.blank(shape[::-1], RESIDUAL_BITS))

    @property
    def role(self) -> Role:
        return self.weight.role

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[::-1]

    @property
    def frac(self) -> int:
        return self.weight.frac

    def check(self, name: str, limit: float = TABLE_LIMIT) -> None:
        """As `PublicWeight.check`."""
        self.weight.check(name, limit)

    def chosen_sums(self, chosen: Bytes) -> Half:
        """(n, rows) bits, one per byte -> (n, columns): sums of the chosen rows modulo 2^32."""
        total = np.zeros((chosen.shape[0], self.shape[1]), np.uint32)
        step = max(1, min(self.shape[0], _TABLE_NUMBERS // max(BATCH, self.shape[1])))
        for lo, rows in self.weight.halves(step):
            total += chosen_sums(np.ascontiguousarray(chosen[:, lo : lo + len(rows)]), rows)
        return total


def _sized(values: Vector, count: int, what: str) -> Vector:
    if values.shape != (count,):
        raise LocalProtocolError(f"the {what} has shape {values.shape}, not ({count},)")
    return values


def _factors(values: Vector | None, count: int, bits: int, what: str) -> Vector:
    """Factors times 2^bits. Sizes below 2^-126 count as zero: some processors are set to drop them,
    others not.
    """
    given = np.ones(count, np.float32) if values is None else _sized(values, count, what)
    sizes = np.abs(given)
    if not sizes.max(initial=0.0) < _FACTOR_LIMIT:
        raise RangeError(f"a {what} factor is not finite or not below 2^60: check the checkpoint")
    plain = np.where(sizes < np.finfo(np.float32).tiny, np.float32(0), given.astype(np.float32))
    return plain * np.float32(2.0**bits)


def _stored(part: Part, rows: Vector, columns: Vector) -> Stored:
    return Stored.of(
        part.data, FORMATS[part.kind], rows, columns, across=part.across, order=part.order
    )


async def public_product(lane: Lane, x: SecretTensor, weight: PublicWeight) -> Words:
    """This party's part of x @ W: zero at the dealer. Long products run on two threads."""
    rows, (depth, columns) = x.shape[0], weight.shape
    out = np.zeros((rows, columns), np.uint64)
    if lane.is_dealer:
        return out
    own = x.a - x.b if lane.leads else np.uint64(0) - x.b
    work = rows * depth * columns
    if work < _SPLIT:
        await lane.run(work, weight.multiply, own, out, 0, columns)
        return out
    cuts = [columns * i // _THREADS for i in range(_THREADS + 1)]
    jobs = [
        lane.run(work // _THREADS, weight.multiply, own, out, lo, hi) for lo, hi in pairwise(cuts)
    ]
    await lane.link.gather(jobs)
    return out
