"""Bounds for products that can be normalised late (`protocols.functions.late`)."""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from models.owner.bounds import (
    ACTIVATION_LIMIT,
    HELD,
    Bound,
    Bounds,
    HeadBound,
    effective,
    entry_sizes,
)
from models.owner.rotary import largest_pair
from models.owner.spectral import SLACK
from protocols.base.ring import WEIGHT_BITS, Floats
from protocols.drivers.ops import Heads, Ranges, Rotation
from protocols.errors import RangeError
from protocols.functions.late import Columns, LateRange, late_range
from protocols.functions.normalize import Norm


class LateBounds(Bounds):
    """`Bounds` that also finds where a norm can come after the product that reads it, and how far
    the roundings of that way can stretch the result: what follows is bounded for both ways.
    """

    def __init__(self, positions: int) -> None:
        super().__init__(positions)
        self._late: dict[str, LateRange] = {}

    @property
    def ranges(self) -> Ranges:
        found = super().ranges
        return Ranges(found.norms, found.attention, dict(self._late))

    async def normed_gated(
        self, x: Bound, before: str, norm: Norm, weight: Floats, name: str, activation: str
    ) -> Bound:
        y = await self.norm(x, before, norm)
        matrix, bias = effective(y, weight)
        result = float(entry_sizes(y, matrix, bias).max())
        found = self._found(x, y, before, norm, weight, Columns(0.0, 0.0, result))
        if found is not None and result * found[1] < HELD * ACTIVATION_LIMIT:
            try:
                stretched = await self.gated(_stretched(y, found[1]), weight, name, activation)
            except RangeError:  # it fits the usual way, or is refused below
                pass
            else:
                self._late[name] = found[0]
                return stretched
        return await self.gated(y, weight, name, activation)

    async def normed_project(
        self,
        x: Bound,
        before: str,
        norm: Norm,
        weight: Floats,
        name: str,
        heads: Heads,
        rotation: Rotation | None = None,
        head_norm: Norm | None = None,
        gains: Any = None,
    ) -> tuple[HeadBound, HeadBound, HeadBound]:
        y = await self.norm(x, before, norm)
        usual = await self.project(y, weight, name, heads, rotation, head_norm, gains)
        if head_norm is not None:
            return usual
        matrix, bias = effective(y, weight)
        sizes = entry_sizes(y, matrix, bias)
        result, (angles, _) = float(sizes.max()), self._rope.get(name, (0, 0))
        if rotation is not None:
            turned = sizes[: (heads.query + heads.key) * heads.size]
            result = max(result, largest_pair(turned, heads.size))
        found = self._found(x, y, before, norm, weight, Columns(0.0, 0.0, result, angles))
        if found is None:
            return usual
        try:
            stretched = await self.project(_stretched(y, found[1]), weight, name, heads, rotation)
        except RangeError:
            return await self.project(y, weight, name, heads, rotation)
        self._late[f"{name}.qkv"] = found[0]
        return stretched

    def _found(
        self, x: Bound, y: Bound, before: str, norm: Norm, weight: Floats, columns: Columns
    ) -> tuple[LateRange, float] | None:
        if weight.shape[0] != x.size:  # a bias is not to be scaled
            return None
        lengths = np.sqrt(np.einsum("ij,ij->j", weight, weight, dtype=np.float64))
        longest = SLACK * x.length + 2.0**-10
        widest = SLACK * float(lengths.max()) + 2.0**-WEIGHT_BITS * math.sqrt(norm.size)
        known = replace(columns, longest=longest, weight=widest)
        return late_range(norm, self._norms[before], known)


def _stretched(y: Bound, factor: float) -> Bound:
    return replace(y, radius=y.radius * factor)
