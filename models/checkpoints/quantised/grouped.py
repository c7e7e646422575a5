"""Read weights quantised by GPTQ (https://arxiv.org/abs/2210.17323) or AWQ
(https://arxiv.org/abs/2306.00978).

A weight is scale[group] * (q - zero[group]), with groups of inputs. GPTQ packs q along the inputs,
AWQ packs it along the outputs, in the order that its kernels use.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.checkpoints.lora import Values
from models.checkpoints.quantised.parts import Packed, Parts
from models.configs.names import Shape
from models.configs.quantisation import Quantisation

_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)


def _unpack(words: NDArray[Any], bits: int, axis: int) -> NDArray[np.int32]:
    """Unpack numbers of `bits` bits, the lowest bits first, along an axis of a matrix."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    shape = (1, -1, 1) if axis == 0 else (1, 1, -1)
    unsigned = np.expand_dims(words.view(np.uint32), axis + 1)
    fields = (unsigned >> shifts.reshape(shape)) & np.uint32((1 << bits) - 1)
    rows, columns = words.shape
    across = 32 // bits
    found = fields.reshape((rows * across, columns) if axis == 0 else (rows, columns * across))
    return found.astype(np.int32)


class _Grouped(Packed):
    """A weight with scales and zero points for groups of inputs."""

    ends: tuple[str, ...] = ("qweight", "qzeros", "scales", "g_idx")

    def __init__(self, parts: Parts, quantisation: Quantisation) -> None:
        super().__init__(parts)
        self.how, self.across = quantisation, 32 // quantisation.bits
        inputs, outputs = self._sizes(parts.entry("qweight").shape)
        self.shape = (outputs, inputs)
        groups = parts.entry("scales").shape[0] if parts.entry("scales").shape else 0
        expected = {"scales": (groups, outputs), "qzeros": (groups, -(-outputs // self.across))}
        for end, shape in expected.items():
            if parts.entry(end).shape != shape or not groups:
                raise parts.misfit(f"{end} has shape {parts.entry(end).shape}, expected {shape}")
        parts.check_floats("scales")
        if not parts.has("g_idx") and inputs % groups:
            raise parts.misfit(f"{groups} groups of {inputs} inputs")
        self.groups = groups

    def _sizes(self, shape: Shape) -> tuple[int, int]:
        """Inputs and outputs, from the shape of the packed numbers."""
        if len(shape) != 2:
            raise self.parts.misfit(f"qweight has shape {shape}")
        return shape[0] * self.across, shape[1]

    def _group_of_input(self) -> NDArray[Any]:
        inputs = self.shape[1]
        if not self.parts.has("g_idx"):
            return np.arange(inputs) // (inputs // self.groups)
        found = self.parts.whole("g_idx", "I32")
        if found.shape != (inputs,) or found.min() < 0 or found.max() >= self.groups:
            raise self.parts.misfit("g_idx names groups that there are not")
        return found

    def values(self) -> Values:
        numbers, zeros = self._numbers(), self._zeros()[:, : self.shape[0]]
        group, scales = self._group_of_input(), self.parts.floats("scales")
        weight = (numbers - zeros[group]).astype(np.float32) * scales[group]
        return np.ascontiguousarray(weight.T)

    @abstractmethod
    def _numbers(self) -> NDArray[np.int32]:
        """The unpacked numbers q: (inputs, outputs)."""

    @abstractmethod
    def _zeros(self) -> NDArray[np.int32]:
        """The zero points: (groups, outputs or more)."""


class Gptq(_Grouped):
    def _numbers(self) -> NDArray[np.int32]:
        return _unpack(self.parts.whole("qweight", "I32"), self.how.bits, 0)

    def _zeros(self) -> NDArray[np.int32]:
        found = _unpack(self.parts.whole("qzeros", "I32"), self.how.bits, 1)
        if not self.how.plus_one:
            return found
        # Kernels differ here: some read 0, some read the largest plus one, some let it carry over.
        if (found[:, : self.shape[0]] == (1 << self.how.bits) - 1).any():
            raise self.parts.misfit("a zero point of -1 means another thing to every program")
        return found + 1


class Awq(_Grouped):
    ends = ("qweight", "qzeros", "scales")

    def _sizes(self, shape: Shape) -> tuple[int, int]:
        if len(shape) != 2:
            raise self.parts.misfit(f"qweight has shape {shape}")
        return shape[0], shape[1] * self.across

    def _numbers(self) -> NDArray[np.int32]:
        return self._ordered("qweight")

    def _zeros(self) -> NDArray[np.int32]:
        return self._ordered("qzeros")

    def _ordered(self, end: str) -> NDArray[np.int32]:
        found = _unpack(self.parts.whole(end, "I32"), 4, 1)
        return found.reshape(len(found), -1, 8)[:, :, _AWQ_ORDER].reshape(found.shape)
