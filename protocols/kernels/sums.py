"""Sums of chosen rows of a matrix, modulo 2^32: additions only."""

import numpy as np
from numpy.typing import NDArray

from protocols.kernels.jit import MODE, Bytes, kernel
from protocols.kernels.simd import make_add

Half = NDArray[np.uint32]

WIDTH = 192  # columns at a time, so that all their sums stay in the first-level cache
GROUP = 8  # rows at a time: the sums of all subsets of four are tabulated, twice
FEW = 20  # up to this many sums tabulating does not pay

_add = make_add(WIDTH, onto=False)
_add_onto = make_add(WIDTH, onto=True)


def chosen_sums_numpy(chosen: Bytes, table: Half) -> Half:
    """NumPy twin of `chosen_sums`."""
    sums: Half = chosen.astype(np.uint32) @ table
    return sums


@kernel("void(in1_32, in1_8, int64, int64, int64, int64, uint32[::1])")
def _add_rows(
    table: Half, chosen: Bytes, first: int, rows: int, columns: int, count: int, out: Half
) -> None:
    """Row by row, from row `first` on."""
    whole = columns // WIDTH * WIDTH
    zeros = np.zeros(WIDTH, np.uint32)
    for j in range(first, rows):
        row = j * columns
        for t in range(count):
            if chosen[t * rows + j]:
                at = t * columns
                for c in range(0, whole, WIDTH):
                    _add_onto(table, row + c, zeros, 0, out, at + c)
                for c in range(whole, columns):
                    out[at + c] += table[row + c]


@kernel("void(in1_32, in1_8, int64, int64, int64, uint32[::1])")
def _add_groups(
    table: Half, picks: Bytes, groups: int, columns: int, count: int, out: Half
) -> None:
    """Fill `out`. `picks`: (groups, count), a bit for each of eight rows; columns >= WIDTH."""
    subsets = np.zeros(2 * 16 * WIDTH, np.uint32)
    panels = (columns + WIDTH - 1) // WIDTH
    sums = np.zeros(panels * count * WIDTH, np.uint32)
    # All panels of some rows before the next ones: memory is read fastest in its order.
    for g in range(groups):
        for panel in range(panels):
            start = min(panel * WIDTH, columns - WIDTH)  # the last one may overlap its neighbour
            for half in range(2):
                for i in range(4):
                    row = (g * GROUP + 4 * half + i) * columns + start
                    for k in range(1 << i):
                        old = (16 * half + k) * WIDTH
                        _add(subsets, old, table, row, subsets, old + (1 << i) * WIDTH)
            for t in range(count):
                pick = np.int64(picks[g * count + t])
                low, high = (pick & 15) * WIDTH, (16 + (pick >> 4)) * WIDTH
                _add_onto(subsets, low, subsets, high, sums, (panel * count + t) * WIDTH)
    for panel in range(panels):
        start = min(panel * WIDTH, columns - WIDTH)
        for t in range(count):
            at, to = (panel * count + t) * WIDTH, t * columns + start
            out[to : to + WIDTH] = sums[at : at + WIDTH]


def _chosen_sums(chosen: Bytes, table: Half) -> Half:
    """(n, rows) bits, one per byte, (rows, columns) -> (n, columns): sums of the chosen rows."""
    count, rows = chosen.shape
    columns = table.shape[1]
    out = np.zeros(count * columns, dtype=np.uint32)
    flat = np.ascontiguousarray(table).reshape(-1)
    groups = 0
    if count > FEW and columns >= WIDTH:
        groups = rows // GROUP
        bits = chosen[:, : groups * GROUP].reshape(count, groups, GROUP)
        picks = np.packbits(bits, axis=2, bitorder="little")[:, :, 0]
        picks = np.ascontiguousarray(picks.T).reshape(-1)
        _add_groups(flat, picks, groups, columns, count, out)
    left = np.ascontiguousarray(chosen).reshape(-1)
    _add_rows(flat, left, groups * GROUP, rows, columns, count, out)
    return out.reshape(count, columns)


chosen_sums = _chosen_sums if MODE == "numba" else chosen_sums_numpy
