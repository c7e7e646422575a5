"""Reads the header of a GGUF file and checks every length in it; tensor data stays on disk.

The reader of the `gguf` library builds several NumPy views per metadata element, which takes
seconds for a vocabulary, and fails with an IndexError on a truncated file. This one takes a tenth
of a second and reports what is wrong. The library still does the dequantisation.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3).
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
from numpy.typing import NDArray

from models.files.mapping import release
from protocols.errors import ModelError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
# Value type -> struct format, little-endian.
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_MAX_DIMS = 4
# The types that the library dequantises (old versions lack the last), and two decoded here.
_NAMES = (
    "F64 F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K IQ1_S IQ1_M IQ2_XXS "
    "IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ4_NL IQ4_XS TQ1_0 TQ2_0 MXFP4 NVFP4"
)
_SUPPORTED = {kind for kind in GGMLQuantizationType if kind.name in _NAMES.split()}


@dataclass(frozen=True)
class GgufTensor:
    """A stored tensor. `shape` is in NumPy order (rows first), `offset` from the file start."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    nbytes: int


def _dequantized(rows: NDArray[np.uint8], kind: GGMLQuantizationType) -> NDArray[Any]:
    """Decode rows of blocks: (..., bytes of a row) to (..., numbers of a row)."""
    if kind == GGMLQuantizationType.F64:
        return rows.view(np.float64)
    if kind == GGMLQuantizationType.Q8_K:  # a float32 scale, 256 signed bytes, and sums of these
        blocks = rows.reshape(-1, GGML_QUANT_SIZES[kind][1])
        scales = np.ascontiguousarray(blocks[:, :4]).view(np.float32)
        values = scales * blocks[:, 4:260].view(np.int8).astype(np.float32)
        return values.reshape(*rows.shape[:-1], -1)
    found: NDArray[Any] = dequantize(rows, kind)
    return found


class GgufFile:
    """`metadata` (plain Python values) and `tensors` of one file, memory-mapped until `close`.

    Raises ModelError if the file is truncated, malformed, split or of an unknown version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._at = 0
        try:
            with path.open("rb") as handle:
                self._map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise ModelError(f"{path}: cannot be read as GGUF ({error})") from None
        try:
            self.metadata: dict[str, Any] = {}
            self.tensors: dict[str, GgufTensor] = {}
            self._read_header()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Unmap the file; reading a tensor afterwards raises ValueError."""
        self._map.close()

    def check(self, name: str) -> None:
        """Raise ModelError unless the tensor's storage type can be read."""
        kind = self.tensors[name].kind
        if kind not in _SUPPORTED:
            names = ", ".join(sorted(kind.name for kind in _SUPPORTED))
            raise ModelError(
                f"{self.path}: {name} is stored as {kind.name}, which is not supported; "
                f"supported: {names} (convert with llama-quantize)"
            )

    def tensor(self, name: str) -> NDArray[np.float32]:
        """A tensor as a new, writable, C-contiguous float32 array. Raises ModelError, KeyError."""
        self.check(name)
        entry = self.tensors[name]
        raw = np.frombuffer(self._map[entry.offset : entry.offset + entry.nbytes], dtype=np.uint8)
        release(self._map, entry.offset, entry.nbytes)
        rows = raw.reshape(*entry.shape[:-1], -1)
        values = _dequantized(rows, entry.kind)
        # Float32 comes back as a read-only view of the bytes; anything else is new already.
        return np.require(values, np.float32, ["C", "W"]).reshape(entry.shape)

    def _read_header(self) -> None:
        if self._take(4) != _MAGIC:
            raise ModelError(f"{self.path}: not a GGUF file (it does not start with 'GGUF')")
        (version,) = self._unpack("I")
        if version not in _VERSIONS:
            raise ModelError(
                f"{self.path}: GGUF version {version:#x} is not supported; supported: 2 and 3, "
                "little-endian (convert again with a current llama.cpp)"
            )
        tensor_count, value_count = self._unpack("QQ")
        for _ in range(value_count):
            key = self._string()
            (kind,) = self._unpack("I")
            self.metadata[key] = self._value(kind)
        if self.metadata.get("split.count", 1) not in (0, 1):
            raise ModelError(
                f"{self.path}: part of a split GGUF; join it with `llama-gguf-split --merge`"
            )
        entries = [self._tensor_entry() for _ in range(tensor_count)]
        self._place(entries)

    def _tensor_entry(self) -> GgufTensor:
        name = self._string()
        (dims,) = self._unpack("I")
        if dims > _MAX_DIMS:
            raise ModelError(f"{self.path}: tensor {name[:80]!r} claims {dims} dimensions")
        shape = tuple(reversed(self._unpack("Q" * dims)))
        code, offset = self._unpack("IQ")
        try:
            kind = GGMLQuantizationType(code)
        except ValueError:
            raise ModelError(f"{self.path}: {name[:80]!r} has unknown type {code}") from None
        block, size = GGML_QUANT_SIZES[kind]
        if not shape or shape[-1] % block:
            raise ModelError(f"{self.path}: {name[:80]!r} of shape {shape} cannot be {kind.name}")
        return GgufTensor(name, shape, kind, offset, math.prod(shape) // block * size)

    def _place(self, entries: list[GgufTensor]) -> None:
        """Turn offsets into the data section into offsets into the file, and check the ends."""
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1:
            raise ModelError(f"{self.path}: general.alignment {alignment!r} is not positive")
        start = -(-self._at // alignment) * alignment
        for entry in entries:
            offset = start + entry.offset
            if offset + entry.nbytes > len(self._map):
                raise self._truncated(f"tensor {entry.name!r}", offset + entry.nbytes)
            self.tensors[entry.name] = GgufTensor(
                entry.name, entry.shape, entry.kind, offset, entry.nbytes
            )

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind in _SCALARS:
            return self._unpack(_SCALARS[kind])[0]
        if kind != _ARRAY:
            raise ModelError(f"{self.path}: unknown metadata type {kind} at byte {self._at}")
        element, count = self._unpack("IQ")
        if element in _SCALARS:
            return list(self._unpack_many(_SCALARS[element], count))
        # An element takes at least 8 bytes, so a wrong count stops at the end of the file.
        if element == _STRING:
            return [self._string() for _ in range(count)]
        raise ModelError(f"{self.path}: array of metadata type {element} at byte {self._at}")

    def _string(self) -> str:
        (length,) = self._unpack("Q")
        return self._take(length).decode("utf-8", errors="replace")

    def _unpack_many(self, code: str, count: int) -> tuple[Any, ...]:
        raw = self._take(count * struct.calcsize(f"<{code}"))
        return struct.unpack(f"<{count}{code}", raw)

    def _unpack(self, codes: str) -> tuple[Any, ...]:
        return struct.unpack(f"<{codes}", self._take(struct.calcsize(f"<{codes}")))

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._map):
            raise self._truncated("the header", end)
        data = self._map[self._at : end]
        self._at = end
        return data

    def _truncated(self, what: str, end: int) -> ModelError:
        return ModelError(
            f"{self.path}: truncated: {what} ends at byte {end}, the file has {len(self._map)}; "
            "download it again"
        )
