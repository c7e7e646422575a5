"""RMSNorm and softmax attention, row-wise work with as few rounds as it takes."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocols.arithmetic import lift, matmul, mul3, square_sum
from protocols.compare import maximum
from protocols.elementary import COARSE_FRAC, exp_negative, reciprocal, rsqrt
from protocols.errors import RangeError
from protocols.lane import Lane
from protocols.ring import FRACTION_BITS, RESIDUAL_BITS, RING_BITS
from protocols.shares import SecretTensor

_MAX_WIDTH = 20
"""Ring in which the row maximum is found: differences of scores up to 2^13 in steps of 2^-6."""
_EXP_WIDTH = 32
_PRODUCT_BITS = 61  # a product to be truncated stays below 2^62; one bit is kept in hand


@dataclass(frozen=True, slots=True)
class NormRange:
    """Public ranges of a norm over `size` entries, fixed by the owner.

    Attributes:
        drop: bits dropped from x before squaring.
        low, high: the sum of squares plus eps, as a ring integer, is in [4^low, 4^high).
        frac: fraction bits of the inverse root's `value`.
    """

    size: int
    eps: float
    drop: int
    low: int
    high: int
    frac: int

    @property
    def eps_word(self) -> np.uint64:
        """size * eps with the fraction bits of a square of the dropped x."""
        return np.uint64(max(1, round(self.size * self.eps * 4.0 ** (RESIDUAL_BITS - self.drop))))


def norm_range(size: int, eps: float, largest_mean_square: float) -> NormRange:
    """Exponents under which every row with a mean square up to `largest_mean_square` is normalised.

    Raises:
        RangeError: no choice of exponents holds that range.
    """
    for drop in range(RESIDUAL_BITS - 1):
        high = (RING_BITS - 5) // 2
        square_frac = 2 * (RESIDUAL_BITS - drop)
        if size * (largest_mean_square + eps) * 2.0**square_frac >= 4.0**high:
            continue
        floor = max(1.0, size * eps * 2.0**square_frac)
        low = int(math.log2(floor) // 2)
        # |x * scale| < 2^(high + drop) and value < 2^(frac + 2).
        frac = min(26, _PRODUCT_BITS - high - drop - 2)
        return NormRange(size, eps, drop, low, high, frac)
    raise RangeError(
        f"a mean square of {largest_mean_square:g} over {size} entries leaves no precision in a "
        "64-bit ring: the model's activations are too large"
    )


async def rms_norm(lane: Lane, x: SecretTensor, bounds: NormRange) -> SecretTensor:
    """x / sqrt(mean(x^2) + eps) over the last axis; over Z_2^64, x with 22 fraction bits, the
    result with 18.

    The gain of a pre-norm is folded into the next weights by the owner.

    Cost: 7 rounds: sum of squares; inverse root (4); x * value * scale; lift. One more where bits
    are dropped first: the dropped x is lifted again, because its squares need the whole ring.
    """
    small = await lift(lane, x.drop(bounds.drop))
    squares = (await square_sum(lane, small)).add_public(bounds.eps_word)
    root = await rsqrt(
        lane, squares, bounds.low, bounds.high, gain=math.sqrt(bounds.size), frac=bounds.frac
    )
    scale, value = root.scale.reshape(*x.shape[:-1], 1), root.value.reshape(*x.shape[:-1], 1)
    shift = x.frac + scale.frac + value.frac - FRACTION_BITS
    return await lift(lane, await mul3(lane, x, scale, value, shift))


async def softmax_numerators(
    lane: Lane, scores: SecretTensor, mask: NDArray[np.bool_]
) -> SecretTensor:
    """exp(scores - row maximum) where the public mask is set, 0 elsewhere; over Z_2^64.

    Args:
        scores: (H, R, L) with 18 fraction bits over at least 38 bits, |score| < 2^12.
        mask: (R, L), entry 0 of every row set.

    Cost: 3 rounds a level of the maximum (radix 4), then those of exp.
    """
    columns = np.where(mask, np.arange(mask.shape[1]), 0)  # a masked entry repeats a valid one
    rows = np.arange(mask.shape[0])[:, None]
    coarse = scores[:, rows, columns].drop(scores.frac - COARSE_FRAC).narrow(_MAX_WIDTH)
    peak, _ = await maximum(lane, coarse)
    fine = peak.scale_up(scores.frac - COARSE_FRAC)
    shifted = scores.narrow(fine.width) - fine.reshape(*peak.shape, 1).broadcast(scores.shape)
    where = np.nonzero(mask)
    values = await exp_negative(lane, shifted[:, where[0], where[1]])
    return values.scatter(scores.shape, (slice(None), *where))


async def attend(
    lane: Lane, scores: SecretTensor, values: SecretTensor, mask: NDArray[np.bool_]
) -> SecretTensor:
    """softmax(scores) @ values, (H, R, L) and (H, L, C) -> (H, R, C), over Z_2^64.

    The division comes after the product: fewer elements, and the reciprocal runs beside it.
    |values| < 2^8.

    Cost: softmax_numerators, then 5 or 6 rounds.
    """
    weights = await softmax_numerators(lane, scores, mask)
    # The sum of a row lies between exp(-1/16), for its maximum, and the number of entries.
    low = (FRACTION_BITS - 1) // 2
    high = math.ceil((FRACTION_BITS + math.log2(1.1 * max(2, mask.shape[1]))) / 2)
    frac = min(22, _PRODUCT_BITS - 2 * high - 3 - 8)

    async def product(strand: Lane) -> SecretTensor:
        return await lift(strand, await matmul(strand, weights, values, FRACTION_BITS))

    total, inverse = await lane.both(
        product, lambda strand: reciprocal(strand, weights.sum(-1), low, high, frac=frac)
    )
    shape = (*scores.shape[:-1], 1)
    scale, value = inverse.scale.reshape(*shape), inverse.value.reshape(*shape)
    shift = total.frac + scale.frac + value.frac - FRACTION_BITS
    return await lift(lane, await mul3(lane, total, scale, value, shift))
