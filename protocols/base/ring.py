"""The ring Z_2^k and fixed-point numbers in it.

A ring element of width `k` (1..64) is the low `k` bits of a uint64 word; the bits above them are
ignored until a shift or a message needs the canonical form. A fixed-point number with `f` fraction
bits is `round(x * 2^f) mod 2^k`.
"""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from protocols.errors import RangeError

Words: TypeAlias = NDArray[np.uint64]
Bytes: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.floating[Any]]

RING_BITS = 64
FRACTION_BITS = 18
"""Fraction bits of activations, as in PUMA (arXiv 2307.12533, section 5.1)."""
RESIDUAL_BITS = 22
"""Fraction bits of the residual stream and the embedding, which start near 0.1. Finer is cheaper
here: a product is truncated by less, so fewer bits are lifted.
"""
WEIGHT_BITS = 20
"""Fraction bits of weights. A product with an activation then reaches 2^(61 - 38) = 2^23."""


_MASKS = tuple(np.uint64((1 << width) - 1) for width in range(RING_BITS + 1))


_ZERO = bytes(8)
_CHUNK = 1 << 15


def zero_words(shape: tuple[int, ...]) -> Words:
    """Zeros that take no memory and cannot be written to."""
    return np.ndarray(shape, np.uint64, _ZERO, strides=(0,) * len(shape))


def bit_mask(width: int) -> np.uint64:
    """The word whose low `width` bits are set (0 <= width <= 64)."""
    return _MASKS[width]


def canonical(words: Words, width: int) -> Words:
    """The low `width` bits of every word."""
    return words if width >= RING_BITS else words & _MASKS[width]


def shift_left(words: Words, bits: int) -> Words:
    """`words * 2^bits` modulo 2^64 (0 for 64 and more)."""
    if bits >= RING_BITS:
        return np.zeros_like(words)
    return words << np.uint64(bits)


def shift_right(words: Words, bits: int, width: int) -> Words:
    """The canonical `width`-bit words shifted right, filling with zeros."""
    return canonical(words, width) >> np.uint64(bits)


def signed(words: Words, width: int = RING_BITS) -> NDArray[np.int64]:
    """Two's complement value of `width`-bit words."""
    up = np.uint64(RING_BITS - width)
    return (words << up).view(np.int64) >> np.int64(RING_BITS - width)


def encode(values: Floats | float, frac: int = FRACTION_BITS, width: int = RING_BITS) -> Words:
    """Fixed-point words of float `values`, rounded to the nearest.

    Raises:
        RangeError: a value is not finite or does not fit `width` bits.
    """
    given = np.asarray(values)
    out = np.empty(given.shape, dtype=np.uint64)
    source, target = given.reshape(-1), out.reshape(-1)
    limit = 2.0 ** (width - 1)
    for start in range(0, source.size, _CHUNK):  # in chunks that stay in the cache
        piece = source[start : start + _CHUNK]
        scaled = np.rint(np.multiply(piece, 2.0**frac, dtype=np.float64))
        if not np.abs(scaled).max() < limit:
            worst = float(piece[int(np.argmax(np.abs(scaled)))])
            raise RangeError(
                f"{worst!r} does not fit a {width}-bit ring with {frac} fraction bits: "
                f"values must stay below {limit / 2.0**frac:g}"
            )
        target[start : start + _CHUNK] = scaled.astype(np.int64).view(np.uint64)
    return canonical(out, width)


def decode(words: Words, frac: int = FRACTION_BITS, width: int = RING_BITS) -> NDArray[np.float64]:
    """Float values of fixed-point `words`."""
    return signed(np.ascontiguousarray(words), width).astype(np.float64) * 2.0**-frac


def packed_bytes(count: int, width: int) -> int:
    """Bytes on the wire of `count` ring elements of `width` bits."""
    return (count * width + 7) // 8
