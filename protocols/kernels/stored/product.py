"""Products of ring words with a matrix as a checkpoint stores it.

Every stored byte is read once a call: a panel of outputs is decoded to integers that stay in the
second-level cache, and multiplied by all rows from there.
"""

import numpy as np

from protocols.errors import LocalProtocolError
from protocols.kernels.jit import MODE, Bytes, Words, kernel
from protocols.kernels.stored.formats import Values
from protocols.kernels.stored.matrix import Integers, Stored, check_range, integers_numpy, pieces
from protocols.kernels.stored.panels import ACROSS, MANY, STORED, described, fill_panel
from protocols.kernels.stored.vectors import lanes, make_split_dots

_FEW_ROWS, _FEW = 2, (12, 2048)  # panels for few rows: longer pieces of a stored row
_dots1x3, _dots2x2 = make_split_dots(1, 3), make_split_dots(2, 2)


def multiply_into_numpy(x: Words, stored: Stored, out: Words, at: int, lo: int, hi: int) -> None:
    """NumPy twin of `multiply_into`."""
    _check(x, stored, out, at, lo, hi)
    for start, stop in pieces(stored, lo, hi):
        ring = integers_numpy(stored, start, stop).astype(np.int64).view(np.uint64)
        out[:, at + start : at + stop] = x[:, : stored.shape[0]] @ ring.T


def _check(x: Words, stored: Stored, out: Words, at: int, lo: int, hi: int) -> None:
    check_range(stored, lo, hi)
    pairs = x.ndim == out.ndim == 2 and x.shape[0] == out.shape[0]
    if not pairs or x.shape[1] < stored.shape[0] or not 0 <= at <= out.shape[1] - hi:
        raise LocalProtocolError(
            f"cannot multiply {x.shape} by {stored.shape} into {out.shape}, from column {at} on:"
            " the shapes do not fit"
        )
    if not out.flags.c_contiguous:
        raise LocalProtocolError("the result array must be C-contiguous; pass np.empty((T, N))")


@kernel()
def _planes(x: Words, rows: int, step: int, depth: int, wide: int, padded: int, out: Words) -> None:
    """The halves of x, laid out for `make_split_dots`; out is zero before."""
    for r in range(rows):
        for start in range(0, depth, 2 * wide):
            base = 2 * (r * padded + start)
            for j in range(min(2 * wide, depth - start)):
                word = x[r * step + start + j]
                low = np.int64(word << np.uint64(32)) >> np.int64(32)
                place = base + (j & 1) * wide + (j >> 1)
                out[place] = np.uint64(low)
                out[place + 2 * wide] = (word - np.uint64(low)) >> np.uint64(32)


@kernel()
def _multiply_panel(
    planes: Words, at: int, step: int, rows: int, panel: Integers, depth: int, groups: int,
    tall: int, part: Words,
) -> None:  # fmt: skip
    """Add the products of all rows with a panel of `tall` outputs, a multiple of six."""
    r = 0
    while r + 2 <= rows:
        for o in range(0, tall, 2):
            _dots2x2(
                planes, at + r * step, step, panel, o * depth, depth, groups,
                part, r * tall + o, tall,
            )  # fmt: skip
        r += 2
    if r < rows:
        for o in range(0, tall, 3):
            _dots1x3(
                planes, at + r * step, step, panel, o * depth, depth, groups,
                part, r * tall + o, tall,
            )  # fmt: skip


@kernel(f"void({STORED}, in1, int64, int64, uint64[::1]" + ", int64" * 7 + ")")
def _multiply(
    stored: Bytes, code: int, across: bool, entries: int, nbytes: int, line: int, order: Words,
    inputs: Values, outputs: Values, depth: int, columns: int,
    x: Words, rows: int, x_step: int, out: Words, out_at: int, out_step: int,
    lo: int, hi: int, tall: int, deep: int, wide: int,
) -> None:  # fmt: skip
    """Outputs lo..hi go to columns out_at + lo and so on of out, which has rows of `out_step`."""
    padded = (depth + 2 * wide - 1) // (2 * wide) * (2 * wide)
    planes = np.zeros(2 * rows * padded, np.uint64)
    _planes(x, rows, x_step, depth, wide, padded, planes)
    panel, part = np.zeros(tall * deep, np.int32), np.empty(rows * tall, np.uint64)
    beside = np.empty(tall * deep if across else 0, np.int32)
    for c in range(lo, hi, tall):
        used = min(tall, hi - c)
        part[:] = 0
        for p in range(0, depth, deep):
            height = min(deep, depth - p)
            fill_panel(
                code, across, entries, nbytes, stored, line, order, inputs, outputs, c, used,
                p, height, panel, 0, deep, beside,
            )  # fmt: skip
            groups = (height + 2 * wide - 1) // (2 * wide)
            _multiply_panel(planes, 2 * p, 2 * padded, rows, panel, deep, groups, tall, part)
        for r in range(rows):
            for o in range(used):
                out[r * out_step + out_at + c + o] = part[r * tall + o]


def _multiply_into(x: Words, stored: Stored, out: Words, at: int, lo: int, hi: int) -> None:
    """out[:, at + lo : at + hi] = x[:, :inputs] @ W[:, lo:hi] modulo 2^64, for the integers W of
    `stored`.

    x (T, K) with K at least the inputs; out (T, N), C-contiguous. Runs without the GIL, so threads
    may fill disjoint ranges of one result.
    """
    _check(x, stored, out, at, lo, hi)
    rows, step = x.shape
    flat = np.require(x, requirements=["C", "A"]).reshape(-1)
    sizes = ACROSS if stored.across else _FEW if rows <= _FEW_ROWS else MANY
    _multiply(
        *described(stored),
        flat,
        rows,
        step,
        out.reshape(-1),
        at,
        out.shape[1],
        lo,
        hi,
        *sizes,
        lanes(),
    )


multiply_into = _multiply_into if MODE == "numba" else multiply_into_numpy
