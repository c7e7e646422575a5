"""What one worker holds of one model of its party: runs of rows of factors. A Dask actor.

It is the only code of ours that runs at a worker. It knows what the party sends it: masked words
(none from the dealer) and the keys of the party's own masks, tensor by tensor; no seed, and no name
of a model. Everything stays in memory, and is gone when the actor is.
"""

from collections.abc import Sequence
from math import prod

import numpy as np

from protocols.base.prf import add_stream
from protocols.base.ring import Words
from protocols.errors import LocalProtocolError
from protocols.kernels.matmul import matmul_into
from protocols.kernels.rows import matmul_rows
from puma_actors.base.build import program_digest


class HeldRows:
    """See the module docstring. Dask calls the methods one after the other, in a thread."""

    def __init__(self) -> None:
        self._words: dict[int, Words] = {}
        self._filled: dict[int, int] = {}

    def program(self) -> str:
        """The digest of the program that runs here. Loads the kernels of products."""
        one = np.ones((1, 1), dtype=np.uint64)
        matmul_into(one, matmul_rows(one, one), one.copy(), 0, 1)
        return program_digest()

    def open(self, number: int, shape: tuple[int, int]) -> None:
        """Make room for a run of rows of tensor `number`."""
        self._words[number] = np.zeros(shape, dtype=np.uint64)
        self._filled[number] = 0

    def fill(
        self,
        number: int,
        at: int,
        size: int,
        words: Words | None,
        keys: Sequence[bytes],
        start: int,
    ) -> None:
        """Make the next words of a factor.

        Args:
            at: where they begin in this run of rows, which is filled from its beginning to its end.
            size: how many.
            words: the masked words; None at the dealer.
            keys: of the masks that the party knows.
            start: number of the first of these words in the whole tensor.
        """
        if at != self._filled[number]:
            raise LocalProtocolError(f"words {at} of tensor {number} came out of turn")
        part = self._words[number].reshape(-1)[at : at + size]
        if part.size != size or (words is not None and words.shape != (size,)):
            raise LocalProtocolError(f"words {at} of tensor {number} do not fit")
        if words is not None:
            part[:] = words
        for key, times in zip(keys, (-2,) if words is not None else (1, -1), strict=True):
            add_stream(key, start, times, part)  # as in `protocols.streamed`
        self._filled[number] = at + size

    def matmul(self, number: int, x: Words) -> Words:
        """x @ W modulo 2^64 for this run of rows of W, x (T, rows): (T, columns)."""
        words = self._whole(number)
        out = np.empty((x.shape[0], words.shape[1]), dtype=np.uint64)
        matmul_into(np.ascontiguousarray(x), words, out, 0, out.shape[1])
        return out

    def matmul_rows(self, number: int, x: Words) -> Words:
        """x @ W^T modulo 2^64 for this run of rows of W, x (T, columns): (T, rows)."""
        return matmul_rows(np.ascontiguousarray(x), self._whole(number))

    def _whole(self, number: int) -> Words:
        words = self._words.get(number)
        if words is None or self._filled[number] != prod(words.shape):
            raise LocalProtocolError(f"this worker does not hold all its rows of tensor {number}")
        return words
