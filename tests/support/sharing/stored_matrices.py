"""Matrices in the bytes of a checkpoint, made without the code that reads them."""

from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from protocols.public_weight import Part, PublicTable, PublicWeight

Matrix = NDArray[np.float32]
KINDS = ("bf16", "f16", "f32", "q8_0", "q4_0", "q4_1", "q4_k", "q6_k")
PLAIN = KINDS[:3]
SUPER = KINDS[-2:]
SCALES = {"q4_k": (0, 2), "q6_k": (208,)}
"""Where the float16 numbers of a large block are."""


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
    elif kind in SUPER:
        made = _superblocks(rows, kind)
    else:
        made = quantize(rows, GGMLQuantizationType[kind.upper()])
    return made.view(np.uint8).reshape(len(rows), -1)


def _superblocks(rows: Matrix, kind: str) -> NDArray[np.uint8]:
    """Large blocks with random bits, which the values only seed, and scales of the usual size: the
    library reads such blocks, but does not write them.
    """
    size = {"q4_k": 144, "q6_k": 210}[kind]
    count = rows.size // 256
    rng = np.random.default_rng(np.frombuffer(rows.tobytes()[:64].ljust(64), np.uint32))
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    for place in SCALES[kind]:
        scales = rng.normal(0, 1e-4, count).astype(np.float16)
        blocks[:, place : place + 2] = scales[:, None].view(np.uint8)
    return blocks


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
