"""Read weights quantised by bitsandbytes.

4 bits select an entry of a table, multiplied by the largest number of the block
(https://arxiv.org/abs/2305.14314). 8-bit numbers are multiplied by the largest number of the row
and divided by 127 (https://arxiv.org/abs/2208.07339).
"""

from __future__ import annotations

import json

import numpy as np

from models.checkpoints.lora import Values
from models.checkpoints.quantised.parts import Packed, Parts

_FOUR_BITS = ("nf4", "fp4")


def of_bitsandbytes(end: str, parts: Parts) -> Packed | None:
    """The quantised weight to which a tensor of scales (`SCB`) or of 4-bit state belongs; None for
    other tensors.
    """
    if end == "SCB":
        return _EightBits(parts)
    if not end.startswith("bitsandbytes__"):
        return None
    # The name was x.weight.quant_state.bitsandbytes__nf4: its module is two parts further up.
    return _FourBits(Parts(parts.owner, parts.module.removesuffix(".weight.quant_state")), end)


class _EightBits(Packed):
    ends = ("weight", "SCB", "weight_format")

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.shape = parts.entry("weight").shape
        if len(self.shape) != 2 or parts.entry("SCB").shape != self.shape[:1]:
            raise parts.misfit(f"weight {self.shape} and SCB {parts.entry('SCB').shape}")
        parts.check_floats("SCB")
        if parts.has("weight_format") and parts.whole("weight_format", "U8").any():
            raise parts.misfit("its weight_format is not by rows; save it on a processor's memory")

    def values(self) -> Values:
        weight = self.parts.whole("weight", "I8").astype(np.float32)
        weight *= (self.parts.floats("SCB") / np.float32(127))[:, None]
        return weight


class _FourBits(Packed):
    def __init__(self, parts: Parts, state: str) -> None:
        super().__init__(parts)
        self.ends = (
            *("weight", "weight.absmax", "weight.quant_map"),
            *("weight.nested_absmax", "weight.nested_quant_map", f"weight.quant_state.{state}"),
        )
        try:
            self.state = json.loads(parts.whole(self.ends[-1], "U8").tobytes())
            rows, columns = (int(n) for n in self.state["shape"])
            self.block = int(self.state["blocksize"])
            known = self.state["quant_type"] in _FOUR_BITS
        except (ValueError, KeyError, TypeError, RecursionError):
            raise parts.misfit("its quant_state is damaged") from None
        count = rows * columns
        stored = int(np.prod(parts.entry("weight").shape))
        if not known or self.block < 1 or min(rows, columns) < 1 or stored != -(-count // 2):
            raise parts.misfit(f"quant_state {str(self.state)[:80]} for {stored} bytes")
        self.shape = (rows, columns)
        blocks = -(-count // self.block)
        if int(np.prod(parts.entry("weight.absmax").shape)) != blocks:
            raise parts.misfit(f"absmax of {blocks} blocks")
        if parts.entry("weight.quant_map").shape != (16,):
            raise parts.misfit("its quant_map has not 16 entries")
        parts.check_floats("weight.quant_map")
        if parts.entry("weight.absmax").dtype == "U8":
            parts.check_floats("weight.nested_quant_map", "weight.nested_absmax")

    def values(self) -> Values:
        parts, count = self.parts, self.shape[0] * self.shape[1]
        packed = parts.whole("weight", "U8").reshape(-1)
        numbers = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[:count]
        values = parts.floats("weight.quant_map")[numbers]
        values *= np.repeat(self._largest(), self.block)[:count]
        return values.reshape(self.shape)

    def _largest(self) -> Values:
        """The largest number of every block; these numbers may be quantised themselves."""
        parts = self.parts
        if parts.entry("weight.absmax").dtype != "U8":
            return parts.floats("weight.absmax").reshape(-1)
        table, outer = parts.floats("weight.nested_quant_map"), parts.floats("weight.nested_absmax")
        numbers = parts.whole("weight.absmax", "U8").reshape(-1)
        try:
            block, offset = int(self.state["nested_blocksize"]), float(self.state["nested_offset"])
        except (KeyError, TypeError, ValueError):
            raise parts.misfit("its quant_state lacks the nested one") from None
        if table.shape != (256,) or block < 1 or outer.size != -(-numbers.size // block):
            raise parts.misfit("its nested quantisation")
        scale = np.repeat(outer.reshape(-1), block)[: numbers.size]
        found: Values = table[numbers] * scale + np.float32(offset)
        return found
