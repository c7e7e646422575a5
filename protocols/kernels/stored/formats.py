"""How checkpoints store numbers: in bytes, one by one or in blocks with a common scale.

The blocks are those of GGUF (`block_q8_0` and so on in ggml), little-endian. Those of 32 numbers
start with a float16 scale; Q4_1 adds a float16 minimum. In Q4 the first half of the numbers is in
the low four bits of the bytes that follow, the second half in the high ones.

Those of 256 numbers have a float16 scale, and smaller ones that it multiplies:

- Q4_K: scale, scale of the minimums, 12 bytes with eight scales and minimums of six bits each, 128
  bytes with four times 32 numbers in the low bits and 32 in the high bits;
- Q6_K: 128 bytes with low four bits, 64 with high two bits, 16 signed scales, the scale.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from protocols.kernels.jit import Bytes

BATCH = 32
"""Numbers that are decoded at a time: a block, or as many where there are no blocks."""

Values = NDArray[np.float32]

FormatName: TypeAlias = Literal["bf16", "f16", "f32", "q8_0", "q4_0", "q4_1", "q4_k", "q6_k"]
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


_SIZES: Mapping[FormatName, tuple[int, int]] = {
    "bf16": (1, 2),
    "f16": (1, 2),
    "f32": (1, 4),
    "q8_0": (32, 34),
    "q4_0": (32, 18),
    "q4_1": (32, 20),
    "q4_k": (256, 144),
    "q6_k": (256, 210),
}
FORMATS: Mapping[FormatName, Format] = {
    name: Format(name, code, *_SIZES[name]) for code, name in enumerate(NAMES)
}


def values_numpy(stored: Bytes, kind: Format) -> Values:
    """The numbers in rows of bytes: (n, row bytes) -> (n, numbers of a row), as float32.

    Every number is exact, but for those with a minimum: that sum is rounded once.
    """
    stored = np.ascontiguousarray(stored)
    if kind.name == "bf16":
        return (stored.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    if not kind.blocked:
        return stored.view("<f2" if kind.name == "f16" else "<f4").astype(np.float32)
    found = _BLOCKS[kind.name](stored.reshape(-1, kind.nbytes))
    return found.reshape(stored.shape[0], stored.shape[1] // kind.nbytes * kind.entries)


def _half(blocks: Bytes, at: int) -> Values:
    """The float16 at a place of every block, in a column."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _fours(blocks: Bytes) -> Values:
    nibbles = blocks[:, -16:]
    return np.concatenate([nibbles & _LOW, nibbles >> _FOUR], axis=1).astype(np.float32)


def _q8_0(blocks: Bytes) -> Values:
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _half(blocks, 0)


def _q4_0(blocks: Bytes) -> Values:
    return (_fours(blocks) - np.float32(8)) * _half(blocks, 0)


def _q4_1(blocks: Bytes) -> Values:
    return _fours(blocks) * _half(blocks, 0) + _half(blocks, 2)


def _q4_k(blocks: Bytes) -> Values:
    first, second, both = (blocks[:, at : at + 4] for at in (4, 8, 12))
    scales = np.concatenate([first & _SIX, both & _LOW | first >> _TWO & _HIGH], axis=1)
    least = np.concatenate([second & _SIX, both >> _FOUR | second >> _TWO & _HIGH], axis=1)
    pairs = blocks[:, 16:].reshape(-1, 4, 1, 32)
    fours = np.concatenate([pairs & _LOW, pairs >> _FOUR], axis=2).reshape(-1, 8, 32)
    times = (_half(blocks, 0) * scales.astype(np.float32))[:, :, None]
    minus = (_half(blocks, 2) * least.astype(np.float32))[:, :, None]
    return fours.astype(np.float32) * times - minus


def _q6_k(blocks: Bytes) -> Values:
    pairs = blocks[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate([pairs & _LOW, pairs >> _FOUR], axis=2).reshape(-1, 8, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & np.uint8(3)).reshape(-1, 8, 32)
    sixes = (low | high << _FOUR).astype(np.float32) - np.float32(32)
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32) * _half(blocks, 208)
    found: Values = sixes.reshape(-1, 16, 16) * scales[:, :, None]
    return found


_LOW, _HIGH, _SIX = np.uint8(0x0F), np.uint8(0x30), np.uint8(0x3F)
_TWO, _FOUR = np.uint8(2), np.uint8(4)
_BLOCKS: Mapping[FormatName, Callable[[Bytes], Values]] = {
    "q8_0": _q8_0,
    "q4_0": _q4_0,
    "q4_1": _q4_1,
    "q4_k": _q4_k,
    "q6_k": _q6_k,
}
