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

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from protocols.arithmetic import lift, remask, remask_cost
from protocols.base.blocks import saves_bytes
from protocols.base.cost import Cost
from protocols.base.entry import protocol
from protocols.base.fields import Field, field, fields_bytes
from protocols.base.lane import Lane
from protocols.base.ring import FRACTION_BITS, Words, zero_words
from protocols.base.shares import SecretTensor
from protocols.errors import LocalProtocolError
from protocols.kernels.waves import UNIT_BITS, add_waves, first_turns, harmonics

_WEIGHT_BITS = 28
_KEPT = 2
"""Bits that the word of a small wave keeps beyond those that its amplitude asks for."""


Run: TypeAlias = tuple[int, int, int]
"""Waves from the first up to an end, and the last bits that their words do without."""


@dataclass(frozen=True)
class Waves:
    """`offset + sum_k amplitudes[k - 1] cos(2 pi k x / period)`; sines and no offset if odd.

    Attributes:
        gain, bits: the period is 2^bits / gain units of 2^-18.
        dealt, public: fraction bits of the dealer's words and of the evaluators' factors.
        sines: amplitudes of sines beside the cosines, for a function that is neither even nor odd:
            they need no words of their own.
        most: the sum with its offset is below this where it is read; None: without its offset it is
            below the sum of the amplitudes, everywhere. What is not read may leave the ring.
    """

    gain: int
    bits: int
    dealt: int
    public: int
    amplitudes: tuple[float, ...]
    offset: float = 0.0
    odd: bool = False
    sines: tuple[float, ...] = ()
    most: float | None = None

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
        """Width of a ring that the sum does not leave where it is read, with the room that `lift`
        needs.
        """
        if self.most is None:
            largest = int(np.abs(self.weights).sum()) * 1001 // 1000
            return self.scale + 2 + max(0, largest.bit_length() - _WEIGHT_BITS)
        return self.scale + 2 + round(self.most * (1 << _WEIGHT_BITS)).bit_length() - _WEIGHT_BITS

    @property
    def down(self) -> int:
        """Bits that are dropped from the evaluators' factors."""
        return _WEIGHT_BITS + UNIT_BITS - self.public

    @cached_property
    def weights(self) -> NDArray[np.int64]:
        """(2, count): the amplitudes of cosines and of sines, as the kernels read them.

        Raises:
            LocalProtocolError: one is 8 or more, which 32 signed bits do not hold.
        """
        none = (0.0,) * self.count
        rows = (none, self.amplitudes) if self.odd else (self.amplitudes, self.sines or none)
        scaled = [[round(value * (1 << _WEIGHT_BITS)) for value in row] for row in rows]
        weights = np.array(scaled, dtype=np.int64)
        if np.abs(weights).max() >> 31:
            limit = 1 << 31 - _WEIGHT_BITS
            raise LocalProtocolError(f"amplitudes must be below {limit}: scale the function down")
        return weights

    def offset_word(self, frac: int) -> np.uint64:
        """The offset with `frac` fraction bits."""
        return np.uint64(round(self.offset * (1 << frac)) % 2**64)

    def exact(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum in floating point."""
        turns = np.multiply.outer(x * (2 * np.pi / self.period), np.arange(1, self.count + 1))
        waves = np.sin(turns) if self.odd else np.cos(turns)
        result: NDArray[np.float64] = waves @ np.array(self.amplitudes) + self.offset
        return result + np.sin(turns) @ np.array(self.sines) if self.sines else result

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """Runs of waves whose words can do without their last bits: a wave of a small amplitude is
        multiplied by a small factor. What that adds to the error of a word is a quarter of what the
        rounding of a wave of amplitude 1 is off.
        """
        sizes = np.maximum.accumulate(np.abs(self.weights).max(axis=0)[::-1])[::-1]
        drops = [max(0, _WEIGHT_BITS - _KEPT - int(size).bit_length()) for size in sizes]
        starts = [k for k in range(self.count) if k == 0 or drops[k] != drops[k - 1]]
        return tuple((a, b, drops[a]) for a, b in pairwise([*starts, self.count]))


def _runs(lane: Lane, count: int, waves: Waves) -> Sequence[Run]:
    """The dealer's words: of one width, or, where bytes count for more than work, of several."""
    return waves.runs if saves_bytes(lane, count) else ((0, waves.count, 0),)


def _fields(count: int, waves: Waves, runs: Sequence[Run]) -> list[Field]:
    return [field((2 * (end - a), count), waves.width - drop) for a, end, drop in runs]


def waves_cost(lane: Lane, count: int, waves: Waves, shift: int) -> Cost:
    """Cost of the sum, divided by 2^shift."""
    dealt = fields_bytes(_fields(count, waves, _runs(lane, count, waves)))
    return remask_cost(count, waves.width, dealt=False, shift=shift) + Cost(offline=dealt)


@protocol("waves")
async def evaluate(lane: Lane, x: SecretTensor, waves: Waves, frac: int, to: int) -> SecretTensor:
    """The sum at x (18 fraction bits), with `frac` fraction bits, over Z_2^to.

    Cost: 2 rounds (the second is the lift; none where `to` is waves.width - waves.scale + frac);
    waves.width - waves.scale + frac bits each way, and for each wave twice waves.width dealt, less
    its bits in `Waves.runs` where bytes count for more than work. The size of x does not matter:
    where the sum is not wanted it is still bounded.
    """
    if x.frac != FRACTION_BITS or x.width < waves.bits:
        raise LocalProtocolError(
            f"waves over {FRACTION_BITS} fraction bits and {waves.bits} bits of ring were given "
            f"{x.frac} and {x.width}"
        )
    offset = waves.offset_word(frac)
    narrow = await _sum(lane, x, waves, frac)
    if waves.most is not None:
        return await lift(lane, narrow.add_public(offset), to)
    return (await lift(lane, narrow, to)).add_public(offset)


async def _sum(lane: Lane, x: SecretTensor, waves: Waves, frac: int) -> SecretTensor:
    shift = waves.scale - frac
    if lane.tracing:
        lane.charge("waves", waves_cost(lane, x.size, waves, shift))
        return lane.blank(x.shape, waves.width - shift, frac)
    runs = _runs(lane, x.size, waves)
    fields, work = _fields(x.size, waves, runs), 8 * x.size * waves.count
    if lane.is_dealer:
        await lane.share(fields, await lane.run(work, _dealt, x.lam, waves, runs))
        part = zero_words(x.shape)
    else:
        part = await lane.run(work, _part, x.a, waves, runs, await lane.share(fields))
    return await remask(lane, part, frac=frac, width=waves.width, shift=shift, dealt=False)


def _dealt(lam: Words, waves: Waves, runs: Sequence[Run]) -> list[Words]:
    """The dealer's words of each run: (2 waves, n)."""
    turns = first_turns(lam.reshape(-1) * np.uint64(waves.gain), waves.bits)
    return [harmonics(turns, end - first, waves.dealt - drop) for first, end, drop in runs]


def _part(m: Words, waves: Waves, runs: Sequence[Run], shares: Sequence[Words]) -> Words:
    """An evaluator's part of the sum; `shares` are of the words that `_dealt` returns."""
    turns = first_turns(m.reshape(-1) * np.uint64(waves.gain), waves.bits)
    part = np.zeros(m.size, dtype=np.uint64)
    for share, (first, end, drop) in zip(shares, runs, strict=True):
        add_waves(turns, waves.weights[:, first:end], share, waves.down, drop, part)
    return part.reshape(m.shape)
