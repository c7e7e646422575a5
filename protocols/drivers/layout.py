"""Where the heads of a model lie in a party's arrays, and rotary positions on ring words."""

import itertools
from collections.abc import Sequence

import numpy as np

from protocols.base.ring import Words, encode
from protocols.base.shares import SecretTensor, concat
from protocols.drivers.ops import Rotation, rotate


class Turn:
    """RoPE as a linear map on ring words (T, columns).

    Heads after the first `rotated` are only scaled, by `drop` bits less than the others.
    """

    def __init__(
        self, rotation: Rotation, rotated: int, size: int, frac: int, drop: int = 0
    ) -> None:
        self._cos, self._sin = (encode(angles, frac) for angles in (rotation.cos, rotation.sin))
        self._rotated, self._size, self.frac, self._drop = rotated, size, frac, drop

    def __call__(self, words: Words) -> Words:
        split = words.reshape(words.shape[0], -1, self._size)
        rest = split[:, self._rotated :] << np.uint64(self.frac - self._drop)
        turned = rotate(split[:, : self._rotated], self._cos, self._sin)
        return np.concatenate([turned, rest], axis=1).reshape(words.shape)


def rejoined(parts: Sequence[SecretTensor], cuts: Sequence[int], groups: int) -> SecretTensor:
    """Join the parts of all sequences, with the heads of a row concatenated: (rows, columns).

    Parts are ordered by sequence, group of heads and block of rows; `cuts` has the number of blocks
    of each group.
    """
    rest = iter(parts)
    done = [concat(list(itertools.islice(rest, count)), axis=1) for count in cuts]
    rows = [concat(done[start : start + groups], axis=0) for start in range(0, len(done), groups)]
    whole = concat(rows, axis=1).transpose(1, 0, 2)
    return whole.reshape(whole.shape[0], -1)


def within(whole: slice, part: slice) -> slice:
    return slice(whole.start + part.start, whole.start + part.stop)


def split_heads(joint: SecretTensor, size: int) -> SecretTensor:
    return joint.reshape(joint.shape[0], -1, size)
