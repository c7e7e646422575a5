"""Vector instructions for stored matrices: decoding numbers to ring integers, and products.

A ring word x is split into two signed halves, x = low + 2^32 high. With an integer w of 32 bits,
x w is then low w + 2^32 high w: two multiplications of 32 by 32 bits, which every vector unit has,
where a product of two ring words takes three. Both sums are kept apart, and joined at the end.

Those multiplications read every second 32-bit lane. So the numbers of a *group*, two vectors of
words, are taken as the even ones and the odd ones, and the halves of x are laid out to match: low
even, low odd, high even, high odd (*planes*).
"""

import platform
from collections.abc import Callable
from typing import Any

from protocols.kernels.jit import vector_op
from protocols.kernels.simd import (
    builder_tools,
    fold,
    host_features,
    pointer,
    prefetch_line,
    splat,
    vector_bytes,
)
from protocols.kernels.stored.formats import BATCH, Format


def lanes() -> int:
    """Words of a vector: 4, or 8 with AVX-512."""
    return vector_bytes() // 8


def native_halves() -> bool:
    """Whether this processor converts float16 itself (LLVM calls a library otherwise)."""
    arm = platform.machine().lower() in ("aarch64", "arm64")
    return arm or "f16c" in host_features()


class _Reader:
    """Emits the float vectors of the block (or group) at an address."""

    def __init__(self, builder: Any, kind: Format, native: bool) -> None:
        from llvmlite import ir

        self.ir, self.builder, self.kind, self.native = ir, builder, kind, native
        self.count = 2 * lanes()

    def vector(self, element: Any, count: int | None = None) -> Any:
        return self.ir.VectorType(element, count or self.count)

    def constant(self, kind: Any, value: int) -> Any:
        if isinstance(kind, self.ir.VectorType):
            return self.ir.Constant(kind, [value] * kind.count)
        return self.ir.Constant(kind, value)

    def load(self, address: Any, shift: int, kind: Any) -> Any:
        place = self.builder.gep(address, [self.ir.Constant(self.ir.IntType(64), shift)])
        return self.builder.load(self.builder.bitcast(place, kind.as_pointer()), align=1)

    def half(self, raw: Any) -> Any:
        """Float32 of float16 bits, a vector or one number."""
        ir, b = self.ir, self.builder
        many = isinstance(raw.type, ir.VectorType)

        def shaped(kind: Any) -> Any:
            return self.vector(kind, raw.type.count) if many else kind

        single = shaped(ir.FloatType())
        if self.native:
            return b.fpext(b.bitcast(raw, shaped(ir.HalfType())), single)
        word = shaped(ir.IntType(32))

        def number(value: int) -> Any:
            return self.constant(word, value)

        whole = b.zext(raw, word)
        size = b.shl(b.and_(whole, number(0x7FFF)), number(13))
        sign = b.shl(b.and_(whole, number(0x8000)), number(16))
        moved = b.add(size, number(112 << 23))
        extreme = b.add(moved, number(112 << 23))  # infinities and NaN
        tiny = b.fsub(
            b.bitcast(b.add(size, number(113 << 23)), single),
            b.bitcast(number(113 << 23), single),
        )
        found = b.select(b.icmp_unsigned("<", size, number(1 << 23)), b.bitcast(tiny, word), moved)
        found = b.select(b.icmp_unsigned(">=", size, number(31 << 23)), extreme, found)
        return b.bitcast(b.or_(found, sign), single)

    def floats(self, address: Any) -> list[Any]:
        """The numbers of a batch."""
        ir, b = self.ir, self.builder
        if not self.kind.blocked:
            size = self.kind.nbytes
            return [self.plain(address, size * at) for at in range(0, BATCH, self.count)]
        single = self.vector(ir.FloatType())
        scale = splat(b, self.half(self.load(address, 0, ir.IntType(16))), single)
        scaled = [b.fmul(item, scale) for item in self.integers(address)]
        if self.kind.name == "q4_1":
            least = splat(b, self.half(self.load(address, 2, ir.IntType(16))), single)
            scaled = [b.fadd(item, least) for item in scaled]
        return scaled

    def plain(self, address: Any, shift: int) -> Any:
        """A vector of numbers that are stored one by one."""
        ir, b = self.ir, self.builder
        single, word = self.vector(ir.FloatType()), self.vector(ir.IntType(32))
        if self.kind.name == "f32":
            return self.load(address, shift, single)
        raw = self.load(address, shift, self.vector(ir.IntType(16)))
        if self.kind.name == "f16":
            return self.half(raw)
        return b.bitcast(b.shl(b.zext(raw, word), self.constant(word, 16)), single)

    def integers(self, address: Any) -> list[Any]:
        """The integers of a block as floats."""
        ir, b = self.ir, self.builder
        single, byte = self.vector(ir.FloatType()), ir.IntType(8)
        word, start = self.vector(ir.IntType(32)), self.kind.nbytes - 16
        if self.kind.name == "q8_0":
            pieces = [
                self.load(address, 2 + at, self.vector(byte)) for at in range(0, 32, self.count)
            ]
            return [b.sitofp(b.sext(piece, word), single) for piece in pieces]
        whole = self.vector(byte, 16)
        both = self.load(address, start, whole)
        halves = [
            b.and_(both, self.constant(whole, 15)),
            b.lshr(both, self.constant(whole, 4)),
        ]
        if self.kind.name == "q4_0":
            halves = [b.sub(half, self.constant(whole, 8)) for half in halves]
        pieces = [self.slice(half, at) for half in halves for at in range(0, 16, self.count)]
        return [b.sitofp(b.sext(piece, word), single) for piece in pieces]

    def slice(self, value: Any, start: int) -> Any:
        """A group of a vector's elements."""
        order = self.ir.Constant(
            self.vector(self.ir.IntType(32)), list(range(start, start + self.count))
        )
        return self.builder.shuffle_vector(value, self.ir.Constant(value.type, None), order)


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
            read = _Reader(builder, kind, native_halves() if native is None else native)
            single = read.vector(ir.FloatType())
            word = read.vector(ir.IntType(32))
            whole = splat(builder, scalar, single)
            name = f"llvm.rint.v{read.count}f32"
            rint = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(single, [single]), name
            )

            def position(which: int, base: Any, i: Any, shift: int, target: Any) -> Any:
                place = builder.add(builder.add(base, i), ir.Constant(base.type, shift))
                return pointer(context, builder, signature.args[which], args[which], place, target)

            def number(value: int) -> Any:
                return ir.Constant(total.type, value)

            size = kind.row_bytes(BATCH)
            with cgutils.for_range_slice(builder, number(0), total, number(BATCH)) as (i, _n):
                batch = builder.lshr(i, number(BATCH.bit_length() - 1))
                byte = builder.add(at0, builder.mul(batch, number(size)))
                place = pointer(context, builder, signature.args[0], args[0], byte, ir.IntType(8))
                for line in range(0, size, 64):
                    later = builder.gep(place, [number(kind.row_bytes(ahead) + line)])
                    prefetch_line(builder, later)
                for j, value in enumerate(read.floats(place)):
                    shift = j * read.count
                    spot = position(3, along0, i, shift, single)
                    vector = builder.load(spot, align=4)
                    first, second = (whole, vector) if across else (vector, whole)
                    scaled = builder.fmul(builder.fmul(value, first), second)
                    kept = builder.fptosi(builder.call(rint, [scaled]), word) if rounded else scaled
                    target = position(6, out0, i, shift, word if rounded else single)
                    builder.store(kept, target, align=4)
            return context.get_dummy_value()

        n = types.intp
        return types.void(stored, n, n, along, n, types.float32, out, n), codegen

    return vector_op(decode)


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

        wide = lanes()
        vector = ir.VectorType(ir.IntType(64), wide)
        up = ir.Constant(vector, [32] * wide)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            cgutils = builder_tools()
            _, xa, xs, _, wa, ws, total, _, oa, os = args

            def at(which: int, position: Any, target: Any) -> Any:
                kind = signature.args[which]
                return pointer(context, builder, kind, args[which], position, target)

            def place(start: Any, step: Any, row: int, g: Any, size: int) -> Any:
                base = builder.add(start, builder.mul(step, ir.Constant(step.type, row)))
                return builder.add(base, builder.mul(g, ir.Constant(g.type, size)))

            def low(value: Any) -> Any:
                """The low halves of the lanes, sign-extended (no instruction: see `PMULDQ`)."""
                return builder.ashr(builder.shl(value, up), up)

            def plane(row: int, g: Any, which: int) -> Any:
                base = place(xa, xs, row, g, 4 * wide)
                spot = at(0, builder.add(base, ir.Constant(base.type, which * wide)), vector)
                return low(builder.load(spot, align=8))

            cells = [(r, c, h) for r in range(rows) for c in range(columns) for h in range(2)]
            sums = {cell: cgutils.alloca_once_value(builder, ir.Constant(vector, None))
                    for cell in cells}  # fmt: skip
            for item in sums.values():
                builder.store(ir.Constant(vector, None), item)
            with cgutils.for_range(builder, total) as loop:
                g, pairs = loop.index, []
                for c in range(columns):
                    spot = at(3, place(wa, ws, c, g, 2 * wide), vector)
                    both = builder.load(spot, align=4)
                    pairs.append((low(both), builder.ashr(both, up)))
                for r in range(rows):
                    for h in range(2):
                        for odd in range(2):
                            left = plane(r, g, 2 * h + odd)
                            for c in range(columns):
                                item = sums[r, c, h]
                                product = builder.mul(left, pairs[c][odd])
                                builder.store(builder.add(builder.load(item), product), item)
            for r in range(rows):
                for c in range(columns):
                    high = builder.shl(builder.load(sums[r, c, 1]), up)
                    whole = builder.add(builder.load(sums[r, c, 0]), high)
                    while whole.type.count > 1:
                        whole = fold(builder, whole)
                    base = builder.add(oa, ir.Constant(oa.type, c))
                    spot = at(7, place(base, os, r, ir.Constant(os.type, 0), 0), ir.IntType(64))
                    found = builder.extract_element(whole, ir.Constant(ir.IntType(32), 0))
                    builder.store(builder.add(builder.load(spot), found), spot)
            return context.get_dummy_value()

        n = types.intp
        return types.void(x, n, n, w, n, n, n, out, n, n), codegen

    return vector_op(dots)
