"""The residual stream of a model on shares: norms, what is added to it, and over which ring."""

from functools import partial
from typing import Any

import numpy as np

from protocols.arithmetic import lift
from protocols.base.lane import Lane
from protocols.base.ring import FRACTION_BITS, RESIDUAL_BITS, RING_BITS
from protocols.base.shares import SecretTensor, concat, constant
from protocols.drivers.ops import Ranges
from protocols.errors import LocalProtocolError
from protocols.functions.normalize import Norm, normalize
from protocols.linear import AnyWeight, linear


class Residual:
    """The part of `Ops` that works on the residual stream. One object drives one lane."""

    def __init__(self, lane: Lane, ranges: Ranges) -> None:
        self.lane = lane
        self.ranges = ranges

    async def norm(
        self,
        x: SecretTensor,
        name: str,
        norm: Norm,
        gain: SecretTensor | None = None,
        shift: SecretTensor | None = None,
        *,
        unit: bool = False,
        residual: bool = False,
    ) -> SecretTensor:
        """With a shift, the result has the fraction bits of the shift and the residual stream."""
        bounds = range_of(self.ranges.norms, name)
        x = x.scale_up(RESIDUAL_BITS - x.frac)
        return await normalize(
            self.lane,
            x if bounds.fit(norm, x.width) else await lift(self.lane, x),
            norm,
            bounds,
            gain=gain,
            shift=shift,
            frac=FRACTION_BITS if shift is None and not residual else RESIDUAL_BITS,
            unit=unit,
        )

    async def linear(self, x: SecretTensor, weight: AnyWeight, name: str) -> SecretTensor:
        return await self.multiplied(with_one(x, weight.shape[0]), weight)

    async def multiplied(self, x: SecretTensor, weight: AnyWeight) -> SecretTensor:
        """For a norm or the residual stream: narrow where rounds are to be few, as a norm lifts it
        beside other steps.
        """
        product = await linear(self.lane, x, weight, frac=RESIDUAL_BITS)
        return product if self.lane.settings.tree == "rounds" else await lift(self.lane, product)

    async def residual(
        self, reader: str, norm: Norm, x: SecretTensor, *parts: SecretTensor
    ) -> SecretTensor:
        """Over the narrowest ring of all parts if the sum, which the range bounds, fits it."""
        frac = max(part.frac for part in (x, *parts))
        every = [part.scale_up(frac - part.frac) for part in (x, *parts)]
        width = min(part.width for part in every)
        if width < RING_BITS and not (
            reader and range_of(self.ranges.norms, reader).fit(norm, width)
        ):
            thin = [partial(lift, x=part) for part in every if part.width < RING_BITS]
            every = [part for part in every if part.width == RING_BITS]
            every += await self.lane.parallel(thin)
            width = RING_BITS
        total = every[0].narrow(width)
        for part in every[1:]:
            total = total + part.narrow(width)
        return total

    def add(self, x: SecretTensor, y: SecretTensor) -> SecretTensor:
        if x.frac == y.frac:
            return x + y
        frac = max(x.frac, y.frac)
        return x.scale_up(frac - x.frac) + y.scale_up(frac - y.frac)


def range_of(ranges: Any, name: str) -> Any:
    found = ranges.get(name)
    if found is None:
        raise LocalProtocolError(f"{name} has no range: the owner must publish one")
    return found


def with_one(x: SecretTensor, rows: int) -> SecretTensor:
    """x with a column of ones for the bias in the weight's last row, if the weight has a bias."""
    if rows == x.shape[1]:
        return x
    ones = np.full((x.shape[0], 1), 1 << x.frac, dtype=np.uint64)
    return concat([x, constant(x.role, ones, x.width, x.frac)], axis=1)
