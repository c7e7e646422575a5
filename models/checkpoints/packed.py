"""Matrices as a file stores them, for parties that know the weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protocols.kernels.stored.formats import FormatName


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix in a file, memory-mapped.

    Attributes:
        kind: the format of its numbers.
        data: (rows, bytes of a row); it stays valid when the checkpoint is closed.
    """

    kind: FormatName
    data: NDArray[np.uint8] = field(repr=False)


def map_rows(path: Path, start: int, rows: int, nbytes: int) -> NDArray[np.uint8]:
    """(rows, bytes of a row) of `nbytes` bytes of a file from byte `start` on."""
    shape = rows, nbytes // rows
    return np.memmap(path, dtype=np.uint8, mode="r", offset=start, shape=shape)
