"""Vector instructions for stored matrices: decoding to ring integers, and products.

A ring word x is split into halves, x = low + 2^32 high with a signed low one. With an integer w of
32 bits, x w is low w + 2^32 high w. The first product takes a multiplication of 32 by 32 bits; of
the second only the low 32 bits count, so that an instruction makes twice as many. A product of two
ring words takes three of the first kind. Both sums are kept apart, and joined at the end.

The multiplications to 64 bits read every second 32-bit lane. So the numbers of a *group*, two
vectors of words, are taken as the even ones and the odd ones, and x is laid out to match: low even,
low odd, high (*planes*).
"""

from collections.abc import Callable
from typing import Any

from protocols.kernels.jit import vector_op
from protocols.kernels.simd import builder_tools, fold, pointer, splat
from protocols.kernels.stored.formats import BATCH, Format
from protocols.kernels.stored.reader import Reader, lanes

PLANES = 3
"""Vectors of words that the planes of a group take."""


def make_decode(
    kind: Format,
    *,
    across: bool,
    ahead: int,
    native: bool | None = None,
) -> Any:
    """An op that decodes numbers of a stored row and scales them by two factors.

    One factor is a vector along the row, the other one the row's own. A matrix stored by outputs
    has the inputs' factors along its rows; stored by inputs (`across`), it has the outputs'. The
    inputs' factor is multiplied first, then the outputs'.

    Args:
        ahead: numbers further on in memory that are prefetched.
        native: see `native_halves`, which is the default.
    """

    def decode(
        typing: Any,
        stored: Any, at: Any, count: Any,
        along: Any, along_at: Any, own: Any,
        out: Any, out_at: Any,
    ) -> tuple[Any, Callable[..., Any]]:  # fmt: skip
        """stored: bytes; `count` numbers, whole batches, go to out: rounded to the nearest if it
        is int32, as they are if it is float32.
        """
        from llvmlite import ir
        from numba import types

        rounded = out.dtype == types.int32

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            cgutils = builder_tools()
            _, at0, total, _, along0, scalar, _, out0 = args
            read = Reader(builder, kind, native)
            whole = splat(builder, scalar, read.single)

            def position(which: int, base: Any, i: Any, shift: int, target: Any) -> Any:
                place = builder.add(builder.add(base, i), ir.Constant(base.type, shift))
                return pointer(context, builder, signature.args[which], args[which], place, target)

            def number(value: int) -> Any:
                return ir.Constant(total.type, value)

            row = pointer(context, builder, signature.args[0], args[0], at0, ir.IntType(8))
            with cgutils.for_range_slice(builder, number(0), total, number(BATCH)) as (i, _n):
                batch = builder.lshr(i, number(BATCH.bit_length() - 1))
                for j, value in enumerate(read.batch(row, batch, ahead)):
                    shift = j * read.count
                    spot = position(3, along0, i, shift, read.single)
                    vector = builder.load(spot, align=4)
                    first, second = (whole, vector) if across else (vector, whole)
                    scaled = builder.fmul(builder.fmul(value, first), second)
                    kept = read.rounded(scaled) if rounded else scaled
                    target = position(6, out0, i, shift, read.word if rounded else read.single)
                    builder.store(kept, target, align=4)
            return context.get_dummy_value()

        n = types.intp
        return types.void(stored, n, n, along, n, types.float32, out, n), codegen

    return vector_op(decode)


class _Sums:
    """Emits sums of products of planes with integers, one for each cell."""

    def __init__(self, builder: Any, count: int) -> None:
        from llvmlite import ir

        self.ir, self.builder, wide = ir, builder, lanes()
        self.vector = ir.VectorType(ir.IntType(64), wide)
        self.narrow = ir.VectorType(ir.IntType(32), 2 * wide)
        self.up = ir.Constant(self.vector, [32] * wide)
        self.lows = [self._zero(self.vector) for _ in range(count)]
        self.highs = [self._zero(self.narrow) for _ in range(count)]

    def _zero(self, kind: Any) -> Any:
        none = self.ir.Constant(kind, None)
        item = builder_tools().alloca_once_value(self.builder, none)
        self.builder.store(none, item)
        return item

    def _low(self, value: Any) -> Any:
        """The low halves of the lanes, sign-extended: no instruction, since PMULDQ does it."""
        return self.builder.ashr(self.builder.shl(value, self.up), self.up)

    def planes(self, address: Any) -> tuple[Any, Any, Any]:
        """The planes of a group, which start at an address."""
        spots = [
            self.builder.gep(address, [self.ir.Constant(self.ir.IntType(64), which * lanes())])
            for which in range(PLANES)
        ]
        kinds = (self.vector, self.vector, self.narrow)
        even, odd, high = (
            self.builder.load(self.builder.bitcast(spot, kind.as_pointer()), align=8)
            for spot, kind in zip(spots, kinds, strict=True)
        )
        return self._low(even), self._low(odd), high

    def add(self, cell: int, planes: tuple[Any, Any, Any], line: Any) -> None:
        """Add the products of a group with a vector of integers."""
        even, odd, high = planes
        pair = self.builder.bitcast(line, self.vector)
        self._add_to(self.lows[cell], even, self._low(pair))
        self._add_to(self.lows[cell], odd, self.builder.ashr(pair, self.up))
        self._add_to(self.highs[cell], high, line)

    def _add_to(self, item: Any, left: Any, right: Any) -> None:
        total = self.builder.add(self.builder.load(item), self.builder.mul(left, right))
        self.builder.store(total, item)

    def add_total(self, cell: int, spot: Any) -> None:
        """Add a cell's sum to the word at an address."""
        word = self.ir.IntType(64)
        high = self.builder.zext(self._folded(self.highs[cell]), word)
        high = self.builder.shl(high, self.ir.Constant(word, 32))
        found = self.builder.add(self._folded(self.lows[cell]), high)
        self.builder.store(self.builder.add(self.builder.load(spot), found), spot)

    def _folded(self, item: Any) -> Any:
        whole = self.builder.load(item)
        while whole.type.count > 1:
            whole = fold(self.builder, whole)
        return self.builder.extract_element(whole, self.ir.Constant(self.ir.IntType(32), 0))


def make_split_dots(rows: int, columns: int) -> Any:
    """An op that adds the products of `rows` rows of planes with `columns` rows of w to out."""

    def dots(
        typing: Any,
        x: Any, x_at: Any, x_step: Any,
        w: Any, w_at: Any, w_step: Any, groups: Any,
        out: Any, out_at: Any, out_step: Any,
    ) -> tuple[Any, Callable[..., Any]]:  # fmt: skip
        """x: planes; w: int32; out: words. *_at: position of the first element; *_step: elements
        in a row.
        """
        from llvmlite import ir
        from numba import types

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            cgutils = builder_tools()
            _, xa, xs, _, wa, ws, total, _, oa, os = args
            sums, word = _Sums(builder, rows * columns), ir.IntType(64)

            def at(which: int, start: Any, step: Any, row: int, shift: Any, target: Any) -> Any:
                base = builder.add(start, builder.mul(step, ir.Constant(step.type, row)))
                kind, place = signature.args[which], builder.add(base, shift)
                return pointer(context, builder, kind, args[which], place, target)

            def number(value: int) -> Any:
                return ir.Constant(total.type, value)

            with cgutils.for_range(builder, total) as loop:
                numbers = builder.mul(loop.index, number(2 * lanes()))
                words = builder.mul(loop.index, number(PLANES * lanes()))
                lines = [
                    builder.load(at(3, wa, ws, c, numbers, sums.narrow), align=4)
                    for c in range(columns)
                ]
                for r in range(rows):
                    planes = sums.planes(at(0, xa, xs, r, words, word))
                    for c, line in enumerate(lines):
                        sums.add(r * columns + c, planes, line)
            for r in range(rows):
                for c in range(columns):
                    sums.add_total(r * columns + c, at(7, oa, os, r, number(c), word))
            return context.get_dummy_value()

        n = types.intp
        return types.void(x, n, n, w, n, n, n, out, n, n), codegen

    return vector_op(dots)


def make_stored_dots(kind: Format, columns: int, ahead: int) -> Any:
    """An op that adds the products of one row of planes with `columns` stored rows to out.

    The integers stay in registers: what `make_decode` and `make_split_dots` do, without a panel.
    """

    def dots(
        typing: Any,
        x: Any, stored: Any, starts: Any, along: Any, own: Any, own_at: Any, count: Any,
        out: Any, out_at: Any,
    ) -> tuple[Any, Callable[..., Any]]:  # fmt: skip
        """x: planes; starts: words, the first byte of each stored row; `count` numbers, whole
        batches; along, own: factors of inputs and outputs; out: words.
        """
        from llvmlite import ir
        from numba import types

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            cgutils = builder_tools()
            own0, total, out0 = args[5], args[6], args[8]
            sums, read, word = _Sums(builder, columns), Reader(builder, kind), ir.IntType(64)

            def number(value: int) -> Any:
                return ir.Constant(total.type, value)

            def at(which: int, place: Any, shift: int, target: Any) -> Any:
                spot = builder.add(place, number(shift))
                return pointer(context, builder, signature.args[which], args[which], spot, target)

            firsts = [builder.load(at(2, number(0), c, word)) for c in range(columns)]
            scales = [
                splat(builder, builder.load(at(4, own0, c, ir.FloatType())), read.single)
                for c in range(columns)
            ]
            rows = [at(1, first, 0, ir.IntType(8)) for first in firsts]
            with cgutils.for_range_slice(builder, number(0), total, number(BATCH)) as (i, _n):
                batch = builder.lshr(i, number(BATCH.bit_length() - 1))
                base = builder.mul(builder.lshr(i, number(1)), number(PLANES))
                values = [read.batch(row, batch, ahead) for row in rows]
                for j in range(BATCH // read.count):
                    factor = builder.load(at(3, i, j * read.count, read.single), align=4)
                    planes = sums.planes(at(0, base, j * PLANES * lanes(), word))
                    for c in range(columns):
                        scaled = builder.fmul(builder.fmul(values[c][j], factor), scales[c])
                        sums.add(c, planes, read.rounded(scaled))
            for c in range(columns):
                sums.add_total(c, at(7, out0, c, word))
            return context.get_dummy_value()

        n = types.intp
        return types.void(x, stored, starts, along, own, n, n, out, n), codegen

    return vector_op(dots)
