"""GeLU and SiLU in two approximations.

"tight": a cubic spline where the function bends, 0 and x outside; "puma": the paper's pieces (arXiv
2307.12533, section 4.1 for GeLU; SiLU as its authors released it for LLaMA).
"""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import cache
from math import erf, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocols.arithmetic import Polynomial, lift, mul, poly
from protocols.compare import Term, less, select
from protocols.lane import Lane
from protocols.ring import FRACTION_BITS
from protocols.shares import SecretBits, SecretTensor, concat
from protocols.spline import Spline, evaluate_by_coefficients, fit

_CUT_FRAC = 4
"""A cut-off is compared at a resolution of 1/16: 5 digits then reach up to |x| = 2^15."""
_DIGITS = 5
_PUMA_CUT_FRAC = 8
"""The paper's pieces do not meet, so that its cuts are compared in steps of 1/256."""
_PUMA_DIGITS = 6
_SPLINE_FRAC = 16


def _sigmoid_linear(x: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = x / (1 + np.exp(-x))
    return result


def _gaussian_linear(x: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = x * (1 + np.vectorize(erf)(x / sqrt(2))) / 2
    return result


@dataclass(frozen=True, slots=True)
class Activation:
    """A function that is 0 far to the left and x far to the right.

    Attributes:
        low, segment_bits, width_bits: the spline has 2^segment_bits segments of 2^-width_bits from
            `low` up.
        cuts: the paper's cut points c0 < c1 < c2; its value is 0, `left`, `centre` and x between
            them.
        left: polynomial in x, lowest degree first.
        centre: polynomial in x^2, lowest degree first, to which x / 2 is added.
    """

    name: str
    low: float
    segment_bits: int
    width_bits: int
    cuts: tuple[float, float, float]
    left: tuple[float, ...]
    centre: tuple[float, ...]

    def exact(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return _EXACT[self.name](x)


SILU = Activation(
    "silu",
    low=-16.0,
    segment_bits=7,
    width_bits=2,
    cuts=(-8.0, -4.0, 4.0),
    left=(-0.3067541139982155, -0.0819767021525476, -0.0055465625580307),
    centre=(0.0085064025895951, 0.2281430841728270, -0.011113046708173, 0.0002743776353465),
)
GELU = Activation(
    "gelu",
    low=-8.0,
    segment_bits=6,
    width_bits=2,
    cuts=(-4.0, -1.95, 3.0),
    left=(-0.5054031199708174, -0.42226581151983866, -0.11807612951181953, -0.011034134030615728),
    centre=(
        0.008526321541038084,
        0.3603292692789629,
        -0.037688200365904236,
        0.0018067462606141187,
    ),
)
_EXACT = {"silu": _sigmoid_linear, "gelu": _gaussian_linear}


@cache
def activation_spline(activation: Activation) -> Spline:
    """The spline of the "tight" set: within 5e-5 of SiLU on (-15.75, 15.5) and of GeLU on (-7.75,
    7.5).
    """
    return fit(
        _EXACT[activation.name],
        activation.low,
        segment_bits=activation.segment_bits,
        width_bits=activation.width_bits,
        frac=_SPLINE_FRAC,
        degree=3,
    )


async def activate(
    lane: Lane, x: SecretTensor, activation: Activation, beside: SecretTensor | None = None
) -> tuple[SecretTensor, SecretTensor | None]:
    """The function at x (18 fraction bits, a ring of at least 36 bits, |x| < 2^15), over Z_2^64.

    Args:
        beside: another tensor over x's ring that is lifted in the same rounds.

    Returns:
        The function's value, and `beside` over Z_2^64.

    Cost: 4 rounds ("tight"), 6 ("puma").
    """
    if lane.settings.approximation == "puma":
        lifted = None if beside is None else await lift(lane, beside)
        return await _pieces(lane, x, activation), lifted
    spline = activation_spline(activation)
    segment = 2.0**-activation.width_bits
    cuts = (spline.low + segment, spline.high - segment)

    async def value(strand: Lane) -> SecretTensor:
        argument = x.drop(x.frac - spline.frac)
        return await lift(
            strand, await evaluate_by_coefficients(strand, argument, spline, FRACTION_BITS)
        )

    async def compare(strand: Lane) -> SecretBits:
        return await _below(strand, x, cuts)

    async def widen(strand: Lane) -> SecretTensor:
        return await lift(strand, x if beside is None else concat([x, beside], axis=-1))

    tasks: list[Callable[[Lane], Coroutine[Any, Any, Any]]] = [value, compare, widen]
    y, below, wide = await lane.parallel(tasks)
    size = x.shape[-1]
    wide, other = wide[..., :size], wide[..., size:]
    # With c_low = [x < low cut] and c_high = [x < high cut]: x + c_high (y - x) - c_low y.
    terms = [Term((below[..., 1],), y - wide), Term((below[..., 0],), -y)]
    chosen = await select(lane, terms, width=wide.width, frac=wide.frac, shape=x.shape)
    return chosen + wide, other if beside is not None else None


async def _below(lane: Lane, x: SecretTensor, cuts: tuple[float, ...]) -> SecretBits:
    puma = lane.settings.approximation == "puma"
    frac, digits = (_PUMA_CUT_FRAC, _PUMA_DIGITS) if puma else (_CUT_FRAC, _DIGITS)
    thresholds = [round(cut * 2**x.frac) for cut in cuts]
    return await less(lane, x, thresholds, digits=digits, shift=x.frac - frac)


_PIECE_FRAC = 12
_LEFT_SCALE = 58
_CENTRE_SCALE = 59


async def _pieces(lane: Lane, x: SecretTensor, activation: Activation) -> SecretTensor:
    """The paper's pieces; those that are not selected may wrap, and cancel exactly."""

    async def left(strand: Lane, small: SecretTensor) -> SecretTensor:
        piece = Polynomial(activation.left)
        outer = await poly(strand, small, piece, scale=_LEFT_SCALE, frac=FRACTION_BITS)
        return await lift(strand, outer)

    async def centre(strand: Lane, small: SecretTensor) -> SecretTensor:
        square = await lift(strand, await mul(strand, small, small, _PIECE_FRAC))
        piece = Polynomial(activation.centre)
        even = await poly(strand, square, piece, scale=_CENTRE_SCALE, frac=FRACTION_BITS)
        return await lift(strand, even)

    async def polynomials(strand: Lane) -> tuple[SecretTensor, SecretTensor]:
        small = await lift(strand, x.drop(x.frac - _PIECE_FRAC))
        return await strand.both(lambda s: left(s, small), lambda s: centre(s, small))

    async def linear(strand: Lane) -> tuple[SecretTensor, SecretTensor]:
        half = x.drop(1).reinterpret(x.frac)
        return await strand.both(lambda s: lift(s, x), lambda s: lift(s, half))

    ((outer, even), (wide, half)), below = await lane.both(
        lambda strand: strand.both(polynomials, linear),
        lambda strand: _below(strand, x, activation.cuts),
    )
    inner = even + half
    terms = [
        Term((below[..., 0],), -outer),
        Term((below[..., 1],), outer - inner),
        Term((below[..., 2],), inner - wide),
    ]
    chosen = await select(lane, terms, width=wide.width, frac=wide.frac, shape=x.shape)
    return chosen + wide


ACTIVATIONS = {"silu": SILU, "gelu": GELU, "gelu_new": GELU}
