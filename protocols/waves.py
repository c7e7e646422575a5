"""A smooth function of a bounded secret in one round: a sum of waves.

A wave splits over x = m - lam: cos k(m - lam) = cos km cos k lam + sin km sin k lam. The dealer
shares the cosines and sines of its mask's angle, the evaluators multiply their halves by those of
m, which are public, and the sum is an additive sharing of the function, before the exchange that
ends it. A period that is a power of two in ring units makes the ring's wrap harmless, so no
comparison or truncation is needed first. ("Secure Softmax/Sigmoid for Machine-learning
Computation", ACSAC 2023, has this for one sine and Fourier series.)

The sum must match the function only on |x| <= c, for c well below half the period: between c and
period - c it is free, and so needs few waves (a Fourier extension): seven for GeLU to 1e-4.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from protocols.arithmetic import lift, remask, remask_cost
from protocols.base.cost import Cost
from protocols.base.entry import protocol
from protocols.base.fields import field
from protocols.base.lane import Lane
from protocols.base.ring import FRACTION_BITS, packed_bytes
from protocols.base.shares import SecretTensor
from protocols.errors import LocalProtocolError
from protocols.kernels.waves import UNIT_BITS, combined, harmonics

_WEIGHT_BITS = 28


@dataclass(frozen=True)
class Waves:
    """`offset + sum_k amplitudes[k - 1] cos(2 pi k x / period)`; sines and no offset if odd.

    Attributes:
        gain, bits: the period is 2^bits / gain units of 2^-18.
        dealt, public: fraction bits of the dealer's words and of the evaluators' factors.
    """

    gain: int
    bits: int
    dealt: int
    public: int
    amplitudes: tuple[float, ...]
    offset: float = 0.0
    odd: bool = False

    @property
    def count(self) -> int:
        return len(self.amplitudes)

    @property
    def period(self) -> float:
        return 2.0 ** (self.bits - FRACTION_BITS) / self.gain

    @property
    def scale(self) -> int:
        """Fraction bits of the sum."""
        return self.dealt + self.public

    @cached_property
    def width(self) -> int:
        """Width of a ring that the sum never leaves, with the room that `lift` needs."""
        most = sum(abs(int(weight)) for weight in self.weights) * 1001 // 1000
        return self.scale + 2 + max(0, most.bit_length() - _WEIGHT_BITS)

    @property
    def down(self) -> int:
        """Bits that are dropped from the evaluators' factors."""
        return _WEIGHT_BITS + UNIT_BITS - self.public

    @cached_property
    def weights(self) -> NDArray[np.int64]:
        """The amplitudes as the kernels read them."""
        scaled = [round(value * (1 << _WEIGHT_BITS)) for value in self.amplitudes]
        return np.array(scaled, dtype=np.int64)

    def offset_word(self, frac: int) -> np.uint64:
        """The offset with `frac` fraction bits."""
        return np.uint64(round(self.offset * (1 << frac)) % 2**64)

    def exact(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum in floating point."""
        turns = np.multiply.outer(x * (2 * np.pi / self.period), np.arange(1, self.count + 1))
        waves = np.sin(turns) if self.odd else np.cos(turns)
        result: NDArray[np.float64] = waves @ np.array(self.amplitudes) + self.offset
        return result


def waves_cost(count: int, waves: Waves, shift: int) -> Cost:
    """Cost of the sum, divided by 2^shift."""
    dealt = packed_bytes(2 * waves.count * count, waves.width)
    return remask_cost(count, waves.width, dealt=False, shift=shift) + Cost(offline=dealt)


@protocol("waves")
async def evaluate(lane: Lane, x: SecretTensor, waves: Waves, frac: int, to: int) -> SecretTensor:
    """The sum at x (18 fraction bits), with `frac` fraction bits, over Z_2^to.

    Cost: 2 rounds (the second is the lift); waves.width - waves.scale + frac bits each way, and for
    each wave twice waves.width dealt. The size of x does not matter: where the sum is not wanted it
    is still bounded.
    """
    if x.frac != FRACTION_BITS or x.width < waves.bits:
        raise LocalProtocolError(
            f"waves over {FRACTION_BITS} fraction bits and {waves.bits} bits of ring were given "
            f"{x.frac} and {x.width}"
        )
    offset = waves.offset_word(frac)
    narrow = await _sum(lane, x, waves, frac)
    return (await lift(lane, narrow, to)).add_public(offset)


async def _sum(lane: Lane, x: SecretTensor, waves: Waves, frac: int) -> SecretTensor:
    shift = waves.scale - frac
    if lane.tracing:
        lane.charge("waves", waves_cost(x.size, waves, shift))
        return lane.blank(x.shape, waves.width - shift, frac)
    fields = [field((x.size, 2 * waves.count), waves.width)]
    gain = np.uint64(waves.gain)
    work = 8 * x.size * waves.count
    if lane.is_dealer:
        angles = np.ascontiguousarray(x.lam * gain).reshape(-1)
        await lane.share(
            fields, [await lane.run(work, harmonics, angles, waves.bits, waves.count, waves.dealt)]
        )
        part = np.zeros(x.shape, dtype=np.uint64)
    else:
        (shares,) = await lane.share(fields)
        angles = np.ascontiguousarray(x.a * gain).reshape(-1)
        how = (waves.bits, waves.weights, waves.odd, shares, waves.down)
        flat = await lane.run(work, combined, angles, *how)
        part = flat.reshape(x.shape)
    return await remask(lane, part, frac=frac, width=waves.width, shift=shift, dealt=False)
