"""Fraction bits of rotary angles, and what rounding them does to the size of a head's entries."""

import math

import numpy as np
from numpy.typing import NDArray

from models.programs.plan import MAX_ROPE_FRAC, MAX_VALUE_DROP
from protocols.arithmetic import PRODUCT_BITS
from protocols.base.ring import WEIGHT_BITS
from protocols.errors import RangeError

Vector = NDArray[np.float64]

MIN_ROPE_FRAC = 8
_ENOUGH_ROPE_FRAC, _LEAST_BESIDE_VALUES = 16, 12
"""Large values give up fraction bits until angles have the first number of bits; angles must keep
at least the second. The error of an angle is multiplied by the score.
"""


def product_limit(frac: int) -> float:
    """The limit on products of a weight and an input with `frac` fraction bits. As integers they
    must be below 2^61, since twice the product is computed (`protocols.arithmetic`).
    """
    return 2.0 ** (PRODUCT_BITS - frac - WEIGHT_BITS)


def turn_factor(frac: int) -> float:
    """The factor by which a rotation can stretch a row. Sines and cosines rounded to `frac`
    fraction bits (0: no rotation) are each off by up to 2^-(frac + 1).
    """
    return 1.0 + 2.0**-frac if frac > 0 else 1.0


def largest_pair(sizes: Vector, size: int) -> float:
    """Largest entry after any rotation, which mixes entries half a head apart."""
    pairs = sizes.reshape(-1, 2, size // 2)
    return float(np.hypot(pairs[:, 0], pairs[:, 1]).max())


def rope_bits(name: str, frac: int, pair: float, value: float) -> tuple[int, int]:
    """Fraction bits of rotary angles, and the number of bits that values give up for them.

    Rotated entries are at most `pair`, values at most `value`.
    """
    turned, held = (
        PRODUCT_BITS - frac - WEIGHT_BITS - math.ceil(math.log2(max(size, 1.0)))
        for size in (pair, value)
    )
    turned -= pair * turn_factor(turned) * 2.0**turned >= product_limit(frac)
    drop = min(MAX_VALUE_DROP, max(0, min(turned, _ENOUGH_ROPE_FRAC) - held))
    found = min(turned, held + drop, MAX_ROPE_FRAC)
    for what, bits, least, largest in (
        ("query or key", found, MIN_ROPE_FRAC, pair),
        ("value", held + drop, min(turned, _LEAST_BESIDE_VALUES), value),
    ):
        if bits < least:
            raise RangeError(
                f"{name}: a {what} can reach {largest:.3g}, which leaves {bits} bits for rotary "
                f"angles, but {least} are needed: the weights are too large"
            )
    return found, drop
