"""Any smooth function of a bounded secret in one round: piecewise polynomials read with a point
function.

Split `m = m_top 2^q + m_low` and `lam = lam_top 2^q + lam_low` (low q+v bits of each). Then `x = t
2^q + u` with the segment `t = m_top - lam_top mod 2^v` and the local coordinate `u = m_low -
lam_low` in (-2^q, 2^q). The dealer deals a point function at lam_top with payload (1, lam_low,
lam_low^2, ..); the evaluators expand it, rotate by m_top, and combine public coefficients with
powers of m_low: additive shares of P_t(u), before the output's own round. As t may be one too large
(then u < 0), each segment's polynomial is fitted on the double width (-h, h), h = 2^q / 2^f.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocols.arithmetic import remask, remask_cost
from protocols.cost import Cost
from protocols.dpf import correction_bytes, generate, spline_shares
from protocols.entry import protocol
from protocols.errors import ConfigError, LocalProtocolError
from protocols.lane import Lane
from protocols.ring import RING_BITS, Bytes, Words, bit_mask
from protocols.shares import EVALUATORS, Role, SecretTensor

Function = Callable[[NDArray[np.float64]], NDArray[np.float64]]
_NODES = 64  # Chebyshev points a segment is fitted on
_HEADROOM = RING_BITS - 2  # |P| * 2^scale < 2^62, what truncation can take


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
        """Bits of the argument that are read."""
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
    function: Function, low: float, *, segment_bits: int, width_bits: int, frac: int, degree: int
) -> Spline:
    """Fit 2^segment_bits segments of width 2^-width_bits from `low` up.

    Least squares on Chebyshev points over the double width of each segment, which is within a few
    per cent of minimax. Coefficients are rounded at the largest scale at which every value stays
    below 2^62.

    Raises:
        ConfigError: the argument's fraction bits do not resolve a segment.
    """
    h = 2.0**-width_bits
    local_bits = frac - width_bits
    if local_bits < 1:
        raise ConfigError(f"{frac} fraction bits do not resolve segments of width {h}")
    count = 1 << segment_bits
    first = round(low / h)
    segments = np.arange(first, first + count)
    nodes = np.cos((np.arange(_NODES) + 0.5) * np.pi / _NODES)
    values = function(segments[:, None] * h + nodes * h)
    powers = np.polynomial.chebyshev.chebfit(nodes, values.T, degree)
    local = np.zeros((count, degree + 1))
    for s in range(count):
        found = np.polynomial.chebyshev.cheb2poly(powers[:, s])  # without zeros at the end
        local[s, : found.size] = found
    scale = int(_HEADROOM - np.ceil(np.log2(np.abs(values).max() * 1.1)))
    tables = np.zeros((1, degree + 1, count), dtype=np.uint64)
    for power in range(degree + 1):
        bits = scale - power * frac
        words = np.rint(local[:, power] / h**power * 2.0**bits).astype(np.int64)
        tables[0, power, segments % count] = words.view(np.uint64)
    return Spline(tables, segment_bits, local_bits, frac, scale, first * h, (first + count - 1) * h)


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
    roots = _roots(lane, Role.DEALER, x.size)
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


def _roots(lane: Lane, peer: Role, count: int) -> Bytes:
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
    roots = [_roots(lane, evaluator, top.size) for evaluator in EVALUATORS]
    bits = spline.segment_bits
    correction = await lane.run(100 * top.size, generate, top, payload, *roots, bits)
    await lane.broadcast(top.size * correction_bytes(bits, payload.shape[1]), correction)
