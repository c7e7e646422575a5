"""RMSNorm after the product that reads it: r (x W) instead of (r x) W.

The inverse root r is one number a row, and the product does not wait for it: x W runs beside the
sum of squares and the root, and one product of three then scales its columns. That is two rounds
less; more columns are scaled than x has, so it is for steps whose rounds count. Entries of x W
cover a wider range than those of a normalised product: the owner publishes how many fraction bits
each step keeps (`LateRange`), where there are enough of them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from protocols.arithmetic import PRODUCT_BITS, lift
from protocols.base.entry import protocol
from protocols.base.lane import Lane
from protocols.base.ring import FRACTION_BITS, RESIDUAL_BITS, RING_BITS, WEIGHT_BITS, Words
from protocols.base.shares import SecretTensor
from protocols.errors import LocalProtocolError
from protocols.functions.elementary import MAX_POWER_FRAC, Scaled, gained_spline
from protocols.functions.normalize import Norm, NormRange, inverse_root, longest_result
from protocols.linear import AnyWeight, linear
from protocols.triple import mul3

LEAST_FRAC = 18
"""Fewest fraction bits of a product or an inverse root. With 12, tokens whose rows are much smaller
than those that the owner tests were off by more than is allowed.
"""
LEAST_ANGLE = 12
"""Fewest fraction bits of an angle."""
_LEAST_WIDTH = 36
"""What an activation needs of its ring."""
_MARGIN = 1 + 2.0**-10
"""More than the relative errors of an inverse root (2^-11 + 5e-5) and of a rotation by rounded
angles (2^-12).
"""


@dataclass(frozen=True, slots=True)
class LateRange:
    """Public exponents of a product that is normalised late, fixed by the owner.

    Attributes:
        drop: bits dropped from x (22 fraction bits) before the product.
        frac: fraction bits of the product.
        root: fraction bits of the inverse root's `value`.
        rope: fraction bits of the angles of rotary positions, or 0.
    """

    drop: int
    frac: int
    root: int
    rope: int = 0


@dataclass(frozen=True, slots=True)
class Columns:
    """What the owner knows of the product.

    Attributes:
        longest: bound on the length of a row of x.
        weight: the largest length of a column of W, as it is shared.
        result: bound on the entries of the normalised product, after any rotation.
        angles: the largest number of fraction bits of angles; 0: no rotation.
    """

    longest: float
    weight: float
    result: float
    angles: int = 0


def late_range(norm: Norm, bounds: NormRange, columns: Columns) -> tuple[LateRange, float] | None:
    """Exponents under which every row is normalised late, and the factor by which the bound on the
    results grows; None if they would leave fewer than `LEAST_FRAC` bits somewhere, or if the norm
    subtracts a mean.

    With n = size, units of 2^-22 and lengths of rows, these hold:

    - x less `drop` bits is off by less than 2 units of 2^drop an entry. The product of its row and
      a column is below weight (longest 2^22 + 2^(drop+1) sqrt(n)), which with 20 + 22 - drop
      fraction bits is kept below 2^61, what `linear` needs;
    - a row is at most f 2^d sqrt(v) long, with d = `NormRange.drop`, v the sum of squares with eps
      and f = `longest_result`. What was dropped adds 2^(drop+1) sqrt(n), and the rounding of the
      product a unit of 2^(22-frac): both are compared with 2^d sqrt(v), where v is at least the
      word of eps, and except with probability 2^-60 at least 0.2 n - 81/4 if bits were dropped (see
      `longest_result`). So the result grows by that factor at most, and by the error of the root;
    - the product of three has frac + root + s fraction bits, s those of the power of two, and
      those of the angles: it is kept below 2^61 by the bound on the results, and at most so many
      that at least `_LEAST_WIDTH` bits of ring remain where there are no angles.
    """
    if norm.center:
        return None
    size, least = norm.size, float(bounds.eps_word(norm))
    if bounds.drop:
        least = max(least, 0.2 * size - 81 / 4)
    spread = math.sqrt(size / least)
    for drop in range(RESIDUAL_BITS - LEAST_FRAC):
        moved = columns.longest + 2.0 ** (drop + 1 - RESIDUAL_BITS) * math.sqrt(size)
        fraction = WEIGHT_BITS + RESIDUAL_BITS - drop
        if columns.weight * moved * _MARGIN < 2.0 ** (PRODUCT_BITS - fraction):
            break
    else:
        return None
    noise = 2.0 ** (drop + 1 - bounds.drop) * spread / longest_result(norm, bounds) if drop else 0.0
    noise += 2.0 ** (RESIDUAL_BITS - LEAST_FRAC - bounds.drop) * spread / max(columns.result, 1e-3)
    factor = (1 + noise) * _MARGIN
    total = PRODUCT_BITS - max(0, math.ceil(math.log2(max(columns.result * factor, 1.0))))
    if not columns.angles:
        total = min(total, RING_BITS + FRACTION_BITS - _LEAST_WIDTH)
    spare = total - _power_frac(norm, bounds)
    rope = min(columns.angles, spare // 3)
    root = min(MAX_POWER_FRAC, (spare - rope + 1) // 2)
    frac = min(RESIDUAL_BITS, spare - rope - root)
    if min(frac, root) < LEAST_FRAC or (columns.angles and rope < LEAST_ANGLE):
        return None
    return LateRange(drop, frac, root, rope), factor


def _power_frac(norm: Norm, bounds: NormRange) -> int:
    """Fraction bits of the power of two in an inverse root (see `rsqrt`)."""
    _, exponent = gained_spline(1, math.sqrt(norm.size))
    return bounds.high - (RESIDUAL_BITS - bounds.drop) - exponent


@protocol("late_norm")
async def late_norm(
    lane: Lane,
    x: SecretTensor,
    norm: Norm,
    bounds: NormRange,
    weight: AnyWeight,
    late: LateRange,
    *,
    then: Callable[[Words], Words] | None = None,
) -> SecretTensor:
    """x W / sqrt(mean(x^2) + eps), 18 fraction bits, over the ring that truncation leaves.

    Args:
        x: (T, size) with 22 fraction bits, over a ring that the range fits (`NormRange.fit`).
        weight: without a bias.
        then: a public linear map on the ring words of the (T, columns) result, applied before
            truncation (RoPE); it adds `late.rope` fraction bits.

    Cost: 3 rounds (sum of squares beside the lift of x; inverse root beside the product; product of
    three), where `normalize` and `linear` take 5; per column a product and a product of three.
    """
    small = x.drop(bounds.drop)

    async def root_of(strand: Lane) -> Scaled:
        return await inverse_root(strand, small, norm, bounds, frac=late.root)

    async def product(strand: Lane) -> SecretTensor:
        wide = await lift(strand, x.drop(late.drop))
        return await linear(strand, wide, weight, frac=late.frac)

    root, joint = await lane.both(root_of, product)
    scale, value = root.scale.reshape(-1, 1), root.value.reshape(-1, 1)
    shift = joint.frac + scale.frac + value.frac + late.rope - FRACTION_BITS
    if not 0 < shift <= RING_BITS - FRACTION_BITS - 2:
        raise LocalProtocolError(
            f"a product cannot be normalised late with {joint.frac} and {value.frac} fraction bits:"
            " the owner must publish other ranges"
        )
    scaled = await mul3(lane, joint, scale, value, shift, then=then)
    return scaled.reinterpret(FRACTION_BITS)
