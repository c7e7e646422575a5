"""The fields of a message: arrays of ring words or bits, packed."""

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np

from protocols.base.ring import RING_BITS, Bytes, Words, packed_bytes
from protocols.errors import RemoteProtocolError
from protocols.kernels.packing import pack, unpack, unpack_sum

_WORK = 12
"""Work of drawing, adding or packing one element, in multiply-adds."""
_FEW = 1 << 13
"""Up to this many elements run in place: asking the runtime would cost more than a thread gains."""


def elementwise_work(count: int) -> int:
    """Work of one pass over so many elements, in `Lane.run`'s unit; 0: do it in place."""
    return _WORK * count if count >= _FEW else 0


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


class Layout:
    """What the fields of a message have in common, computed once.

    Attributes:
        nbytes: bytes of the message.
        work: of drawing, adding or packing them, in `Lane.run`'s unit; 0: do it in place.
        only: the field, if there is one.
        places: every field, and where it begins and ends in the message.
    """

    __slots__ = ("nbytes", "only", "places", "work")

    def __init__(self, fields: tuple[Field, ...]) -> None:
        self.only = fields[0] if len(fields) == 1 else None
        ends = list(itertools.accumulate((item.nbytes for item in fields), initial=0))
        self.places = list(zip(fields, ends, ends[1:], strict=False))
        self.nbytes = ends[-1]
        self.work = elementwise_work(sum(item.count for item in fields))


layout = lru_cache(maxsize=4096)(Layout)
"""`Layout`, cached by fields."""


def fields_bytes(fields: Sequence[Field]) -> int:
    """Bytes of a message with these fields; each starts on a byte."""
    return layout(tuple(fields)).nbytes


def split(buffer: Buffer, fields: Sequence[Field]) -> list[Words]:
    """Unpack a message.

    Raises:
        RemoteProtocolError: its size does not match the fields.
    """
    plan, data = _checked(buffer, fields)
    if (only := plan.only) is not None:
        return [unpack(data, only.width, only.count).reshape(only.shape)]
    return [
        unpack(data[start:end], item.width, item.count).reshape(item.shape)
        for item, start, end in plan.places
    ]


def sums(buffer: Buffer, fields: Sequence[Field], mine: Sequence[Words]) -> list[Words]:
    """Unpack a message and add `mine` to it, or XOR it, field by field.

    Raises:
        RemoteProtocolError: its size does not match the fields.
    """
    plan, data = _checked(buffer, fields)
    return [
        unpack_sum(data[start:end], item.width, own, item.xor)
        for (item, start, end), own in zip(plan.places, mine, strict=True)
    ]


def _checked(buffer: Buffer, fields: Sequence[Field]) -> tuple[Layout, Bytes]:
    plan, data = layout(tuple(fields)), np.frombuffer(buffer, dtype=np.uint8)
    if data.size != plan.nbytes:
        raise RemoteProtocolError(f"message of {data.size} bytes, expected {plan.nbytes}")
    return plan, data


def join(fields: Sequence[Field], values: Sequence[Words]) -> list[Bytes]:
    """Pack a message; the inverse of `split`."""
    return [pack(value, item.width) for item, value in zip(fields, values, strict=True)]
