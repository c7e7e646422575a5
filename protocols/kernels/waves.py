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


def first_turns_numpy(words: Words, bits: int) -> Turns:
    """NumPy twin of `first_turns`."""
    table, low = roots(bits), bits // 2
    upper = ((words & _mask(bits)) >> np.uint64(low)).astype(np.intp)
    lower = (words & _mask(low)).astype(np.intp)
    first = _product(table[:2, upper], table[2:, lower])
    return np.concatenate([first, first]).astype(np.int32)


def _product(one: Ints, two: Ints) -> Ints:
    """Two turns after each other."""
    (a, b), (c, d) = one, two
    return np.stack([a * c - b * d + _HALF, a * d + b * c + _HALF]) >> UNIT_BITS


def _turn_numpy(turns: Turns) -> None:
    now = turns.astype(np.int64)
    turns[2:] = _product(now[2:], now[:2])


@kernel("void(in1, int64[:, ::1], uint64, int32[:, ::1])")
def _first_turns(words: Words, table: Any, bits: Any, turns: Turns) -> None:
    low = bits // np.uint64(2)
    for j in range(words.size):
        upper = (words[j] & ((np.uint64(1) << bits) - np.uint64(1))) >> low
        lower = words[j] & ((np.uint64(1) << low) - np.uint64(1))
        a, b, c, d = table[0, upper], table[1, upper], table[2, lower], table[3, lower]
        turns[0, j] = turns[2, j] = (a * c - b * d + _HALF) >> UNIT_BITS
        turns[1, j] = turns[3, j] = (a * d + b * c + _HALF) >> UNIT_BITS


def _first_turns_numba(words: Words, bits: int) -> Turns:
    """Turns by flat angles a in 2^-bits of a turn, from which the waves are made one by one.

    Returns:
        (4, n): cos a, sin a, and the same of the next wave, which is the first. Of 32 bits, so that
        a vector instruction multiplies four of them.
    """
    turns = np.empty((4, words.size), dtype=np.int32)
    _first_turns.run(words, roots(bits), bits, turns)
    return turns


@kernel()
def _turn(a0: Turns, b0: Turns, now_a: Turns, now_b: Turns) -> None:
    """Go on to the next wave."""
    for j in range(now_a.size):
        a, b = np.int64(now_a[j]), np.int64(now_b[j])
        c, d = np.int64(a0[j]), np.int64(b0[j])
        now_a[j] = (a * c - b * d + _HALF) >> UNIT_BITS
        now_b[j] = (a * d + b * c + _HALF) >> UNIT_BITS


def harmonics_numpy(turns: Turns, count: int, frac: int) -> Words:
    """NumPy twin of `harmonics`."""
    out = np.empty((2 * count, turns.shape[1]), dtype=np.uint64)
    down = UNIT_BITS - frac
    for k in range(count):
        rounding = turns[2:].astype(np.int64) + ((1 << down) >> 1)
        out[2 * k : 2 * k + 2] = (rounding >> down).view(np.uint64)
        _turn_numpy(turns)
    return out


@kernel("void(int32[:, ::1], int64, uint64[:, ::1])")
def _harmonics(turns: Turns, down: Any, out: Words) -> None:
    half = (np.int64(1) << down) >> np.int64(1)
    for lo in range(0, out.shape[1], _ABREAST):
        hi = min(lo + _ABREAST, out.shape[1])
        a, b, c, s = turns[0, lo:hi], turns[1, lo:hi], turns[2, lo:hi], turns[3, lo:hi]
        for k in range(out.shape[0] // 2):
            one, two = out[2 * k, lo:hi], out[2 * k + 1, lo:hi]
            for j in range(hi - lo):
                one[j] = np.uint64((np.int64(c[j]) + half) >> down)
                two[j] = np.uint64((np.int64(s[j]) + half) >> down)
            _turn(a, b, c, s)


def _harmonics_numba(turns: Turns, count: int, frac: int) -> Words:
    """cos and sin of the next `count` waves; `turns` go on to those after them.

    Returns:
        (2 count, n) signed words with `frac` (at most 30) fraction bits: cos, sin, cos, sin ...
    """
    out = np.empty((2 * count, turns.shape[1]), dtype=np.uint64)
    _harmonics.run(turns, UNIT_BITS - frac, out)
    return out


def add_waves_numpy(
    turns: Turns, weights: Ints, shares: Words, down: int, drop: int, out: Words
) -> None:
    """NumPy twin of `add_waves`."""
    for k, (w, v) in enumerate(weights.T):
        c, s = turns[2:].astype(np.int64)
        for place, factor in enumerate((w * c + v * s, w * s - v * c), 2 * k):
            whole = (factor + ((1 << down) >> 1)) >> down
            out += (whole.view(np.uint64) << np.uint64(drop)) * shares[place]
        _turn_numpy(turns)


@kernel()
def _add_wave(
    c: Turns, s: Turns, w: Any, v: Any, down: Any, drop: Any, one: Words, two: Words, out: Words
) -> None:
    """Add a wave's two products to `out`, all of one length."""
    half = (np.int64(1) << down) >> np.int64(1)
    for j in range(out.size):
        cos, sin = np.int64(c[j]), np.int64(s[j])
        first = (np.int64(w) * cos + np.int64(v) * sin + half) >> down
        second = (np.int64(w) * sin - np.int64(v) * cos + half) >> down
        out[j] += (np.uint64(first) * one[j] + np.uint64(second) * two[j]) << drop


@kernel("void(int32[:, ::1], int64[:, ::1], in2, int64, uint64, uint64[::1])")
def _add_waves(turns: Turns, weights: Any, shares: Words, down: Any, drop: Any, out: Words) -> None:
    for lo in range(0, out.size, _ABREAST):
        hi = min(lo + _ABREAST, out.size)
        a, b, c, s = turns[0, lo:hi], turns[1, lo:hi], turns[2, lo:hi], turns[3, lo:hi]
        for k in range(weights.shape[1]):
            w, v = np.int32(weights[0, k]), np.int32(weights[1, k])
            one, two = shares[2 * k, lo:hi], shares[2 * k + 1, lo:hi]
            _add_wave(c, s, w, v, down, drop, one, two, out[lo:hi])
            _turn(a, b, c, s)


def _add_waves_numba(
    turns: Turns, weights: Ints, shares: Words, down: int, drop: int, out: Words
) -> None:
    """Add the sum over the next waves of w (C cos + S sin) + v (C sin - S cos), times 2^drop.

    Args:
        turns: at the first of the waves; they go on to the one after the last.
        weights: (2, count) w and v, of 32 signed bits each.
        shares: (2 count, n) words C, S, C, S ...
        down: bits dropped from a factor of a share before it meets it.
        out: (n,).
    """
    _add_waves.run(turns, np.ascontiguousarray(weights), shares, down, drop, out)


_NUMBA = MODE == "numba"
first_turns = _first_turns_numba if _NUMBA else first_turns_numpy
harmonics = _harmonics_numba if _NUMBA else harmonics_numpy
add_waves = _add_waves_numba if _NUMBA else add_waves_numpy
