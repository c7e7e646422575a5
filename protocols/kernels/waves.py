"""Harmonics of a masked angle: cosines and sines of its multiples, in whole numbers.

Both evaluators multiply their halves by the same public cosines, so these must be equal to the last
bit on every machine: all of it is integer arithmetic, starting from integer square roots.
"""

from functools import cache
from math import isqrt
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from protocols.kernels.jit import MODE, Words, kernel

Ints: TypeAlias = NDArray[np.int64]
Turns: TypeAlias = NDArray[np.int32]

UNIT_BITS = 30
"""Fraction bits of a cosine; a product of two fits a signed word."""
EXACT_BITS = 96
"""Fraction bits while tables are computed."""
_HALF = 1 << UNIT_BITS - 1
_ABREAST = 256
"""Elements that are turned side by side."""


@cache
def roots(bits: int) -> Ints:
    """Cosine and sine of every angle of `bits` bits, as the product of two tables.

    Returns:
        (4, 2^ceil(bits/2)): cosine and sine of the upper half of the bits, then of the lower half.
    """
    low = bits // 2
    table = np.zeros((4, 1 << bits - low), dtype=np.int64)
    table[:2] = _turns(bits - low, bits - low)
    table[2:, : 1 << low] = _turns(bits, low)
    return table


def _turns(bits: int, count_bits: int) -> Ints:
    points = turns(bits, 1 << count_bits)
    down = EXACT_BITS - UNIT_BITS
    return np.array([[rounded(x, down), rounded(y, down)] for x, y in points], dtype=np.int64).T


def turns(bits: int, count: int) -> list[tuple[int, int]]:
    """Cosine and sine of j / 2^bits of a turn for j below `count`, with `EXACT_BITS` fraction
    bits; off by less than count * 2^(bits - 96).
    """
    one = 1 << EXACT_BITS
    c, s = -one, 0  # half a turn, halved until it is 2^-bits of one
    for _ in range(bits - 1):
        c, s = isqrt((one + c) * one >> 1), isqrt((one - c) * one >> 1)
    points = []
    x, y = one, 0
    for _ in range(count):
        points.append((x, y))
        x, y = (x * c - y * s) >> EXACT_BITS, (x * s + y * c) >> EXACT_BITS
    return points


def rounded(value: int, bits: int) -> int:
    """value / 2^bits to the nearest integer, halves up."""
    return (value + (1 << bits >> 1)) >> bits


def _mask(bits: int) -> np.uint64:
    return np.uint64((1 << bits) - 1)


def _first(words: Words, bits: int) -> tuple[Ints, Ints]:
    table, low = roots(bits), bits // 2
    upper = ((words & _mask(bits)) >> np.uint64(low)).astype(np.intp)
    lower = (words & _mask(low)).astype(np.intp)
    c, s, d, t = table[0, upper], table[1, upper], table[2, lower], table[3, lower]
    return (c * d - s * t + _HALF) >> UNIT_BITS, (c * t + s * d + _HALF) >> UNIT_BITS


def harmonics_numpy(words: Words, bits: int, count: int, frac: int) -> Words:
    """NumPy twin of `harmonics`."""
    first = _first(words, bits)
    c, s = first
    out = np.empty((2 * count, words.size), dtype=np.uint64)
    down = UNIT_BITS - frac
    half = (1 << down) >> 1
    for k in range(count):
        for place, part in enumerate((c, s), 2 * k):
            out[place] = ((part + half) >> down).view(np.uint64)
        c, s = _turned(c, s, first)
    return out


def _turned(c: Ints, s: Ints, by: tuple[Ints, Ints]) -> tuple[Ints, Ints]:
    return (c * by[0] - s * by[1] + _HALF) >> UNIT_BITS, (
        c * by[1] + s * by[0] + _HALF
    ) >> UNIT_BITS


@kernel()
def _begin(words: Words, table: Any, bits: Any, one: Turns, now: Turns) -> None:
    """The turns by the angles `words`, twice. Of 32 bits, so that a vector instruction multiplies
    four of them.
    """
    low = bits // np.uint64(2)
    for j in range(words.size):
        upper = (words[j] & ((np.uint64(1) << bits) - np.uint64(1))) >> low
        lower = words[j] & ((np.uint64(1) << low) - np.uint64(1))
        a, b, c, d = table[0, upper], table[1, upper], table[2, lower], table[3, lower]
        now[0, j] = one[0, j] = (a * c - b * d + _HALF) >> UNIT_BITS
        now[1, j] = one[1, j] = (a * d + b * c + _HALF) >> UNIT_BITS


@kernel()
def _turn(one: Turns, now: Turns, count: int) -> None:
    """Turn the first `count` of `now` by `one`."""
    for j in range(count):
        a, b = np.int64(now[0, j]), np.int64(now[1, j])
        c, d = np.int64(one[0, j]), np.int64(one[1, j])
        now[0, j] = (a * c - b * d + _HALF) >> UNIT_BITS
        now[1, j] = (a * d + b * c + _HALF) >> UNIT_BITS


@kernel("void(in1, int64[:, ::1], uint64, int64, int64, uint64[:, ::1])")
def _harmonics(words: Words, table: Any, bits: Any, count: Any, down: Any, out: Words) -> None:
    half = (np.int64(1) << down) >> np.int64(1)
    one, now = np.empty((2, _ABREAST), np.int32), np.empty((2, _ABREAST), np.int32)
    for lo in range(0, words.size, _ABREAST):
        part = words[lo : lo + _ABREAST]
        _begin(part, table, bits, one, now)
        for k in range(count):
            for side in range(2):
                row = out[2 * k + side, lo : lo + part.size]
                for j in range(part.size):
                    row[j] = np.uint64((np.int64(now[side, j]) + half) >> down)
            _turn(one, now, part.size)


def _harmonics_numba(words: Words, bits: int, count: int, frac: int) -> Words:
    """cos and sin of k a, k = 1 .. count, for flat angles a in 2^-bits of a turn.

    Returns:
        (2 count, n) signed words with `frac` (at most 30) fraction bits: cos, sin, cos 2a, sin 2a..
    """
    out = np.empty((2 * count, words.size), dtype=np.uint64)
    _harmonics.run(words, roots(bits), bits, count, UNIT_BITS - frac, out)
    return out


def combined_numpy(words: Words, bits: int, weights: Ints, shares: Words, down: int) -> Words:
    """NumPy twin of `combined`."""
    first = _first(words, bits)
    c, s = first
    total = np.zeros(words.size, dtype=np.uint64)
    half = (1 << down) >> 1
    for k, (w, v) in enumerate(weights.T):
        for place, factor in enumerate((w * c + v * s, w * s - v * c), 2 * k):
            total += ((factor + half) >> down).view(np.uint64) * shares[place]
        c, s = _turned(c, s, first)
    return total


@kernel()
def _add_wave(
    now: Turns, w: np.int32, v: np.int32, down: Any, one: Words, two: Words, out: Words
) -> None:
    """Add the wave's two products to `out`, all of one length."""
    half = (np.int64(1) << down) >> np.int64(1)
    for j in range(out.size):
        c, s = np.int64(now[0, j]), np.int64(now[1, j])
        first = (np.int64(w) * c + np.int64(v) * s + half) >> down
        second = (np.int64(w) * s - np.int64(v) * c + half) >> down
        out[j] += np.uint64(first) * one[j] + np.uint64(second) * two[j]


@kernel("void(in1, int64[:, ::1], uint64, int64[:, ::1], in2, int64, uint64[::1])")
def _combined(
    words: Words,
    table: Any,
    bits: Any,
    weights: Any,
    shares: Words,
    down: Any,
    out: Words,
) -> None:
    out[:] = 0
    one, now = np.empty((2, _ABREAST), np.int32), np.empty((2, _ABREAST), np.int32)
    for lo in range(0, words.size, _ABREAST):
        part = words[lo : lo + _ABREAST]
        hi = lo + part.size
        _begin(part, table, bits, one, now)
        for k in range(weights.shape[1]):
            w, v = np.int32(weights[0, k]), np.int32(weights[1, k])
            dealt = shares[2 * k, lo:hi], shares[2 * k + 1, lo:hi]
            _add_wave(now, w, v, down, dealt[0], dealt[1], out[lo:hi])
            _turn(one, now, part.size)


def _combined_numba(words: Words, bits: int, weights: Ints, shares: Words, down: int) -> Words:
    """Sum over k of w_k (C_k cos k a + S_k sin k a) + v_k (C_k sin k a - S_k cos k a).

    Args:
        words: (n,) angles a in 2^-bits of a turn.
        weights: (2, count) w and v, of 32 signed bits each.
        shares: (2 count, n) words C_1, S_1, C_2 ...
        down: bits dropped from a factor of a share before it meets it.
    """
    out = np.empty(words.size, dtype=np.uint64)
    whole = np.ascontiguousarray(shares)
    _combined.run(words, roots(bits), bits, weights, whole, down, out)
    return out


_NUMBA = MODE == "numba"
harmonics = _harmonics_numba if _NUMBA else harmonics_numpy
combined = _combined_numba if _NUMBA else combined_numpy
