"""A positive number as u 4^j with u near [1/4, 1), in one round: as `frexp`, on shares.

`v = m - lam` is compared with powers of four by a distributed comparison function, whose payload is
(1, lam): so the evaluators find additive shares of `c_j = [v < 4^j]` and of `c_j lam` without a
message, and from them of every `sum_j c_j w_j` and `v sum_j c_j w_j` with public w_j. Row-wise
work: a key is hundreds of bytes.

Exactness. Let n = 2 high, 0 <= v < 2^n, all words modulo 2^n, and 2^r divide 4^j. With r = 0 let
m' = m and lam' = lam, so that m' - lam' = v modulo 2^n. Then v < t if and only if lam' is one of
the t numbers m' - t + 1, .., m' modulo 2^n. If m' >= t those do not wrap, and this is

    [m' - t < lam'] - [m' < lam'] + [m' < t];                                               (1)

if m' < t they are all numbers but m' + 1, .., m' - t + 2^n, and it is
1 - [m' < lam' <= m' - t + 2^n] = 1 - [m' < lam'] + [m' - t + 2^n < lam'], again (1).
With r > 0 the lowest r bits are not read: lam' = floor(lam / 2^r), m' = floor((m - 2^r + 1) / 2^r).
For lam = 2^r lam' + b, m' - lam' = floor((v + b - 2^r + 1) / 2^r) modulo 2^(n - r), which as
0 <= b < 2^r is floor(v / 2^r) or one less, and not negative for v >= 2^r. So (1), for m', lam' and
t / 2^r modulo 2^(n - r), is 1 for all v < t, and 0 for all v >= t + 2^r.
"""

from dataclasses import dataclass

import numpy as np

from protocols.base.cost import Cost
from protocols.base.entry import protocol
from protocols.base.fields import field, fields_bytes
from protocols.base.lane import Lane
from protocols.base.ring import RING_BITS, Words, bit_mask, shift_left, shift_right
from protocols.base.shares import EVALUATORS, Role, SecretTensor
from protocols.errors import LocalProtocolError
from protocols.kernels import dcf
from protocols.spline import draw_roots

_SPARE = 1
"""Bits above 4^high: a number that is just above a power of four may be taken for one below."""
_WORK = 30
"""Of a level of a comparison's tree, in multiply-adds."""


@dataclass(frozen=True, slots=True)
class Exponents:
    """The range [4^low, 4^high) of a number, as ring integers; low < high.

    The exponent j is in low + 1 .. high. The comparisons read bits `start` .. 2 high - 1: a number
    up to an eighth above 4^j may count as one below it.
    """

    low: int
    high: int

    @property
    def start(self) -> int:
        """r: half the smallest number, an eighth of the smallest power it is compared with."""
        return max(0, 2 * self.low - 1)

    @property
    def bits(self) -> int:
        return 2 * self.high - self.start

    @property
    def thresholds(self) -> Words:
        """4^j / 2^r for all j but the last."""
        powers = [1 << 2 * j - self.start for j in range(self.low + 1, self.high)]
        return np.array(powers, dtype=np.uint64)

    def scales(self, halves: int) -> Words:
        """2^(halves (high - j)) for every j."""
        js = range(self.low + 1, self.high + 1)
        return np.array([1 << halves * (self.high - j) for j in js], dtype=np.uint64)

    def check(self, width: int) -> None:
        """Raise LocalProtocolError unless a ring of `width` bits has room."""
        if 2 * self.high + _SPARE > width or 2 * self.high > RING_BITS - 5:
            raise LocalProtocolError(
                f"values up to 4^{self.high} leave no room in a ring of {width} bits: drop more "
                "bits"
            )


def mantissa_cost(shape: tuple[int, ...], span: Exponents, frac: int) -> Cost:
    """Cost of `mantissa`."""
    count = int(np.prod(shape))
    online = 2 * fields_bytes([field(shape, frac), field(shape)])
    return Cost(rounds=1, online=online, offline=2 * count * dcf.key_bytes(span.bits))


@protocol("mantissa")
async def mantissa(
    lane: Lane, v: SecretTensor, span: Exponents, *, halves: int, frac: int
) -> tuple[SecretTensor, SecretTensor]:
    """v / 4^j and 2^(halves (high - j)) for ring integers 4^low <= v < 4^high.

    j is such that 4^(j-1) <= v < 4^j, or the one below it if v is less than 2^`span.start` above
    4^(j-1), which is at most an eighth of it.

    Returns:
        v / 4^j, between 1/4 and 9/8, with `frac` fraction bits over the ring of as many bits (so 1
        and more has wrapped), off by at most one unit; and the power of two, exactly, over Z_2^64
        without fraction bits. Both have v's shape.

    v 4^(high - j) is formed exactly, modulo 2^v.width. Its two additive shares are shifted right by
    s = 2 high - frac bits each, without the wrap of their sum, and lose from 0 to 2 - 2^(1-s) units
    together, 1 - 2^-s on average; one unit is added back.

    Raises:
        LocalProtocolError: 4^high does not fit v's ring, or is above 4^29.

    Cost: 1 round; `frac` + 64 bits each way; a comparison of about 2 (high - low) bits dealt, 64
    bytes each.
    """
    span.check(v.width)
    if lane.tracing:
        lane.charge("mantissa", mantissa_cost(v.shape, span, frac))
        return lane.blank(v.shape, frac, frac), lane.blank(v.shape)
    fields = [field(v.shape, frac), field(v.shape)]
    if lane.is_dealer:
        await _deal(lane, v, span)
        fine, whole = (lane.masks(v.shape, item.width) for item in fields)
        return SecretTensor(lane.role, *fine, frac, frac), SecretTensor(lane.role, *whole, frac=0)
    parts = await _parts(lane, v, span, halves, frac)
    masks = [lane.mask(v.shape, item.width) for item in fields]
    opened = await lane.open(fields, [part + mask for part, mask in zip(parts, masks, strict=True)])
    return (
        SecretTensor(lane.role, opened[0], masks[0], frac, frac),
        SecretTensor(lane.role, opened[1], masks[1], frac=0),
    )


async def _deal(lane: Lane, v: SecretTensor, span: Exponents) -> None:
    """The dealer's part: comparisons with lam', payload (1, lam)."""
    mask = v.lam.reshape(-1)
    alpha = shift_right(mask, span.start, 2 * span.high)
    payload = np.stack([np.ones_like(mask), mask], axis=-1)
    roots = [draw_roots(lane, evaluator, v.size) for evaluator in EVALUATORS]
    work = 4 * _WORK * v.size * span.bits
    correction = await lane.run(work, dcf.generate, alpha, payload, *roots, span.bits)
    await lane.broadcast(correction.size, correction)


async def _parts(
    lane: Lane, v: SecretTensor, span: Exponents, halves: int, frac: int
) -> tuple[Words, Words]:
    """An evaluator's additive shares of the results: the first modulo 2^frac."""
    m, own = v.a.reshape(-1), v.b.reshape(-1)
    low = shift_right(m - bit_mask(span.start), span.start, 2 * span.high)[:, None]
    cuts = span.thresholds
    points = np.concatenate([low, low - cuts], axis=1) & bit_mask(span.bits)
    roots = draw_roots(lane, Role.DEALER, v.size)
    correction = await lane.broadcast(v.size * dcf.key_bytes(span.bits))
    work = _WORK * points.size * span.bits
    party = 0 if lane.leads else 1
    found = await lane.run(work, dcf.evaluate, party, roots, correction, span.bits, points)
    # Shares of c_j (1, lam); (1, lam) itself is (1, lam1) at A and (0, lam2) at B.
    wrapped, one = (low < cuts).astype(np.uint64), np.uint64(lane.leads)
    ones = found[:, 1:, 0] - found[:, :1, 0] + wrapped * one
    masks = found[:, 1:, 1] - found[:, :1, 1] + wrapped * own[:, None]

    def total(shares: Words, last: Words | np.uint64, weights: Words) -> Words:
        """The weight of the one j with c_(j-1) = 0 and c_j = 1; c_low = 0, and c_high is last."""
        summed: Words = shares @ (weights[:-1] - weights[1:]) + last * weights[-1]
        return summed

    fours = span.scales(2)
    part = m * total(ones, one, fours) - total(masks, own, fours)
    down = 2 * span.high - frac
    moved = shift_right(part, down, v.width) + one if down > 0 else shift_left(part, -down)
    return moved.reshape(v.shape), total(ones, one, span.scales(halves)).reshape(v.shape)
