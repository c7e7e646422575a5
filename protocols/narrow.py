"""Products that read what a truncation left, without a lift.

A truncated sharing is over a narrow ring Z_2^K: x = m - lam1 - lam2 modulo 2^K, |x| < 2^(K-2). With

    M = (m + 2^(K-2) mod 2^K) - 2^(K-2),   n = 1 - the top bit of m + 2^(K-2),
    L = lam1 + lam2 - 2^K carry, in [0, 2^K),   s = the top bit of L,

x is M - L + 2^K n s as an integer: x + 2^(K-2) lies in [0, 2^(K-1)), so that m + 2^(K-2) wrapped if
and only if L is in the upper half and the result in the lower (see `protocols.arithmetic.lift`).
The evaluators know M and n, the dealer L, carry and s. A lift turns this into one masked word,
which costs a round; a product can take the terms as they stand, if the dealer shares the bits s and
carry, and s times its part of the other factor.
"""

from math import prod

import numpy as np

from protocols.arithmetic import remask, remask_cost
from protocols.base.cost import Cost
from protocols.base.entry import protocol
from protocols.base.fields import Field, field, fields_bytes
from protocols.base.lane import Lane
from protocols.base.ring import RING_BITS, Words, canonical
from protocols.base.shares import SecretTensor
from protocols.errors import LocalProtocolError
from protocols.kernels.elementwise import (
    Wraps,
    flat,
    lift_secrets,
    narrow_product,
    narrow_squares,
    unwrapped,
)
from protocols.kernels.matmul import batched_matmul


def _dealt(shape: tuple[int, ...], bits: int) -> list[Field]:
    """Three words an entry; nothing where they would have no bits."""
    return [field(shape, bits)] * 3 if bits else []


async def _deal(lane: Lane, x: SecretTensor, factor: Words, fields: list[Field]) -> None:
    """Share the carry of x's masks, the top bit of their sum, and that bit times a factor."""
    if fields:
        msb, carry = lift_secrets(x.a, x.b, x.width)
        await lane.share(fields, [carry, msb, msb * factor])


async def _taken(lane: Lane, x: SecretTensor, fields: list[Field]) -> Wraps:
    """An evaluator's shares of them."""
    if not fields:
        none = np.zeros(x.shape, dtype=np.uint64)
        return none, none, none
    carry, msb, both = await lane.share(fields)
    return carry, msb, both


def narrow_square_sum_cost(shape: tuple[int, ...], width: int) -> Cost:
    """Cost of `narrow_square_sum` for x of `shape`."""
    dealt = fields_bytes(_dealt(shape, RING_BITS - 1 - width))
    return remask_cost(prod(shape[:-1]), RING_BITS, dealt=True) + Cost(offline=dealt)


@protocol("square_sum")
async def narrow_square_sum(lane: Lane, x: SecretTensor) -> SecretTensor:
    """Sum of squares over the last axis of x over Z_2^K (2 <= K < 64): over Z_2^64, exact for |x| <
    2^(K-2), not truncated (twice the fraction bits).

    x^2 = (M - L)^2 + 2^(K+1) n s (M - L) + 2^(2K) n s, as n and s are their own squares: the dealt
    words are needed modulo 2^(63-K) only.

    Cost: 1 round; a word per row each way and dealt; 3 (63 - K) bits dealt per entry. (To lift x
    first is a round more, and 4 (64 - K) bits per entry, half of them between the evaluators.)
    """
    width, fields = x.width, _dealt(x.shape, RING_BITS - 1 - x.width)
    if lane.tracing:
        lane.charge("square_sum", narrow_square_sum_cost(x.shape, width))
        return lane.blank(x.shape[:-1], RING_BITS, 2 * x.frac)
    if lane.is_dealer:
        mask = canonical(x.lam, width)
        await _deal(lane, x, mask, fields)
        part = (mask * mask).sum(axis=-1, dtype=np.uint64)
    else:
        rows = prod(x.shape[:-1]), x.shape[-1]
        dealt = await _taken(lane, x, fields)
        m, own = flat(x.a).reshape(rows), flat(x.b).reshape(rows)
        part = narrow_squares(m, own, dealt, width, lane.leads).reshape(x.shape[:-1])
    return await remask(lane, part, frac=2 * x.frac)


def narrow_mul_cost(count: int, width: int, shift: int) -> Cost:
    """Cost of `narrow_mul` for `count` elements of x over Z_2^width."""
    dealt = fields_bytes(_dealt((count,), RING_BITS - width))
    return remask_cost(count, RING_BITS, dealt=True, shift=shift) + Cost(offline=dealt)


@protocol("mul")
async def narrow_mul(lane: Lane, x: SecretTensor, y: SecretTensor, shift: int) -> SecretTensor:
    """Elementwise product of x over Z_2^K (2 <= K < 64) and y over Z_2^64, of one shape, divided by
    2^shift, over Z_2^(64 - shift). |x| < 2^(K-2) and |x y| < 2^62; the result is x y / 2^shift
    rounded down or up, as in `protocols.arithmetic.remask`.

    x y = (M - L) (m_y - lam_y) + 2^K n s (m_y - lam_y).

    Cost: 1 round; 64 - shift bits each way; 64 bits and 3 (64 - K) bits dealt. (To lift x first is
    a round more, and 4 (64 - K) bits, half of them between the evaluators.)
    """
    if y.width != RING_BITS or x.shape != y.shape:
        raise LocalProtocolError(
            f"a narrow product takes a second factor of shape {x.shape} over 64 bits, not of "
            f"{y.shape} over {y.width}: lift or broadcast it"
        )
    frac, width = x.frac + y.frac - shift, x.width
    fields = _dealt(x.shape, RING_BITS - width)
    if lane.tracing:
        lane.charge("mul", narrow_mul_cost(x.size, width, shift))
        return lane.blank(x.shape, RING_BITS - shift, frac)
    if lane.is_dealer:
        y_mask = y.lam
        await _deal(lane, x, y_mask, fields)
        part = canonical(x.lam, width) * y_mask
    else:
        m, own, dealt = flat(x.a), flat(x.b), await _taken(lane, x, fields)
        part = narrow_product(m, own, dealt, flat(y.a), flat(y.b), width, lane.leads)
        part = part.reshape(x.shape)
    return await remask(lane, part, frac=frac, shift=shift)


def narrow_matmul_cost(shape: tuple[int, int, int], columns: int, width: int, shift: int) -> Cost:
    """Cost of `narrow_matmul` for x of `shape` over Z_2^width."""
    dealt = fields_bytes(narrow_matmul_dealt(shape, columns, width))
    count = shape[0] * shape[1] * columns
    return remask_cost(count, RING_BITS, dealt=True, shift=shift) + Cost(offline=dealt)


def narrow_matmul_dealt(shape: tuple[int, int, int], columns: int, width: int) -> list[Field]:
    """What `narrow_matmul` deals beside the words of its truncation."""
    bits = RING_BITS - width
    return [field(shape, bits), field(shape, bits), field((*shape, columns), bits)]


@protocol("matmul")
async def narrow_matmul(lane: Lane, x: SecretTensor, y: SecretTensor, shift: int) -> SecretTensor:
    """Batched product (B, T, K) @ (B, K, L) of x over Z_2^w (2 <= w < 64) and y over Z_2^64,
    divided by 2^shift; otherwise as `narrow_mul`. The whole sum must be below 2^62.

    Cost: 1 round; 64 - shift bits an entry of the result each way, and 64 dealt; dealt, too, are
    2 (64 - w) bits an entry of x, and 64 - w bits for each of its products. That is for few rows:
    for many of them a lift of x deals less.
    """
    if x.width == RING_BITS or y.width != RING_BITS:
        raise LocalProtocolError(
            "a narrow product takes factors over fewer than 64 bits and over 64, not over "
            f"{x.width} and {y.width}: use `matmul`, or lift the second"
        )
    batch, rows, depth = x.shape
    columns, width, frac = y.shape[2], x.width, x.frac + y.frac - shift
    fields = narrow_matmul_dealt((batch, rows, depth), columns, width)
    work = batch * rows * depth * columns
    if lane.tracing:
        cost = narrow_matmul_cost((batch, rows, depth), columns, width, shift)
        lane.charge("matmul", cost)
        return lane.blank((batch, rows, columns), RING_BITS - shift, frac)
    if lane.is_dealer:
        msb, carry = lift_secrets(x.a, x.b, width)
        y_mask = y.lam
        await lane.share(fields, [carry, msb, msb[..., None] * y_mask[:, None]])
        part = await lane.run(work, batched_matmul, canonical(x.lam, width), y_mask)
    else:
        carry, msb, both = await lane.share(fields)
        part = await lane.run(3 * work, _matmul_part, x, y, (carry, msb, both), lane.leads)
    return await remask(lane, part, frac=frac, shift=shift)


def _matmul_part(x: SecretTensor, y: SecretTensor, dealt: Wraps, leads: bool) -> Words:
    """An evaluator's part: the sums of `narrow_product` over the depth."""
    carry, msb, both = dealt
    word, kept = unwrapped(x.a, x.width)
    own = canonical(x.b, x.width)
    known = (word if leads else np.uint64(0)) - own + ((carry + kept * msb) << np.uint64(x.width))
    factors = np.concatenate([known, -word], axis=2), np.concatenate([y.a, y.b], axis=1)
    wrapped: Words = (kept[..., None] * both).sum(axis=2, dtype=np.uint64) << np.uint64(x.width)
    return batched_matmul(*factors) - wrapped
