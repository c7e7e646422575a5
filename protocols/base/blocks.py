"""Work cut into blocks, so that memory does not grow with the square of a text's length.

An entry that a comparison or a selection works on takes some hundred bytes at each party (the
one-hots of its digits, the dealt products of its masks). So that a layer never has more than
`Settings.block` of them in hand, what is larger is done in blocks of rows, one after another: each
takes the rounds of the whole, and no more traffic. Where the blocks lie is a function of shapes
alone, the same at all parties and in a prediction.
"""

from collections.abc import Callable, Coroutine, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from protocols.base.lane import Lane
from protocols.base.shares import SecretTensor, concat

ACTIVATION_ENTRIES = 2
"""An activation of the default set has more in hand than a score: its waves."""


class Piece(NamedTuple):
    """Rows of a score matrix, and the columns that any of them may look at."""

    rows: slice
    columns: slice

    def size(self, heads: int) -> int:
        """Scores of so many heads."""
        height: int = self.rows.stop - self.rows.start
        width: int = self.columns.stop - self.columns.start
        return heads * height * width


def row_blocks(rows: int, columns: int, most: int) -> list[slice]:
    """As few runs of rows as possible, as even as possible, of at most `most` entries (but one row
    at least).
    """
    count = -(-rows // max(1, most // columns))
    cuts = [rows * i // count for i in range(count + 1)]
    return [slice(lo, hi) for lo, hi in pairwise(cuts)]


def score_pieces(mask: NDArray[np.bool_], heads: int, most: int) -> list[Piece]:
    """The scores of `heads` under a mask (rows, context) in pieces of at most `most` (but one row
    at least). One that fits stays whole; of others the columns that no row of theirs may see are
    left out, which halves a causal mask.
    """
    rows, context = mask.shape
    if heads * rows * context <= most:
        return [Piece(slice(0, rows), slice(0, context))]
    firsts = mask.argmax(axis=1).tolist()
    lasts = (context - mask[:, ::-1].argmax(axis=1)).tolist()
    pieces: list[Piece] = []
    start, low, high = 0, firsts[0], lasts[0]
    for row in range(1, rows):
        left, right = min(low, firsts[row]), max(high, lasts[row])
        if heads * (row + 1 - start) * (right - left) > most:
            pieces.append(Piece(slice(start, row), slice(low, high)))
            start, left, right = row, firsts[row], lasts[row]
        low, high = left, right
    return [*pieces, Piece(slice(start, rows), slice(low, high))]


def waves(sizes: Sequence[int], most: int) -> list[slice]:
    """Runs of jobs that may go on side by side: of at most `most` entries together (but one job at
    least).
    """
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
        columns: entries of the function that a row makes.
    """
    blocks = row_blocks(x.shape[0], columns, lane.settings.block)
    if len(blocks) == 1:
        return await function(x)
    return concat([await function(x[rows]) for rows in blocks], axis=0)
