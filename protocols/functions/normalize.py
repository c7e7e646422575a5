"""RMSNorm and LayerNorm: row-wise work in as few rounds as possible."""

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import numpy as np

from protocols.arithmetic import PRODUCT_BITS, lift, map_public, mul, square_sum
from protocols.base.entry import protocol
from protocols.base.lane import Lane
from protocols.base.ring import FRACTION_BITS, RESIDUAL_BITS, RING_BITS
from protocols.base.shares import SecretTensor
from protocols.errors import RangeError
from protocols.functions.elementary import RowFactor, Scaled, keeps_narrow, row_factor, rsqrt, times
from protocols.narrow import narrow_square_sum

# Bounds on products of normalised and weighted rows: one bit is kept in reserve.
HELD_PRODUCT_BITS = PRODUCT_BITS - 1  # of two factors
HELD_TRIPLE_BITS = RING_BITS - 3  # of three
_LIFT_BITS = RING_BITS - 2  # of values that are shifted down, then lifted
_MAX_HIGH = (RING_BITS - 5) // 2
_STEADY_EPS = 2.0**-22
"""From this eps on, the roundings of a constant row stay below 2^-10 in the result: a unit and a
half of 2^-22, over the root of eps.
"""
_MAX_GAIN_BITS = 40
MAX_ROOT_FRAC = 26
MIN_ROOT_FRAC = 8


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm: x / sqrt(mean(x^2) + eps) over `size` entries; with `center` (LayerNorm) their mean
    is subtracted first.
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
        """The factor on the entries: size / 2^extra, in [1, 2), if centred."""
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

    def fit(self, norm: Norm, width: int) -> bool:
        """Whether every row that the range allows can be normalised as it is over Z_2^width.

        What `normalize` reads, n x - sum(x) if centred and x if not, must stay below 2^(width-2),
        before and after its last bits are shifted away. With L, stretch and length as in
        `_largest_sum`, and n = stretch 2^extra, it is at most n L 2^22 (n = 1 if not centred), and
        so at most length 2^(extra + drop). As (length + lost)^2 < 4^high, where lost is 3 or more
        if anything is shifted away, not even the two units that a shift may add reach
        2^(high + extra + drop).
        """
        return self.high + norm.extra + self.drop <= width - 2


def _stretched(norm: Norm) -> Fraction:
    """`Norm.stretch` exactly."""
    return Fraction(norm.size, 1 << norm.extra) if norm.center else Fraction(1)


@cache
def _eps_word(norm: Norm, drop: int) -> int:
    """In integers, since both evaluators add it and must get the same word."""
    bits = 2 * (RESIDUAL_BITS - drop)
    return max(1, round(norm.size * Fraction(norm.eps) * _stretched(norm) ** 2 * (1 << bits)))


def _largest_sum(norm: Norm, largest: Fraction, drop: int) -> int:
    """The largest sum of the squares of a row of length `largest`, eps included.

    A row that is shifted down is off by less than two units per entry (`SecretTensor.drop`), so its
    length is off by less than 2 sqrt(size).
    """
    length = math.ceil(largest * _stretched(norm) * (1 << RESIDUAL_BITS - drop))
    lost = math.isqrt(4 * norm.size) + 1 if norm.extra + drop else 0
    return (length + lost) ** 2 + _eps_word(norm, drop)


def norm_range(norm: Norm, largest: float, gain: float = 1.0) -> NormRange:
    """Exponents under which every row of Euclidean norm up to `largest` is normalised.

    These must hold, with L = largest 2^22 and n = size, for rows of integers of length L:

    - centring: |n x_i - sum(x)| <= sqrt(n (n - 1)) L. That is shifted down and lifted, which needs
      it below 2^62 by more than the two units that the shift may add;
    - squares: 4^low <= v < 4^high for their sum v with eps (`_largest_sum`), and high at most 29,
      so that v has room in the powers of four of `rsqrt`. Both are computed from bit lengths of
      integers: a logarithm may round the wrong way near a power of two;
    - an early gain: (L stretch + 2) (gain 2^18 + 1/2) < 2^61, what `mul` needs. L stretch is below
      2^51 here and the first factor's product with the gain below 2^60, so only the two units are
      left: gain below 2^40;
    - x * scale * value below 2^62, what `mul3` needs. With v = u 4^j, the scale is 2^(high - j)
      and the value g / sqrt(u) with g < 2. An entry before the shift is at most 2^drop (s + 5/2)
      for the entry s that was squared, and s^2 + 1 <= v: so the product is below
      g 2^(high + drop + frac) times (s + 5/2) / sqrt(s^2 + 1) <= sqrt(1 + 25/4) < 2.7, six times
      2^(high + drop + frac), times the gain if it is early. Four times that is kept below 2^61.

    Rows below a few units of 2^(drop - 22) per entry have no precision left; `models.owner.probe`
    measures their error, and `longest_result` bounds their length.

    Args:
        gain: the largest gain that an entry is multiplied by.

    Raises:
        RangeError: no choice of exponents covers that range.
    """
    if not math.isfinite(largest * gain):
        raise RangeError("weights are not finite, or too large to say how long a row can be")
    early = largest * norm.stretch * gain < 2.0 ** (
        HELD_PRODUCT_BITS - RESIDUAL_BITS - FRACTION_BITS
    )
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
        room = HELD_TRIPLE_BITS - high - drop - 2 - grown
        if room < MIN_ROOT_FRAC:
            break
        return NormRange(drop, low, high, min(MAX_ROOT_FRAC, room), early)
    raise RangeError(
        f"rows of length up to {largest:.3g} over {norm.size} entries leave no precision in a "
        "64-bit ring: the model's weights are too large"
    )


def longest_result(norm: Norm, bounds: NormRange) -> float:
    """Bound on the length of a normalised row, relative to its length without rounding (sqrt(n), or
    1 for unit rows), for any input.

    The squares are summed of shifted-down entries s = w + e, while the whole entries w are scaled.
    Each e is below 2 in size, so |w|^2 / (|s|^2 + eps) <= 1 + 4 n / eps (eps as a word): close to 1
    unless many bits are dropped. Where that bound is weak, a statistical one is used: the e are
    independent with mean 0 and variance 1/4, so that |s|^2 = |w|^2 + 2 w e + |e|^2, except with
    probability 2^-60 per row (9 deviations), is at least
    |w|^2 - 9 |w| + 0.8 n / 4, and |w|^2 / |s|^2 at most 1 / (1 - 81 / (0.8 n)).
    """
    if bounds.drop == 0:  # both are the same words
        return 1.0
    sound = 1 + 4 * norm.size / int(bounds.eps_word(norm))
    spread = 81 / (0.8 * norm.size)
    likely = 1 / (1 - spread) if spread < 1 else math.inf
    return math.sqrt(min(sound, likely))


def longest_centred(norm: Norm) -> float:
    """The longest row whose entries times its size fit the ring during centring, or infinity."""
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
    """RMSNorm or LayerNorm over the last axis; over Z_2^64. x has 22 fraction bits, over a ring
    that the range fits (`NormRange.fit`).

    The gain and shift of a pre-norm are folded into the next weights by the owner; those of a
    post-norm are given here: the gain (18 fraction bits) is multiplied while the inverse root is
    computed, or after it where the product would not fit the ring; the shift (`frac` bits) is
    local.

    Args:
        frac: fraction bits of the result.
        unit: rows of length 1 instead of mean square 1.

    A row that is constant, or zero, gives zeros: the entries to be scaled are exactly 0, or, for an
    eps above 2^-22, the result is at most a unit and a half of 22 fraction bits over the root of
    eps, below 2^-10. Centring adds bits that must be removed again. Shifting the shares leaves such
    roundings; truncation leaves none (`remask`), for one more word per entry, and runs beside the
    inverse root.

    Cost: 4 rounds: sum of squares; inverse root; x * value * scale; lift. The squares read what a
    shift left as it stands (`protocols.narrow`), and the lift of x, if it is narrow, runs beside
    them. One more under the trees "balanced" and "traffic", which lift the factors of the product:
    that is less to deal. Two more for a late gain. Beside the squares and the root, an early gain
    takes a round (two with its lift) and a truncation two: one round more if both are needed.
    """
    x = _centred(x, norm)
    small = x.drop(norm.extra + bounds.drop)
    x = x if norm.steady else x.drop(norm.extra)
    if x.width == small.width and lane.settings.tree != "rounds":
        small = x = await lift(lane, x)  # the same words: a lift of both is dealt less

    async def inverse(strand: Lane) -> RowFactor:
        root = await inverse_root(strand, small, norm, bounds, unit=unit, frac=bounds.frac)
        return await row_factor(strand, root, x.size)

    async def gained(strand: Lane) -> SecretTensor:
        if norm.steady:
            wide = await truncated(strand, x, norm.extra)
        else:
            wide = await lift(strand, x)
        if gain is None or not bounds.early:
            return wide
        product = await mul(strand, wide, gain, gain.frac)
        return product if lane.settings.tree == "rounds" else await lift(strand, product)

    root, wide = await lane.both(inverse, gained)
    result = await lift(lane, await times(lane, wide, root, frac))
    if gain is not None and not bounds.early:
        result = await lift(lane, await mul(lane, result, gain, gain.frac))
    return result if shift is None else result + shift.broadcast(result.shape)


async def inverse_root(
    lane: Lane, small: SecretTensor, norm: Norm, bounds: NormRange, *, frac: int, unit: bool = False
) -> Scaled:
    """1 / sqrt(mean(x^2) + eps) of each row (`unit`: of length), from its entries less the bits
    that the range drops.
    """
    squared = square_sum if small.width == RING_BITS else narrow_square_sum
    squares = (await squared(lane, small)).add_public(bounds.eps_word(norm))
    root = 1.0 if unit else math.sqrt(norm.size)
    span, narrow = (bounds.low, bounds.high), keeps_narrow(lane, small.size)
    return await rsqrt(lane, squares, *span, gain=root, frac=frac, narrow=narrow)


def _centred(x: SecretTensor, norm: Norm) -> SecretTensor:
    """n x - sum(x) read as x - mean(x) times `Norm.stretch`; x itself if the norm has no centre."""
    if not norm.center:
        return x
    total = x.sum(-1).reshape(*x.shape[:-1], 1).broadcast(x.shape)
    return (x.times(np.uint64(norm.size)) - total).reinterpret(x.frac + norm.extra)


async def truncated(lane: Lane, x: SecretTensor, bits: int) -> SecretTensor:
    """x over Z_2^64 without its last `bits` bits, exactly 0 where x is 0."""
    frac = x.frac - bits
    return await lift(lane, await map_public(lane, x, lambda words: words, shift=bits, frac=frac))
