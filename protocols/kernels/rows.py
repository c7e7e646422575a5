"""Products with the rows of a matrix: x @ w^T, without transposing w in memory."""

import numpy as np

from protocols.kernels.jit import Words, kernel


def matmul_rows_numpy(x1: Words, w1: Words, x2: Words, w2: Words) -> Words:
    """NumPy twin of `matmul_rows`."""
    result: Words = x1 @ w1.T + x2 @ w2.T
    return result


@kernel("void(in1, in1, in1, in1, uint64[::1], int64, int64, int64)")
def _rows_product(
    x1: Words, w1: Words, x2: Words, w2: Words, out: Words, count: int, depth: int, rows: int
) -> None:
    """out = x1 @ w1^T + x2 @ w2^T, all flat; four rows of x share one pass over w."""
    for r in range(rows):
        base = r * depth
        t = 0
        while t + 4 <= count:
            s0 = np.uint64(0)
            s1 = np.uint64(0)
            s2 = np.uint64(0)
            s3 = np.uint64(0)
            o0, o1, o2, o3 = t * depth, (t + 1) * depth, (t + 2) * depth, (t + 3) * depth
            for p in range(depth):
                s0 += x1[o0 + p] * w1[base + p] + x2[o0 + p] * w2[base + p]
                s1 += x1[o1 + p] * w1[base + p] + x2[o1 + p] * w2[base + p]
                s2 += x1[o2 + p] * w1[base + p] + x2[o2 + p] * w2[base + p]
                s3 += x1[o3 + p] * w1[base + p] + x2[o3 + p] * w2[base + p]
            out[t * rows + r] = s0
            out[(t + 1) * rows + r] = s1
            out[(t + 2) * rows + r] = s2
            out[(t + 3) * rows + r] = s3
            t += 4
        while t < count:
            s0 = np.uint64(0)
            o0 = t * depth
            for p in range(depth):
                s0 += x1[o0 + p] * w1[base + p] + x2[o0 + p] * w2[base + p]
            out[t * rows + r] = s0
            t += 1


def matmul_rows(x1: Words, w1: Words, x2: Words, w2: Words) -> Words:
    """x1 @ w1^T + x2 @ w2^T modulo 2^64 for x (T, K) and C-contiguous w (N, K)."""
    count, depth = x1.shape
    rows = w1.shape[0]
    out = np.empty(count * rows, dtype=np.uint64)
    flat = [np.ascontiguousarray(array).reshape(-1) for array in (x1, w1, x2, w2)]
    _rows_product(*flat, out, count, depth, rows)
    return out.reshape(count, rows)
