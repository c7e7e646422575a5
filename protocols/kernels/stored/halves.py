"""Products with the rows of a table whose words are kept in halves of 32 bits.

The upper half of a word is stored, the lower one follows from two other halves (see
`protocols.streamed.Split`). A table is read once for each product, so what counts is that 12 bytes
a word are read and none is written.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocols.kernels.elementwise import joined_factor_numpy
from protocols.kernels.jit import MODE, Words, kernel, vector_op
from protocols.kernels.simd import builder_tools, fold, pointer, splat

Half = NDArray[np.uint32]

_LANES = 8
_ROWS = 256  # rows of the table that the twin joins at a time


def _dot() -> Any:
    """An op that returns the product of a row of x with a row of the table, modulo 2^64.

    With x = x0 + 2^32 x1 and a word w0 + 2^32 w1 it is the sum of x0 w0, all 64 bits of them, plus
    2^32 times that of x0 w1 + x1 w0, modulo 2^32.
    """

    def dot(
        typing: Any, low: Any, high: Any, x_at: Any, upper: Any, one: Any, two: Any, at: Any,
        shift: Any, count: Any,
    ) -> tuple[Any, Callable[..., Any]]:  # fmt: skip
        """low, high: halves of x from `x_at` on; upper, one, two: those of the table from `at` on.
        The lower half of a word is one - 2^shift two. `count`: words, a multiple of eight.
        """
        from llvmlite import ir
        from numba import types

        word, short = ir.IntType(64), ir.IntType(32)
        wide, narrow = ir.VectorType(word, _LANES // 2), ir.VectorType(short, _LANES)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            cgutils = builder_tools()
            x0, start, total = args[2], args[6], args[8]
            below = ir.Constant(wide, [2**32 - 1] * wide.count)
            half = ir.Constant(wide, [32] * wide.count)
            times = splat(builder, builder.trunc(args[7], short), narrow)
            plain, crossed = (
                cgutils.alloca_once_value(builder, ir.Constant(kind, None))
                for kind in (wide, narrow)
            )

            def load(which: int, base: Any, i: Any) -> Any:
                kind, place = signature.args[which], builder.add(base, i)
                spot = pointer(context, builder, kind, args[which], place, narrow)
                return builder.load(spot, align=4)

            def words(halves: Any) -> tuple[Any, Any]:
                """The even and the odd ones."""
                pairs = builder.bitcast(halves, wide)
                return builder.and_(pairs, below), builder.lshr(pairs, half)

            def add_to(item: Any, left: Any, right: Any) -> None:
                product = builder.mul(left, right)
                builder.store(builder.add(builder.load(item), product), item)

            def number(value: int) -> Any:
                return ir.Constant(total.type, value)

            with cgutils.for_range_slice(builder, number(0), total, number(_LANES)) as (i, _n):
                first, second = load(0, x0, i), load(1, x0, i)
                top = load(3, start, i)
                doubled = builder.shl(load(5, start, i), times)
                bottom = builder.sub(load(4, start, i), doubled)
                for left, right in zip(words(first), words(bottom), strict=True):
                    add_to(plain, left, right)
                add_to(crossed, first, top)
                add_to(crossed, second, bottom)
            lower, cross = builder.load(plain), builder.load(crossed)
            while lower.type.count > 1:
                lower = fold(builder, lower)
            while cross.type.count > 1:
                cross = fold(builder, cross)
            none = ir.Constant(short, 0)
            raised = builder.zext(builder.extract_element(cross, none), word)
            raised = builder.shl(raised, ir.Constant(word, 32))
            return builder.add(builder.extract_element(lower, none), raised)

        n = types.intp
        return types.uint64(low, high, n, upper, one, two, n, n, n), codegen

    return vector_op(dot)


_whole = _dot()


@kernel("void(in1_32, in1_32, in1_32, in1_32, in1_32, int64, int64, int64, int64, uint64[::1])")
def _half_products(
    low: Half, high: Half, upper: Half, one: Half, two: Half, shift: int,
    count: int, rows: int, depth: int, out: Words,
) -> None:  # fmt: skip
    """Fill out (count, rows); all flat."""
    whole, up = depth - depth % _LANES, np.uint32(shift)
    for row in range(rows):
        at = row * depth
        for t in range(count):
            total = _whole(low, high, t * depth, upper, one, two, at, shift, whole)
            for p in range(whole, depth):
                bottom = np.uint32(one[at + p] - np.uint32(two[at + p] << up))
                x0, x1 = low[t * depth + p], high[t * depth + p]
                cross = np.uint32(np.uint32(x0 * upper[at + p]) + np.uint32(x1 * bottom))
                total += np.uint64(x0) * np.uint64(bottom)
                total += np.uint64(cross) << np.uint64(32)
            out[t * rows + row] = total


def half_products_numpy(x: Words, upper: Half, one: Half, two: Half, dealer: bool) -> Words:
    """NumPy twin of `half_products`."""
    out = np.empty((x.shape[0], upper.shape[0]), dtype=np.uint64)
    for start in range(0, upper.shape[0], _ROWS):
        part = slice(start, start + _ROWS)
        panel = np.empty(upper[part].shape, dtype=np.uint64)
        joined_factor_numpy(upper[part], one[part], two[part], dealer, panel)
        out[:, part] = x @ panel.T
    return out


def _half_products_numba(x: Words, upper: Half, one: Half, two: Half, dealer: bool) -> Words:
    """x @ W^T modulo 2^64 for x (T, K) and a table W (N, K): (T, N).

    Args:
        upper, one, two: (N, K). The upper halves of W, and what its lower ones are made of: one -
            two at the dealer, one - 2 two at an evaluator.
    """
    (count, depth), rows = x.shape, upper.shape[0]
    low = np.ascontiguousarray(x.astype(np.uint32)).reshape(-1)
    high = np.ascontiguousarray((x >> np.uint64(32)).astype(np.uint32)).reshape(-1)
    table = [np.ascontiguousarray(half).reshape(-1) for half in (upper, one, two)]
    out = np.empty(count * rows, dtype=np.uint64)
    _half_products.run(low, high, *table, 0 if dealer else 1, count, rows, depth, out)
    return out.reshape(count, rows)


half_products = _half_products_numba if MODE == "numba" else half_products_numpy
