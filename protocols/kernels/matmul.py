"""Matrix products modulo 2^64: the ring GEMM and GEMV.

With few rows the product is bound by memory: the weights are read once, straight from their
row-major array and row after row, which is how memory is read fastest; the sums stay in the
first-level cache. With more rows, panels of the weights are packed into a thread-local buffer that
fits the second-level cache and serve all rows from there.

With more rows it is also bound by multiplications, and without AVX-512 a 64-bit one takes three
32-bit ones. Winograd's inner product halves their number, exactly, in any commutative ring:

    x0 w0 + x1 w1 = (x0 + w1) (x1 + w0) - x0 x1 - w0 w1,

where the sum of x0 x1 is computed once per row and that of w0 w1 once per column.
"""

from typing import Any

import numpy as np

from protocols.errors import LocalProtocolError
from protocols.kernels.jit import MODE, Words, kernel
from protocols.kernels.rows import row_products
from protocols.kernels.simd import make_copy, make_tile, vector_bytes

_DEPTH = 512  # rows of a packed panel: 512 * 32 * 8 bytes = 128 KB
_SHORT = 16  # columns of a panel on machines whose vectors have 32 bytes
_SHORT_DEPTH = 128  # rows of a panel there: 16 KB, half of the first-level cache
_SIDE = 8  # panels there that are packed together, so that long runs of a row are read
_STREAMED_ROWS = 4  # up to here the weights are read in place
_BLOCK = 256  # rows that share a panel: the part of x that meets it fits the second-level cache
_RUN = 2048  # sums of a row in the first-level cache: 16 KB

_copy = make_copy(4)
_copy_sum = make_copy(4, summed=True)
_tile1 = make_tile(1, 4)
_tile2 = make_tile(2, 4)
_tile4 = make_tile(4, 4)
_pair1 = make_tile(1, 4, paired=True)
_pair4 = make_tile(4, 4, paired=True)


def matmul_into_numpy(x: Words, w: Words, out: Words, lo: int, hi: int) -> None:
    """NumPy twin of `matmul_into`."""
    _check(x, w, out, lo, hi)
    out[:, lo:hi] = x @ w[:, lo:hi]


def batched_matmul_numpy(x: Words, y: Words) -> Words:
    """NumPy twin of `batched_matmul`."""
    product: Words = np.matmul(x, y)
    return product


@kernel()
def _rows(
    x: Words, xa: int, xs: int, rows: int, w: Words, wa: int, ws: int, depth: int,
    out: Words, oa: int, os: int,
) -> None:  # fmt: skip
    """Add the product of all rows with one panel of columns, four rows at a time."""
    r = 0
    while r + 4 <= rows:
        _tile4(x, xa + r * xs, xs, w, wa, ws, depth, out, oa + r * os, os)
        r += 4
    if r + 2 <= rows:
        _tile2(x, xa + r * xs, xs, w, wa, ws, depth, out, oa + r * os, os)
        r += 2
    if r < rows:
        _tile1(x, xa + r * xs, xs, w, wa, ws, depth, out, oa + r * os, os)


@kernel()
def _add_rows(x: Words, xa: int, w: Words, wa: int, ws: int, out: Words) -> None:
    """Add the product of eight elements of x with as many rows of w, which begin at `wa`."""
    n = out.size
    x0, x1, x2, x3 = x[xa], x[xa + 1], x[xa + 2], x[xa + 3]
    x4, x5, x6, x7 = x[xa + 4], x[xa + 5], x[xa + 6], x[xa + 7]
    # Slices, because numbers from 0 on need no check for negative ones, which no vectors have.
    w0, w1 = w[wa : wa + n], w[wa + ws : wa + ws + n]
    w2, w3 = w[wa + 2 * ws : wa + 2 * ws + n], w[wa + 3 * ws : wa + 3 * ws + n]
    w4, w5 = w[wa + 4 * ws : wa + 4 * ws + n], w[wa + 5 * ws : wa + 5 * ws + n]
    w6, w7 = w[wa + 6 * ws : wa + 6 * ws + n], w[wa + 7 * ws : wa + 7 * ws + n]
    for j in range(n):
        upper = x0 * w0[j] + x1 * w1[j] + x2 * w2[j] + x3 * w3[j]
        lower = x4 * w4[j] + x5 * w5[j] + x6 * w6[j] + x7 * w7[j]
        out[j] += upper + lower


@kernel()
def _streamed(
    x: Words, xa: int, rows: int, w: Words, wa: int, ws: int, depth: int,
    out: Words, oa: int, lo: int, hi: int,
) -> None:  # fmt: skip
    """Add products of a few rows with columns lo..hi."""
    whole = depth - depth % 8
    for c in range(lo, hi, _RUN):
        count = min(_RUN, hi - c)
        for p in range(0, whole, 8):
            for r in range(rows):
                to = oa + r * ws + c
                part = out[to : to + count]
                _add_rows(x, xa + r * depth + p, w, wa + p * ws + c, ws, part)
        for p in range(whole, depth):
            for r in range(rows):
                factor, at, to = x[xa + r * depth + p], wa + p * ws + c, oa + r * ws + c
                for j in range(count):
                    out[to + j] += factor * w[at + j]


@kernel()
def _paired(
    x: Words, xa: int, xs: int, rows: int, w: Words, wa: int, ws: int, depth: int,
    out: Words, oa: int, os: int,
) -> None:  # fmt: skip
    """Add the sums of (x0 + w1) (x1 + w0) of all rows with one panel of columns. With the short
    vectors one row at a time is best: the sums of more rows do not fit the registers. The panel is
    then read from the first-level cache once a row.
    """
    r = 0
    while r + 4 <= rows and ws > _SHORT:
        _pair4(x, xa + r * xs, xs, w, wa, ws, depth, out, oa + r * os, os)
        r += 4
    while r < rows:
        _pair1(x, xa + r * xs, xs, w, wa, ws, depth, out, oa + r * os, os)
        r += 1


@kernel()
def _pack(
    w: Words, also: Words, at: int, ws: int, height: int, used: int,
    panels: Words, width: int, room: int,
) -> None:  # fmt: skip
    """Copy `used` columns of w, or of w + 2 also, from element `at` on, to panels of this width.

    room: words of a panel.
    """
    whole = used // width
    for p in range(height):
        row = at + p * ws
        for side in range(whole):
            place, to = row + side * width, side * room + p * width
            if also.size:
                _copy_sum(w, also, place, panels, to)
            else:
                _copy(w, also, place, panels, to)
        if whole * width < used:
            to = whole * room + p * width
            panels[to : to + width] = 0
            for j in range(used - whole * width):
                place = row + whole * width + j
                panels[to + j] = w[place]
                if also.size:
                    panels[to + j] += also[place] + also[place]


@kernel()
def _packed(
    x: Words, xa: int, rows: int, w: Words, also: Words, wa: int, ws: int, depth: int,
    out: Words, oa: int, lo: int, hi: int, width: int, side: int,
    panels: Words, part: Words, nothing: Words, own: Words,
) -> None:  # fmt: skip
    """Products of a block of rows with the columns lo..hi through packed panels.

    width: columns of a panel; side: panels that are packed together; part: room for the sums of
    all rows and of `nothing`, a row of zeros, with them.
    """
    room = panels.size // side
    most, size = room // width, side * width
    for r in range(rows):
        line, total = x[xa + r * depth : xa + (r + 1) * depth], np.uint64(0)
        for p in range(depth // 2):
            total += line[2 * p] * line[2 * p + 1]
        own[r] = total
    beside = rows * size
    for c in range(lo, hi, size):
        used = min(size, hi - c)
        part[:] = 0
        for start in range(0, depth, most):
            height = min(most, depth - start)
            even = height - height % 2
            _pack(w, also, wa + start * ws + c, ws, height, used, panels, width, room)
            for at in range(0, used, width):
                panel, to = at // width * room, at
                _paired(x, xa + start, depth, rows, panels, panel, width, even, part, to, size)
                _pair1(nothing, 0, 0, panels, panel, width, even, part, beside + to, size)
                if even < height:
                    last, place = xa + start + even, panel + even * width
                    _rows(x, last, depth, rows, panels, place, width, 1, part, to, size)
        for r in range(rows):
            to, at, less = oa + r * ws + c, r * size, own[r]
            target, found, column = out[to : to + used], part[at : at + used], part[beside:]
            for j in range(used):
                target[j] += found[j] - less - column[j]


@kernel()
def _product(
    x: Words, w: Words, also: Words, out: Words, batch: int, rows: int, depth: int, columns: int,
    lo: int, hi: int, lanes: int,
) -> None:  # fmt: skip
    """out[:, lo:hi] += x @ w[:, lo:hi] for each of the batch's contiguous matrices.

    Unless `also` is empty, the factor of more than a few rows is w + 2 also.
    """
    width = 4 * lanes
    short = width <= _SHORT
    side = max(1, min(_SIDE, (hi - lo + width - 1) // width)) if short else 1
    panels = np.empty(side * (_SHORT_DEPTH if short else _DEPTH) * width, np.uint64)
    most = min(rows, _BLOCK)
    part, own = np.empty((most + 1) * side * width, np.uint64), np.empty(most, np.uint64)
    nothing = np.zeros(_DEPTH, np.uint64)
    for b in range(batch):
        xa, wa, oa = b * rows * depth, b * depth * columns, b * rows * columns
        if rows <= _STREAMED_ROWS:
            _streamed(x, xa, rows, w, wa, columns, depth, out, oa, lo, hi)
            continue
        for r in range(0, rows, _BLOCK):
            _packed(
                x, xa + r * depth, min(_BLOCK, rows - r), w, also, wa, columns, depth,
                out, oa + r * columns, lo, hi, width, side, panels, part, nothing, own,
            )  # fmt: skip


_PRODUCT = "void({0}, {0}, {0}, {1}[::1], int64, int64, int64, int64, int64, int64, int64)"


@kernel(_PRODUCT.format("in1", "uint64"))
def _product64(
    x: Words, w: Words, also: Words, out: Words, batch: int, rows: int, depth: int, columns: int,
    lo: int, hi: int, lanes: int,
) -> None:  # fmt: skip
    _product(x, w, also, out, batch, rows, depth, columns, lo, hi, lanes)


@kernel("void(in1, in1, in1, uint64[::1], int64, int64, int64)")
def _product_of_sum(
    x: Words, first: Words, second: Words, out: Words, rows: int, depth: int, columns: int
) -> None:
    """out += x @ (first + 2 second) for a few rows, reading each matrix once; all flat."""
    two, whole = np.uint64(2), depth - depth % 4
    for p in range(0, whole, 4):
        for r in range(rows):
            at, to = p * columns, r * columns
            x0, x1 = x[r * depth + p], x[r * depth + p + 1]
            x2, x3 = x[r * depth + p + 2], x[r * depth + p + 3]
            for j in range(columns):
                a, b = at + j, at + columns + j
                c, d = b + columns, b + 2 * columns
                upper = x0 * (first[a] + two * second[a]) + x1 * (first[b] + two * second[b])
                lower = x2 * (first[c] + two * second[c]) + x3 * (first[d] + two * second[d])
                out[to + j] += upper + lower
    for p in range(whole, depth):
        for r in range(rows):
            factor = x[r * depth + p]
            for j in range(columns):
                at = p * columns + j
                out[r * columns + j] += factor * (first[at] + two * second[at])


_NOTHING = np.empty(0, np.uint64)


def _plain(operand: Any) -> Any:
    """The operand, or a copy: contiguous and aligned."""
    flags = operand.flags
    if flags.c_contiguous and flags.aligned:
        return operand
    return np.require(operand, requirements=["C", "A"])


def _run(product: Any, x: Any, w: Any, out: Any, lo: int, hi: int, also: Words = _NOTHING) -> None:
    """Add x @ (w + 2 also) to columns lo..hi of out; matrices of a batch if they have three
    dimensions. `also` only for more than a few rows.
    """
    *batch, rows, depth = x.shape
    columns = w.shape[-1]
    flat = [_plain(operand).reshape(-1) for operand in (x, w, also)]
    lanes = vector_bytes() // out.itemsize
    product.run(
        *flat, out.reshape(-1), batch[0] if batch else 1, rows, depth, columns, lo, hi, lanes
    )


def _check(x: Any, w: Any, out: Any, lo: int, hi: int) -> None:
    shape = (*x.shape[:-1], w.shape[-1])
    pairs = x.shape[:-2] == w.shape[:-2] and x.shape[-1] == w.shape[-2]
    if not pairs or out.shape != shape or not 0 <= lo <= hi <= shape[-1]:
        raise LocalProtocolError(
            f"cannot multiply {x.shape} by {w.shape} into {out.shape}, columns {lo}..{hi}:"
            " the shapes do not fit"
        )
    if not out.flags.c_contiguous:
        raise LocalProtocolError("the result array must be C-contiguous; pass np.empty((T, N))")


def _matmul_into(x: Words, w: Words, out: Words, lo: int, hi: int) -> None:
    """out[:, lo:hi] = x @ w[:, lo:hi] modulo 2^64.

    x (T, K) and w (K, N) uint64; out (T, N) uint64, C-contiguous. Runs without the GIL, so threads
    may fill disjoint column ranges of one result.
    """
    _check(x, w, out, lo, hi)
    out[:, lo:hi] = 0
    _run(_product64, x, w, out, lo, hi)


def add_matmul_numpy(x: Words, w: Words, out: Words) -> None:
    """NumPy twin of `add_matmul`."""
    _check(x, w, out, 0, out.shape[-1])
    out += x @ w


def _add_matmul(x: Words, w: Words, out: Words) -> None:
    """out += x @ w modulo 2^64; otherwise as `matmul_into`."""
    _check(x, w, out, 0, out.shape[-1])
    _run(_product64, x, w, out, 0, out.shape[-1])


def matmul_of_sum_numpy(x: Words, first: Words, second: Words) -> Words:
    """NumPy twin of `matmul_of_sum`."""
    product: Words = x @ (first + (second << np.uint64(1)))
    return product


def _matmul_of_sum(x: Words, first: Words, second: Words) -> Words:
    """x @ (first + 2 second) modulo 2^64 for x (T, K) and two matrices (K, N)."""
    out = np.zeros((x.shape[0], first.shape[1]), dtype=np.uint64)
    for factor in (first, second):
        _check(x, factor, out, 0, out.shape[1])
    if x.shape[0] > _STREAMED_ROWS:
        _run(_product64, x, first, out, 0, out.shape[1], second)
        return out
    flat = [_plain(operand).reshape(-1) for operand in (x, first, second)]
    _product_of_sum.run(*flat, out.reshape(-1), *x.shape, out.shape[1])
    return out


def _batched_matmul(x: Words, y: Words) -> Words:
    """(B, T, K) @ (B, K, L) -> (B, T, L) modulo 2^64; the operands may have any strides."""
    out = np.zeros((x.shape[0], x.shape[1], y.shape[2]), dtype=np.uint64)
    _check(x, y, out, 0, y.shape[2])
    yt = y.transpose(0, 2, 1)
    if x.shape[1] <= _STREAMED_ROWS and yt.flags.c_contiguous:
        # One query against rows of cached keys: transposing them would cost more than the product.
        x, yt = _plain(x), _plain(yt)
        row_products.run(x.reshape(-1), yt.reshape(-1), out.reshape(-1), *x.shape, y.shape[2])
        return out
    _run(_product64, x, y, out, 0, y.shape[2])
    return out


_NUMBA = MODE == "numba"
matmul_into = _matmul_into if _NUMBA else matmul_into_numpy
batched_matmul = _batched_matmul if _NUMBA else batched_matmul_numpy
add_matmul = _add_matmul if _NUMBA else add_matmul_numpy
matmul_of_sum = _matmul_of_sum if _NUMBA else matmul_of_sum_numpy
