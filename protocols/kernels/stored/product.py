"""Products of ring words with a matrix as a checkpoint stores it.

Every stored byte is read once a call: a panel of outputs is decoded to integers that stay in the
second-level cache, and multiplied by all rows from there.
"""

import numpy as np

from protocols.errors import LocalProtocolError
from protocols.kernels.jit import MODE, Bytes, Words, kernel
from protocols.kernels.stored.formats import BATCH, FORMATS, PLAIN, Values
from protocols.kernels.stored.matrix import Integers, Stored, check_range, integers_numpy, pieces
from protocols.kernels.stored.panels import ACROSS, MANY, STORED, described, fill_panel
from protocols.kernels.stored.reader import lanes
from protocols.kernels.stored.vectors import PLANES, make_split_dots, make_stored_dots

_FEW_ROWS, _FEW = 2, (12, 4096)  # panels for few rows: longer pieces of a stored row
_AT_ONCE, _AHEAD = 2, 1024  # stored rows multiplied by one row of x, and numbers to prefetch
_bf16, _f16, _f32 = (make_stored_dots(FORMATS[name], _AT_ONCE, _AHEAD) for name in PLAIN)
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
def _planes(x: Words, rows: int, step: int, depth: int, wide: int, line: int, out: Words) -> None:
    """The halves of x, laid out for `make_split_dots`; out (rows, line) is zero before."""
    low_half = np.uint64(2**32 - 1)
    for r in range(rows):
        for start in range(0, depth, 2 * wide):
            base = r * line + start // 2 * PLANES
            for j in range(min(2 * wide, depth - start)):
                word, odd = x[r * step + start + j], j & 1
                low = np.uint64(np.int64(word << np.uint64(32)) >> np.int64(32))
                out[base + odd * wide + (j >> 1)] = low
                high = ((word - low) >> np.uint64(32)) & low_half
                out[base + 2 * wide + (j >> 1)] |= high << np.uint64(32 * odd)


@kernel()
def _stored_dots(
    code: int, x: Words, stored: Bytes, starts: Words, along: Values, own: Values, c: int,
    count: int, out: Words, out_at: int,
) -> None:  # fmt: skip
    if code == 0:
        _bf16(x, stored, starts, along, own, c, count, out, out_at)
    elif code == 1:
        _f16(x, stored, starts, along, own, c, count, out, out_at)
    else:
        _f32(x, stored, starts, along, own, c, count, out, out_at)


@kernel()
def _multiply_row(
    code: int, stored: Bytes, line: int, order: Words, inputs: Values, outputs: Values,
    depth: int, planes: Words, out: Words, out_at: int, lo: int, hi: int,
) -> int:  # fmt: skip
    """Products of one row, without a panel, which pays where there are no blocks; returns the
    first output that is left.
    """
    starts, c = np.empty(_AT_ONCE, np.uint64), lo
    while c + _AT_ONCE <= hi:
        for i in range(_AT_ONCE):
            starts[i] = order[c + i] * np.uint64(line)
            out[out_at + c + i] = 0
        _stored_dots(code, planes, stored, starts, inputs, outputs, c, depth, out, out_at + c)
        c += _AT_ONCE
    return c


@kernel()
def _multiply_panel(
    planes: Words, at: int, step: int, rows: int, panel: Integers, depth: int, groups: int,
    tall: int, part: Words,
) -> None:  # fmt: skip
    """Add the products of all rows with a panel of `tall` outputs, a multiple of six. More rows at
    a time do not fit the registers.
    """
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
    line_words = PLANES * wide * ((depth + 2 * wide - 1) // (2 * wide))
    planes = np.zeros(rows * line_words, np.uint64)
    _planes(x, rows, x_step, depth, wide, line_words, planes)
    if rows == 1 and not across and entries == 1 and depth % BATCH == 0:
        lo = _multiply_row(
            code, stored, line, order, inputs, outputs, depth, planes, out, out_at, lo, hi
        )
    if lo >= hi:
        return
    deep = min(deep, (depth + BATCH - 1) // BATCH * BATCH)
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
            at = PLANES * p // 2
            _multiply_panel(planes, at, line_words, rows, panel, deep, groups, tall, part)
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
