"""Products and truncation over the ring.

The setting is that of ASTRA (CCSW 2019), BLAZE and ABY2.0 (USENIX Security 2021) with a dealer: for
`x = m_x - lam_x`, the term `lam_x * lam_y` is known to the dealer before the input exists, so that
a product costs one exchange between the evaluators. Truncation is fused with that exchange and
never fails; see `remask` and `lift`.

A truncated product takes one multiplication per party, where those papers take two per evaluator:
with u_i = m_x - 2 lam_xi and v_i = m_y - 2 lam_yi, x is the mean of u_1 and u_2 and lam_x2 - lam_x1
half their difference, so that

    2 x y = u_1 v_1 + u_2 v_2 - 2 (lam_x1 - lam_x2) (lam_y1 - lam_y2).

Each party knows the factors of one of these terms. Two has no inverse in the ring, so this computes
twice the product: it is truncated by one more bit, and |x y| must leave one more bit of room.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import comb

import numpy as np

from protocols.base.cost import Cost
from protocols.base.entry import protocol
from protocols.base.fields import Field, elementwise_work, field
from protocols.base.lane import Lane
from protocols.base.ring import RING_BITS, Words, packed_bytes, shift_right, zero_words
from protocols.base.shares import Role, SecretTensor
from protocols.errors import LocalProtocolError
from protocols.kernels.elementwise import (
    joined,
    lift_secrets,
    lift_word,
    lifted,
    masked_sum,
    product_part,
)
from protocols.kernels.matmul import batched_matmul

LinearMap = Callable[[Words], Words]

_ONE = np.uint64(1)
PRODUCT_BITS = RING_BITS - 3
"""Ring integers x * y must stay below 2^PRODUCT_BITS to be truncated."""


def remask_cost(count: int, width: int, *, dealt: bool, shift: int = 0) -> Cost:
    """Cost of `remask` for `count` elements."""
    online = 2 * packed_bytes(count, width - shift)
    return Cost(rounds=1, online=online, offline=packed_bytes(count, width) if dealt else 0)


async def remask(
    lane: Lane,
    part: Words,
    *,
    frac: int,
    width: int = RING_BITS,
    shift: int = 0,
    dealt: bool = True,
) -> SecretTensor:
    """Turn additive parts of `z`, one at each party, into a sharing of `z / 2^shift`.

    Every product ends here. With `shift` this is the robust truncation: the dealer splits its part
    between the evaluators, so that their halves a + b = z modulo 2^width are uniform. Each divides
    its own half, A rounding up and B down. A wrap of a + b is a multiple of 2^(width-shift) then:
    nothing modulo the ring Z_2^(width-shift) of the result, in which alone they exchange the
    quotients under the output's masks.

    Functionality: the result is floor((z + e) / 2^shift) for uniform e, i.e. z / 2^shift rounded
    down or up with mean exactly z / 2^shift: with f and g the lowest `shift` bits of a and of z, it
    is rounded up if and only if 0 < f <= g. It is the usual probabilistic truncation. The bits f
    that the rounding depends on are evaluator A's alone, and uniform whatever z (see "On
    Probabilistic Truncation in Privacy-preserving Machine Learning", AAAI 2025). What B receives is
    masked by A's half of the output mask, and the other way around.

    Args:
        part: this party's part. The dealer's counts only if `dealt`.
        frac: fraction bits of the result.
        dealt: the dealer has a part: one word per element is dealt. Without it the result of a
            division is still z / 2^shift rounded down or up, but with the probabilities that the
            parts' lowest bits have; the mean error is zero if those of either part are uniform.

    Cost: 1 round; width - shift bits each way; width bits dealt if `dealt`.
    """
    left, work = width - shift, elementwise_work(part.size)
    if lane.is_dealer:
        if dealt:
            await lane.share([field(part.shape, width)], [part])
        shape = part.shape
        one, two = (
            await lane.run(work, lane.masks, shape, left) if work else lane.masks(shape, left)
        )
        return SecretTensor(lane.role, one, two, left, frac)
    correction = (await lane.share([field(part.shape, width)]))[0] if dealt else None
    given = lane, part, correction, width, shift
    total, mask = await lane.run(work, _masked, *given) if work else _masked(*given)
    (opened,) = await lane.open([field(part.shape, left)], [total])
    return SecretTensor(lane.role, opened, mask, left, frac)


def _masked(
    lane: Lane, part: Words, correction: Words | None, width: int, shift: int
) -> tuple[Words, Words]:
    """An evaluator's quotient under its half of the output mask, and that half."""
    mask = lane.mask(part.shape, width - shift)
    up = (1 << shift) - 1 if lane.leads else 0
    if correction is not None:
        return masked_sum(part, correction, mask, width, shift, up), mask
    if shift:
        return shift_right(part + np.uint64(up), shift, width) + mask, mask
    return part + mask, mask


def lift_cost(count: int, width: int, to: int) -> Cost:
    """Cost of `lift`."""
    size = packed_bytes(count, to - width)
    return Cost(rounds=1, online=2 * size, offline=2 * size)


@protocol("lift")
async def lift(lane: Lane, x: SecretTensor, to: int = RING_BITS) -> SecretTensor:
    """Carry a sharing over Z_2^k to Z_2^to, exactly, for |x| < 2^(k-2).

    With zeta = x + 2^(k-2) + lam mod 2^k public to the evaluators, the one unknown is whether that
    sum wrapped: it did if and only if msb(lam) and not msb(zeta). The dealer shares msb(lam) and
    the carry of lam1 + lam2; the new masks' upper parts u1, u2 hide the evaluators' words.

    Cost: 1 round; to-k bits each way; 2 (to-k) bits dealt.
    """
    if x.width >= to:
        return x.narrow(to)
    gap = to - x.width
    if lane.tracing:
        lane.charge("lift", lift_cost(x.size, x.width, to))
        return lane.blank(x.shape, to, x.frac)
    fields = [field(x.shape, gap)] * 2
    if lane.is_dealer:
        return await _lift_dealer(lane, x, to, fields)
    msb, carry = await lane.share(fields)
    work, given = elementwise_work(x.size), (lane, x, msb, carry, gap)
    word, upper = await lane.run(work, _lift_word, *given) if work else _lift_word(*given)
    (high,) = await lane.open(fields[:1], [word])
    known = x.a, x.b, high, upper, x.width
    m, own = await lane.run(work, lifted, *known) if work else lifted(*known)
    return SecretTensor(lane.role, m, own, to, x.frac)


def _lift_word(
    lane: Lane, x: SecretTensor, msb: Words, carry: Words, gap: int
) -> tuple[Words, Words]:
    """An evaluator's word of the upper part under its half of that part's mask, and that half."""
    upper = lane.mask(x.shape, gap)
    return lift_word(x.a, msb, carry, upper, x.width), upper


async def _lift_dealer(lane: Lane, x: SecretTensor, to: int, fields: list[Field]) -> SecretTensor:
    work, given = elementwise_work(x.size), (x.a, x.b, x.width)
    secrets = await lane.run(work, lift_secrets, *given) if work else lift_secrets(*given)
    await lane.share(fields, secrets)
    one, two = (
        await lane.run(work, _lifted_masks, lane, x, to) if work else _lifted_masks(lane, x, to)
    )
    return SecretTensor(lane.role, one, two, to, x.frac)


def _lifted_masks(lane: Lane, x: SecretTensor, to: int) -> tuple[Words, Words]:
    """The dealer's view of the masks of a lifted sharing."""
    one, two = lane.masks(x.shape, to - x.width)
    return joined(x.a, 0, one, x.width), joined(x.b, 0, two, x.width)


@protocol("map")
async def map_public(
    lane: Lane, x: SecretTensor, function: LinearMap, *, shift: int, frac: int
) -> SecretTensor:
    """A public linear map on the ring words of x, divided by 2^shift. Before the division its
    values are below 2^(width - 2).

    Args:
        frac: fraction bits of the result.

    Cost: 1 round; width - shift bits each way, width bits dealt.
    """
    if lane.tracing:
        shape = function(x.a).shape
        lane.charge("map", remask_cost(int(np.prod(shape)), x.width, dealt=True, shift=shift))
        return lane.blank(shape, x.width - shift, frac)
    if lane.is_dealer:
        part = zero_words(function(x.a).shape)
    elif lane.leads:
        part = function(x.a - x.b)
    else:
        part = function(np.uint64(0) - x.b)
    return await remask(lane, part, frac=frac, width=x.width, shift=shift)


# -- elementwise products --------------------------------------------------------------------------


def left_factor(x: SecretTensor) -> Words:
    """The factor of `right_factor(y)` in a party's part of 2 x y; see the module docstring."""
    return (x.b - x.a) << _ONE if x.role is Role.DEALER else right_factor(x)


def right_factor(y: SecretTensor) -> Words:
    """m - 2 lam_i at an evaluator, lam1 - lam2 at the dealer."""
    return y.a - y.b if y.role is Role.DEALER else y.a - (y.b << _ONE)


def _check_shift(shift: int) -> None:
    if shift < 1:
        raise LocalProtocolError("a product is truncated by at least one bit: give a shift")


def _same_width(*tensors: SecretTensor) -> int:
    first, *others = tensors
    for other in others:
        if other.width != first.width:
            widths = sorted({tensor.width for tensor in tensors})
            raise LocalProtocolError(f"factors over different rings {widths}: lift or narrow")
    return first.width


@protocol("mul")
async def mul(lane: Lane, x: SecretTensor, y: SecretTensor, shift: int) -> SecretTensor:
    """Elementwise product with broadcasting, divided by 2^shift (at least 1), over Z_2^(width - 1 -
    shift). |x * y| < 2^(width-3).

    Cost: 1 round; width - 1 - shift bits each way; width bits dealt.
    """
    _check_shift(shift)
    width, frac = _same_width(x, y), x.frac + y.frac - shift
    if lane.tracing:
        shape = np.broadcast_shapes(x.shape, y.shape)
        cost = remask_cost(int(np.prod(shape)), width, dealt=True, shift=shift + 1)
        lane.charge("mul", cost)
        return lane.blank(shape, width - 1 - shift, frac)
    work = elementwise_work(max(x.size, y.size))
    part = await lane.run(work, _product_part, x, y) if work else _product_part(x, y)
    return await remask(lane, part, frac=frac, width=width, shift=shift + 1)


def _product_part(x: SecretTensor, y: SecretTensor) -> Words:
    """A party's part of 2 x y."""
    if x.shape == y.shape:
        return product_part(x.a, x.b, y.a, y.b, x.role is Role.DEALER)
    part: Words = left_factor(x) * right_factor(y)
    return part


@protocol("square_sum")
async def square_sum(lane: Lane, x: SecretTensor) -> SecretTensor:
    """Sum of squares over the last axis, not truncated (twice the fraction bits).

    Cost: 1 round; width bits per row each way and dealt.
    """
    if lane.tracing:
        lane.charge("square_sum", remask_cost(x.size // x.shape[-1], x.width, dealt=True))
        return lane.blank(x.shape[:-1], x.width, 2 * x.frac)
    if lane.is_dealer:
        lam = x.lam
        part = lam * lam
    elif lane.leads:
        part = x.a * (x.a - x.b - x.b)
    else:
        part = np.uint64(0) - x.a * (x.b + x.b)
    total = part.sum(axis=-1, dtype=np.uint64)
    return await remask(lane, total, frac=2 * x.frac, width=x.width)


# -- matrix products -------------------------------------------------------------------------------


@protocol("matmul")
async def matmul(lane: Lane, x: SecretTensor, y: SecretTensor, shift: int) -> SecretTensor:
    """Batched product (B, T, K) @ (B, K, L) of two sharings, divided by 2^shift; otherwise as
    `mul`.

    Cost: 1 round; width - 1 - shift bits per output element each way, width bits dealt.
    """
    _check_shift(shift)
    width, frac = _same_width(x, y), x.frac + y.frac - shift
    batch, rows, depth = x.shape
    columns = y.shape[2]
    if lane.tracing:
        cost = remask_cost(batch * rows * columns, width, dealt=True, shift=shift + 1)
        lane.charge("matmul", cost)
        return lane.blank((batch, rows, columns), width - 1 - shift, frac)
    work = batch * rows * depth * columns
    part = await lane.run(work, batched_matmul, left_factor(x), right_factor(y))
    return await remask(lane, part, frac=frac, width=width, shift=shift + 1)


# -- polynomials -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Polynomial:
    """`sum_i c_i x^i` with float coefficients, lowest degree first."""

    coefficients: tuple[float, ...]

    @property
    def degree(self) -> int:
        return len(self.coefficients) - 1

    def encoded(self, frac: int, scale: int) -> list[np.uint64]:
        """Ring words of the coefficients: c_i carries `scale - i * frac` fraction bits."""
        words = []
        for power, value in enumerate(self.coefficients):
            bits = scale - power * frac
            if bits < 0:
                raise LocalProtocolError(
                    f"degree {self.degree} at {frac} fraction bits does not fit a scale of {scale}"
                )
            words.append(np.uint64(round(value * 2**bits) % 2**RING_BITS))
        return words


def poly_cost(count: int, degree: int, width: int, *, shift: int) -> Cost:
    """Cost of `poly`."""
    powers = Cost(offline=(degree - 1) * packed_bytes(count, width))
    return remask_cost(count, width, dealt=shift > 0, shift=shift) + powers


@protocol("poly")
async def poly(
    lane: Lane, x: SecretTensor, polynomial: Polynomial, *, scale: int, frac: int
) -> SecretTensor:
    """A public polynomial of any degree in one round; the result has `frac` fraction bits.

    The dealer shares lam^2 .. lam^n; each evaluator expands `sum c_i (m - lam)^i` alone. The value
    is formed with `scale` fraction bits and must stay below 2^(62 - scale); x must be over Z_2^64.

    Cost: 1 round; 64 - scale + frac bits each way; 64 (degree - 1) bits dealt, and 64 more if
    truncated.
    """
    shift, degree = scale - frac, polynomial.degree
    if x.width != RING_BITS:
        raise LocalProtocolError("a polynomial needs the full ring: lift first")
    if lane.tracing:
        lane.charge("poly", poly_cost(x.size, degree, RING_BITS, shift=shift))
        return lane.blank(x.shape, RING_BITS - shift, frac)
    fields = [field(x.shape)] * (degree - 1)
    if lane.is_dealer:
        powers = [x.lam]
        for _ in range(degree - 1):
            powers.append(powers[-1] * powers[0])
        await lane.share(fields, powers[1:])
        zero = np.zeros(x.shape, dtype=np.uint64)
        return await remask(lane, zero, frac=frac, shift=shift, dealt=shift > 0)
    masks = [x.b, *await lane.share(fields)]
    words = polynomial.encoded(x.frac, scale)
    part = _horner(words, x.a) if lane.leads else np.zeros(x.shape, dtype=np.uint64)
    for power, mask in enumerate(masks, start=1):
        tail = [
            np.uint64(int(words[i]) * comb(i, power) % 2**RING_BITS)
            for i in range(power, degree + 1)
        ]
        sign = np.uint64(1) if power % 2 == 0 else ~np.uint64(0)
        part = part + sign * mask * _horner(tail, x.a)
    return await remask(lane, part, frac=frac, shift=shift, dealt=shift > 0)


def _horner(words: list[np.uint64], x: Words) -> Words:
    total = np.full(x.shape, words[-1], dtype=np.uint64)
    for word in reversed(words[:-1]):
        total = total * x + word
    return total
