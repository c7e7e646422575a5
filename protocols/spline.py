"""Any smooth function of a bounded secret in one round: piecewise polynomials, selected with a
point function.

Split `m = m_top 2^q + m_low` and `lam = lam_top 2^q + lam_low` (low q+v bits of each). Then `x = t
2^q + u` with the segment `t = m_top - lam_top mod 2^v` and the local coordinate `u = m_low -
lam_low` in (-2^q, 2^q). The dealer deals a point function at lam_top with payload (1, lam_low,
lam_low^2, ..); the evaluators expand it, rotate by m_top, and combine public coefficients with
powers of m_low: additive shares of P_t(u), before the output's own round. As t may be one too large
(then u < 0), each segment's polynomial is fitted on the double width (-h, h), h = 2^q / 2^f.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import numpy as np

from protocols.arithmetic import remask, remask_cost
from protocols.base.cost import Cost
from protocols.base.entry import protocol
from protocols.base.lane import Lane
from protocols.base.ring import RING_BITS, Bytes, Words, bit_mask
from protocols.base.shares import EVALUATORS, Role, SecretTensor
from protocols.dpf import correction_bytes, generate, spline_shares
from protocols.errors import ConfigError, LocalProtocolError
from protocols.kernels.waves import EXACT_BITS, turns

Function = Callable[[int], int]
"""Argument and value are integers with `EXACT_BITS` fraction bits."""
_NODE_BITS = 6
_NODES = 1 << _NODE_BITS  # Chebyshev points a segment is fitted on
_HEADROOM = RING_BITS - 2  # |P| * 2^scale < 2^62, the most that truncation can take


@dataclass(frozen=True, eq=False)
class Spline:
    """A fitted function.

    Attributes:
        tables: (1, degree + 1, 2^v) ring words; entry [0, k, t] is the k-th coefficient of segment
            t.
        segment_bits: v. local_bits: q. frac: fraction bits of the argument.
        scale: fraction bits of the value before truncation.
        low, high: arguments must lie in [low, high).
    """

    tables: Words
    segment_bits: int
    local_bits: int
    frac: int
    scale: int
    low: float
    high: float

    @property
    def degree(self) -> int:
        return int(self.tables.shape[1]) - 1

    @property
    def bits(self) -> int:
        """Number of bits of the argument that are read."""
        return self.segment_bits + self.local_bits

    def split(self, words: Words) -> tuple[Words, Words]:
        """Segment and local part of masked arguments or of masks, as flat words."""
        flat = np.ascontiguousarray(words).reshape(-1)
        top = (flat >> np.uint64(self.local_bits)) & bit_mask(self.segment_bits)
        return top, flat & bit_mask(self.local_bits)

    def check(self, x: SecretTensor, shift: int) -> None:
        """Raise LocalProtocolError unless x can be read with this spline."""
        if x.frac != self.frac or x.width < self.bits or shift < 1:
            raise LocalProtocolError(
                f"spline over {self.frac} fraction bits and {self.bits} bits of ring was given "
                f"{x.frac} and {x.width}"
            )


def fit(
    function: Function,
    low: float,
    *,
    segment_bits: int,
    width_bits: int,
    frac: int,
    degree: int,
    gain: float = 1.0,
) -> Spline:
    """Fit `gain` times a function on 2^segment_bits segments of width 2^-width_bits from `low` up.

    Least squares on Chebyshev points over the double width of each segment, which is within a few
    per cent of minimax. Coefficients are rounded at the largest scale at which every value stays
    below 2^62. The evaluators' shares only add up if their tables are equal to the last bit, so all
    of this is integer arithmetic: on these points Chebyshev polynomials are orthogonal, and the fit
    is a sum.

    Raises:
        ConfigError: the argument's fraction bits do not resolve a segment.
    """
    local_bits = frac - width_bits
    if local_bits < 1:
        raise ConfigError(f"{frac} fraction bits do not resolve segments of width 2^-{width_bits}")
    h, count, factor = Fraction(1, 1 << width_bits), 1 << segment_bits, Fraction(gain)
    first = round(Fraction(low) / h)
    cosines = _cosines(degree)
    largest = 0
    fitted: list[list[int]] = []
    for segment in range(first, first + count):
        middle = (segment << EXACT_BITS) >> width_bits
        values = [function(middle + (node >> width_bits)) for node in cosines[1]]
        largest = max(largest, *map(abs, values))
        fitted.append(_least_squares(values, cosines, degree))
    # The exponent leaves a margin of a tenth above the largest value.
    scale = _HEADROOM - (int(largest * factor) * 11 // 10).bit_length() + EXACT_BITS
    tables = np.zeros((1, degree + 1, count), dtype=np.uint64)
    for place, powers in enumerate(fitted, first):
        for power, coefficient in enumerate(powers):
            bits = scale - power * local_bits - 2 * EXACT_BITS - _NODE_BITS
            word = round(coefficient * factor * Fraction(2) ** bits)
            tables[0, power, place % count] = word % 2**RING_BITS
    ends = float(first * h), float((first + count - 1) * h)
    return Spline(tables, segment_bits, local_bits, frac, scale, *ends)


@cache
def _cosines(degree: int) -> list[list[int]]:
    """Entry [k][j]: the k-th Chebyshev polynomial at the j-th point, cos(k (2j + 1) pi / 128)."""
    size = 4 * _NODES
    table = [c for c, _ in turns(_NODE_BITS + 2, size)]
    ks = range(max(1, degree) + 1)
    return [[table[k * (2 * j + 1) % size] for j in range(_NODES)] for k in ks]


def _least_squares(values: list[int], cosines: list[list[int]], degree: int) -> list[int]:
    """Coefficients in powers, lowest first, times 2^(2 `EXACT_BITS`) and the number of points."""
    powers = [0] * (degree + 1)
    before, chebyshev = [0], [1]  # coefficients of T_(k - 1) and T_k
    for k in range(degree + 1):
        moment = sum(c * v for c, v in zip(cosines[k], values, strict=True))
        for power, coefficient in enumerate(chebyshev):
            powers[power] += coefficient * moment * (2 if k else 1)
        doubled = [0, *(c if k == 0 else 2 * c for c in chebyshev)]
        padded = [*before, *[0] * (len(doubled) - len(before))]
        before, chebyshev = chebyshev, [a - b for a, b in zip(doubled, padded, strict=True)]
    return powers


def spline_cost(count: int, spline: Spline) -> Cost:
    """Cost of `evaluate`."""
    dealt = 2 * count * correction_bytes(spline.segment_bits, spline.degree + 1)
    return remask_cost(count, RING_BITS, dealt=True) + Cost(offline=dealt)


@protocol("spline")
async def evaluate(lane: Lane, x: SecretTensor, spline: Spline, frac: int) -> SecretTensor:
    """The spline at x, with `frac` fraction bits, over the narrow ring Z_2^(64 - scale + frac).

    x must carry the spline's fraction bits and lie in its range; outside, the result is a value of
    some segment (bounded, meaningless), to be selected away.

    Cost: 1 round; 64 bits each way; 64 bits and twice the point function's correction dealt.
    """
    shift = spline.scale - frac
    spline.check(x, shift)
    if lane.tracing:
        lane.charge("spline", spline_cost(x.size, spline))
        return lane.blank(x.shape, RING_BITS - shift, frac)
    if lane.is_dealer:
        top, low = spline.split(x.lam)
        await _deal(lane, spline, top, _powers(low, spline.degree + 1))
        zero = np.zeros(x.shape, dtype=np.uint64)
        return await remask(lane, zero, frac=frac, shift=shift)
    part = await _read(lane, x, spline, spline.tables)
    return await remask(lane, part.reshape(x.shape), frac=frac, shift=shift)


async def _read(lane: Lane, x: SecretTensor, spline: Spline, tables: Words) -> Words:
    """An evaluator's shares (classes, n) of the tables' values, for the point function dealt."""
    roots = draw_roots(lane, Role.DEALER, x.size)
    width = int(tables.shape[1])
    nbytes = x.size * correction_bytes(spline.segment_bits, width)
    correction = await lane.broadcast(nbytes)
    return await lane.run(
        12 * x.size * width << spline.segment_bits,
        spline_shares,
        0 if lane.leads else 1,
        roots,
        correction,
        spline.segment_bits,
        *spline.split(x.a),
        tables,
    )


def draw_roots(lane: Lane, peer: Role, count: int) -> Bytes:
    """Fresh roots (count, 16) of point functions, which `peer` draws too."""
    return lane.draw(peer, (count, 2)).view(np.uint8).reshape(count, 16)


def _powers(low: Words, count: int) -> Words:
    """Powers 0 .. count - 1 of (n,) words: (n, count)."""
    powers = np.empty((low.size, count), dtype=np.uint64)
    powers[:, 0] = 1
    for power in range(1, count):
        powers[:, power] = powers[:, power - 1] * low
    return powers


async def _deal(lane: Lane, spline: Spline, top: Words, payload: Words) -> None:
    """The dealer's part of `_read`: point functions at `top` (n,) with `payload` (n, width)."""
    roots = [draw_roots(lane, evaluator, top.size) for evaluator in EVALUATORS]
    bits = spline.segment_bits
    correction = await lane.run(100 * top.size, generate, top, payload, *roots, bits)
    await lane.broadcast(top.size * correction_bytes(bits, payload.shape[1]), correction)
