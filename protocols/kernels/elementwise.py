"""Elementwise operations on ring words, each in one pass and without the GIL."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocols.kernels.jit import MODE, Words, kernel

Half = NDArray[np.uint32]
_ONE = np.uint64(1)


def _low(width: Any) -> Any:
    """The word whose low `width` bits (1..64) are set."""
    return np.uint64(2**64 - 1 >> 64 - width)


# -- truncation ------------------------------------------------------------------------------------


def masked_sum_numpy(
    part: Words, dealt: Words, mask: Words, width: int, shift: int, up: int
) -> Words:
    """NumPy twin of `masked_sum`."""
    half = (part + dealt + np.uint64(up)) & _low(width)
    total: Words = (half >> np.uint64(shift)) + mask
    return total


@kernel("void(in1, in1, in1, uint64, uint64, uint64, uint64[::1])")
def _masked_sum(
    part: Words, dealt: Words, mask: Words, width: Any, shift: Any, up: Any, out: Words
) -> None:
    low = ~np.uint64(0) >> (np.uint64(64) - width)
    for i in range(out.size):
        out[i] = (((part[i] + dealt[i] + up) & low) >> shift) + mask[i]


def _masked_sum_numba(
    part: Words, dealt: Words, mask: Words, width: int, shift: int, up: int
) -> Words:
    """(part + dealt + up mod 2^width) >> shift, plus mask; arrays of one shape; shift < 64."""
    out = np.empty(part.shape, dtype=np.uint64)
    _masked_sum.run(part.ravel(), dealt.ravel(), mask.ravel(), width, shift, up, out.reshape(-1))
    return out


def product_part_numpy(xa: Words, xb: Words, ya: Words, yb: Words, dealer: bool) -> Words:
    """NumPy twin of `product_part`."""
    left = (xb - xa) << _ONE if dealer else xa - (xb << _ONE)
    right = ya - yb if dealer else ya - (yb << _ONE)
    part: Words = left * right
    return part


@kernel("void(in1, in1, in1, in1, boolean, uint64[::1])")
def _product_part(xa: Words, xb: Words, ya: Words, yb: Words, dealer: Any, out: Words) -> None:
    if dealer:
        for i in range(out.size):
            out[i] = ((xb[i] - xa[i]) << _ONE) * (ya[i] - yb[i])
        return
    for i in range(out.size):
        out[i] = (xa[i] - (xb[i] << _ONE)) * (ya[i] - (yb[i] << _ONE))


def _product_part_numba(xa: Words, xb: Words, ya: Words, yb: Words, dealer: bool) -> Words:
    """A party's part of 2 x y, from its two words of each factor; arrays of one shape. See
    `protocols.arithmetic`.
    """
    out = np.empty(xa.shape, dtype=np.uint64)
    _product_part.run(xa.ravel(), xb.ravel(), ya.ravel(), yb.ravel(), dealer, out.reshape(-1))
    return out


# -- lift: Z_2^k to a wider ring -------------------------------------------------------------------


def lift_secrets_numpy(one: Words, two: Words, width: int) -> tuple[Words, Words]:
    """NumPy twin of `lift_secrets`."""
    total = (one & _low(width)) + (two & _low(width))
    return total >> np.uint64(width - 1) & _ONE, total >> np.uint64(width)


@kernel("void(in1, in1, uint64, uint64[::1], uint64[::1])")
def _lift_secrets(one: Words, two: Words, width: Any, msb: Words, carry: Words) -> None:
    mask = ~np.uint64(0) >> (np.uint64(64) - width)
    for i in range(msb.size):
        total = (one[i] & mask) + (two[i] & mask)
        msb[i] = (total >> (width - np.uint64(1))) & np.uint64(1)
        carry[i] = total >> width


def _lift_secrets_numba(one: Words, two: Words, width: int) -> tuple[Words, Words]:
    """The top bit of the sum of two `width`-bit masks, and the sum's carry; width < 64."""
    msb, carry = np.empty(one.shape, np.uint64), np.empty(one.shape, np.uint64)
    _lift_secrets.run(one.ravel(), two.ravel(), width, msb.reshape(-1), carry.reshape(-1))
    return msb, carry


def lift_word_numpy(m: Words, msb: Words, carry: Words, upper: Words, width: int) -> Words:
    """NumPy twin of `lift_word`."""
    zeta = (m + np.uint64(1 << width - 2)) & _low(width)
    word: Words = (_ONE - (zeta >> np.uint64(width - 1))) * msb + carry + upper
    return word


@kernel("void(in1, in1, in1, in1, uint64, uint64[::1])")
def _lift_word(m: Words, msb: Words, carry: Words, upper: Words, width: Any, out: Words) -> None:
    half = np.uint64(1) << (width - np.uint64(2))
    for i in range(out.size):
        wrapped = ((m[i] + half) >> (width - np.uint64(1))) & np.uint64(1)
        out[i] = (np.uint64(1) - wrapped) * msb[i] + carry[i] + upper[i]


def _lift_word_numba(m: Words, msb: Words, carry: Words, upper: Words, width: int) -> Words:
    """(1 - msb(zeta)) * share(msb) + share(carry) + upper for zeta = m + 2^(width-2)."""
    out = np.empty(m.shape, dtype=np.uint64)
    _lift_word.run(m.ravel(), msb.ravel(), carry.ravel(), upper.ravel(), width, out.reshape(-1))
    return out


def joined_numpy(low: Words, offset: int, high: Words, width: int) -> Words:
    """NumPy twin of `joined`."""
    word = (low + np.uint64(offset)) & _low(width)
    whole: Words = word - np.uint64(offset) + (high << np.uint64(width))
    return whole


@kernel("void(in1, uint64, in1, uint64, uint64[::1])")
def _joined(low: Words, offset: Any, high: Words, width: Any, out: Words) -> None:
    mask = ~np.uint64(0) >> (np.uint64(64) - width)
    for i in range(out.size):
        out[i] = ((low[i] + offset) & mask) - offset + (high[i] << width)


def _joined_numba(low: Words, offset: int, high: Words, width: int) -> Words:
    """(low + offset mod 2^width) - offset + high * 2^width; width < 64."""
    out = np.empty(low.shape, dtype=np.uint64)
    _joined.run(low.ravel(), offset, high.ravel(), width, out.reshape(-1))
    return out


def lifted_numpy(low: Words, own: Words, high: Words, upper: Words, width: int) -> Words:
    """NumPy twin of `lifted`."""
    return np.stack(
        [joined_numpy(low, 1 << width - 2, high, width), joined_numpy(own, 0, upper, width)]
    )


@kernel("void(in1, in1, in1, in1, uint64, uint64[:, ::1])")
def _lifted(low: Words, own: Words, high: Words, upper: Words, width: Any, out: Words) -> None:
    mask = ~np.uint64(0) >> (np.uint64(64) - width)
    offset = np.uint64(1) << (width - np.uint64(2))
    for i in range(low.size):
        out[0, i] = ((low[i] + offset) & mask) - offset + (high[i] << width)
        out[1, i] = (own[i] & mask) + (upper[i] << width)


def _lifted_numba(low: Words, own: Words, high: Words, upper: Words, width: int) -> Words:
    """An evaluator's words of a lifted sharing, m and mask, along a new first axis: `joined` of low
    and high with the offset 2^(width-2), and of own and upper.
    """
    out = np.empty((2, *low.shape), dtype=np.uint64)
    _lifted.run(low.ravel(), own.ravel(), high.ravel(), upper.ravel(), width, out.reshape(2, -1))
    return out


# -- products that read a narrow ring --------------------------------------------------------------

Wraps = tuple[Words, Words, Words]
"""An evaluator's shares of the carry of both masks, of the top bit of their sum, and of that bit
times a factor.
"""


def narrow_squares_numpy(m: Words, own: Words, dealt: Wraps, width: int, leads: bool) -> Words:
    """NumPy twin of `narrow_squares`."""
    word, kept = unwrapped(m, width)
    carry, msb, both = (each.reshape(m.shape) for each in dealt)
    part = (word if leads else np.uint64(0)) * word - ((word * (own & _low(width))) << _ONE)
    part += (word * (carry + kept * msb) - kept * both) << np.uint64(width) << _ONE
    if 2 * width < 64:
        part += (kept * msb) << np.uint64(2 * width)
    total: Words = part.sum(axis=-1, dtype=np.uint64)
    return total


@kernel("void(in2, in2, in1, in1, in1, uint64, boolean, uint64[::1])")
def _narrow_squares(
    m: Words, own: Words, carry: Words, msb: Words, both: Words, width: Any, leads: Any, out: Words
) -> None:
    mask = ~np.uint64(0) >> (np.uint64(64) - width)
    half, last = np.uint64(1) << (width - np.uint64(2)), width - np.uint64(1)
    size = m.shape[1]
    for row in range(out.size):
        plain, high, top = np.uint64(0), np.uint64(0), np.uint64(0)
        for i in range(size):
            zeta, at = (m[row, i] + half) & mask, row * size + i
            word, kept = zeta - half, np.uint64(1) - (zeta >> last)
            bit = kept * msb[at]
            plain += (word if leads else np.uint64(0)) * word
            plain -= (word * (own[row, i] & mask)) << _ONE
            high += word * (carry[at] + bit) - kept * both[at]
            top += bit
        out[row] = plain + ((high << width) << _ONE)
        if width < np.uint64(32):
            out[row] += top << (width + width)


def _narrow_squares_numba(m: Words, own: Words, dealt: Wraps, width: int, leads: bool) -> Words:
    """An evaluator's part of the sum of squares of each row of x over Z_2^width, modulo 2^64.

    Args:
        m, own: (rows, n), the public word and the evaluator's mask; width < 64.
        dealt: for the factor L, the sum of both masks.
    """
    out = np.empty(m.shape[0], dtype=np.uint64)
    _narrow_squares.run(m, own, *map(flat, dealt), width, leads, out)
    return out


def narrow_product_numpy(
    m: Words, own: Words, dealt: Wraps, y: Words, y_own: Words, width: int, leads: bool
) -> Words:
    """NumPy twin of `narrow_product`."""
    word, kept = unwrapped(m, width)
    carry, msb, both = (each.reshape(m.shape) for each in dealt)
    known = (word if leads else np.uint64(0)) - (own & _low(width))
    part: Words = known * y - word * y_own
    part += ((carry + kept * msb) * y - kept * both) << np.uint64(width)
    return part


@kernel("void(in1, in1, in1, in1, in1, in1, in1, uint64, boolean, uint64[::1])")
def _narrow_product(
    m: Words, own: Words, carry: Words, msb: Words, both: Words, y: Words, y_own: Words,
    width: Any, leads: Any, out: Words,
) -> None:  # fmt: skip
    mask = ~np.uint64(0) >> (np.uint64(64) - width)
    half, last = np.uint64(1) << (width - np.uint64(2)), width - np.uint64(1)
    for i in range(out.size):
        zeta = (m[i] + half) & mask
        word, kept = zeta - half, np.uint64(1) - (zeta >> last)
        known = (word if leads else np.uint64(0)) - (own[i] & mask)
        high = (carry[i] + kept * msb[i]) * y[i] - kept * both[i]
        out[i] = known * y[i] - word * y_own[i] + (high << width)


def _narrow_product_numba(
    m: Words, own: Words, dealt: Wraps, y: Words, y_own: Words, width: int, leads: bool
) -> Words:
    """An evaluator's part of x y, for x over Z_2^width and y over Z_2^64; all flat.

    Args:
        m, own, y, y_own: the public words and the evaluator's masks of both factors; width < 64.
        dealt: for the factor y's mask.
    """
    out = np.empty(m.size, dtype=np.uint64)
    _narrow_product(m, own, *map(flat, dealt), y, y_own, width, leads, out)
    return out


def unwrapped(m: Words, width: int) -> tuple[Words, Words]:
    """The public word as an integer from -2^(width-2) on, and where its top bit is not set."""
    half = np.uint64(1 << width - 2)
    zeta = (m + half) & _low(width)
    return zeta - half, _ONE - (zeta >> np.uint64(width - 1))


# -- comparison and selection ----------------------------------------------------------------------


def windows_numpy(words: Words, cuts: Words, width: int, shift: int, bits: int) -> Words:
    """NumPy twin of `windows`."""
    moved = ((words.reshape(-1, 1) - cuts) & _low(width)) >> np.uint64(shift)
    kept: Words = moved & _low(bits)
    return kept


@kernel("void(in1, in1, uint64, uint64, uint64, uint64[::1])")
def _windows(words: Words, cuts: Words, width: Any, shift: Any, bits: Any, out: Words) -> None:
    mask = (~np.uint64(0) >> (np.uint64(64) - width)) >> shift
    mask &= ~np.uint64(0) >> (np.uint64(64) - bits)
    if cuts.size == 1:
        for i in range(words.size):
            out[i] = ((words[i] - cuts[0]) >> shift) & mask
        return
    for i in range(words.size):
        for k in range(cuts.size):
            out[i * cuts.size + k] = ((words[i] - cuts[k]) >> shift) & mask


def _windows_numba(words: Words, cuts: Words, width: int, shift: int, bits: int) -> Words:
    """Bits shift .. shift + bits - 1 of words - cut modulo 2^width: (words.size, cuts.size)."""
    out = np.empty((words.size, cuts.size), dtype=np.uint64)
    _windows.run(words.ravel(), cuts, width, shift, bits, out.reshape(-1))
    return out


def add_twice_numpy(one: Words, two: Words, out: Words) -> None:
    """NumPy twin of `add_twice`."""
    np.add(two, two, out=out)
    out += one


@kernel("void(in1, in1, uint64[::1])")
def _add_twice(one: Words, two: Words, out: Words) -> None:
    for i in range(out.size):
        out[i] = one[i] + two[i] + two[i]


def _add_twice_numba(one: Words, two: Words, out: Words) -> None:
    """Set out to one + 2 two; all are flat and of one size."""
    _add_twice.run(one, two, out)


def joined_factor_numpy(high: Half, one: Half, two: Half, dealer: bool, out: Words) -> None:
    """NumPy twin of `joined_factor`."""
    low = one - two if dealer else one - (two << np.uint32(1))
    np.left_shift(high, np.uint64(32), out=out, dtype=np.uint64)
    out |= low


@kernel("void(in1_32, in1_32, in1_32, boolean, uint64[::1])")
def _joined_factor(high: Half, one: Half, two: Half, dealer: Any, out: Words) -> None:
    times = np.uint32(1) if dealer else np.uint32(2)
    for i in range(out.size):
        low = np.uint32(one[i] - times * two[i])
        out[i] = np.uint64(high[i]) << np.uint64(32) | np.uint64(low)


def _joined_factor_numba(high: Half, one: Half, two: Half, dealer: bool, out: Words) -> None:
    """Set out to words with these high 32 bits. The low ones are those of one - two at the dealer,
    of one - 2 two at an evaluator. All are flat and of one size.
    """
    _joined_factor.run(high, one, two, dealer, out)


def flat(words: Words) -> Words:
    """A contiguous one-dimensional view or copy."""
    return words.ravel()


_NUMBA = MODE == "numba"
masked_sum = _masked_sum_numba if _NUMBA else masked_sum_numpy
product_part = _product_part_numba if _NUMBA else product_part_numpy
lift_secrets = _lift_secrets_numba if _NUMBA else lift_secrets_numpy
lift_word = _lift_word_numba if _NUMBA else lift_word_numpy
joined = _joined_numba if _NUMBA else joined_numpy
narrow_squares = _narrow_squares_numba if _NUMBA else narrow_squares_numpy
narrow_product = _narrow_product_numba if _NUMBA else narrow_product_numpy
lifted = _lifted_numba if _NUMBA else lifted_numpy
windows = _windows_numba if _NUMBA else windows_numpy
add_twice = _add_twice_numba if _NUMBA else add_twice_numpy
joined_factor = _joined_factor_numba if _NUMBA else joined_factor_numpy
