"""exp of a bounded negative secret in one round.

exp turns the difference x = m - lam into a product of a public number and one that the dealer
knows. Only the wrap of the ring is in the way, so x is split into segments of length h, x = h t + u
with t = m_top - lam_top modulo 2 and u = m_low - lam_low in (-h, h), and

    exp(x) = exp(h t) exp(m_low) exp(-lam_low).

The dealer shares a vector of two words: exp(-lam_low) at place lam_top, 0 elsewhere; each
evaluator multiplies its half of the j-th by the public exp(h (m_top - j)) exp(m_low) and adds up.
The public factor can be as large as exp(h), so the dealt word takes 1.44 h bits more than it would
without it; with shorter segments it takes fewer, but there is a word for each of them, and one more
because of the borrow. Two words of 57 bits are the least: three are 141 bits, four 172.
"""

from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import cache

import numpy as np
from numpy.typing import NDArray

from protocols.arithmetic import remask, remask_cost
from protocols.base.cost import Cost
from protocols.base.entry import protocol
from protocols.base.fields import field
from protocols.base.lane import Lane
from protocols.base.precise import PRECISE
from protocols.base.ring import FRACTION_BITS, Words, bit_mask, packed_bytes, zero_words
from protocols.base.shares import SecretTensor
from protocols.errors import LocalProtocolError
from protocols.kernels.waves import rounded

_GAIN = 9
"""x is multiplied by this, which makes a segment 128/9 long: it reaches -13.97."""
_LOCAL_BITS = FRACTION_BITS + 7
_SEGMENTS = 2
_BITS = _LOCAL_BITS + 1
"""Bits of 9 x that are read."""
HEAD = 0.25
"""Arguments range from a segment below it up to this."""
_UPPER_BITS = 13  # local bits looked up in one table; the rest are looked up in another
_UPPER_UNIT, _LOWER_UNIT = 22, 20  # fraction bits of the tables: products stay below 2^62.9
_EXACT = 128  # fraction bits while the tables are computed


@dataclass(frozen=True, slots=True)
class ExpForm:
    """Fraction bits: of the dealer's words, of the evaluators' factors, and of the result."""

    dealt: int
    public: int
    frac: int

    @property
    def scale(self) -> int:
        return self.dealt + self.public

    @property
    def width(self) -> int:
        """Ring of the sum, which is below 1.3, with the room that `lift` needs."""
        return self.scale + 3


TIGHT = ExpForm(dealt=37, public=17, frac=18)
"""Within 2e-5 of exp."""
FAST = ExpForm(dealt=30, public=12, frac=13)
"""Within 1.2e-3 of exp."""


def exp_part_cost(count: int, form: ExpForm) -> Cost:
    """Cost of `exp_part`."""
    dealt = packed_bytes(_SEGMENTS * count, form.width)
    shift = form.scale - form.frac
    return remask_cost(count, form.width, dealt=False, shift=shift) + Cost(offline=dealt)


@protocol("exp part")
async def exp_part(lane: Lane, x: SecretTensor, form: ExpForm) -> SecretTensor:
    """exp(x) with `form.frac` fraction bits over Z_2^(form.frac + 3), for 1/4 - 128/9 <= x < 1/4.

    x has 18 fraction bits, over a ring of at least 26 bits. Outside this range the result is
    meaningless, to be selected away.

    Cost: 1 round; form.frac + 3 bits each way, and twice form.width dealt.
    """
    if x.frac != FRACTION_BITS or x.width < _BITS:
        raise LocalProtocolError(
            f"exp over {FRACTION_BITS} fraction bits and {_BITS} bits of ring was given {x.frac} "
            f"and {x.width}"
        )
    if lane.tracing:
        lane.charge("exp", exp_part_cost(x.size, form))
        return lane.blank(x.shape, form.frac + 3, form.frac)
    work = 30 * x.size
    fields = [field((_SEGMENTS, x.size), form.width)]
    if lane.is_dealer:
        await lane.share(fields, [await lane.run(work, _dealt, x.lam, form)])
        part = zero_words(x.shape)
    else:
        (shares,) = await lane.share(fields)
        part = await lane.run(work, _combined, x.a, shares, form)
    shift = form.scale - form.frac
    return await remask(lane, part, frac=form.frac, width=form.width, shift=shift, dealt=False)


def _split(words: Words) -> tuple[Words, Words]:
    top = (words >> np.uint64(_LOCAL_BITS)) & np.uint64(_SEGMENTS - 1)
    return top, words & bit_mask(_LOCAL_BITS)


def _dealt(lam: Words, form: ExpForm) -> Words:
    """(2, n): exp(-lam_low) at lam_top, for lam = 9 times the mask. Only the dealer computes it, so
    floats will do.
    """
    top, low = _split(lam.reshape(-1) * np.uint64(_GAIN))
    values = np.exp(low.astype(np.float64) * (-1 / (_GAIN << FRACTION_BITS)))
    words = np.zeros((_SEGMENTS, lam.size), dtype=np.uint64)
    words[top.astype(np.intp), np.arange(lam.size)] = np.rint(values * 2.0**form.dealt).astype(
        np.uint64
    )
    return words


def _combined(m: Words, shares: Words, form: ExpForm) -> Words:
    """An evaluator's part of the sum. Integers make the factors the same at both evaluators."""
    upper, lower = factor_tables()
    head = np.uint64(2**64 - round(HEAD * 2**FRACTION_BITS))
    top, low = _split((m.reshape(-1) + head) * np.uint64(_GAIN))
    high = (low >> np.uint64(_LOCAL_BITS - _UPPER_BITS)).astype(np.intp)
    fine = lower[(low & bit_mask(_LOCAL_BITS - _UPPER_BITS)).astype(np.intp)]
    down = _UPPER_UNIT + _LOWER_UNIT - form.public
    total = np.zeros(m.size, dtype=np.uint64)
    for j in range(_SEGMENTS):
        place = (top ^ np.uint64(j)).astype(np.intp)
        public = (upper[place, high] * fine + (1 << down - 1)) >> down
        total += public.view(np.uint64) * shares[j]
    return total.reshape(m.shape)


@cache
def factor_tables() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(2, 2^13): exp of h t, 1/4 and the upper bits of m_low, for t = 0 and -1; and exp of its
    lower bits.

    The same to the last bit on every machine: the evaluators' halves only add up if their factors
    are equal.
    """
    low_bits = _LOCAL_BITS - _UPPER_BITS
    unit = Decimal(1) / (_GAIN << FRACTION_BITS)
    length = unit * (1 << _LOCAL_BITS)
    rows = [
        exp_table(unit * (1 << low_bits), 1 << _UPPER_BITS, _UPPER_UNIT, start)
        for start in (Decimal(HEAD), Decimal(HEAD) - length)
    ]
    return np.stack(rows), exp_table(unit, 1 << low_bits, _LOWER_UNIT)


def exp_table(
    step: Decimal, count: int, bits: int, start: Decimal = Decimal(0)
) -> NDArray[np.int64]:
    """exp(start + j step) for j below count, with `bits` fraction bits; from integers alone."""
    factor, value, powers = _fixed(step), _fixed(start), []
    for _ in range(count):
        powers.append(rounded(value, _EXACT - bits))
        value = value * factor >> _EXACT
    return np.array(powers, dtype=np.int64)


def exp_fixed(exponent: Decimal, bits: int) -> int:
    """exp(exponent) with `bits` fraction bits."""
    return rounded(_fixed(exponent), _EXACT - bits)


def _fixed(exponent: Decimal) -> int:
    with localcontext(PRECISE):
        return int(exponent.exp() * (1 << _EXACT))
