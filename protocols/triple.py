"""A product of three that reads what truncations left, without a lift.

A truncated sharing is over a narrow ring Z_2^k: x = m - lam1 - lam2 modulo 2^k, |x| < 2^(k-2). As
in `protocols.arithmetic.lift`, with zeta = m + 2^(k-2) mod 2^k and L = lam1 + lam2 - 2^k carry,

    x = (zeta - 2^(k-2)) - L + 2^k n b,   n = 1 - msb(zeta),   b = msb(L)

over the integers: a public number less L, and a bit that the dealer knows, where n is set. So
every narrow factor adds products of b with the other factors' masks, which the dealer shares like
all products of masks, modulo 2^(width-k) because they are multiplied by 2^k.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from math import prod

import numpy as np

from protocols.arithmetic import remask, remask_cost
from protocols.base.cost import Cost
from protocols.base.entry import protocol
from protocols.base.fields import Field, field, fields_bytes
from protocols.base.lane import Lane
from protocols.base.ring import Words, canonical
from protocols.base.shares import SecretTensor
from protocols.errors import LocalProtocolError
from protocols.kernels.elementwise import joined, lift_secrets

_ONE = np.uint64(1)
Shape = tuple[int, ...]


def _fields(shape: Shape, rows: Shape, width: int, x_width: int, t_width: int) -> list[Field]:
    """What is dealt, in the order of `_secrets`."""
    x_gap, t_gap, gap = width - x_width, width - t_width, width - x_width - t_width
    fields = [field(shape, width)] * 2 + [field(rows, width)]
    fields += [field(shape, x_gap)] * 5 if x_gap else []
    fields += [field(rows, t_gap)] * 3 + [field(shape, t_gap)] * 2 if t_gap else []
    return fields + ([field(shape, gap)] * 2 if x_gap and t_gap and gap > 0 else [])


def mul3_cost(
    shape: Shape, rows: Shape, width: int, x_width: int, t_width: int, shift: int
) -> Cost:
    """Cost of `mul3` for x of `shape`, and s and t of shape `rows`."""
    dealt = fields_bytes(_fields(shape, rows, width, x_width, t_width))
    return remask_cost(prod(shape), width, dealt=True, shift=shift) + Cost(offline=dealt)


@protocol("mul3")
async def mul3(
    lane: Lane,
    x: SecretTensor,
    s: SecretTensor,
    t: SecretTensor,
    shift: int = 0,
    *,
    then: Callable[[Words], Words] | None = None,
) -> SecretTensor:
    """x * s * t in one round, over the ring of s, divided by 2^shift; s and t of one shape that
    broadcasts to x's. |x * s * t| < 2^(width-2). x and t may be over narrower rings than s if they
    are below a quarter of these in size.

    The dealer shares every product of masks, so that each party expands (m_x - lam_x)(m_s -
    lam_s)(m_t - lam_t) alone.

    Args:
        then: a public linear map on the ring words of the product, applied before the division;
            it keeps the shape, and the size of its values takes the place of |x * s * t|.

    Raises:
        LocalProtocolError: x or t is over a wider ring than s.

    Cost: 1 round; width - shift bits each way; 3 width bits dealt, and width for each element of s.
    With gaps g to the narrower rings, 5 g for x; 2 g, and 3 g for each element of s, for t; for
    both, if their widths together are d bits less than s's, 2 d. (A lift of x is a round more, and
    4 g.)
    """
    width, frac = s.width, x.frac + s.frac + t.frac - shift
    if max(x.width, t.width) > width:
        raise LocalProtocolError(
            f"factors over {x.width} and {t.width} bits of one over {width}: narrow them"
        )
    if lane.tracing:
        cost = mul3_cost(x.shape, s.shape, width, x.width, t.width, shift)
        lane.charge("mul3", cost)
        return lane.blank(x.shape, width - shift, frac)
    fields = _fields(x.shape, s.shape, width, x.width, t.width)
    if lane.is_dealer:
        await lane.share(fields, _secrets(x, s, t, len(fields)))
        part = np.uint64(0) - canonical(x.lam, x.width) * (s.lam * canonical(t.lam, t.width))
    else:
        part = _part(lane.leads, x, s, t, iter(await lane.share(fields)))
    part = part if then is None else then(part)
    return await remask(lane, part, frac=frac, width=width, shift=shift)


def _secrets(x: SecretTensor, s: SecretTensor, t: SecretTensor, count: int) -> list[Words]:
    """The products of masks that the dealer shares; `count` of them."""
    width, one, two, three = s.width, canonical(x.lam, x.width), s.lam, canonical(t.lam, t.width)
    values = [one * two, one * three, two * three]
    bit, other = np.zeros((2, 1), dtype=np.uint64)
    if x.width < width:
        bit, carry = lift_secrets(x.a, x.b, x.width)
        values += [carry, bit, two * bit, three * bit, (two * three) * bit]
    if t.width < width:
        other, carry = lift_secrets(t.a, t.b, t.width)
        both = two * other
        values += [carry, other, both, one * other, one * both]
    if len(values) < count:
        values += [bit * other, (two * other) * bit]
    return values


@dataclass(frozen=True, slots=True)
class _Factor:
    """A factor at an evaluator: the public number, its share of L, and n 2^k."""

    public: Words
    own: Words
    wrap: Words


def _factor(x: SecretTensor, carry: Words) -> _Factor:
    half = 1 << (x.width - 2)
    top = (x.a + np.uint64(half)) >> np.uint64(x.width - 1) & _ONE
    own = canonical(x.b, x.width) - (carry << np.uint64(x.width))
    public = joined(x.a, half, np.zeros_like(x.a), x.width)
    return _Factor(public, own, (_ONE - top) << np.uint64(x.width))


def _part(
    leads: bool, x: SecretTensor, s: SecretTensor, t: SecretTensor, dealt: Iterator[Words]
) -> Words:
    """An evaluator's part of the product."""
    xs, xt, st = next(dealt), next(dealt), next(dealt)
    left, right = _Factor(x.a, x.b, x.a), _Factor(t.a, t.b, t.a)
    more: list[Words] = []
    if x.width < s.width:
        left = _factor(x, next(dealt))
        more = list(islice(dealt, 4))
    rest: list[Words] = []
    if t.width < s.width:
        right = _factor(t, next(dealt))
        rest = list(islice(dealt, 4))
    both = s.a * right.public
    beside = st - s.b * right.public - s.a * right.own + (both if leads else np.uint64(0))
    part: Words = left.public * beside - left.own * both + xs * right.public + xt * s.a
    if more:
        bit, s_bit, t_bit, st_bit = more
        part += left.wrap * (both * bit - right.public * s_bit - s.a * t_bit + st_bit)
    if rest:
        bit, s_bit, x_bit, xs_bit = rest
        rows = right.wrap * (s.a * bit - s_bit)
        part += left.public * rows - x_bit * (right.wrap * s.a) + xs_bit * right.wrap
    if last := list(dealt):
        bit, s_bit = last
        part += left.wrap * right.wrap * (s.a * bit - s_bit)
    return part
