"""Read FP8 weights: e4m3 numbers (https://arxiv.org/abs/2209.05433) times a scale per block."""

from __future__ import annotations

from functools import cache

import numpy as np

from models.checkpoints.lora import Values
from models.checkpoints.quantised.parts import Packed, Parts


@cache
def e4m3() -> Values:
    """The values of all bytes: sign, 4 exponent bits (bias 7), 3 mantissa bits; no infinities."""
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    size = np.where(exponent > 0, (1 + mantissa / 8) * 2.0 ** (exponent - 7), mantissa / 8 / 64)
    size = np.where(codes & 127 == 127, np.nan, size)
    return np.where(codes > 127, -size, size).astype(np.float32)


class Fp8(Packed):
    ends = ("weight", "weight_scale_inv", "activation_scale")

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.shape = parts.entry("weight").shape
        grid = parts.entry("weight_scale_inv").shape or (1, 1)
        if grid == (1,):
            grid = (1, 1)
        if len(self.shape) != 2 or len(grid) != 2 or 0 in grid:
            raise parts.misfit(f"weight {self.shape} and scales {grid}")
        if self.shape[0] % grid[0] or self.shape[1] % grid[1]:
            raise parts.misfit(f"a weight of shape {self.shape} in a grid of {grid}")
        if parts.entry("weight").dtype != "F8_E4M3":
            raise parts.misfit(f"it is stored as {parts.entry('weight').dtype}, not F8_E4M3")
        parts.check_floats("weight_scale_inv")
        self.grid = grid

    def values(self) -> Values:
        weight: Values = e4m3()[self.parts.whole("weight", "F8_E4M3")]
        scales = self.parts.floats("weight_scale_inv").reshape(self.grid)
        block = (self.shape[0] // self.grid[0], self.shape[1] // self.grid[1])
        weight *= np.repeat(np.repeat(scales, block[0], axis=0), block[1], axis=1)
        return weight
