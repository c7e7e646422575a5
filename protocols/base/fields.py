"""The fields of a message: arrays of ring words or bits, packed."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np

from protocols.base.ring import RING_BITS, Bytes, Words, packed_bytes
from protocols.errors import RemoteProtocolError
from protocols.kernels.packing import pack, unpack

Buffer: TypeAlias = Bytes | memoryview | bytes


class Field:
    """One array of a message: `width` bits per element. Additive over 2^width, or XOR-shared.

    Attributes:
        count: elements. nbytes: bytes on the wire.
    """

    __slots__ = ("count", "nbytes", "shape", "width", "xor")

    def __init__(self, shape: tuple[int, ...], width: int = RING_BITS, xor: bool = False) -> None:
        self.shape = shape
        self.width = width
        self.xor = xor
        self.count = math.prod(shape)
        self.nbytes = packed_bytes(self.count, width)


field = lru_cache(maxsize=4096)(Field)
"""`Field`, cached by shape and width."""


def fields_bytes(fields: Sequence[Field]) -> int:
    """Bytes of a message with these fields; each starts on a byte."""
    return sum(field.nbytes for field in fields)


def split(buffer: Buffer, fields: Sequence[Field]) -> list[Words]:
    """Unpack a message.

    Raises:
        RemoteProtocolError: its size does not match the fields.
    """
    data = np.frombuffer(buffer, dtype=np.uint8)
    parts, start = [], 0
    for item in fields:
        end = start + item.nbytes
        if end > data.size:
            break
        whole = data if end - start == data.size else data[start:end]
        parts.append(unpack(whole, item.width, item.count).reshape(item.shape))
        start = end
    if start != data.size or len(parts) != len(fields):
        expected = fields_bytes(fields)
        raise RemoteProtocolError(f"message of {data.size} bytes, expected {expected}")
    return parts


def join(fields: Sequence[Field], values: Sequence[Words]) -> list[Bytes]:
    """Pack a message; the inverse of `split`."""
    return [
        pack(np.ascontiguousarray(value).reshape(-1), item.width)
        for item, value in zip(fields, values, strict=True)
    ]
