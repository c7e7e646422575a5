"""How checkpoints store numbers: in bytes, one by one or in blocks with a common scale.

The blocks are those of GGUF (`block_q8_0`, `block_q4_0` and `block_q4_1` of ggml), little-endian.
Each starts with a float16 scale; Q4_1 adds a float16 minimum. In Q4 the first half of the numbers
is in the low four bits of the bytes that follow, the second half in the high ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from protocols.kernels.jit import Bytes

BATCH = 32
"""Numbers that are decoded at a time: a block, or as many where there are no blocks."""

Values = NDArray[np.float32]

FormatName: TypeAlias = Literal["bf16", "f16", "f32", "q8_0", "q4_0", "q4_1"]
NAMES: tuple[FormatName, ...] = get_args(FormatName)
PLAIN = NAMES[:3]
"""Formats without blocks."""


@dataclass(frozen=True, slots=True)
class Format:
    """Attributes:
    code: its number in the kernels.
    entries: numbers of a block, which has `nbytes` bytes.
    """

    name: FormatName
    code: int
    entries: int
    nbytes: int

    def row_bytes(self, count: int) -> int:
        """Bytes that a row of `count` numbers takes; whole blocks."""
        return count // self.entries * self.nbytes

    @property
    def blocked(self) -> bool:
        return self.entries > 1


_SIZES = {"bf16": (1, 2), "f16": (1, 2), "f32": (1, 4), "q8_0": (32, 34), "q4_0": (32, 18),
          "q4_1": (32, 20)}  # fmt: skip
FORMATS: Mapping[FormatName, Format] = {
    name: Format(name, code, *_SIZES[name]) for code, name in enumerate(NAMES)
}


def values_numpy(stored: Bytes, kind: Format) -> Values:
    """The numbers in rows of bytes: (n, row bytes) -> (n, numbers of a row), as float32.

    Every number is exact, but for the sum with a minimum, which is rounded once.
    """
    stored = np.ascontiguousarray(stored)
    if kind.name == "bf16":
        return (stored.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    if not kind.blocked:
        return stored.view("<f2" if kind.name == "f16" else "<f4").astype(np.float32)
    blocks = stored.reshape(-1, kind.nbytes)
    scale = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    if kind.name == "q8_0":
        found = blocks[:, 2:].view(np.int8).astype(np.float32) * scale
    else:
        nibbles = blocks[:, -16:]
        fours = np.concatenate([nibbles & np.uint8(15), nibbles >> np.uint8(4)], axis=1)
        if kind.name == "q4_0":
            found = (fours.astype(np.float32) - np.float32(8)) * scale
        else:
            least = np.ascontiguousarray(blocks[:, 2:4]).view("<f2").astype(np.float32)
            found = fours.astype(np.float32) * scale + least
    return found.reshape(stored.shape[0], stored.shape[1] // kind.nbytes * kind.entries)
