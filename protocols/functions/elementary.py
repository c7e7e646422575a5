"""exp on (-inf, 0], and negative powers of a positive number of any size.

A power v^p (p = -1 or -1/2) is that of v / 4^j, near [1/4, 1), which a spline gives, times a power
of two: both in one round (`protocols.functions.scaled`).
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np

from protocols.arithmetic import Polynomial, lift, mul, poly
from protocols.base.blocks import saves_bytes
from protocols.base.entry import protocol
from protocols.base.lane import Lane
from protocols.base.ring import FRACTION_BITS, RING_BITS
from protocols.base.shares import SecretBits, SecretTensor
from protocols.compare import less
from protocols.errors import LocalProtocolError
from protocols.functions.exponential import FAST, TIGHT, exp_part
from protocols.functions.scaled import at_its_scale
from protocols.kernels.bits import DIGIT_BITS
from protocols.kernels.waves import EXACT_BITS
from protocols.narrow import narrow_mul
from protocols.selection import Term, select
from protocols.spline import Spline, fit
from protocols.triple import mul3

EXP_CLIP = 13.375
"""exp(-13.375) = 1.6e-6, less than half the resolution of 18 fraction bits."""
_CLIP_FRAC = 2
"""The clip is compared in steps of 1/4: a value that just misses clipping is still in range."""
PUMA_EXP_CLIP = 14.0
"""Arguments below -14 give 0 (PUMA, arXiv 2307.12533, section 4.2)."""
_PUMA_CLIP_FRAC = 6
"""Fraction bits that the comparison with it looks at."""
_POWER_FRAC = 18
MAX_POWER_FRAC = 26
"""Fraction bits of `Scaled.value` if the product that follows has room for them."""


@protocol("exp")
async def exp_negative(lane: Lane, x: SecretTensor, to: int = RING_BITS) -> SecretTensor:
    """exp(x) for x < 1/4 (18 fraction bits), over Z_2^to with 18 fraction bits.

    x is over a ring of at least 28 bits and below a quarter of it in size. "tight" and "fast":
    exact except for rounding, beside one comparison; "puma": (1 + x/2^5)^(2^5), 0 below -14.

    Cost: 3 rounds ("tight"), 8 ("puma"); 4 where the selection comes before the lift, on a narrower
    ring: with "fast"; and 5, with a comparison of two levels, where bytes count for more than
    rounds (`saves_bytes`).
    """
    settings = lane.settings
    if settings.approximation == "puma":
        return (await _exp_puma(lane, x)).narrow(to)
    form = FAST if settings.approximation == "fast" else TIGHT
    lifts_last = form is FAST or saves_bytes(lane, x.size)
    missing = FRACTION_BITS - form.frac
    wide = to - missing

    async def value(strand: Lane) -> SecretTensor:
        narrow = await exp_part(strand, x, form)
        return narrow if lifts_last else await lift(strand, narrow, wide)

    y, below = await lane.both(value, lambda strand: _below(strand, x, -EXP_CLIP, _CLIP_FRAC))
    kept = await select(lane, [Term((~below,), y)], width=y.width, frac=y.frac, shape=y.shape)
    return (await lift(lane, kept, wide)).scale_up(missing)


async def _below(lane: Lane, x: SecretTensor, cut: float, frac: int) -> SecretBits:
    """[x < cut] in steps of 2^-frac, over the whole range of x's ring."""
    shift = x.frac - frac
    digits = (x.width - shift) // DIGIT_BITS
    bits = await less(lane, x, [round(cut * 2**x.frac)], digits=digits, shift=shift)
    return bits[..., 0]


async def _exp_puma(lane: Lane, x: SecretTensor) -> SecretTensor:
    """(1 + x/32)^32 as two fourth powers and a square, each in one round."""

    async def power(strand: Lane) -> SecretTensor:
        frac = 14  # 4 * 14 + 2 bits of value stay below 62
        # x / 32; below -14 it may leave the narrow ring, but is selected away.
        y = x.reinterpret(x.frac + 5).drop(x.frac + 5 - frac)
        y = (await lift(strand, y)).add_public(np.uint64(1 << frac))
        fourth = Polynomial((0.0, 0.0, 0.0, 0.0, 1.0))
        for _ in range(2):
            y = await lift(strand, await poly(strand, y, fourth, scale=4 * frac, frac=frac))
        return await lift(strand, await mul(strand, y, y, 2 * frac - FRACTION_BITS))

    async def compare(strand: Lane) -> SecretBits:
        return await _below(strand, x, -PUMA_EXP_CLIP, _PUMA_CLIP_FRAC)

    y, below = await lane.both(power, compare)
    return await select(lane, [Term((~below,), y)], width=y.width, frac=y.frac, shape=y.shape)


# -- negative powers -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scaled:
    """v^p as a product `value * scale`, both over Z_2^64 unless told otherwise.

    Attributes:
        value: between 1/2 and 10.
        scale: a power of two; its fraction bits say how far it was scaled up to be an integer.
    """

    value: SecretTensor
    scale: SecretTensor


RowFactor: TypeAlias = Scaled | SecretTensor
"""A power of each row's number: as a product, or multiplied out with the fraction bits of both."""


def keeps_narrow(lane: Lane, count: int) -> bool:
    """Whether the value of a row factor for `count` entries is read without a lift."""
    return lane.settings.tree == "rounds" or saves_bytes(lane, count)


@protocol("row factor")
async def row_factor(lane: Lane, found: Scaled, count: int) -> RowFactor:
    """v^p as `times` reads it for `count` entries: multiplied out where bytes count for more than
    rounds, which takes a round for numbers one a row, like a lift of the value, and saves two
    thirds of what is dealt for an entry. It has as many bits as the product, so it is not cut.
    """
    if not saves_bytes(lane, count):
        return found
    return await narrow_mul(lane, found.value, found.scale, 0)


@protocol("times")
async def times(lane: Lane, x: SecretTensor, by: RowFactor, frac: int) -> SecretTensor:
    """x times its rows' factors, with `frac` fraction bits. The product is below 2^61 in size.

    Cost: a round, that of `mul3` or of `mul`.
    """
    rows = (*x.shape[:-1], 1)
    if isinstance(by, SecretTensor):
        return await mul(lane, x, by.reshape(*rows), x.frac + by.frac - frac)
    scale, value = by.scale.reshape(*rows), by.value.reshape(*rows)
    return await mul3(lane, x, scale, value, x.frac + scale.frac + value.frac - frac)


@cache
def power_spline(halves: int, gain: float) -> Spline:
    """gain * x^(-halves/2) on [0.21, 1.18): 64 cubic segments of 1/64; gain in [1, 2)."""

    def power(x: int) -> int:
        return (1 << 2 * EXACT_BITS) // (x if halves == 2 else math.isqrt(x << EXACT_BITS))

    low = 0.203125
    return fit(power, low, segment_bits=6, width_bits=6, frac=_POWER_FRAC, degree=3, gain=gain)


def gained_spline(halves: int, gain: float) -> tuple[Spline, int]:
    """The spline that computes `gain` times a power, and the power of two to multiply it by."""
    mantissa, exponent = math.frexp(gain)
    return power_spline(halves, 2 * mantissa), exponent - 1


async def _negative_power(
    lane: Lane,
    v: SecretTensor,
    halves: int,
    low: int,
    high: int,
    gain: float,
    frac: int,
    *,
    narrow: bool,
) -> Scaled:
    """gain * (v / 2^v.frac)^(-halves/2) for ring integers 4^low <= v < 4^high."""
    spline, exponent = gained_spline(halves, gain)
    value, scale = await at_its_scale(lane, v, spline, low=low, high=high, halves=halves, frac=frac)
    if not narrow:
        value = await lift(lane, value)
    # v^(-halves/2) = (v / 4^j)^(-halves/2) 2^(-halves j) 2^(halves frac / 2), and the scale is
    # 2^(halves (high - j)).
    return Scaled(value, scale.reinterpret(halves * high - halves * v.frac // 2 - exponent))


@protocol("rsqrt")
async def rsqrt(
    lane: Lane,
    v: SecretTensor,
    low: int,
    high: int,
    *,
    gain: float = 1.0,
    frac: int = MAX_POWER_FRAC,
    narrow: bool = False,
) -> Scaled:
    """gain / sqrt(v) for ring integers 4^low <= v < 4^high (v's fraction bits even).

    Args:
        frac: fraction bits of the result's `value`, at most `MAX_POWER_FRAC`.
        narrow: leave the value over the ring that truncation left. `mul3` reads it as it is, for
            more bytes than a lift takes if rows are long.

    Cost: 2 rounds; 1 if `narrow`.
    """
    if v.frac % 2:
        raise LocalProtocolError(f"rsqrt needs an even number of fraction bits, not {v.frac}")
    return await _negative_power(lane, v, 1, low, high, gain, frac, narrow=narrow)


@protocol("reciprocal")
async def reciprocal(
    lane: Lane,
    v: SecretTensor,
    low: int,
    high: int,
    *,
    frac: int = MAX_POWER_FRAC,
    narrow: bool = False,
) -> Scaled:
    """1 / v for ring integers 4^low <= v < 4^high; otherwise as `rsqrt`."""
    return await _negative_power(lane, v, 2, low, high, 1.0, frac, narrow=narrow)
