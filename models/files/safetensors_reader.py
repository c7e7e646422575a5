"""One safetensors file: header checked, data memory-mapped, float dtypes converted to float32.

The `safetensors` library needs torch or ml_dtypes to return bfloat16; this reader does not.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.files.mapping import release
from protocols.errors import ModelError

_MAX_HEADER = 100_000_000  # bytes; the limit of the reference implementation
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_DTYPES = "F64, F32, F16, BF16"
_CHUNK = 1 << 16  # numbers that are converted at a time: they stay in the processor's cache


@dataclass(frozen=True)
class StoredTensor:
    """Place of a tensor: `start` and `stop` are byte offsets from the start of the file."""

    shape: tuple[int, ...]
    dtype: str
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Size in the file, in bytes."""
        return self.stop - self.start


class SafetensorsFile:
    """`tensors` of one file by name, memory-mapped until `close`.

    Raises ModelError when the file is truncated or malformed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as handle:
                self._map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise ModelError(f"{path}: cannot be read as safetensors ({error})") from None
        try:
            self.tensors = self._read_header()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Unmap the file; reading a tensor afterwards raises ValueError."""
        self._map.close()

    def raw(self, name: str) -> bytes:
        """The stored bytes of a tensor. Raises KeyError."""
        entry = self.tensors[name]
        found = self._map[entry.start : entry.stop]
        release(self._map, entry.start, entry.nbytes)
        return found

    def check(self, name: str) -> None:
        """Raise ModelError unless the tensor's storage type can be read."""
        dtype = self.tensors[name].dtype
        if dtype not in _ITEM_BYTES:
            raise ModelError(
                f"{self.path}: {name} is stored as {dtype}, which is not supported; "
                f"supported: {_DTYPES} (save the model unquantised, e.g. as bfloat16)"
            )

    def tensor(self, name: str) -> NDArray[np.float32]:
        """The tensor in float32, a fresh C-contiguous array. Raises ModelError, KeyError."""
        self.check(name)
        entry = self.tensors[name]
        code = "<u2" if entry.dtype == "BF16" else f"<f{_ITEM_BYTES[entry.dtype]}"
        stored = np.frombuffer(self._map, code, math.prod(entry.shape), entry.start)
        values = _single(stored, entry.dtype).reshape(entry.shape)
        del stored  # the file cannot be closed while this is there
        release(self._map, entry.start, entry.nbytes)
        return values

    def _read_header(self) -> dict[str, StoredTensor]:
        size = len(self._map)
        length = struct.unpack("<Q", self._map[:8])[0] if size >= 8 else 0
        if length > _MAX_HEADER:
            raise ModelError(f"{self.path}: not a safetensors file (header of {length} bytes)")
        if size < 8 or 8 + length > size:
            raise self._truncated("the header", 8 + length)
        try:
            header = json.loads(self._map[8 : 8 + length])
        except (ValueError, RecursionError):
            raise ModelError(f"{self.path}: the header is not JSON; download it again") from None
        if not isinstance(header, dict):
            raise ModelError(f"{self.path}: the header is not a JSON object")
        header.pop("__metadata__", None)
        return {name: self._entry(name, value, 8 + length) for name, value in header.items()}

    def _entry(self, name: str, value: Any, base: int) -> StoredTensor:
        try:
            shape = tuple(int(n) for n in value["shape"])
            start, stop = (int(n) for n in value["data_offsets"])
            dtype = str(value["dtype"])
        except (KeyError, TypeError, ValueError):
            raise ModelError(f"{self.path}: malformed header entry for {name[:80]!r}") from None
        if min(shape, default=0) < 0 or not 0 <= start <= stop:
            raise ModelError(f"{self.path}: malformed header entry for {name[:80]!r}")
        item = _ITEM_BYTES.get(dtype)
        if item is not None and math.prod(shape) * item != stop - start:
            raise ModelError(f"{self.path}: {name[:80]!r} has the wrong number of bytes")
        if base + stop > len(self._map):
            raise self._truncated(f"tensor {name[:80]!r}", base + stop)
        return StoredTensor(shape, dtype, base + start, base + stop)

    def _truncated(self, what: str, end: int) -> ModelError:
        return ModelError(
            f"{self.path}: truncated: {what} ends at byte {end}, the file has {len(self._map)}; "
            "download it again"
        )


def _single(stored: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Numbers as they are in the file, in float32."""
    if dtype != "BF16":
        return stored.astype(np.float32)
    values = np.empty(len(stored), dtype=np.uint32)
    for start in range(0, len(stored), _CHUNK):
        part = values[start : start + _CHUNK]
        part[:] = stored[start : start + _CHUNK]
        part <<= np.uint32(16)  # the upper half of a float32
    return values.view(np.float32)
