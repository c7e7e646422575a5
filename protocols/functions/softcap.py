"""The soft cap, cap tanh(x / cap), which some models apply to attention scores and logits.

It is evaluated at x / 2^p, where 2^p is the least power of two that is not below the cap, so that
all caps share one set of waves. The weights that produce x are multiplied by 2^p / cap, which is
between 1 and 2.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from protocols.base.entry import protocol
from protocols.base.lane import Lane
from protocols.base.ring import FRACTION_BITS
from protocols.base.shares import SecretTensor, constant
from protocols.compare import less
from protocols.functions.activation_tables import SOFT
from protocols.kernels.bits import DIGIT_BITS
from protocols.selection import Term, select
from protocols.waves import Waves, evaluate

MAX_POWER = 10
"""Caps are at most 2^10."""
CAPPED_WIDTH = 37
"""Bits of the ring of a result: enough for a softmax over results, and for a client."""
CAP_ERROR, CAP_ROUNDING = 2.0**-16, 2.0**-20
"""Bounds on a result's error, each times the cap: in general, and where it is not cut off."""
CAP_WAVES = SOFT.tight.waves.count if SOFT.tight is not None else 0
_CUT_FRAC = 3


@dataclass(frozen=True, slots=True)
class Cap:
    """cap tanh(x / 2^power), for a cap from 1 to 2^`MAX_POWER`."""

    value: float

    @property
    def power(self) -> int:
        """The least p with cap <= 2^p."""
        part, power = math.frexp(self.value)
        return power - (part == 0.5)

    @property
    def factor(self) -> float:
        """2^power / cap, by which x must already be multiplied."""
        return 2.0**self.power / self.value

    @property
    def waves(self) -> Waves:
        """The waves of cap / 2^power tanh(x / 2^power).

        Each amplitude is a single product of floats, so it is the same on every machine.
        """
        assert SOFT.tight is not None
        base, ratio = SOFT.tight.waves, self.value / 2.0**self.power
        amplitudes = tuple(amplitude * ratio for amplitude in base.amplitudes)
        return replace(base, bits=base.bits + self.power, amplitudes=amplitudes)

    def exact(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """The soft cap in floating point."""
        bent: NDArray[np.float64] = self.value * np.tanh(x / 2.0**self.power)
        return bent

    def tightly(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """The function that is computed on shares, except for rounding."""
        return np.asarray(self.value * SOFT.tightly(x / 2.0**self.power))

    def limit(self, width: int) -> float:
        """The limit on |x| in a ring of `width` bits, for the cut-off to work."""
        shift, digits = _window(self, width)
        return 2.0 ** (shift + DIGIT_BITS * digits - 2 - FRACTION_BITS)


def _window(cap: Cap, width: int) -> tuple[int, int]:
    shift = FRACTION_BITS + cap.power - _CUT_FRAC
    return shift, (width - shift) // DIGIT_BITS


@protocol("soft cap")
async def softcap(lane: Lane, x: SecretTensor, cap: Cap) -> SecretTensor:
    """cap tanh(x / 2^power) for x with 18 fraction bits, over Z_2^37 with as many.

    |x| must be below `Cap.limit` of its ring.

    Cost: 3 rounds with 5 digits to compare, 4 with more.
    """
    waves, frac = cap.waves, FRACTION_BITS + cap.power
    assert SOFT.tight is not None
    cut, step = SOFT.tight.cut * 2.0**cap.power, 2.0 ** (cap.power - _CUT_FRAC)
    # A value just below a threshold may count as not below it; on the left it is then inside.
    thresholds = [round((bound) * 2**x.frac) for bound in (step - cut, cut)]
    shift, digits = _window(cap, x.width)
    bent, below = await lane.both(
        lambda strand: evaluate(strand, x, waves, frac, CAPPED_WIDTH),
        lambda strand: less(strand, x, thresholds, digits=digits, shift=shift),
    )
    most = round(cap.value * 2**FRACTION_BITS)
    right, left = (_everywhere(x, word, frac) for word in (most, -most))
    # With c_low = [x < low cut] and c_high = [x < high cut]:
    # right + c_high (y - right) - c_low (y - left).
    terms = [Term((below[..., 1],), bent - right), Term((below[..., 0],), left - bent)]
    chosen = await select(lane, terms, width=CAPPED_WIDTH, frac=frac, shape=x.shape)
    return (chosen + right).reinterpret(FRACTION_BITS)


def _everywhere(x: SecretTensor, word: int, frac: int) -> SecretTensor:
    """A constant whose `word` has 18 fraction bits, divided by a power of two like the waves."""
    words = np.full(x.shape, word % 2**64, dtype=np.uint64)
    return constant(x.role, words, CAPPED_WIDTH, frac)
