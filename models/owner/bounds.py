"""`Ops` on bounds: the ranges that a model's secure run needs, proven from its weights.

The result of a norm has a known length for any input. Every later step can stretch it by no more
than its weights allow, plus the errors of the secure run's approximations and roundings. So each
range holds for every possible input, and nothing has to be measured. A model whose values do not
fit is refused with the name of the place.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.owner.rotary import largest_pair, product_limit, rope_bits, turn_factor
from models.owner.spectral import SLACK, spectral
from models.programs.plan import MAX_ROPE_FRAC
from models.programs.sharing import TABLE_LIMIT
from protocols.arithmetic import PRODUCT_BITS
from protocols.base.ring import FRACTION_BITS, RESIDUAL_BITS, RING_BITS, WEIGHT_BITS, Floats
from protocols.drivers.ops import (
    Heads,
    Index,
    Ranges,
    Relative,
    Rotation,
    Span,
    norm_then_gated,
    norm_then_project,
)  # fmt: skip
from protocols.drivers.secure import OUTPUT_LIMIT, OUTPUT_WIDTH, SCALE_BITS
from protocols.errors import RangeError
from protocols.functions.attention import MAX_SCORE_BITS, AttentionRange, most_spare
from protocols.functions.normalize import Norm, NormRange, longest_result, norm_range
from protocols.functions.softcap import CAP_ERROR, Cap

Vector = NDArray[np.float64]

ACTIVATION_LIMIT = 2.0**15
HELD = 1 - 2.0**-12
"""The part of a limit that may be used. Comparisons read numbers whose last bits are shifted away,
and these must not reach the limit even with the error of that shift. Without this margin, ReLU of
2^15 - 2^-18 was 0.
"""
ACTIVATION_ERROR = 0.08
"""A bound on the error of an approximated activation (the largest is 0.0725: SiLU in "puma")."""
_ULP = 2.0**-17  # two units in the last of 18 fraction bits
_SCORE_WIDTH = RING_BITS - 1 - FRACTION_BITS
"""Bits of the ring of a score, which is a truncated product."""


@dataclass(frozen=True)
class Bound:
    """Rows x = scale * z + shift with |z| <= radius (Euclidean) and elementwise scale.

    Attributes:
        size: number of features of a row.
        scale: (features,) sizes of the factors, or None for ones.
        shift: (features,), or None for zeros.
        frac: fraction bits in the secure run at this place.
    """

    size: int
    radius: float
    scale: Vector | None = None
    shift: Vector | None = None
    frac: int = RESIDUAL_BITS

    @property
    def length(self) -> float:
        """Bound on the length of a whole row."""
        factor = 1.0 if self.scale is None else float(self.scale.max(initial=0.0))
        offset = 0.0 if self.shift is None else float(np.linalg.norm(self.shift))
        return self.radius * factor + offset

    @property
    def entry(self) -> float:
        """Bound on the size of a single entry."""
        if self.scale is None:
            return self.length
        offset = 0.0 if self.shift is None else np.abs(self.shift)
        return float((self.radius * self.scale + offset).max(initial=0.0))


@dataclass(frozen=True)
class HeadBound:
    """Bounds on the length of each head's rows, of `size` entries, and on the largest entry."""

    size: int
    lengths: Vector
    entry: float


class Bounds:
    """See the module docstring. `ranges` is complete when the program has ended.

    Args:
        positions: the largest number of tokens in a sequence.
    """

    def __init__(self, positions: int) -> None:
        self._positions = positions
        self._norms: dict[str, NormRange] = {}
        self._attention: dict[str, AttentionRange] = {}
        self._rope: dict[str, tuple[int, int]] = {}

    @property
    def ranges(self) -> Ranges:
        """The ranges of the places that the program has reached so far."""
        return Ranges(dict(self._norms), dict(self._attention))

    async def embed(self, table: Floats, count: int, columns: int) -> Bound:
        _check("table", float(np.abs(table).max(initial=0.0)), TABLE_LIMIT)
        rows = np.asarray(table)[:, :columns]
        squares = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
        return Bound(columns, math.sqrt(float(squares.max())) + _noise(columns))

    async def norm(
        self,
        x: Bound,
        name: str,
        norm: Norm,
        gain: Floats | None = None,
        shift: Floats | None = None,
        *,
        unit: bool = False,
        residual: bool = False,
    ) -> Bound:
        scale = None if gain is None else np.abs(np.asarray(gain, dtype=np.float64))
        largest = 1.0 if scale is None else float(scale.max(initial=0.0))
        found = _named(name, norm_range, norm, SLACK * x.length + 2.0**-10, largest)
        self._norms[name] = found
        offset = None if shift is None else np.asarray(shift, dtype=np.float64)
        radius = (1.0 if unit else math.sqrt(norm.size)) * (1 + 4 * 2.0**-found.frac)
        radius *= longest_result(norm, found)
        frac = FRACTION_BITS if shift is None and not residual else RESIDUAL_BITS
        if scale is not None:  # roundings remain even where the gain is zero
            scale = np.maximum(scale, 4 * _ULP)
        result = Bound(norm.size, SLACK * radius, scale, offset, frac)
        if gain is not None:  # the gain may be multiplied by the result
            _check(name, result.entry, 2.0 ** (PRODUCT_BITS - frac - FRACTION_BITS))
        return result

    async def scaled(self, x: Bound, factor: float) -> Bound:
        _check("table", x.entry * factor, 2.0 ** (PRODUCT_BITS - x.frac - SCALE_BITS))
        return Bound(x.size, x.length * factor * SLACK + _noise(x.size))

    async def capped(self, x: Bound, name: str, cap: Cap) -> Bound:
        _check(name, x.length, cap.limit(OUTPUT_WIDTH))
        return Bound(x.size, cap.value * (1 + CAP_ERROR), frac=FRACTION_BITS)

    async def linear(self, x: Bound, weight: Floats, name: str) -> Bound:
        matrix, bias = effective(x, weight)
        _check(name, float(entry_sizes(x, matrix, bias).max()), _limit(x))
        return Bound(matrix.shape[1], _length(x, matrix, bias))

    async def dense(self, x: Bound, weight: Floats, name: str, activation: str) -> Bound:
        matrix, bias = effective(x, weight)
        _check(name, float(entry_sizes(x, matrix, bias).max()), ACTIVATION_LIMIT)
        # An activation is never further from 0 than its argument, but its approximation may be.
        size = matrix.shape[1]
        length = _length(x, matrix, bias) + math.sqrt(size) * ACTIVATION_ERROR
        return Bound(size, length, frac=FRACTION_BITS)

    async def gated(self, x: Bound, weight: Floats, name: str, activation: str) -> Bound:
        matrix, bias = effective(x, weight)
        half = matrix.shape[1] // 2
        sizes = entry_sizes(x, matrix, bias)
        gate, up = sizes[:half] + ACTIVATION_ERROR, sizes[half:]
        _check(name, float(sizes.max()), ACTIVATION_LIMIT)
        _check(name, float((gate * up).max()), 2.0 ** (PRODUCT_BITS - 2 * FRACTION_BITS))
        # The product is rounded once more; the gate's factors are at least ACTIVATION_ERROR.
        length = _length(x, matrix[:, half:], bias[half:]) + _noise(half) / ACTIVATION_ERROR
        return Bound(half, length, gate, None, FRACTION_BITS)

    normed_gated, normed_project = norm_then_gated, norm_then_project

    async def project(
        self,
        x: Bound,
        weight: Floats,
        name: str,
        heads: Heads,
        rotation: Rotation | None = None,
        norm: Norm | None = None,
        gains: tuple[Floats, Floats] | None = None,
    ) -> tuple[HeadBound, HeadBound, HeadBound]:
        matrix, bias = effective(x, weight)
        bound = _heads(x, matrix, bias, heads.size)
        sizes = entry_sizes(x, matrix, bias)
        _check(name, float(sizes.max()), _limit(x))
        rotated = heads.query + heads.key
        lengths = bound.copy()
        if norm is not None and gains is not None:
            longest = Bound(heads.size, float(bound[:rotated].max()))
            limits = [
                (await self.norm(longest, f"{name}.heads", norm, np.abs(gain))).length
                for gain in gains
            ]
            gain = np.maximum(*(np.abs(np.asarray(g)) for g in gains))
            await self.norm(longest, f"{name}.heads", norm, gain)
            lengths[: heads.query], lengths[heads.query : rotated] = limits
            self._rope[name] = MAX_ROPE_FRAC, 0
        elif rotation is not None:
            pair = largest_pair(sizes[: rotated * heads.size], heads.size)
            self._rope[name] = rope_bits(
                name, x.frac, pair, float(sizes[rotated * heads.size :].max())
            )
        entry = float(sizes[rotated * heads.size :].max())
        parts = np.split(lengths, [heads.query, rotated])
        q, k, v = (HeadBound(heads.size, part, entry) for part in parts)
        return q, k, v

    async def attention(
        self, q: HeadBound, k: HeadBound, v: HeadBound, name: str, spans: Sequence[Span]
    ) -> Bound:
        share = len(q.lengths) // len(k.lengths)
        rope_frac, drop = self._rope.get(name, (0, 0))
        score = float((q.lengths * np.repeat(k.lengths, share)).max()) * turn_factor(rope_frac) ** 2
        biases = [s.slopes.bias(self._positions) for s in spans if s.slopes is not None]
        score += max((float(np.abs(bias).max()) for bias in biases), default=0.0)
        score += max((_positional(q, k, s.relative) for s in spans), default=0.0)
        score = _with_spans(name, score, spans)
        if not score * SLACK <= 2.0**MAX_SCORE_BITS:
            raise RangeError(
                f"{name}: attention scores can reach {score:.3g}, above 2^{MAX_SCORE_BITS}: the "
                "query and key weights are too large"
            )
        bits = max(4, math.ceil(math.log2(max(score * SLACK, 1.0))))
        value_bits = max(0, math.ceil(math.log2(max(v.entry * SLACK, 1.0))))
        spare = _named(name, most_spare, bits, value_bits, self._positions)
        self._attention[name] = AttentionRange(bits, value_bits, rope_frac, drop)
        lengths = np.repeat(v.lengths, share)
        size = len(lengths) * v.size
        length = float(np.linalg.norm(lengths)) + 2.0 ** max(spare, drop) * _noise(size)
        return Bound(size, length, frac=FRACTION_BITS)

    async def output(self, x: Bound, weight: Floats, name: str, *, tied: bool = False) -> Bound:
        matrix, bias = effective(x, np.asarray(weight).T if tied else weight)
        largest = float(entry_sizes(x, matrix, bias).max())
        fraction = RESIDUAL_BITS if tied else WEIGHT_BITS
        _check(name, largest, min(OUTPUT_LIMIT, 2.0 ** (PRODUCT_BITS - x.frac - fraction)))
        return Bound(matrix.shape[1], largest)

    async def mean(self, x: Bound, lengths: Sequence[int], *, inner: bool = False) -> Bound:
        # Only the sum times the inverse length must fit. It is below OUTPUT_LIMIT = 2^17, so with
        # 22 + 22 fraction bits below 2^61, and `map_public` allows 2^62. Earlier wraps cancel
        # because the inverse is an integer.
        self.result(x)
        return Bound(x.size, x.length + _noise(x.size), frac=FRACTION_BITS)

    def result(self, x: Bound) -> Bound:
        # 2^35 steps of 2^-18, plus two that a shift adds, in 37 bits; differences for an arg-max
        # are below 2^31 HELD steps of 2^-13 in 32 bits.
        _check("result", x.entry, OUTPUT_LIMIT)
        return x

    async def residual(self, reader: str, norm: Norm, x: Bound, *parts: Bound) -> Bound:
        return Bound(x.size, x.length + sum(part.length for part in parts))

    def add(self, x: Bound, y: Bound) -> Bound:
        return Bound(x.size, x.length + y.length)

    def sums(self, x: Bound, lengths: Sequence[int]) -> Bound:
        return Bound(x.size, x.length * self._positions)

    def append(self, past: HeadBound | None, new: HeadBound) -> HeadBound:
        return new

    def take(self, x: Any, index: Index) -> Any:
        if isinstance(x, Bound):
            return x
        rows = np.asarray(x, dtype=np.float64)
        length = float(np.sqrt((rows**2).sum(axis=-1)).max())
        return Bound(rows.shape[1], length + _noise(rows.shape[1]))

    def heads_at(self, x: HeadBound, index: Index) -> HeadBound:
        return x


def _positional(q: HeadBound, k: HeadBound, relative: Relative | None) -> float:
    """The largest sum of query times position key and key times position query."""
    if relative is None or relative.keys is None:
        return 0.0
    longest = []
    for rows in (relative.keys, relative.queries):
        heads = np.asarray(rows, dtype=np.float64).reshape(-1, len(q.lengths), q.size)
        longest.append(np.linalg.norm(heads, axis=2).max(axis=0) + _noise(q.size))
    return float((q.lengths * longest[0] + k.lengths * longest[1]).max())


def _with_spans(name: str, score: float, spans: Sequence[Span]) -> float:
    """The largest score after relative positions are added and the soft cap is applied."""
    tables = [s.relative.bias for s in spans if s.relative is not None]
    score += max((float(np.abs(t).max()) + _ULP for t in tables if t is not None), default=0.0)
    for span in spans:
        if span.cap is not None:
            _check(f"{name}: scores", score, span.cap.limit(_SCORE_WIDTH))
            score = min(score, span.cap.value * (1 + CAP_ERROR))
    return score


def effective(x: Bound, weight: Floats) -> tuple[Floats, Vector]:
    """The matrix and bias as they apply to z, where x = scale * z + shift."""
    matrix = np.asarray(weight[: x.size], dtype=np.float32)
    bias = np.zeros(matrix.shape[1])
    if x.size < weight.shape[0]:
        bias = bias + weight[x.size]
    if x.shift is not None:
        bias = bias + x.shift @ matrix
    if x.scale is not None:
        matrix = matrix * x.scale[:, None].astype(np.float32)
    return matrix, bias


def _noise(size: int) -> float:
    """The largest length of a row of `size` rounding errors."""
    return math.sqrt(size) * _ULP


def _rounded(x: Bound) -> float:
    """How far the rounding of a column's weights can move its entry. Weights are shared with
    WEIGHT_BITS fraction bits (tables with more).
    """
    across = math.sqrt(x.size) if x.scale is None else float(np.linalg.norm(x.scale))
    return 2.0 ** -(WEIGHT_BITS + 1) * across * x.radius


def entry_sizes(x: Bound, matrix: Floats, bias: Vector) -> Vector:
    """Largest size of each entry of the product of x and a matrix (see `effective`)."""
    lengths = np.sqrt(np.einsum("ij,ij->j", matrix, matrix, dtype=np.float64))
    sizes: Vector = SLACK * lengths * x.radius + np.abs(bias) + _rounded(x) + _ULP
    return sizes


def _length(x: Bound, matrix: Floats, bias: Vector) -> float:
    """Largest length of a row of the product of x and a matrix (see `effective`)."""
    size = matrix.shape[1]
    exact = spectral(matrix) * x.radius + float(np.linalg.norm(bias))
    return exact + math.sqrt(size) * _rounded(x) + _noise(size)


def _heads(x: Bound, matrix: Floats, bias: Vector, size: int) -> Vector:
    """Largest length of each head's part of a projection."""
    parts = [slice(start, start + size) for start in range(0, matrix.shape[1], size)]
    return np.array([_length(x, matrix[:, part], bias[part]) for part in parts])


def _limit(x: Bound) -> float:
    return product_limit(x.frac)


def _check(name: str, value: float, limit: float, what: str = "weights") -> None:
    if not value < HELD * limit:
        raise RangeError(
            f"{name}: values can reach {value:.3g}, above {limit:g} that the ring can hold: its "
            f"{what} or those before it are too large"
        )


def _named(name: str, function: Any, *args: Any) -> Any:
    try:
        return function(*args)
    except RangeError as error:
        raise RangeError(f"{name}: {error}") from None
