"""The activation functions and the constants of their approximations.

`python -m bench.fit` computes the amplitudes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from protocols.functions import exact
from protocols.functions.exact import Reals
from protocols.waves import Waves


@dataclass(frozen=True)
class Centre:
    """How a function is evaluated where it bends.

    Attributes:
        waves: the function, less x / 2 if it tends to x, for |x| <= cut.
        cut: beyond it the function is replaced by its limit; compared in steps of 1/8, towards the
            centre.
        frac: fraction bits of the result.
    """

    waves: Waves
    cut: float
    frac: int


@dataclass(frozen=True)
class Pieces:
    """The paper's form: 0, `left`, `centre` and x between three cuts.

    Attributes:
        left: polynomial in x, lowest degree first.
        centre: polynomial in x^2, lowest degree first, to which x / 2 is added.
    """

    cuts: tuple[float, float, float]
    left: tuple[float, ...]
    centre: tuple[float, ...]


@dataclass(frozen=True)
class Activation:
    """A function that tends to a constant on the left, and to x or a constant on the right.

    Between, it is even once x / 2 is taken off (if it tends to x), or odd: `Waves` has cosines or
    sines. It is no further from 0 than x: `models.owner.bounds` rests on it.

    Attributes:
        exact: the function on float64 arrays.
        left: its limit on the left.
        right: its limit on the right; None: x.
        tight, fast: its approximations; None: exact, by a comparison with 0.
        folded: "tight" with fewer words and more rounds, for a function that tends to x and is even
            but for x / 2: it is max(x, 0) less these waves at |x|, which are met up to the cut and
            from 1/8 below 0.
        paper: PUMA's, where there is one.
    """

    name: str
    exact: Callable[[Reals], Reals]
    left: float = 0.0
    right: float | None = None
    tight: Centre | None = None
    fast: Centre | None = None
    folded: Centre | None = None
    paper: Pieces | None = None

    def tightly(self, x: Reals) -> Reals:
        """What "tight" computes, except for rounding."""
        if self.tight is None:
            return self.exact(x)
        centre = self.tight.waves.exact(x)
        if self.right is None:
            centre = centre + x / 2
        right = x if self.right is None else np.full_like(x, self.right)
        outside = np.where(x < 0, np.full_like(x, self.left), right)
        return np.where(np.abs(x) < self.tight.cut, centre, outside)


_PAPER_GELU = Pieces(
    cuts=(-4.0, -1.95, 3.0),
    left=(-0.5054031199708174, -0.42226581151983866, -0.11807612951181953, -0.011034134030615728),
    centre=(
        0.008526321541038084,
        0.3603292692789629,
        -0.037688200365904236,
        0.0018067462606141187,
    ),
)
"""PUMA, arXiv 2307.12533, section 4.1."""
_PAPER_SILU = Pieces(
    cuts=(-8.0, -4.0, 4.0),
    left=(-0.3067541139982155, -0.0819767021525476, -0.0055465625580307),
    centre=(0.0085064025895951, 0.2281430841728270, -0.011113046708173, 0.0002743776353465),
)
"""As PUMA's authors released it for LLaMA."""


def _centre(
    frac: int,
    *,
    cut: float,
    gain: int,
    bits: int,
    amplitudes: tuple[float, ...],
    offset: float = 0.0,
    odd: bool = False,
    dealt: int | None = None,
    sines: tuple[float, ...] = (),
    most: float | None = None,
) -> Centre:
    """A centre whose constants have as many fraction bits as its result (of what is dealt: unless
    `dealt` says otherwise).
    """
    dealt = frac if dealt is None else dealt
    waves = Waves(
        gain=gain,
        bits=bits,
        dealt=dealt,
        public=frac,
        amplitudes=amplitudes,
        offset=offset,
        odd=odd,
        sines=sines,
        most=most,
    )
    return Centre(waves, cut, frac)


GELU = Activation(
    "gelu",
    exact.gelu,
    tight=_centre(
        18,
        cut=4.2,
        gain=5,
        bits=24,
        offset=1.5438742427,
        amplitudes=(
            -1.3284672221,
            -0.0656732098,
            -0.12136821,
            -0.0120532498,
            -0.0150328486,
            -0.0003007643,
            -0.0009695564,
        ),
    ),
    fast=_centre(
        12,
        cut=3.0,
        gain=1,
        bits=21,
        offset=0.9180428888,
        amplitudes=(-0.8490639105, -0.0348806609, -0.0349520451),
    ),
    paper=_PAPER_GELU,
)
GELU_TANH = Activation(
    "gelu_new",
    exact.gelu_tanh,
    tight=_centre(
        18,
        cut=4.2,
        gain=5,
        bits=24,
        offset=1.5388650366,
        amplitudes=(
            -1.3188600833,
            -0.0740555841,
            -0.1151749465,
            -0.0161298245,
            -0.0124583629,
            -0.0014924186,
            -0.0005386184,
            -0.0001530324,
        ),
    ),
    fast=_centre(
        12,
        cut=3.0,
        gain=1,
        bits=21,
        offset=0.9181516573,
        amplitudes=(-0.8493022382, -0.0348910801, -0.0347346565),
    ),
    paper=_PAPER_GELU,
)
QUICK_GELU = Activation(
    "quick_gelu",
    exact.quick_gelu,
    tight=_centre(
        18,
        cut=6.75,
        gain=1,
        bits=22,
        offset=1.9584837503,
        amplitudes=(
            -1.668213263,
            -0.045247351,
            -0.1793398174,
            -0.007529583,
            -0.044925011,
            0.0019307076,
            -0.0130353885,
            0.0020119297,
            -0.0039547179,
            0.0009459684,
            -0.0011501194,
            0.0003055361,
            -0.0002852682,
            5.97781e-05,
            -4.907e-05,
        ),
    ),
    fast=_centre(
        12,
        cut=3.875,
        gain=7,
        bits=24,
        offset=1.0688377532,
        amplitudes=(-0.9731258093, -0.0268510993, -0.0639797758, 0.0017284656),
    ),
)
SILU = Activation(
    "silu",
    exact.silu,
    tight=_centre(
        18,
        cut=13.0,
        gain=1,
        bits=23,
        dealt=19,
        offset=3.9282490364,
        amplitudes=(
            -3.291954725,
            -0.0992027809,
            -0.3516145658,
            -0.0405753021,
            -0.0894804512,
            -0.0145878324,
            -0.0236468104,
            -0.0062444044,
            -0.0051469075,
            -0.0032184091,
            -0.0004576682,
            -0.0016469602,
            0.0003049098,
            -0.0007177821,
            0.0001949295,
            -0.0002387925,
            5.01819e-05,
            -5.15612e-05,
        ),
    ),
    fast=_centre(
        12,
        cut=6.0,
        gain=1,
        bits=22,
        offset=1.8560256709,
        amplitudes=(-1.6615998643, -0.0829708541, -0.0907930946, -0.0141698347),
    ),
    folded=_centre(
        18,
        cut=13.0,
        gain=3,
        bits=24,
        dealt=17,
        most=0.3,
        offset=-0.269879634,
        amplitudes=(
            *(-0.298334167, 0.1205447972, 0.2686682152, 0.1507293426, 0.0289458539),
            *(-0.0020992844, 0.0005640216, 0.0008247848, 2.54576e-05),
        ),
        sines=(
            *(0.490692133, 0.497330566, 0.1872557654, -0.0222509, -0.0405789333),
            *(-0.0089363687, 0.0002386186, -0.0004526325, -0.0002220288),
        ),
    ),
    paper=_PAPER_SILU,
)
TANH = Activation(
    "tanh",
    exact.tanh,
    left=-1.0,
    right=1.0,
    tight=_centre(
        18,
        cut=5.25,
        gain=9,
        bits=25,
        odd=True,
        amplitudes=(
            1.2053183469,
            -0.0455317973,
            0.2713148612,
            -0.0395577633,
            0.0830500705,
            -0.017028282,
            0.0223300757,
            -0.0030997154,
            0.0035144853,
            0.0011646565,
            -0.000522268,
            0.0011092884,
            -0.0005049592,
            0.0003862938,
            -0.0001166104,
            5.75333e-05,
        ),
    ),
    fast=_centre(
        12,
        cut=4.0,
        gain=3,
        bits=23,
        odd=True,
        amplitudes=(
            1.1628035901,
            -0.0756939284,
            0.2136923803,
            -0.0452619419,
            0.0484200143,
            -0.0113871964,
            0.0071936528,
        ),
    ),
)
SOFT = Activation(
    "soft cap",
    exact.tanh,
    left=-1.0,
    right=1.0,
    tight=Centre(
        Waves(
            gain=1,
            bits=22,
            dealt=22,
            public=22,
            amplitudes=(
                1.2272488003,
                -0.0539508045,
                0.3176584782,
                -0.0649596044,
                0.1310208204,
                -0.0500533215,
                0.0613977101,
                -0.0314812861,
                0.0298058336,
                -0.0173269186,
                0.014069649,
                -0.0084631969,
                0.0061587874,
                -0.0036319701,
                0.002399932,
                -0.0013335037,
                0.0007955345,
                -0.0003992477,
                0.0002099991,
                -8.88559e-05,
                3.90392e-05,
                -1.16057e-05,
                3.7183e-06,
                -5.85e-08,
            ),
            odd=True,
        ),
        cut=6.5,
        frac=18,
    ),
)
"""A finer tanh for soft caps, which multiply by up to a thousand what it is off."""
RELU = Activation("relu", exact.relu)

ACTIVATIONS: dict[str, Activation] = {
    "gelu": GELU,
    "gelu_new": GELU_TANH,
    "gelu_pytorch_tanh": GELU_TANH,
    "gelu_fast": GELU_TANH,
    "quick_gelu": QUICK_GELU,
    "silu": SILU,
    "swish": SILU,
    "relu": RELU,
    "tanh": TANH,
}
"""Activations by their names in Hugging Face configurations."""
