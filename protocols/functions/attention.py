"""Softmax attention: row-wise work in as few rounds as possible."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocols.arithmetic import lift, matmul
from protocols.base.entry import protocol
from protocols.base.fields import elementwise_work, fields_bytes
from protocols.base.lane import Lane, Settings
from protocols.base.ring import FRACTION_BITS, RING_BITS
from protocols.base.shares import SecretTensor
from protocols.compare import maximum
from protocols.errors import RangeError
from protocols.functions import histogram
from protocols.functions.elementary import (
    RowFactor,
    exp_negative,
    keeps_narrow,
    reciprocal,
    row_factor,
    times,
)
from protocols.functions.normalize import HELD_PRODUCT_BITS, HELD_TRIPLE_BITS
from protocols.kernels.bits import DIGIT_BITS
from protocols.narrow import narrow_matmul, narrow_matmul_dealt

MIN_VALUE_FRAC = 6
"""Fraction bits that the values must keep in a long context."""
_LEAST_INVERSE = 16
"""Fraction bits that the reciprocal of a sum of numerators near the maximum must keep."""
_MOST_SPARE = 6
"""Bits that the values may lose for them; where they would lose more, the maximum is found."""
_MOST_DEALT = 1 << 28
"""Bytes that may be dealt for the numerators of a layer; instead of more, the maximum is found,
which takes a tenth.
"""
COARSE_FRAC = 2
"""Fraction bits with which scores are compared. What is found is less than a step, 1/4, below the
row's largest score and less than two above it, which cancels in the division: numerators are below
exp(1/4), and a row's largest is above exp(-1/2).
"""
MAX_SCORE_BITS = 23
"""Scores are products over 64 - 1 - 18 bits, of which 16 are shifted away before the maximum is
found in `peak_width`: 28 of the 29 that are left. One more bit of score would take 32.
"""
_MOST_READ = 1 << 18
"""Bytes that may be dealt so that a product reads narrow numerators, which saves the round of their
lift: what 100 Mbit/s carry in that time at a round trip of 40 ms.
"""


@dataclass(frozen=True, slots=True)
class AttentionRange:
    """Public exponents of an attention layer, fixed by the owner.

    Attributes:
        score_bits: |score| < 2^score_bits; at most `MAX_SCORE_BITS`.
        value_bits: entries of the values are below 2^value_bits in size.
        rope_frac: fraction bits of the angles of rotary positions.
        value_drop: fraction bits that the values give up for the angles, because they share a
            truncation with the rotated heads.
    """

    score_bits: int
    value_bits: int
    rope_frac: int
    value_drop: int = 0


def peak_width(score_bits: int) -> int:
    """Bits of the ring in which a row's maximum is found: differences of scores in steps of 1/4
    below a quarter of the ring (half of it is not enough: rounding may add a step), in whole
    digits; at least what `exp_negative` needs.

    Two scores below 2^b, each off by less than two steps, differ by less than 2^(b + 3) + 4 steps:
    less than 2^(w - 1) for w >= b + 5 and b >= 1, what `maximum` needs. With 18 fraction bits
    `exp_negative` is given less than 2^(b + 19) and two steps, in w + 16 >= b + 21 bits: a quarter
    of its ring, as the scores' proof leaves a thousandth (`models.owner.bounds`).
    """
    return max(16, -(-(score_bits + 3 + COARSE_FRAC) // DIGIT_BITS) * DIGIT_BITS)


def product_width(score_bits: int) -> int:
    """Bits of the ring in which a product of queries and keys below 2^score_bits can be taken.

    The product has 36 fraction bits and `matmul` needs three more than its size; the scores that
    are left, 19 bits fewer, must have those that `maximum` and `histogram.numerators` read.
    """
    read = peak_width(score_bits) + FRACTION_BITS - COARSE_FRAC
    if score_bits <= histogram.MAX_SCORE_BITS:
        read = max(read, histogram.read_bits(score_bits))
    return min(RING_BITS, max(score_bits + 2 * FRACTION_BITS + 3, read + FRACTION_BITS + 1))


@dataclass(frozen=True, slots=True)
class Fit:
    """How weights and values share the ring; public.

    Attributes:
        near: numerators are relative to a number near the row's largest score
            (`protocols.functions.histogram`) rather than to that score.
        spare: bits dropped from the values first.
        low, high: a row's sum is at least 4^low and below 4^high in ring units.
        inverse: fraction bits of the reciprocal's `value`.
        width: bits of the ring that the product of numerators and values takes.
    """

    near: bool
    spare: int
    low: int
    high: int
    inverse: int
    width: int

    @property
    def frac(self) -> int:
        """Fraction bits of the numerators."""
        return histogram.FRAC if self.near else FRACTION_BITS


@protocol("softmax")
async def softmax_numerators(
    lane: Lane,
    scores: SecretTensor,
    mask: NDArray[np.bool_],
    score_bits: int,
    *,
    near: bool = False,
    lifted: bool = True,
    width: int = RING_BITS,
) -> SecretTensor:
    """exp(scores - c) where the public mask is set, 0 elsewhere; over Z_2^width. c is the row's
    maximum, or `near` it: then numerators are between 0 and 1, a row's largest is at least
    exp(-`histogram.REACH`), and they have `histogram.FRAC` fraction bits.

    Args:
        scores: (H, R, L) with 18 fraction bits, |score| < 2^score_bits.
        mask: (R, L), at least one entry of every row set.
        lifted: if not, numerators `near` the maximum are over Z_2^WIDE of `histogram`.

    Cost: that of the maximum (a radix-4 tree over the row), then that of exp; `near`: that of
    `histogram.numerators` for the entries whose mask is set, and a lift.
    """
    if near:
        ends = np.cumsum(np.tile(mask.sum(axis=1), scores.shape[0]))
        flat = await _picked(lane, scores, mask)
        values = await histogram.numerators(lane, flat, ends, score_bits, wide=not lifted)
        values = await lift(lane, values, width) if lifted else values
        return await _placed(lane, values, scores.shape, mask)
    coarse = (await _filled(lane, scores, mask)).drop(scores.frac - COARSE_FRAC)
    peak, _ = await maximum(lane, coarse.narrow(peak_width(score_bits)))
    # `drop` is off by less than one and a half steps either way: with half a step more, the peak is
    # less than one below the largest score, as `exp_negative` needs, and less than two above it.
    up = scores.frac - COARSE_FRAC
    fine = peak.scale_up(up).add_public(np.uint64(1 << up - 1))
    shifted = scores.narrow(fine.width) - fine.reshape(*peak.shape, 1).broadcast(scores.shape)
    values = await exp_negative(lane, await _picked(lane, shifted, mask), width)
    return await _placed(lane, values, scores.shape, mask)


async def _picked(lane: Lane, scores: SecretTensor, mask: NDArray[np.bool_]) -> SecretTensor:
    """The scores whose mask is set, row after row, as one row."""
    if mask.all():
        return scores.reshape(-1)
    index = (slice(None), *np.nonzero(mask))
    picked = await lane.run(elementwise_work(scores.size), scores.__getitem__, index)
    return picked.reshape(-1)


async def _filled(lane: Lane, scores: SecretTensor, mask: NDArray[np.bool_]) -> SecretTensor:
    """The scores, where the mask is not set the row's first for which it is."""
    if mask.all():
        return scores
    first = mask.argmax(axis=1)[:, None]
    columns = np.where(mask, np.arange(mask.shape[1]), first)
    index = (slice(None), np.arange(mask.shape[0])[:, None], columns)
    return await lane.run(elementwise_work(scores.size), scores.__getitem__, index)


async def _placed(
    lane: Lane, values: SecretTensor, shape: tuple[int, ...], mask: NDArray[np.bool_]
) -> SecretTensor:
    """The inverse of `_picked`, with zeros where the mask is not set."""
    if mask.all():
        return values.reshape(*shape)
    index = (slice(None), *np.nonzero(mask))
    rows = values.reshape(shape[0], -1)
    return await lane.run(elementwise_work(math.prod(shape)), rows.scatter, shape, index)


def _sum_bits(length: int, *, near: bool) -> int:
    """log2 of the largest sum of a row's numerators, 1.3 each (`near` the maximum: 1.1), rounded
    up; in integers, because all parties must get the same result.
    """
    return (-(-(11 if near else 13) * max(2, length) // 10) - 1).bit_length()


def spare_bits(value_bits: int, length: int) -> int:
    """Bits to drop from values below 2^value_bits when `length` of them are weighted and added.

    A numerator is at most exp(1/4) plus its error, below 1.3; so a sum of `length` of them
    times values stays below 2^total, and with both factors' fraction bits, less the bits dropped,
    below 2^60, one bit less than `matmul` needs.

    Raises:
        RangeError: too few fraction bits would be left.
    """
    total = math.ceil(value_bits + _sum_bits(length, near=False))
    spare = max(0, total + 2 * FRACTION_BITS - HELD_PRODUCT_BITS)
    if spare > FRACTION_BITS - MIN_VALUE_FRAC:
        raise RangeError(
            f"weighted sums of {length} values can reach 2^{total}: the value weights are too "
            "large for a context of that length"
        )
    return spare


def spare_near(value_bits: int, length: int) -> int:
    """As `spare_bits`, for numerators near the maximum, whose sums range over more powers of two;
    so many that the reciprocal of a sum keeps `_LEAST_INVERSE` bits.
    """
    total = value_bits + _sum_bits(length, near=True)
    product = total + histogram.FRAC + FRACTION_BITS - HELD_PRODUCT_BITS
    division = _division_bits(value_bits, _high(histogram.FRAC, length, near=True)) + _LEAST_INVERSE
    return max(0, product, division - HELD_TRIPLE_BITS)


def most_spare(score_bits: int, value_bits: int, length: int) -> int:
    """The most bits that values may lose with any settings; raises as `spare_bits`."""
    spare = spare_bits(value_bits, length)
    fits = _fits_near(score_bits, value_bits, length)
    return max(spare, spare_near(value_bits, length)) if fits else spare


def _fits_near(score_bits: int, value_bits: int, length: int) -> bool:
    return (
        score_bits <= histogram.MAX_SCORE_BITS
        and length <= histogram.MAX_ROW
        and spare_near(value_bits, length) <= _MOST_SPARE
    )


def _high(frac: int, length: int, *, near: bool) -> int:
    return math.ceil((frac + _sum_bits(length, near=near)) / 2)


def _division_bits(value_bits: int, high: int) -> int:
    """Bits of |total * scale * value| in `attend`, without the bits dropped and those of `value`.

    The mean is below 2^value_bits, `scale` times the sum has 2 high - frac fraction bits and total
    the weights' frac; three bits cover the errors of all.
    """
    return value_bits + 2 * high + 3


def near_dealt(
    settings: Settings, masks: Sequence[NDArray[np.bool_]], heads: int, score_bits: int
) -> int | None:
    """Bytes dealt for numerators near the maximum of all rows under these masks, or None where the
    maximum is found: except with the fewest "rounds", with "puma", and where these are more than
    `_MOST_DEALT` or rows or scores are too large for a histogram.
    """
    if settings.tree != "rounds" or settings.approximation == "puma":
        return None
    if score_bits > histogram.MAX_SCORE_BITS or any(m.shape[1] > histogram.MAX_ROW for m in masks):
        return None
    plans = [near_plan(mask, heads, score_bits) for mask in masks]
    dealt = sum(plan.dealt_bytes for plan in plans)
    return dealt if dealt <= _MOST_DEALT else None


def most_score_bits(
    settings: Settings, masks: Sequence[NDArray[np.bool_]], heads: int
) -> int | None:
    """The most bits of score with which these rows get a histogram, which takes the most memory; or
    None.
    """
    for bits in range(histogram.MAX_SCORE_BITS, 0, -1):
        if near_dealt(settings, masks, heads, bits) is not None:
            return bits
    return None


def near_plan(mask: NDArray[np.bool_], heads: int, score_bits: int) -> histogram.Plan:
    """How numerators near the maximum are found for the rows of a mask."""
    return histogram.Plan(np.cumsum(np.tile(mask.sum(axis=1), heads)), score_bits)


def fit(bounds: AttentionRange, length: int, *, near: bool) -> Fit:
    """The public numbers of `attend` for rows of up to `length` scores; raises as `spare_bits`.

    Args:
        near: numerators are near the maximum, if values fit.
    """
    value_bits = bounds.value_bits
    spare = spare_bits(value_bits, length)
    near = near and _fits_near(bounds.score_bits, value_bits, length)
    if near:
        spare, frac = spare_near(value_bits, length), histogram.FRAC
        # The largest is at least 2^-8.94; 2,047 errors of three units are a twentieth of that.
        low = (frac - 10) // 2
    else:
        # The sum of a row is above exp(-1/2), 0.6: its largest numerator.
        frac, low = FRACTION_BITS, (FRACTION_BITS - 1) // 2
    high = _high(frac, length, near=near)
    inverse = min(22, HELD_TRIPLE_BITS - _division_bits(value_bits, high) + spare)
    product = value_bits + _sum_bits(length, near=near) + frac + FRACTION_BITS - spare
    width = product + RING_BITS - HELD_PRODUCT_BITS
    return Fit(near, spare, low, high, inverse, width)


def reads_narrow(fitted: Fit, shape: tuple[int, ...], columns: int) -> bool:
    """Whether the product of numerators (H, R, L) and values reads the numerators without a lift.
    Their sums must fit the narrow ring, for their reciprocal.
    """
    if not fitted.near or 2 * fitted.high + 1 > histogram.WIDE:
        return False
    heads, rows, length = shape
    dealt = narrow_matmul_dealt((heads, rows, length), columns, histogram.WIDE)
    return fields_bytes(dealt) <= _MOST_READ


@protocol("attend")
async def attend(
    lane: Lane,
    scores: SecretTensor,
    values: SecretTensor,
    mask: NDArray[np.bool_],
    bounds: AttentionRange,
    *,
    near: bool | None = None,
) -> SecretTensor:
    """softmax(scores) @ values, (H, R, L) and (H, L, C) -> (H, R, C), over Z_2^64.

    The division comes after the product: fewer elements, and the reciprocal runs beside it. Where
    large values and a long context would not fit that product, the values' last bits are dropped
    first, beside the numerators.

    Args:
        mask: (R, L), or (H, R, L).
        near: what `near_dealt` says of the whole of which these rows are a part; by default, of
            these rows, which then have one mask for all H.

    Cost: softmax_numerators, then 3 rounds ("balanced" and "traffic": 4, with lifts
    before the division). Where few numerators are near the maximum (`reads_narrow`), the product
    reads them without a lift.

    Raises:
        RangeError: the values are so large that dropping bits would leave nothing of small ones.
    """
    if near is None:
        dealt = near_dealt(lane.settings, [mask], scores.shape[0], bounds.score_bits)
        near = dealt is not None
    fitted, length = fit(bounds, mask.shape[-1], near=near), mask.shape[-1]
    spare, lifted = fitted.spare, not reads_narrow(fitted, scores.shape, values.shape[2])
    narrow = lane.settings.tree == "rounds"
    # With the fewest rounds no lift follows the product, and every missing bit is dealt five times.
    width = RING_BITS if narrow else fitted.width

    async def numerators(strand: Lane) -> SecretTensor:
        rows, own = scores, mask
        if mask.ndim > 2:  # every row has its own: as one head of all rows
            rows, own = scores.reshape(1, -1, length), mask.reshape(-1, length)
        found = await softmax_numerators(
            strand, rows, own, bounds.score_bits, near=fitted.near, lifted=lifted, width=width
        )
        return found.reshape(*scores.shape)

    async def fitting(strand: Lane) -> SecretTensor:
        return await lift(strand, values.drop(spare), width) if spare else values.narrow(width)

    weights, values = await lane.both(numerators, fitting)

    async def product(strand: Lane) -> SecretTensor:
        multiply = matmul if lifted else narrow_matmul
        found = await multiply(strand, weights, values, FRACTION_BITS)
        return found if narrow else await lift(strand, found)

    async def inverted(strand: Lane) -> RowFactor:
        total, span = weights.sum(-1), (fitted.low, fitted.high)
        count = total.size * values.shape[2]
        kept = keeps_narrow(strand, count)
        found = await reciprocal(strand, total, *span, frac=fitted.inverse, narrow=kept)
        return await row_factor(strand, found, count)

    total, inverse = await lane.both(product, inverted)
    return await lift(lane, await times(lane, total, inverse, FRACTION_BITS))
