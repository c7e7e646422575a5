"""Vector instructions that read 32 numbers of a block of 256: GGUF's Q4_K and Q6_K.

The layout is in `formats`. `read` is a `Reader`, `sub` (a word) says which numbers: 0..7.
"""

from typing import Any

from protocols.kernels.simd import splat


def four_bits(read: Any, address: Any, sub: Any) -> list[Any]:
    """Q4_K"""
    b, ir = read.builder, read.ir
    byte, number = ir.IntType(8), _numbers(ir, sub)
    place = b.and_(sub, number(3))
    first, second, both = (
        _at(read, address, b.add(place, number(start)), byte) for start in (4, 8, 12)
    )

    def small(value: int) -> Any:
        return ir.Constant(byte, value)

    def high(raw: Any) -> Any:
        return b.and_(b.lshr(raw, small(2)), small(0x30))

    early = b.icmp_unsigned("<", sub, number(4))
    scale = b.select(
        early, b.and_(first, small(0x3F)), b.or_(b.and_(both, small(0x0F)), high(first))
    )
    least = b.select(
        early, b.and_(second, small(0x3F)), b.or_(b.lshr(both, small(4)), high(second))
    )
    times, minus = (
        splat(
            b,
            b.fmul(read.half(read.load(address, at, ir.IntType(16))), _float(read, raw)),
            read.single,
        )
        for at, raw in ((0, scale), (2, least))
    )
    start = b.add(b.mul(b.lshr(sub, number(1)), number(32)), number(16))
    shift = b.mul(b.and_(sub, number(1)), number(4))
    fours = (_bits(read, address, start, at, shift, 15) for at in range(0, 32, read.count))
    return [b.fsub(b.fmul(b.sitofp(four, read.single), times), minus) for four in fours]


def six_bits(read: Any, address: Any, sub: Any) -> list[Any]:
    """Q6_K"""
    b, ir = read.builder, read.ir
    number = _numbers(ir, sub)
    half, part = b.lshr(sub, number(2)), b.and_(sub, number(3))
    odd = b.and_(part, number(1))
    low = b.add(b.mul(half, number(64)), b.mul(odd, number(32)))
    low_shift = b.mul(b.lshr(part, number(1)), number(4))
    high = b.add(b.mul(half, number(32)), number(128))
    high_shift = b.mul(part, number(2))
    whole = read.half(read.load(address, 208, ir.IntType(16)))
    scales = []
    for second in range(2):
        spot = b.add(b.mul(sub, number(2)), number(192 + second))
        raw = b.sext(_at(read, address, spot, ir.IntType(8)), ir.IntType(32))
        scales.append(splat(b, b.fmul(whole, b.sitofp(raw, ir.FloatType())), read.single))
    found = []
    for at in range(0, 32, read.count):
        upper = b.shl(_bits(read, address, high, at, high_shift, 3), read.constant(read.word, 4))
        both = b.or_(_bits(read, address, low, at, low_shift, 15), upper)
        six = b.sub(both, read.constant(read.word, 32))
        found.append(b.fmul(b.sitofp(six, read.single), scales[at // 16]))
    return found


def _numbers(ir: Any, sub: Any) -> Any:
    return lambda value: ir.Constant(sub.type, value)


def _at(read: Any, address: Any, place: Any, kind: Any) -> Any:
    return read.load(read.builder.gep(address, [place]), 0, kind)


def _float(read: Any, raw: Any) -> Any:
    """The float of an unsigned byte."""
    b, ir = read.builder, read.ir
    return b.sitofp(b.zext(raw, ir.IntType(32)), ir.FloatType())


def _bits(read: Any, address: Any, start: Any, at: int, shift: Any, mask: int) -> Any:
    """Some bits of a vector's worth of bytes, as int32."""
    b, ir = read.builder, read.ir
    raw = b.zext(read.load(b.gep(address, [start]), at, read.vector(ir.IntType(8))), read.word)
    moved = b.lshr(raw, splat(b, b.trunc(shift, ir.IntType(32)), read.word))
    return b.and_(moved, read.constant(read.word, mask))
