"""Public numbers that are the same on every machine: made from integers and decimals.

The numbers that both evaluators multiply by must be equal to the last bit, or their halves do not
add up. Linear algebra libraries, the C library's functions and NumPy's vectorised ones round
differently on different processors. Python's integers and decimals do not. Neither do single
float64 sums, products, quotients, square roots and roundings, which IEEE 754 defines exactly.
"""

from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from functools import cache

import numpy as np
from numpy.typing import NDArray

from protocols.base.ring import Words
from protocols.kernels.waves import EXACT_BITS, Ints, rounded, turns

PRECISE = Context(prec=60, rounding=ROUND_HALF_EVEN)
"""For `decimal.localcontext`: 60 digits, whatever the caller's context is."""
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
COSINE_BITS = 52
"""Fraction bits of a cosine."""
_BITS = 60  # fraction bits while it is computed; products are computed from halves of 30 bits
_HALF = np.int64(_BITS // 2)
_LOW = np.int64((1 << _BITS // 2) - 1)
_TABLE_BITS = 10
_REST_BITS = 64 - _TABLE_BITS


def inverse_root(number: int) -> float:
    """1 / sqrt(number), rounded once."""
    with localcontext(PRECISE):
        return float(1 / Decimal(number).sqrt())


def cosines(angles: Words) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosine and sine of angles in 2^-64 of a turn: multiples of 2^-52, off by less than that.

    The upper 10 bits, rounded, are looked up; two polynomials add the rotation by the rest.
    """
    place = (angles + np.uint64(1 << _REST_BITS - 1)) >> np.uint64(_REST_BITS)
    rest = (angles - (place << np.uint64(_REST_BITS))).view(np.int64)
    index = place.astype(np.intp)
    table = cosine_table()
    c, s = table[0, index], table[1, index]
    x = _times(rest, _eighth_of_pi())  # |x| < 2^-8.3, in radians
    one, square = np.int64(1 << _BITS), _times(x, x)
    sine = _times(x, one - _times(square, one - square // 20) // 6)
    cosine = one - _times(square, one - _times(square, one - square // 30) // 12) // 2
    return (
        _float(_times(c, cosine) - _times(s, sine)),
        _float(_times(s, cosine) + _times(c, sine)),
    )


@cache
def cosine_table() -> Ints:
    """(2, 1024): cosine and sine of every 2^-10 of a turn, with 60 fraction bits."""
    down = EXACT_BITS - _BITS
    points = turns(_TABLE_BITS, 1 << _TABLE_BITS)
    return np.array([[rounded(part, down) for part in point] for point in points], dtype=np.int64).T


@cache
def _eighth_of_pi() -> np.int64:
    """The factor from 2^-64 of a turn to radians with 60 fraction bits."""
    with localcontext(PRECISE):
        return np.int64(int(PI / 8 * (1 << _BITS)))


def _times(a: Ints, b: Ints | np.int64) -> Ints:
    """a * b / 2^60, rounded down, for factors up to 2^60 in size; off by two units at most."""
    a_high, a_low, b_high, b_low = a >> _HALF, a & _LOW, b >> _HALF, b & _LOW
    middle: Ints = (a_high * b_low + a_low * b_high) >> _HALF
    return a_high * b_high + middle


def _float(values: Ints) -> NDArray[np.float64]:
    down = _BITS - COSINE_BITS
    nearest = (values + np.int64(1 << down - 1)) >> np.int64(down)
    return nearest.astype(np.float64) * (1.0 / (1 << COSINE_BITS))
