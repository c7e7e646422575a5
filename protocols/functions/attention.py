"""Softmax attention: row-wise work in as few rounds as possible."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocols.arithmetic import lift, matmul
from protocols.base.entry import protocol
from protocols.base.lane import Lane
from protocols.base.ring import FRACTION_BITS
from protocols.base.shares import SecretTensor
from protocols.compare import maximum
from protocols.errors import RangeError
from protocols.functions.elementary import COARSE_FRAC, Scaled, exp_negative, reciprocal
from protocols.functions.normalize import HELD_PRODUCT_BITS, HELD_TRIPLE_BITS
from protocols.kernels.bits import DIGIT_BITS
from protocols.triple import narrow_mul3

MIN_VALUE_FRAC = 6
"""Fraction bits that the values must keep in a long context."""
MAX_SCORE_BITS = 23
"""Scores are products over 64 - 1 - 18 bits, of which 12 are shifted away before the maximum is
found in `peak_width`: 32 of the 33 that are left. One more bit of score would take 36.
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
    """Bits of the ring in which a row's maximum is found: differences of scores in steps of 2^-6
    below a quarter of the ring (half of it is not enough: rounding may add a step), in whole
    digits; at least what `exp_negative` needs.

    Two scores below 2^b, each off by less than two steps, differ by less than 2^(b + 7) + 4 steps:
    less than 2^(w - 1) for w >= b + 9 and b >= 1, what `maximum` needs. With 18 fraction bits
    `exp_negative` is given less than 2^(b + 19) and two steps, in w + 12 >= b + 21 bits: a quarter
    of its ring, as the scores' proof leaves a thousandth (`models.owner.bounds`).
    """
    return max(16, -(-(score_bits + 3 + COARSE_FRAC) // DIGIT_BITS) * DIGIT_BITS)


@protocol("softmax")
async def softmax_numerators(
    lane: Lane, scores: SecretTensor, mask: NDArray[np.bool_], score_bits: int
) -> SecretTensor:
    """exp(scores - row maximum) where the public mask is set, 0 elsewhere; over Z_2^64.

    Args:
        scores: (H, R, L) with 18 fraction bits, |score| < 2^score_bits.
        mask: (R, L), at least one entry of every row set.

    Cost: that of the maximum (a radix-4 tree over the row), then that of exp.
    """
    first = mask.argmax(axis=1)[:, None]  # a masked entry repeats a valid one
    columns = np.where(mask, np.arange(mask.shape[1]), first)
    rows = np.arange(mask.shape[0])[:, None]
    coarse = scores[:, rows, columns].drop(scores.frac - COARSE_FRAC)
    peak, _ = await maximum(lane, coarse.narrow(peak_width(score_bits)))
    fine = peak.scale_up(scores.frac - COARSE_FRAC)
    shifted = scores.narrow(fine.width) - fine.reshape(*peak.shape, 1).broadcast(scores.shape)
    where = np.nonzero(mask)
    values = await exp_negative(lane, shifted[:, where[0], where[1]])
    return values.scatter(scores.shape, (slice(None), *where))


def _sum_bits(length: int) -> int:
    """log2 of the largest sum of a row's numerators, 1.1 each, rounded up; in integers, because all
    parties must get the same result.
    """
    return (-(-11 * max(2, length) // 10) - 1).bit_length()


def spare_bits(value_bits: int, length: int) -> int:
    """Bits to drop from values below 2^value_bits when `length` of them are weighted and added.

    A numerator is at most exp(1/16) plus its error, below 1.1; so a sum of `length` of them
    times values stays below 2^total, and with both factors' fraction bits, less the bits dropped,
    below 2^60, one bit less than `matmul` needs. Then |total * scale * value| of the division is
    below 2^(value_bits - spare + 18) 2^(2 high) 2^(frac + 2), which `attend` keeps at 2^61.

    Raises:
        RangeError: too few fraction bits would be left.
    """
    total = math.ceil(value_bits + _sum_bits(length))
    spare = max(0, total + 2 * FRACTION_BITS - HELD_PRODUCT_BITS)
    if spare > FRACTION_BITS - MIN_VALUE_FRAC:
        raise RangeError(
            f"weighted sums of {length} values can reach 2^{total}: the value weights are too "
            "large for a context of that length"
        )
    return spare


@protocol("attend")
async def attend(
    lane: Lane,
    scores: SecretTensor,
    values: SecretTensor,
    mask: NDArray[np.bool_],
    bounds: AttentionRange,
) -> SecretTensor:
    """softmax(scores) @ values, (H, R, L) and (H, L, C) -> (H, R, C), over Z_2^64.

    The division comes after the product: fewer elements, and the reciprocal runs beside it. Where
    large values and a long context would not fit that product, the values' last bits are dropped
    first, beside the numerators.

    Cost: softmax_numerators, then 3 rounds ("balanced" and "traffic": 4, with
    lifts before the division).

    Raises:
        RangeError: the values are so large that dropping bits would leave nothing of small ones.
    """
    # The sum of a row lies between exp(-1/16), for its maximum, and the number of entries.
    low = (FRACTION_BITS - 1) // 2
    high = math.ceil((FRACTION_BITS + _sum_bits(mask.shape[1])) / 2)
    spare = spare_bits(bounds.value_bits, mask.shape[1])

    async def numerators(strand: Lane) -> SecretTensor:
        return await softmax_numerators(strand, scores, mask, bounds.score_bits)

    async def fitting(strand: Lane) -> SecretTensor:
        return await lift(strand, values.drop(spare)) if spare else values

    weights, values = await lane.both(numerators, fitting)
    frac = min(22, HELD_TRIPLE_BITS - 2 * high - 3 - bounds.value_bits + spare)

    narrow = lane.settings.tree == "rounds"

    async def product(strand: Lane) -> SecretTensor:
        found = await matmul(strand, weights, values, FRACTION_BITS)
        return found if narrow else await lift(strand, found)

    async def inverted(strand: Lane) -> Scaled:
        return await reciprocal(strand, weights.sum(-1), low, high, frac=frac, narrow=narrow)

    total, inverse = await lane.both(product, inverted)
    shape = (*scores.shape[:-1], 1)
    scale, value = inverse.scale.reshape(*shape), inverse.value.reshape(*shape)
    shift = total.frac + scale.frac + value.frac - FRACTION_BITS
    return await lift(lane, await narrow_mul3(lane, total, scale, value, shift))
