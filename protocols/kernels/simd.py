"""Vector instructions for the kernels, emitted as portable LLVM vectors.

LLVM avoids 512-bit registers on some server processors unless the vectors are spelled out, although
`vpmullq` is twice as fast there; so the inner loops name their vectors. On machines with narrower
registers LLVM splits the same vectors; only their length follows the host.

An *array* argument is a contiguous array of any rank, a *position* counts its elements from the
start. Nothing checks bounds here.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from protocols.kernels.jit import vector_op


@cache
def host_features() -> frozenset[str]:
    """The instruction-set extensions that Numba compiles for.

    Those of this machine, unless NUMBA_CPU_NAME or NUMBA_CPU_FEATURES overrule them.
    """
    from llvmlite import binding
    from numba.core import config

    chosen: Any = config  # its settings are made at run time, unknown to type checkers
    if chosen.CPU_NAME is not None or chosen.CPU_FEATURES is not None:
        named = (chosen.CPU_FEATURES or "").split(",")
        return frozenset(name[1:] for name in named if name.startswith("+"))
    return frozenset(name for name, on in binding.get_host_cpu_features().items() if on)


def vector_bytes() -> int:
    """Length of one vector: 64 bytes with AVX-512, else 32."""
    return 64 if "avx512dq" in host_features() else 32


def builder_tools() -> Any:
    """Numba's helpers for LLVM builders, which have no types."""
    from numba.core import cgutils

    return cgutils


def pointer(context: Any, builder: Any, kind: Any, value: Any, position: Any, target: Any) -> Any:
    """Pointer of type `target`* to the element of an array at a position."""
    array = context.make_array(kind)(context, builder, value)
    return builder.bitcast(builder.gep(array.data, [position]), target.as_pointer())


def splat(builder: Any, scalar: Any, kind: Any) -> Any:
    """The vector of type `kind` whose lanes all hold `scalar`."""
    from llvmlite import ir

    one = builder.insert_element(ir.Constant(kind, None), scalar, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), kind.count), [0] * kind.count)
    return builder.shuffle_vector(one, ir.Constant(kind, None), zeros)


def prefetch_line(builder: Any, address: Any) -> None:
    """Ask for the cache line at an address, which need not exist."""
    from llvmlite import ir

    cgutils = builder_tools()

    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    flags = [ir.Constant(number, value) for value in (0, 3, 1)]  # read, keep, data
    builder.call(function, [builder.bitcast(address, byte), *flags])


class _Sums:
    """Emits sums of products of vectors of 64-bit words, one for each cell."""

    def __init__(self, builder: Any, vector: Any, cells: int) -> None:
        self.builder, self.vector = builder, vector
        self.items = [self._zero(vector) for _ in range(cells)]

    def _zero(self, kind: Any) -> Any:
        from llvmlite import ir

        return builder_tools().alloca_once_value(self.builder, ir.Constant(kind, None))

    def add(self, cell: int, left: Any, right: Any) -> None:
        """Add the product of two vectors to the sum of a cell."""
        self._add_to(self.items[cell], left, right)

    def _add_to(self, item: Any, left: Any, right: Any) -> None:
        product = self.builder.mul(left, right)
        self.builder.store(self.builder.add(self.builder.load(item), product), item)

    def total(self, cell: int) -> Any:
        """The sum of a cell."""
        return self.builder.load(self.items[cell])


class _HalfSums(_Sums):
    """As `_Sums`, for processors that only multiply 32-bit numbers. With a = a0 + 2^32 a1,

        a b = a0 b0 + 2^32 (a0 b1 + a1 b0).

    The first term is one instruction. So are both products in brackets, since only the low 32 bits
    of each count: that of a with b whose halves are swapped. Sums of the two kinds are kept apart
    and joined in the end, which takes 5 instructions for each product instead of 9.
    """

    def __init__(self, builder: Any, vector: Any, cells: int) -> None:
        from llvmlite import ir

        super().__init__(builder, vector, cells)
        numbers = range(2 * vector.count)
        self.narrow = ir.VectorType(ir.IntType(32), len(numbers))
        self.swapped = ir.Constant(self.narrow, [number ^ 1 for number in numbers])
        self.crossed = [self._zero(self.narrow) for _ in range(cells)]

    def _constant(self, value: int) -> Any:
        from llvmlite import ir

        return ir.Constant(self.vector, [value] * self.vector.count)

    def add(self, cell: int, left: Any, right: Any) -> None:
        """As `_Sums`."""
        from llvmlite import ir

        low, builder = self._constant(2**32 - 1), self.builder
        self._add_to(self.items[cell], builder.and_(left, low), builder.and_(right, low))
        one, two = (builder.bitcast(value, self.narrow) for value in (left, right))
        turned = builder.shuffle_vector(two, ir.Constant(self.narrow, None), self.swapped)
        self._add_to(self.crossed[cell], one, turned)

    def total(self, cell: int) -> Any:
        """As `_Sums`."""
        builder = self.builder
        pair = builder.bitcast(builder.load(self.crossed[cell]), self.vector)
        upper = builder.and_(pair, self._constant(2**64 - 2**32))
        upper = builder.add(upper, builder.shl(pair, self._constant(32)))
        return builder.add(builder.load(self.items[cell]), upper)


def make_tile(rows: int, vectors: int, *, paired: bool = False) -> Any:
    """An op that adds a product of `rows` by depth by `vectors` vectors of columns to out.

    Paired, it adds the sum over pairs of rows (w0, w1) of w, with the x0 and x1 that belong to
    them, of (x0 + w1) (x1 + w0): the product, plus one sum that depends only on x and one only
    on w, for half the multiplications (Winograd, "A New Algorithm for Inner Product", IEEE
    Trans. Computers, 1968). The depth must then be even.
    """

    def tile(
        typing: Any,
        x: Any, x_at: Any, x_step: Any,
        w: Any, w_at: Any, w_step: Any, depth: Any,
        out: Any, out_at: Any, out_step: Any,
    ) -> tuple[Any, Callable[..., Any]]:  # fmt: skip
        """x, w, out: arrays of words; *_at: position of the first element; *_step: elements in a
        row.
        """
        from llvmlite import ir
        from numba import types

        n = types.intp
        element = ir.IntType(64)
        lanes = vector_bytes() // 8
        vector = ir.VectorType(element, lanes)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            cgutils = builder_tools()

            kinds = signature.args
            _, xa, xs, _, wa, ws, k, _, oa, os = args

            def at(which: int, position: Any, target: Any) -> Any:
                return pointer(context, builder, kinds[which], args[which], position, target)

            def constant(value: int) -> Any:
                return ir.Constant(xa.type, value)

            def places(base: Any, step: Any, row: Any) -> list[Any]:
                start = builder.add(base, builder.mul(step, row))
                return [builder.add(start, constant(c * lanes)) for c in range(vectors)]

            def columns(p: Any) -> list[Any]:
                """A row of w."""
                spots = [at(3, place, vector) for place in places(wa, ws, p)]
                return [builder.load(spot, align=8) for spot in spots]

            def factor(row: int, p: Any) -> Any:
                """An element of x in all lanes."""
                start = builder.add(xa, builder.mul(xs, constant(row)))
                one = builder.load(at(0, builder.add(start, p), element))
                return splat(builder, one, vector)

            made = _Sums if lanes == 8 else _HalfSums
            sums = made(builder, vector, rows * vectors)
            step = constant(2 if paired else 1)
            with cgutils.for_range_slice(builder, constant(0), k, step) as (p, _n):
                line = columns(p)
                second = builder.add(p, constant(1))
                other = columns(second) if paired else []
                for r in range(rows):
                    x0 = factor(r, p)
                    x1 = factor(r, second) if paired else None
                    for c in range(vectors):
                        left, right = x0, line[c]
                        if paired:
                            left, right = builder.add(x0, other[c]), builder.add(x1, line[c])
                        sums.add(r * vectors + c, left, right)
            for r in range(rows):
                for c, place in enumerate(places(oa, os, constant(r))):
                    spot, total = at(7, place, vector), sums.total(r * vectors + c)
                    total = builder.add(total, builder.load(spot, align=8))
                    builder.store(total, spot, align=8)
            return context.get_dummy_value()

        return types.void(x, n, n, w, n, n, n, out, n, n), codegen

    return vector_op(tile)


def make_copy(vectors: int, *, summed: bool = False) -> Any:
    """An op that copies `vectors` vectors of w; summed, of w + 2 also, else `also` is not read."""

    def copy(
        typing: Any, w: Any, also: Any, w_at: Any, out: Any, out_at: Any
    ) -> tuple[Any, Callable[..., Any]]:
        from llvmlite import ir
        from numba import types

        element = ir.IntType(w.dtype.bitwidth)
        lanes = vector_bytes() * 8 // element.width
        vector = ir.VectorType(element, lanes)
        align = element.width // 8

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _, _, start, _, end = args

            def at(which: int, base: Any, shift: int) -> Any:
                place = builder.add(base, ir.Constant(base.type, shift))
                return pointer(context, builder, signature.args[which], args[which], place, vector)

            for shift in range(0, vectors * lanes, lanes):
                value = builder.load(at(0, start, shift), align=align)
                if summed:
                    half = builder.load(at(1, start, shift), align=align)
                    value = builder.add(value, builder.add(half, half))
                builder.store(value, at(3, end, shift), align=align)
            return context.get_dummy_value()

        n = types.intp
        return types.void(w, also, n, out, n), codegen

    return vector_op(copy)


def make_add(elements: int, onto: bool) -> Any:
    """An op for `elements` sums side by side: out = x + y, or out += x + y if `onto`."""

    def add(
        typing: Any, x: Any, x_at: Any, y: Any, y_at: Any, out: Any, out_at: Any
    ) -> tuple[Any, Callable[..., Any]]:
        from llvmlite import ir
        from numba import types

        element = ir.IntType(out.dtype.bitwidth)
        lanes = vector_bytes() * 8 // element.width
        vector = ir.VectorType(element, lanes)
        align = element.width // 8

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            def at(which: int, shift: int) -> Any:
                base = args[which + 1]
                position = builder.add(base, ir.Constant(base.type, shift))
                kind = signature.args[which]
                return pointer(context, builder, kind, args[which], position, vector)

            for shift in range(0, elements, lanes):
                total = builder.add(
                    builder.load(at(0, shift), align=align), builder.load(at(2, shift), align=align)
                )
                target = at(4, shift)
                if onto:
                    total = builder.add(total, builder.load(target, align=align))
                builder.store(total, target, align=align)
            return context.get_dummy_value()

        n = types.intp
        return types.void(x, n, y, n, out, n), codegen

    return vector_op(add)


def fold(builder: Any, value: Any) -> Any:
    """The sum of both halves of a vector."""
    from llvmlite import ir

    half = value.type.count // 2
    parts = [
        builder.shuffle_vector(
            value,
            ir.Constant(value.type, None),
            ir.Constant(ir.VectorType(ir.IntType(32), half), list(range(start, start + half))),
        )
        for start in (0, half)
    ]
    return builder.add(*parts)


def make_pair_dot() -> Any:
    """An op for the sums of products of the even and of the odd words of two arrays."""

    def pair_dot(
        typing: Any, a: Any, a_at: Any, b: Any, b_at: Any, count: Any, out: Any, out_at: Any
    ) -> tuple[Any, Callable[..., Any]]:
        """`count` words, a multiple of eight; the two sums go to out_at and out_at + 1."""
        from llvmlite import ir
        from numba import types

        vector = ir.VectorType(ir.IntType(64), 8)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            cgutils = builder_tools()

            def at(which: int, position: Any, target: Any) -> Any:
                kind = signature.args[which]
                return pointer(context, builder, kind, args[which], position, target)

            _, a0, _, b0, total, _, out0 = args
            zero, lanes = ir.Constant(total.type, 0), ir.Constant(total.type, 8)
            sums = cgutils.alloca_once_value(builder, ir.Constant(vector, None))
            with cgutils.for_range_slice(builder, zero, total, lanes) as (i, _n):
                left = builder.load(at(0, builder.add(a0, i), vector), align=8)
                right = builder.load(at(2, builder.add(b0, i), vector), align=8)
                product = builder.mul(left, right)
                builder.store(builder.add(builder.load(sums), product), sums)
            pair = fold(builder, fold(builder, builder.load(sums)))
            builder.store(pair, at(5, out0, pair.type), align=8)
            return context.get_dummy_value()

        n = types.intp
        return types.void(a, n, b, n, n, out, n), codegen

    return vector_op(pair_dot)


def make_dots(rows: int, columns: int) -> Any:
    """An op that adds the products of `rows` rows of x with `columns` rows of y to out."""

    def dots(
        typing: Any,
        x: Any, x_at: Any, x_step: Any,
        y: Any, y_at: Any, y_step: Any, depth: Any,
        out: Any, out_at: Any, out_step: Any,
    ) -> tuple[Any, Callable[..., Any]]:  # fmt: skip
        """As `make_tile`, but y is read along its rows; depth is a multiple of eight."""
        from llvmlite import ir
        from numba import types

        vector = ir.VectorType(ir.IntType(64), 8)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            cgutils = builder_tools()

            def at(which: int, start: Any, step: Any, row: int, target: Any) -> Any:
                position = builder.add(start, builder.mul(step, ir.Constant(step.type, row)))
                kind = signature.args[which]
                return pointer(context, builder, kind, args[which], position, target)

            def load(which: int, start: Any, step: Any, row: int) -> Any:
                return builder.load(at(which, start, step, row, vector), align=8)

            _, xa, xs, _, ya, ys, total, _, oa, os = args
            cells = [(r, c) for r in range(rows) for c in range(columns)]
            zero, lanes = ir.Constant(total.type, 0), ir.Constant(total.type, 8)
            sums = [cgutils.alloca_once_value(builder, ir.Constant(vector, None)) for _ in cells]
            for item in sums:
                builder.store(ir.Constant(vector, None), item)
            with cgutils.for_range_slice(builder, zero, total, lanes) as (p, _n):
                left = [load(0, builder.add(xa, p), xs, r) for r in range(rows)]
                right = [load(3, builder.add(ya, p), ys, c) for c in range(columns)]
                for (r, c), item in zip(cells, sums, strict=True):
                    product = builder.mul(left[r], right[c])
                    builder.store(builder.add(builder.load(item), product), item)
            for (r, c), item in zip(cells, sums, strict=True):
                pair = fold(builder, fold(builder, builder.load(item)))
                place = builder.add(oa, ir.Constant(oa.type, c))
                spot = at(7, place, os, r, ir.IntType(64))
                whole = builder.extract_element(fold(builder, pair), ir.IntType(32)(0))
                builder.store(builder.add(builder.load(spot), whole), spot)
            return context.get_dummy_value()

        n = types.intp
        return types.void(x, n, n, y, n, n, n, out, n, n), codegen

    return vector_op(dots)
