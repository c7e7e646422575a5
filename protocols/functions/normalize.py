"""RMSNorm, LayerNorm and softmax attention, row-wise work with as few rounds as it takes."""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from protocols.arithmetic import PRODUCT_BITS, lift, map_public, matmul, mul, mul3, square_sum
from protocols.base.entry import protocol
from protocols.base.lane import Lane
from protocols.base.ring import FRACTION_BITS, RESIDUAL_BITS, RING_BITS
from protocols.base.shares import SecretTensor
from protocols.compare import maximum
from protocols.errors import RangeError
from protocols.functions.elementary import COARSE_FRAC, Scaled, exp_negative, reciprocal, rsqrt
from protocols.kernels.bits import DIGIT_BITS

# One bit is kept in hand.
_PRODUCT_BITS = PRODUCT_BITS - 1  # of two factors
_TRIPLE_BITS = RING_BITS - 3  # of three
_LIFT_BITS = RING_BITS - 2  # of what is shifted down, then lifted
_MAX_HIGH = (RING_BITS - 5) // 2
_STEADY_EPS = 2.0**-22
"""From here on, roundings of a constant row come out below 2^-10: a unit and a half of 2^-22, over
the root of eps.
"""
_MAX_GAIN_BITS = 40
MAX_ROOT_FRAC = 26
MIN_ROOT_FRAC = 8
MIN_VALUE_FRAC = 6
"""Fraction bits of values that a long context must leave."""
MAX_SCORE_BITS = 23
"""Scores are products over 64 - 1 - 18 bits, of which 12 are shifted away before the maximum is
found in `peak_width`: 32 of the 33 that are left. One bit more of scores would take 36.
"""


@dataclass(frozen=True, slots=True)
class Norm:
    """What a norm computes: x / sqrt(mean(x^2) + eps) over `size` entries, less their mean first
    if `center` (LayerNorm).
    """

    size: int
    eps: float
    center: bool = False

    @property
    def extra(self) -> int:
        """Fraction bits that centring adds: size * x - sum(x) is x - mean(x) times size."""
        return self.size.bit_length() - 1 if self.center else 0

    @property
    def stretch(self) -> float:
        """What the entries are multiplied by: size / 2^extra, in [1, 2), if centred."""
        return self.size / 2.0**self.extra if self.center else 1.0

    @property
    def steady(self) -> bool:
        """Whether eps is so small that a constant row, centred to 0, must stay exactly 0."""
        return self.extra > 0 and self.eps < _STEADY_EPS


@dataclass(frozen=True, slots=True)
class NormRange:
    """Public exponents of a norm, fixed by the owner.

    Attributes:
        drop: bits dropped from x (22 fraction bits) before squaring.
        low, high: the sum of squares plus eps, as a ring integer, is in [4^low, 4^high).
        frac: fraction bits of the inverse root's `value`.
        early: the gain, if there is one, is multiplied before the inverse root is known.
    """

    drop: int
    low: int
    high: int
    frac: int
    early: bool = True

    def eps_word(self, norm: Norm) -> np.uint64:
        """size * eps with the fraction bits of a square of the dropped entries; at least 1."""
        return np.uint64(_eps_word(norm, self.drop))


def _stretched(norm: Norm) -> Fraction:
    """`Norm.stretch` exactly."""
    return Fraction(norm.size, 1 << norm.extra) if norm.center else Fraction(1)


def _eps_word(norm: Norm, drop: int) -> int:
    """In whole numbers, since both evaluators add it: no machine rounds it another way."""
    bits = 2 * (RESIDUAL_BITS - drop)
    return max(1, round(norm.size * Fraction(norm.eps) * _stretched(norm) ** 2 * (1 << bits)))


def _largest_sum(norm: Norm, largest: Fraction, drop: int) -> int:
    """What the squares of a row of length `largest` add up to at most, eps included.

    A row that is shifted down is off by less than two units an entry (`SecretTensor.drop`), so its
    length by less than 2 sqrt(size).
    """
    length = math.ceil(largest * _stretched(norm) * (1 << RESIDUAL_BITS - drop))
    lost = math.isqrt(4 * norm.size) + 1 if norm.extra + drop else 0
    return (length + lost) ** 2 + _eps_word(norm, drop)


def norm_range(norm: Norm, largest: float, gain: float = 1.0) -> NormRange:
    """Exponents under which every row of Euclidean norm up to `largest` is normalised.

    What has to hold, with L = largest 2^22 and n = size, for rows of whole numbers of length L:

    - centring: |n x_i - sum(x)| <= sqrt(n (n - 1)) L. That is shifted down and lifted, which wants
      it below 2^62 by more than the two units that the shift may add;
    - squares: 4^low <= v < 4^high for their sum v with eps (`_largest_sum`), and high at most 29,
      so that v has room in the comparisons of `rsqrt`. Both are found from the bits of integers: a
      logarithm rounds the wrong way beside a power of two;
    - an early gain: (L stretch + 2) (gain 2^18 + 1/2) < 2^61, what `mul` wants. L stretch is below
      2^51 here and the first factor's product with the gain below 2^60, so only the two units are
      left: gain below 2^40;
    - x * scale * value below 2^62, what `mul3` wants. With v = u 4^j, the scale is 2^(high - j)
      and the value g / sqrt(u) with g < 2. An entry before the shift is at most 2^drop (s + 5/2)
      for the entry s that was squared, and s^2 + 1 <= v: so the product is below
      g 2^(high + drop + frac) times (s + 5/2) / sqrt(s^2 + 1) <= sqrt(1 + 25/4) < 2.7, six times
      2^(high + drop + frac), times the gain if it is early. Four times that is held below 2^61.

    Rows below a few units of 2^(drop - 22) an entry have no precision left; how far their result
    strays is for `models.owner.probe` to see, how long it can get `longest_result` says.

    Args:
        gain: the largest factor that an entry is multiplied by beside the norm.

    Raises:
        RangeError: no choice of exponents holds that range.
    """
    if not math.isfinite(largest * gain):
        raise RangeError("weights are not finite, or too large to say how long a row can be")
    early = largest * norm.stretch * gain < 2.0 ** (_PRODUCT_BITS - RESIDUAL_BITS - FRACTION_BITS)
    early = early and gain < 2.0**_MAX_GAIN_BITS
    if not early:
        gain = 1.0
    exact = Fraction(largest)
    _check_centring(norm, exact)
    part, power = math.frexp(gain)
    grown = max(0, power - (part == 0.5))
    for drop in range(RESIDUAL_BITS - 1):
        total = _largest_sum(norm, exact, drop)
        high = (total.bit_length() + 1) // 2
        if high > _MAX_HIGH:
            continue
        low = (_eps_word(norm, drop).bit_length() - 1) // 2
        high = max(low + 1, high)
        room = _TRIPLE_BITS - high - drop - 2 - grown
        if room < MIN_ROOT_FRAC:
            break
        return NormRange(drop, low, high, min(MAX_ROOT_FRAC, room), early)
    raise RangeError(
        f"rows of length up to {largest:.3g} over {norm.size} entries leave no precision in a "
        "64-bit ring: the model's weights are too large"
    )


def longest_result(norm: Norm, bounds: NormRange) -> float:
    """Length below which a normalised row stays, over the one that it would have without roundings
    (sqrt(n), or 1 for unit rows), whatever the input.

    Squares are summed of entries that were shifted down, s = w + e, and the whole ones, w, are
    scaled. Each e is below 2 in size, so |w|^2 / (|s|^2 + eps) <= 1 + 4 n / eps (eps as a word):
    next to nothing unless many bits are dropped. Where that says little, the roundings do not
    conspire: the e are independent with mean 0 and variance 1/4, so that
    |s|^2 = |w|^2 + 2 w e + |e|^2, but for a chance of 2^-60 a row (9 deviations), is at least
    |w|^2 - 9 |w| + 0.8 n / 4, and |w|^2 / |s|^2 at most 1 / (1 - 81 / (0.8 n)).
    """
    if bounds.drop == 0:  # both are the same words
        return 1.0
    sound = 1 + 4 * norm.size / int(bounds.eps_word(norm))
    spread = 81 / (0.8 * norm.size)
    likely = 1 / (1 - spread) if spread < 1 else math.inf
    return math.sqrt(min(sound, likely))


def longest_centred(norm: Norm) -> float:
    """How long a row may be for its entries times its size to fit the ring while it is centred;
    infinite where it is not.
    """
    return 2.0 ** (_LIFT_BITS - RESIDUAL_BITS) / norm.size if norm.center else math.inf


def _check_centring(norm: Norm, largest: Fraction) -> None:
    spare = 1 << RESIDUAL_BITS + norm.extra  # more than two units after any shift
    if norm.center and largest * norm.size * (1 << RESIDUAL_BITS) + spare >= 1 << _LIFT_BITS:
        raise RangeError(
            f"rows of length up to {float(largest):.3g}, centred over {norm.size} entries, do not "
            f"fit a 64-bit ring above {longest_centred(norm):.3g}: the model's weights are too "
            "large"
        )


@protocol("norm")
async def normalize(
    lane: Lane,
    x: SecretTensor,
    norm: Norm,
    bounds: NormRange,
    *,
    gain: SecretTensor | None = None,
    shift: SecretTensor | None = None,
    frac: int = FRACTION_BITS,
    unit: bool = False,
) -> SecretTensor:
    """RMSNorm or LayerNorm over the last axis; over Z_2^64, x with 22 fraction bits.

    The gain and shift of a pre-norm are folded into the next weights by the owner; those of a
    post-norm are given here: the gain (18 fraction bits) is multiplied beside the inverse root, or
    after it where the product would not fit the ring; the shift (`frac` bits) is local.

    Args:
        frac: fraction bits of the result.
        unit: rows of length 1 instead of mean square 1.

    A row that is constant, or zero, gives zeros: what is multiplied is 0 exactly, or, above an eps
    of 2^-22, a unit and a half at most of 22 fraction bits over the root of eps, below 2^-10.
    Centring adds bits that must go again. To shift the shares leaves such roundings, and truncation
    leaves none (`remask`) for a word more an entry, beside the inverse root.

    Cost: 7 rounds: sum of squares; inverse root (4); x * value * scale; lift. One more where bits
    are dropped first: what is dropped is lifted again, because squares need the whole ring. Two
    more for a late gain.
    """
    small, x = await _prepared(lane, x, norm, bounds)

    async def inverse(strand: Lane) -> Scaled:
        squares = (await square_sum(strand, small)).add_public(bounds.eps_word(norm))
        root = 1.0 if unit else math.sqrt(norm.size)
        return await rsqrt(strand, squares, bounds.low, bounds.high, gain=root, frac=bounds.frac)

    async def gained(strand: Lane) -> SecretTensor:
        wide = await truncated(strand, x, norm.extra) if norm.steady else x
        if gain is None or not bounds.early:
            return wide
        return await lift(strand, await mul(strand, wide, gain, gain.frac))

    root, x = await lane.both(inverse, gained)
    scale, value = root.scale.reshape(*x.shape[:-1], 1), root.value.reshape(*x.shape[:-1], 1)
    bits = x.frac + scale.frac + value.frac - frac
    result = await lift(lane, await mul3(lane, x, scale, value, bits))
    if gain is not None and not bounds.early:
        result = await lift(lane, await mul(lane, result, gain, gain.frac))
    return result if shift is None else result + shift.broadcast(result.shape)


async def _prepared(
    lane: Lane, x: SecretTensor, norm: Norm, bounds: NormRange
) -> tuple[SecretTensor, SecretTensor]:
    """The entries to be squared, and those to be scaled: both centred and over Z_2^64. The latter
    still have the bits that centring adds where zeros must stay zeros.
    """
    extra = norm.extra
    if norm.center:
        total = x.sum(-1).reshape(*x.shape[:-1], 1).broadcast(x.shape)
        x = (x.times(np.uint64(norm.size)) - total).reinterpret(x.frac + extra)
    small = x.drop(extra + bounds.drop)
    if extra == 0 or norm.steady:
        return await lift(lane, small), x
    wide = x.drop(extra)
    if bounds.drop == 0:
        wide = await lift(lane, wide)
        return wide, wide
    return await lane.both(lambda s: lift(s, small), lambda s: lift(s, wide))


async def truncated(lane: Lane, x: SecretTensor, bits: int) -> SecretTensor:
    """x over Z_2^64 less its last bits, exactly 0 where x is."""
    frac = x.frac - bits
    return await lift(lane, await map_public(lane, x, lambda words: words, shift=bits, frac=frac))


# -- attention -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AttentionRange:
    """Public exponents of an attention layer, fixed by the owner.

    Attributes:
        score_bits: |score| < 2^score_bits; at most `MAX_SCORE_BITS`.
        value_bits: entries of the values are below 2^value_bits in size.
        rope_frac: fraction bits that are spent on the angles of rotary positions.
        value_drop: fraction bits that the values, which share a truncation with what is rotated,
            give up for them.
    """

    score_bits: int
    value_bits: int
    rope_frac: int
    value_drop: int = 0


def peak_width(score_bits: int) -> int:
    """Bits of the ring in which a row's maximum is found: differences of scores in steps of 2^-6
    below a quarter of the ring (half of it is not enough: rounding may add a step), in whole
    digits; at least what `exp_negative` wants.

    Two scores below 2^b, each off by less than two steps, differ by less than 2^(b + 7) + 4 steps:
    less than 2^(w - 1) for w >= b + 9 and b >= 1, what `maximum` wants. With 18 fraction bits
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

    Cost: those of the maximum (a radix-4 tree over the row), then those of exp.
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
    """log2 of the largest sum of a row's numerators, 1.1 each, rounded up: in whole numbers, as
    all parties must find the same.
    """
    return (-(-11 * max(2, length) // 10) - 1).bit_length()


def spare_bits(value_bits: int, length: int) -> int:
    """Bits to drop from values below 2^value_bits of which `length` are weighted and added.

    A numerator is at most exp(1/16) and what it is off, below 1.1; so a sum of `length` of them
    times values stays below 2^total, and with both factors' fraction bits, less the bits dropped,
    below 2^60, one bit less than `matmul` wants. Then |total * scale * value| of the division is
    below 2^(value_bits - spare + 18) 2^(2 high) 2^(frac + 2), which `attend` keeps at 2^61.

    Raises:
        RangeError: too few fraction bits would be left.
    """
    total = math.ceil(value_bits + _sum_bits(length))
    spare = max(0, total + 2 * FRACTION_BITS - _PRODUCT_BITS)
    if spare > FRACTION_BITS - MIN_VALUE_FRAC:
        raise RangeError(
            f"weighted sums of {length} values can reach 2^{total}: the value weights are too "
            "large for a context of so many positions"
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

    Cost: softmax_numerators, then 5 or 6 rounds.

    Raises:
        RangeError: values so large that dropping bits leaves nothing of small ones.
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
    frac = min(22, _TRIPLE_BITS - 2 * high - 3 - bounds.value_bits + spare)

    async def product(strand: Lane) -> SecretTensor:
        return await lift(strand, await matmul(strand, weights, values, FRACTION_BITS))

    total, inverse = await lane.both(
        product, lambda strand: reciprocal(strand, weights.sum(-1), low, high, frac=frac)
    )
    shape = (*scores.shape[:-1], 1)
    scale, value = inverse.scale.reshape(*shape), inverse.value.reshape(*shape)
    shift = total.frac + scale.frac + value.frac - FRACTION_BITS
    return await lift(lane, await mul3(lane, total, scale, value, shift))
