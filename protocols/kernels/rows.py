"""Products with the rows of a matrix: x @ y^T, without transposing y in memory."""

import numpy as np

from protocols.kernels.jit import MODE, Words, kernel
from protocols.kernels.simd import make_dots

_LANES = 8

_dots1x4 = make_dots(1, 4)
_dots4x4 = make_dots(4, 4)
_dots1x1 = make_dots(1, 1)


@kernel()
def _row_block(
    x: Words, xa: int, rows: int, y: Words, ya: int, depth: int, whole: int,
    out: Words, oa: int, os: int,
) -> None:  # fmt: skip
    """Products of all rows of x with four rows of y."""
    r = 0
    while r + 4 <= rows:
        _dots4x4(x, xa + r * depth, depth, y, ya, depth, whole, out, oa + r * os, os)
        r += 4
    while r < rows:
        _dots1x4(x, xa + r * depth, depth, y, ya, depth, whole, out, oa + r * os, os)
        r += 1


@kernel("void(in1, in1, uint64[::1], int64, int64, int64, int64)")
def row_products(
    x: Words, y: Words, out: Words, batch: int, rows: int, depth: int, columns: int
) -> None:
    """Add x (B, T, K) times the transposes of y (B, L, K) to out (B, T, L); all flat."""
    whole = depth // _LANES * _LANES
    for b in range(batch):
        xa, oa = b * rows * depth, b * rows * columns
        for c in range(0, columns - columns % 4, 4):
            ya = (b * columns + c) * depth
            _row_block(x, xa, rows, y, ya, depth, whole, out, oa + c, columns)
        for c in range(columns - columns % 4, columns):
            ya = (b * columns + c) * depth
            for r in range(rows):
                _dots1x1(
                    x, xa + r * depth, depth, y, ya, depth, whole, out,
                    oa + r * columns + c, columns,
                )  # fmt: skip
        if whole < depth:
            for c in range(columns):
                ya = (b * columns + c) * depth
                for r in range(rows):
                    total = np.uint64(0)
                    for p in range(whole, depth):
                        total += x[xa + r * depth + p] * y[ya + p]
                    out[oa + r * columns + c] += total


def matmul_rows_numpy(x: Words, w: Words) -> Words:
    """NumPy twin of `matmul_rows`."""
    result: Words = x @ w.T
    return result


def _matmul_rows(x: Words, w: Words) -> Words:
    """x @ w^T modulo 2^64 for x (T, K) and C-contiguous w (N, K)."""
    (count, depth), rows = x.shape, w.shape[0]
    out = np.zeros(count * rows, dtype=np.uint64)
    flat = [np.ascontiguousarray(array).reshape(-1) for array in (x, w)]
    row_products(*flat, out, 1, count, depth, rows)
    return out.reshape(count, rows)


matmul_rows = _matmul_rows if MODE == "numba" else matmul_rows_numpy
