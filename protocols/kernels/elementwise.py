"""Elementwise operations on ring words, each in one pass and without the GIL."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocols.kernels.jit import MODE, Words, kernel

Half = NDArray[np.uint32]
Moves = NDArray[np.int64]
_ONE = np.uint64(1)


def _low(width: Any) -> Any:
    """The word whose low `width` bits (1..64) are set."""
    return np.uint64(2**64 - 1 >> 64 - width)


# -- truncation ------------------------------------------------------------------------------------


def masked_sum_numpy(part: Words, mask: Words, shift: int, dealt: Words) -> Words:
    """NumPy twin of `masked_sum`."""
    total: Words = part + (mask << np.uint64(shift)) + dealt
    return total


@kernel("void(in1, in1, uint64, in1, uint64[::1])")
def _masked_sum(part: Words, mask: Words, shift: Any, dealt: Words, out: Words) -> None:
    for i in range(out.size):
        out[i] = part[i] + (mask[i] << shift) + dealt[i]


def _masked_sum_numba(part: Words, mask: Words, shift: int, dealt: Words) -> Words:
    """part + mask * 2^shift + dealt, of one shape; shift < 64."""
    out = np.empty(part.shape, dtype=np.uint64)
    _masked_sum.run(part.ravel(), mask.ravel(), shift, dealt.ravel(), out.reshape(-1))
    return out


def rounded_numpy(opened: Words, width: int, shift: int) -> Words:
    """NumPy twin of `rounded`."""
    moved = (opened + np.uint64(1 << width - 2)) & _low(width)
    down: Words = (moved >> np.uint64(shift)) - np.uint64(1 << width - 2 - shift)
    return down


@kernel("void(in1, uint64, uint64, uint64[::1])")
def _rounded(opened: Words, width: Any, shift: Any, out: Words) -> None:
    mask = ~np.uint64(0) >> (np.uint64(64) - width)
    half = np.uint64(1) << (width - np.uint64(2))
    less = half >> shift
    for i in range(out.size):
        out[i] = (((opened[i] + half) & mask) >> shift) - less


def _rounded_numba(opened: Words, width: int, shift: int) -> Words:
    """The signed `width`-bit words shifted right: (x + 2^(width-2) mod 2^width) >> shift, less the
    offset."""
    out = np.empty(opened.shape, dtype=np.uint64)
    _rounded.run(opened.ravel(), width, shift, out.reshape(-1))
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


def aligned_numpy(words: Words, moves: Moves, half: bool, width: int, bits: int) -> Words:
    """NumPy twin of `aligned`."""
    out = np.empty((words.size, moves.size), dtype=np.uint64)
    for place, move in enumerate(moves.tolist()):
        if move > 0:
            low = np.uint64(1 << (move - 1) if half else 0)
            moved = ((words - low) & _low(width)) >> np.uint64(move)
        else:
            moved = words << np.uint64(-move)
        out[:, place] = moved & _low(bits)
    return out


@kernel("void(in1, int64[::1], boolean, uint64, uint64, uint64[:, ::1])")
def _aligned(words: Words, moves: Any, half: Any, width: Any, bits: Any, out: Words) -> None:
    ring = ~np.uint64(0) >> (np.uint64(64) - width)
    kept = ~np.uint64(0) >> (np.uint64(64) - bits)
    for i in range(words.size):
        for j in range(moves.size):
            move = np.uint64(abs(moves[j]))
            if moves[j] > 0:
                low = (_ONE << (move - _ONE)) if half else np.uint64(0)
                out[i, j] = (((words[i] - low) & ring) >> move) & kept
            else:
                out[i, j] = (words[i] << move) & kept


def _aligned_numba(words: Words, moves: Moves, half: bool, width: int, bits: int) -> Words:
    """Words of `width` bits shifted right by every one of `moves` (below 0: left), to `bits` bits.

    Args:
        words: (n,). moves: (count,), above -64 and below `width`.
        half: half a unit of the result is taken off before a shift to the right.

    Returns:
        (n, count).
    """
    out = np.empty((words.size, moves.size), dtype=np.uint64)
    _aligned.run(words, moves, half, width, bits, out)
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
rounded = _rounded_numba if _NUMBA else rounded_numpy
lift_secrets = _lift_secrets_numba if _NUMBA else lift_secrets_numpy
lift_word = _lift_word_numba if _NUMBA else lift_word_numpy
joined = _joined_numba if _NUMBA else joined_numpy
lifted = _lifted_numba if _NUMBA else lifted_numpy
windows = _windows_numba if _NUMBA else windows_numpy
aligned = _aligned_numba if _NUMBA else aligned_numpy
add_twice = _add_twice_numba if _NUMBA else add_twice_numpy
joined_factor = _joined_factor_numba if _NUMBA else joined_factor_numpy
