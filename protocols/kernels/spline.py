"""Splines on a masked argument: expand a point function and take inner products, in cache."""

from functools import cache
from math import comb

import numpy as np

from protocols.errors import LocalProtocolError
from protocols.kernels import forest
from protocols.kernels.aes.aesni import available, round_keys
from protocols.kernels.aes.fixed_key import LEAF
from protocols.kernels.jit import Bytes, Words
from protocols.kernels.tree import correction_words, expand_numpy, root_words

_SMALLEST = 8  # segments from which the fused kernel's vectors are full
_CHUNK_WORDS = 1 << 14  # expansion words of one chunk, so that all its temporaries stay in L2


def combine(moments: Words, low: Words) -> Words:
    """moments (n, C, w, w), entry [c, k, i] = sum_j E[i, j] table[c, k, top - j] -> (C, n)."""
    w = moments.shape[2]
    powers = [np.ones_like(low)]
    for _ in range(1, w):
        powers.append(powers[-1] * low)
    total = np.zeros((moments.shape[1], low.size), dtype=np.uint64)
    for k in range(w):
        for i in range(k + 1):
            factor = signed_binomials(w)[k * w + i]
            total += factor * powers[k - i] * moments[:, :, k, i].T
    return total


def spline_shares_numpy(
    party: int, roots: Words, correction: Words, v: int, top: Words, low: Words, tables: Words
) -> Words:
    """NumPy twin of the fused kernel: roots (n, 2), correction (n, words), tables (C, w, 2^v)."""
    n, (classes, w, size) = len(roots), tables.shape
    out = np.empty((classes, n), dtype=np.uint64)
    step = max(1, _CHUNK_WORDS // (size * w))
    j = np.arange(size, dtype=np.uint64)
    for lo in range(0, n, step):
        part = slice(lo, min(n, lo + step))
        shares = expand_numpy(party, roots[part], correction[part], v, w)
        segment = ((top[part, None] - j) & np.uint64(size - 1)).astype(np.intp)
        turned = tables[:, :, segment].transpose(2, 0, 1, 3).reshape(len(segment), -1, size)
        moments = np.matmul(turned, shares).reshape(-1, classes, w, w)
        out[:, part] = combine(moments, low[part])
    return out


def turned_tables(tables: Words) -> Words:
    """Tables (C, w, 2^v) as the fused kernel reads them: reversed, so that top - j runs forward
    with j, twice in a row, so that it never wraps, and (for w > 1) every word twice, because a
    block holds two payload words of one leaf."""
    turned = np.roll(tables[:, :, ::-1], 1, axis=2)
    return np.repeat(np.tile(turned, 2), 1 if tables.shape[1] == 1 else 2, axis=2).reshape(-1)


@cache
def signed_binomials(w: int) -> Words:
    """Entry k w + i: (-1)^i binomial(k, i) modulo 2^64."""
    signed = [(-1) ** i * comb(k, i) % 2**64 for k in range(w) for i in range(w)]
    return np.array(signed, dtype=np.uint64)


def spline_shares(
    party: int,
    roots: Bytes,
    correction: Bytes,
    v: int,
    top: Words,
    low: Words,
    tables: Words,
) -> Words:
    """Shares (C, n) of sum_k tables[c, k, t] (low - lam_low)^k at t = (top - lam_top) mod 2^v.

    The correction is of point functions at lam_top with payload (lam_low^0 .. lam_low^D);
    tables (C, D + 1, 2^v), top (n,) taken modulo 2^v, low (n,).
    Raises RemoteProtocolError if the correction's length is wrong.
    """
    n, w = len(roots), tables.shape[1]
    if tables.shape[2] != 1 << v:
        raise LocalProtocolError(
            f"tables have {tables.shape[2]} segments, but v={v} needs {1 << v}"
        )
    words, seeds = correction_words(correction, n, v, w), root_words(roots, n)
    if not available() or tables.shape[2] < _SMALLEST:
        return spline_shares_numpy(party, seeds, words, v, top, low, tables)
    out = np.empty((tables.shape[0], n), dtype=np.uint64)
    keys = round_keys(LEAF + (w + 1) // 2)
    flat = [np.ascontiguousarray(item) for item in (top, low)]
    forest.spline(
        keys, party, seeds.reshape(-1), words.reshape(-1), v, w, *flat,
        turned_tables(tables), signed_binomials(w), out.reshape(-1),
    )  # fmt: skip
    return out
