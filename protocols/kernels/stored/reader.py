"""Vector instructions that read the numbers of a checkpoint: bytes to vectors of float32."""

import platform
from typing import Any

from protocols.kernels.simd import (
    builder_tools,
    host_features,
    prefetch_line,
    splat,
    vector_bytes,
)
from protocols.kernels.stored.formats import BATCH, Format
from protocols.kernels.stored.superblocks import four_bits, six_bits


def lanes() -> int:
    """Words of a vector: 4, or 8 with AVX-512."""
    return vector_bytes() // 8


def native_halves() -> bool:
    """Whether this processor converts float16 itself (LLVM calls a library otherwise)."""
    arm = platform.machine().lower() in ("aarch64", "arm64")
    return arm or "f16c" in host_features()


class Reader:
    """Emits the float vectors of the batch at an address.

    Args:
        native: see `native_halves`, which is the default.
    """

    def __init__(self, builder: Any, kind: Format, native: bool | None = None) -> None:
        from llvmlite import ir

        self.ir, self.builder, self.kind = ir, builder, kind
        self.native = native_halves() if native is None else native
        self.count = 2 * lanes()
        self.single, self.word = self.vector(ir.FloatType()), self.vector(ir.IntType(32))

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

    def batch(self, row: Any, number: Any, ahead: int) -> list[Any]:
        """Batch `number` of the stored row at an address. That which begins `ahead` numbers further
        on is prefetched.
        """
        b, kind = self.builder, self.kind

        def constant(value: int) -> Any:
            return self.ir.Constant(number.type, value)

        whole = kind.entries > BATCH
        of_block = constant(kind.entries // BATCH - 1) if whole else constant(0)
        blocks = b.lshr(number, constant(3)) if whole else number
        size = kind.nbytes if whole else kind.row_bytes(BATCH)
        address = b.gep(row, [b.mul(blocks, constant(size))])
        sub = b.and_(number, of_block)
        for line in range(0, kind.row_bytes(256) // 8, 64):
            later = (
                b.add(b.mul(sub, constant(kind.nbytes // 8)), constant(line))
                if whole
                else (constant(line))
            )
            later = b.add(later, constant(kind.row_bytes(ahead)))
            prefetch_line(b, b.gep(address, [later]))
        if kind.name == "q4_k":
            return four_bits(self, address, sub)
        return six_bits(self, address, sub) if whole else self.floats(address)

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

    def rounded(self, value: Any) -> Any:
        """The nearest int32 of each number of a float vector; to even in the middle."""
        tools = builder_tools()
        kind = self.ir.FunctionType(self.single, [self.single])
        name = f"llvm.rint.v{self.count}f32"
        rint = tools.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.fptosi(self.builder.call(rint, [value]), self.word)
