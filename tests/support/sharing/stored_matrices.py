"""Matrices in the bytes of a checkpoint, made without the code that reads them."""

from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from protocols.public_weight import Part, PublicTable, PublicWeight

Matrix = NDArray[np.float32]
KINDS = ("bf16", "f16", "f32", "q8_0", "q4_0", "q4_1")
PLAIN = KINDS[:3]


def stored(values: Any, kind: str) -> NDArray[np.uint8]:
    """Rows of numbers in a format: (rows, bytes of a row)."""
    rows = np.ascontiguousarray(values, dtype=np.float32)
    made: NDArray[Any]
    if kind == "bf16":
        made = (rows.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    elif kind == "f16":
        made = rows.astype(np.float16)
    elif kind == "f32":
        made = rows
    else:
        made = quantize(rows, GGMLQuantizationType[kind.upper()])
    return made.view(np.uint8).reshape(len(rows), -1)


def read(data: NDArray[np.uint8], kind: str) -> Matrix:
    """What the gguf library reads."""
    if kind == "bf16":
        return (data.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    if kind in PLAIN:
        return data.view({"f16": "<f2", "f32": "<f4"}[kind]).astype(np.float32)
    found: Matrix = dequantize(data, GGMLQuantizationType[kind.upper()])
    return found


def part(values: Any, kind: str = "f32", **options: Any) -> Part:
    """(outputs, inputs), or (inputs, outputs) with `across`, as a part of a weight."""
    return Part(stored(values, kind), kind, **options)  # type: ignore[arg-type]


def public_weights(values: Any, roles: Any, **options: Any) -> dict[Any, PublicWeight]:
    """A matrix (depth, columns) of ring integers below 2^24, at each party."""
    floats = np.asarray(values, dtype=np.float64).T * 2.0**-20
    return {role: PublicWeight.of(role, [part(floats)], **options) for role in roles}


def public_tables(values: Any, roles: Any, **options: Any) -> dict[Any, PublicTable]:
    """A table (rows, columns) of ring integers below 2^24, at each party."""
    floats = np.asarray(values, dtype=np.float64) * 2.0**-22
    return {role: PublicTable.of(role, [part(floats)], **options) for role in roles}
