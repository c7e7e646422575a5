"""Work cut into blocks, so that memory does not grow with the square of a text's length.

In a comparison or a selection, an entry takes some hundred bytes at each party (the one-hots of its
digits, the dealt products of its masks). A layer must never hold more than `Settings.block` entries
at a time, so larger ones are processed in blocks of rows, one after another: each block takes the
rounds of the whole, and there is no extra traffic. The blocks depend on shapes alone, so they are
the same at all parties and in a prediction.
"""

from collections.abc import Callable, Coroutine, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from protocols.base.lane import Lane
from protocols.base.shares import SecretTensor, concat

ACTIVATION_ENTRIES = 2
"""An activation of the default set takes as much memory as two scores: it has its waves."""

MANY = 1 << 16
"""From this many entries on, what they send outweighs a round: 20 bytes each are a megabyte."""
_WORTH_CUTTING = 1 << 17
_FULL = 7 / 8


def saves_bytes(lane: Lane, count: int) -> bool:
    """Whether what `count` entries send counts for more than a round."""
    tree = lane.settings.tree
    return tree == "traffic" or (tree == "balanced" and count >= MANY)


class Piece(NamedTuple):
    """Rows of a score matrix, and the columns that any of them may look at."""

    rows: slice
    columns: slice

    def size(self, heads: int) -> int:
        """Number of scores of the piece for this many heads."""
        height: int = self.rows.stop - self.rows.start
        width: int = self.columns.stop - self.columns.start
        return heads * height * width


def row_blocks(rows: int, columns: int, most: int) -> list[slice]:
    """Cut the rows into as few and as even runs as possible, each of at most `most` entries (but at
    least one row).
    """
    count = -(-rows // max(1, most // columns))
    cuts = [rows * i // count for i in range(count + 1)]
    return [slice(lo, hi) for lo, hi in pairwise(cuts)]


def score_pieces(mask: NDArray[np.bool_], heads: int, most: int) -> list[Piece]:
    """Cut the scores of `heads` under a mask (rows, context) into pieces of at most `most` scores
    (but at least one row). A piece leaves out the columns that none of its rows may see; one of
    `_WORTH_CUTTING` scores or more ends where less than `_FULL` of it may be seen. So of a causal
    mask little more than half is computed. Pieces may run at the same time (`waves`).
    """
    rows, context = mask.shape
    if heads * rows * context <= min(most, _WORTH_CUTTING):
        return [Piece(slice(0, rows), slice(0, context))]
    firsts = mask.argmax(axis=1).tolist()
    lasts = (context - mask[:, ::-1].argmax(axis=1)).tolist()
    seen = [0, *np.cumsum(mask.sum(axis=1)).tolist()]
    pieces: list[Piece] = []
    start, low, high = 0, firsts[0], lasts[0]
    for row in range(1, rows):
        left, right = min(low, firsts[row]), max(high, lasts[row])
        size = (row + 1 - start) * (right - left)
        loose = seen[row + 1] - seen[start] < _FULL * size and heads * size > _WORTH_CUTTING
        if heads * size > most or loose:
            pieces.append(Piece(slice(start, row), slice(low, high)))
            start, left, right = row, firsts[row], lasts[row]
        low, high = left, right
    return [*pieces, Piece(slice(start, rows), slice(low, high))]


def waves(sizes: Sequence[int], most: int) -> list[slice]:
    """Runs of jobs that may go on together, with at most `most` entries (but at least one job)."""
    found: list[slice] = []
    start = total = 0
    for place, size in enumerate(sizes):
        if place > start and total + size > most:
            found.append(slice(start, place))
            start, total = place, 0
        total += size
    return [*found, slice(start, len(sizes))]


async def in_blocks(
    lane: Lane,
    x: SecretTensor,
    columns: int,
    function: Callable[[SecretTensor], Coroutine[Any, Any, SecretTensor]],
) -> SecretTensor:
    """`function` of the rows of x (T, ...), in as many blocks as `Settings.block` asks for.

    Args:
        columns: entries that the function computes per row.
    """
    blocks = row_blocks(x.shape[0], columns, lane.settings.block)
    if len(blocks) == 1:
        return await function(x)
    return concat([await function(x[rows]) for rows in blocks], axis=0)
