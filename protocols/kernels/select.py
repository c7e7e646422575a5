"""Kernels for a selection by shared bits: what the dealer shares, and an evaluator's part.

A term is the product of k bits times a word. For every nonempty subset S of the bits, the dealer
shares two words: r_S, the product of the masks in S, and r_S times the mask of the word.

Arrays: bits (terms, k, n) bytes 0/1; y, lam, own (terms, n) words; dealt (terms, 2 (2^k - 1), n).
"""

from typing import Any

import numpy as np

from protocols.kernels.jit import MODE, Bytes, Words, kernel

_ONE = np.uint64(1)


def select_secrets_numpy(masks: Bytes, lam: Words) -> Words:
    """NumPy twin of `select_secrets`."""
    terms, k, n = masks.shape
    out = np.empty((terms, 2 * ((1 << k) - 1), n), dtype=np.uint64)
    for subset in range(1, 1 << k):
        places = [place for place in range(k) if subset >> place & 1]
        product = masks[:, places].prod(axis=1, dtype=np.uint64)
        out[:, 2 * subset - 2], out[:, 2 * subset - 1] = product, product * lam
    return out


@kernel("void(in1_8, in2, int64, uint64[:, :, ::1])")
def _select_secrets(masks: Bytes, lam: Words, k: int, out: Words) -> None:
    terms, n = lam.shape
    for t in range(terms):
        for subset in range(1, 1 << k):
            for i in range(n):
                product = np.uint8(1)
                for place in range(k):
                    if subset >> place & 1:
                        product &= masks[(t * k + place) * n + i]
                out[t, 2 * subset - 2, i] = product
                # Bits are random: a branch would be taken wrongly every other time.
                out[t, 2 * subset - 1, i] = lam[t, i] & (np.uint64(0) - np.uint64(product))


def _select_secrets_numba(masks: Bytes, lam: Words) -> Words:
    """What the dealer shares, from the whole masks of the bits and of the words."""
    terms, k, n = masks.shape
    out = np.empty((terms, 2 * ((1 << k) - 1), n), dtype=np.uint64)
    _select_secrets.run(masks.reshape(-1), lam, k, out)
    return out


def select_part_numpy(bits: Bytes, y: Words, own: Words, dealt: Words) -> Words:
    """NumPy twin of `select_part`."""
    k = bits.shape[1]
    publics = bits.astype(np.uint64)
    flips = _ONE - (publics << _ONE)
    total = publics.prod(axis=1, dtype=np.uint64) * own
    for subset in range(1, 1 << k):
        factor = np.ones_like(y)
        for place in range(k):
            factor = factor * (flips if subset >> place & 1 else publics)[:, place]
        total = total + factor * (y * dealt[:, 2 * subset - 2] - dealt[:, 2 * subset - 1])
    part: Words = total.sum(axis=0, dtype=np.uint64)
    return part


@kernel()
def _factors(k: int) -> Words:
    """(2^k, 2^k): by the public bits and the subset, the product of 1 - 2c over its bits and of c
    over the others. A factor of 0 takes less time than a branch on random bits.
    """
    factors = np.zeros((1 << k, 1 << k), dtype=np.uint64)
    for ones in range(1 << k):
        for subset in range(1 << k):
            factor = np.uint64(1)
            for place in range(k):
                one, flipped = ones >> place & 1, subset >> place & 1
                if flipped and one:
                    factor = np.uint64(0) - factor
                elif not flipped and not one:
                    factor = np.uint64(0)
            factors[ones, subset] = factor
    return factors


@kernel("void(in1_8, in2, in2, in3, int64, uint64[::1])")
def _select_part(bits: Bytes, y: Words, own: Words, dealt: Words, k: int, out: Words) -> None:
    terms, n = y.shape
    factors = _factors(k)
    out[:] = 0
    for t in range(terms):
        for i in range(n):
            ones: Any = 0
            for place in range(k):
                ones |= np.int64(bits[(t * k + place) * n + i]) << place
            total: Any = factors[ones, 0] * own[t, i]
            for subset in range(1, 1 << k):
                inner = y[t, i] * dealt[t, 2 * subset - 2, i] - dealt[t, 2 * subset - 1, i]
                total += factors[ones, subset] * inner
            out[i] += total


def _select_part_numba(bits: Bytes, y: Words, own: Words, dealt: Words) -> Words:
    """Sum over the terms of prod(bits ^ masks) (y - lam), an evaluator's part: (n,).

    Args:
        bits: public words of the bits.
        y: public words m of the factors. own: what the evaluator knows of m - lam.
        dealt: its halves of `select_secrets`.
    """
    out = np.empty(y.shape[1], dtype=np.uint64)
    _select_part.run(bits.reshape(-1), y, own, dealt, bits.shape[1], out)
    return out


_NUMBA = MODE == "numba"
select_secrets = _select_secrets_numba if _NUMBA else select_secrets_numpy
select_part = _select_part_numba if _NUMBA else select_part_numpy
