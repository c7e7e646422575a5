"""A quantised weight, stored as several tensors: packed integers, scales, zero points."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.checkpoints.lora import Values
from models.configs.names import Shape
from models.files.safetensors_reader import SafetensorsFile, StoredTensor
from protocols.errors import ModelError

_CODES = {"I32": "<i4", "I8": "i1", "U8": "u1", "F8_E4M3": "u1"}


@dataclass(frozen=True, slots=True)
class Parts:
    """The tensors of one module."""

    owner: Mapping[str, SafetensorsFile]
    module: str

    def has(self, end: str) -> bool:
        return f"{self.module}.{end}" in self.owner

    def entry(self, end: str) -> StoredTensor:
        name = f"{self.module}.{end}"
        if name not in self.owner:
            raise ModelError(f"tensor {name[:80]} is missing, a part of a quantised weight")
        return self.owner[name].tensors[name]

    def whole(self, end: str, *dtypes: str) -> NDArray[Any]:
        """A tensor of integers, or the raw bytes of FP8 numbers."""
        entry, name = self.entry(end), f"{self.module}.{end}"
        if entry.dtype not in dtypes:
            raise ModelError(f"{name[:80]} is stored as {entry.dtype}, not {' or '.join(dtypes)}")
        found = np.frombuffer(self.owner[name].raw(name), _CODES[entry.dtype])
        if found.size != int(np.prod(entry.shape)):
            raise ModelError(f"{name[:80]} has the wrong number of bytes; download it again")
        return found.reshape(entry.shape)

    def check_floats(self, *ends: str) -> None:
        """Raise ModelError unless these tensors exist and have a type that can be read."""
        for end in ends:
            self.entry(end)
            self.owner[f"{self.module}.{end}"].check(f"{self.module}.{end}")

    def floats(self, end: str) -> Values:
        return self.owner[f"{self.module}.{end}"].tensor(f"{self.module}.{end}")

    def misfit(self, why: str) -> ModelError:
        return ModelError(f"{self.module[:80]}: its quantised weight does not fit: {why}")


class Packed(ABC):
    """One weight in parts; `shape` is (outputs, inputs)."""

    ends: tuple[str, ...]
    shape: Shape

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    def uses(self, name: str) -> bool:
        """Whether a tensor of the module is one of the parts."""
        return name.removeprefix(f"{self.parts.module}.") in self.ends

    @property
    def nbytes(self) -> int:
        return sum(self.parts.entry(end).nbytes for end in self.ends if self.parts.has(end))

    @abstractmethod
    def values(self) -> Values:
        """The weight as a new, C-contiguous float32 array."""
