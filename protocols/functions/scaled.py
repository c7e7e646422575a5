"""A spline of a positive number at its own scale, with that scale, in one round.

See `protocols.functions.ladder`: the evaluators find additive shares of the spline's value at
v / 4^j and of a power of two for v's exponent j, without a message; both are masked and opened at
the same time. Row-wise work: a key has hundreds of bytes, and takes hundreds of AES calls an
exponent.
"""

import numpy as np

from protocols.arithmetic import remask, remask_cost
from protocols.base.cost import Cost
from protocols.base.entry import protocol
from protocols.base.lane import Lane
from protocols.base.ring import RING_BITS, Words
from protocols.base.shares import EVALUATORS, Role, SecretTensor
from protocols.errors import LocalProtocolError
from protocols.functions import ladder
from protocols.spline import Spline, draw_roots

_WORK = 1200
"""Of an exponent, in multiply-adds."""


def scaled_costs(count: int, low: int, high: int, shift: int) -> tuple[Cost, Cost]:
    """Cost of `at_its_scale`: of the value, with what is dealt, and beside it of the scale."""
    dealt = Cost(offline=2 * count * ladder.ladder_bytes(high - low))
    value = remask_cost(count, RING_BITS, dealt=True, shift=shift)
    return value + dealt, remask_cost(count, RING_BITS, dealt=False)


async def _declared(lane: Lane, v: SecretTensor, cost: Cost, width: int, frac: int) -> SecretTensor:
    lane.charge("scaled", cost)
    return lane.blank(v.shape, width, frac)


@protocol("scaled")
async def at_its_scale(
    lane: Lane, v: SecretTensor, spline: Spline, *, low: int, high: int, halves: int, frac: int
) -> tuple[SecretTensor, SecretTensor]:
    """spline(v / 4^j) and 2^(halves (high - j)) for ring integers 4^low <= v < 4^high.

    j, in low + 1 .. high, has 4^(j-1) <= v < 4^j, or 15/16 4^(j-1) <= v < 4^(j-1).

    Args:
        spline: of degree 3 with 64 segments of 1/64. Its argument v / 4^j is off by less than one
            unit of its fraction bits, with mean 0.
        frac: fraction bits of the value.

    Returns:
        The value, over the narrow ring Z_2^(64 - spline.scale + frac); and the power of two,
        exactly, over Z_2^64 without fraction bits. Both have v's shape.

    Raises:
        LocalProtocolError: 4^high does not fit v's ring, or is above 4^29.

    Cost: 1 round; 128 - shift bits each way; 64 bits dealt, and twice 80 + 64 (high - low) bytes.
    """
    shift, top, steps = spline.scale - frac, 2 * high + 1, high - low
    if top > v.width or top > RING_BITS - 5:
        raise LocalProtocolError(
            f"values up to 4^{high} leave no room in a ring of {v.width} bits: drop more bits"
        )
    if lane.tracing:
        first, second = scaled_costs(v.size, low, high, shift)
        return await lane.both(
            lambda strand: _declared(strand, v, first, RING_BITS - shift, frac),
            lambda strand: _declared(strand, v, second, RING_BITS, 0),
        )
    value, scale = np.zeros((2, *v.shape), dtype=np.uint64)
    if lane.is_dealer:
        await _deal(lane, v, spline, top, steps)
    else:
        value, scale = await _read(lane, v, spline, top, steps, halves)
    return await lane.both(
        lambda strand: remask(strand, value, frac=frac, shift=shift),
        lambda strand: remask(strand, scale, frac=0, dealt=False),
    )


async def _deal(lane: Lane, v: SecretTensor, spline: Spline, top: int, steps: int) -> None:
    roots = [draw_roots(lane, evaluator, v.size) for evaluator in EVALUATORS]
    lam = v.lam.reshape(-1)
    work = _WORK * v.size * steps
    correction = await lane.run(work, ladder.generate, lam, *roots, top, steps, spline.local_bits)
    await lane.broadcast(v.size * ladder.ladder_bytes(steps), correction)


async def _read(
    lane: Lane, v: SecretTensor, spline: Spline, top: int, steps: int, halves: int
) -> Words:
    """An evaluator's shares (2, *v.shape) of value and scale."""
    roots = draw_roots(lane, Role.DEALER, v.size)
    correction = await lane.broadcast(v.size * ladder.ladder_bytes(steps))
    found = await lane.run(
        _WORK * v.size * steps,
        ladder.evaluate,
        0 if lane.leads else 1,
        roots,
        correction,
        v.a.reshape(-1),
        spline.tables[0],
        top,
        steps,
        spline.local_bits,
        halves,
    )
    shares: Words = found.reshape(2, *v.shape)
    return shares
