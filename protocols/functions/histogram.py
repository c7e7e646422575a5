"""exp(x - c) for every entry of a row, c close above the row's largest entry: three rounds.

Softmax does not need the maximum itself, only a number that is near it and that all entries of the
row agree on: it cancels in the division. So no entries are compared.

**Buckets.** Let h be their length and 2^q the same in the ring units of g x. With offset and gain
applied, m - lam = x; from the bits above q and those below, x = h t + u with t = m_top - lam_top
modulo the number of buckets NB and u = m_low - lam_low in (-h, h). So t is x's bucket, or one more
where the lower bits borrow. Entries keep to the lower half of the buckets, 1 <= t < NB / 2, if
|x| < 2^b and 2^b <= (NB / 4 - 1) h: with NB = 2^(b + 1) and h = 64/31, that is b >= 6.

**Maximum, two rounds.** The dealer draws a turn rho for each row, and shares, for each entry, the
point function that is 1 at lam_top - rho. Turned by m_top and added up over the row, these are
shares of the row's histogram, turned by rho. An evaluator adds up, for every other bucket p, the
NB / 2 buckets after it: how many entries lie above. These counts are opened under masks modulo
2^k, more than the length of the row. The dealer has XOR-shared, for each, the table that is 1 at
the mask and 0 elsewhere: read at what was opened, it says "none is above". The buckets of which
this is true run from c, the first, to the end of the lower half, which only the dealer knows, as
only it knows where the turned row begins. So a XOR of the numbers of the buckets where the answer
changes, and of a word that the dealer shares, is c + rho: uniform, and opened as it is.

As c is even, c - 2 < t <= c for the entry of the largest t; so x < h (c + 1) for every entry, and
x >= h (c - 2) for at least one.

**exp, one round.** For y = x - h (c + 1) < 0, with d = t - c - 1 <= -1,

    exp(y) = exp(h d) exp(m_low) exp(-lam_low).

The point function's payload is exp(-lam_low). As c + rho is public and lam_top - rho the point,
each evaluator multiplies its shares of the nine buckets below c + 1 by public factors. What lies
further down has y < -9 h and counts as 0: exp(-18.5) = 9e-9.

Masking, dealing and opening are those of `protocols.boolean` and `protocols.spline`.
"""

from decimal import Decimal
from functools import cache

import numpy as np
from numpy.typing import NDArray

from protocols.arithmetic import remask, remask_cost
from protocols.base.cost import Cost
from protocols.base.entry import protocol
from protocols.base.fields import Field, field, fields_bytes
from protocols.base.lane import Lane
from protocols.base.ring import FRACTION_BITS, RING_BITS, Bytes, Words, bit_mask
from protocols.base.shares import EVALUATORS, Role, SecretTensor
from protocols.errors import LocalProtocolError
from protocols.functions.buckets import Layout, count, generate, weigh
from protocols.functions.exponential import exp_fixed, exp_table
from protocols.kernels.bits import answer_changes, half_turns, turned_onehots
from protocols.spline import draw_roots

_GAIN = 31
_LOCAL_BITS = FRACTION_BITS + 6
BUCKET = 64 / 31
"""Length h of a bucket."""
_STEP = 2
"""Every second bucket is asked whether entries lie above it."""
REACH = (_STEP + 1) * BUCKET
"""A row's largest numerator is at least exp(-REACH), 2^-8.94."""
_WINDOW = 9
_DEALT = _PUBLIC = 26  # fraction bits of the dealer's words and of the evaluators' factors
_SCALE = _DEALT + _PUBLIC
FRAC = 26
"""Fraction bits of a numerator."""
_WIDTH = _SCALE + 3  # numerators are below 1; the rest is the room that `lift` needs
WIDE = RING_BITS - (_SCALE - FRAC)
"""Bits of a numerator's ring where a row of them can be added up before a lift."""
_UNIT_BITS = 29  # fraction bits of the tables: products of two stay below 2^62
_HALF_BITS = 12  # local bits looked up in one table; the rest are looked up in another
_LEAST_COUNT_BITS = 6  # so that a table fills whole words
_POINT, _TABLE, _COUNT, _READ = 1500, 12, 20, 8
"""Work in `Lane.run`'s unit, 0.3 ns as measured: of an entry's point function, dealt or weighed;
and of a bucket asked, for its table, its count under a mask, and reading the table."""
MAX_SCORE_BITS = 12
"""Entries must be below 2^12: each bit more doubles the buckets."""
MAX_ROW = 2047
"""Entries of a row: twice as many double what is dealt for it."""


class Plan:
    """The public numbers of one call: entries below 2^score_bits in size, rows that end at `ends`.

    Raises:
        LocalProtocolError: rows or entries are too large, or a row is empty.
    """

    def __init__(self, ends: NDArray[np.int64], score_bits: int) -> None:
        self.ends = ends
        self.lengths = np.diff(ends, prepend=0)
        longest = int(self.lengths.max(initial=1))
        if self.lengths.min(initial=1) < 1 or longest > MAX_ROW or score_bits > MAX_SCORE_BITS:
            raise LocalProtocolError(
                f"rows of {longest} entries below 2^{score_bits}: rows must have 1 to {MAX_ROW} "
                f"entries below 2^{MAX_SCORE_BITS}, use `maximum` for others"
            )
        self.layout = Layout(_bucket_bits(score_bits), wide=longest > 255)
        self.count_bits = max(_LEAST_COUNT_BITS, longest.bit_length())
        self.asked_bits = self.layout.bits - 1
        self.asked = 1 << self.asked_bits
        """Buckets asked, in a row."""

    @property
    def rows(self) -> int:
        return self.ends.size

    @property
    def dealt_bytes(self) -> int:
        """Bytes that the dealer sends for all entries and rows."""
        return 16 * self.layout.words * int(self.ends[-1]) + fields_bytes(self.dealt())

    def counts(self) -> Field:
        """What is opened in the first round."""
        return field((self.rows, self.asked), self.count_bits)

    def turned(self) -> Field:
        """What is opened in the second round."""
        return field((self.rows,), self.asked_bits, xor=True)

    def dealt(self) -> list[Field]:
        """The tables of the counts' masks, and where a row's lower half ends."""
        tables = field((self.rows, self.asked, 1 << self.count_bits - 6), 64, xor=True)
        return [tables, self.turned()]

    def per_entry(self, of_rows: NDArray[np.generic]) -> Words:
        """A row's word for each of its entries."""
        return np.repeat(of_rows.astype(np.uint64), self.lengths)

    def split(self, words: Words) -> tuple[Words, Words]:
        """Bucket and local part of masked entries or of their masks, flat."""
        top = (words >> np.uint64(_LOCAL_BITS)) & bit_mask(self.layout.bits)
        return top, words & bit_mask(_LOCAL_BITS)


def _bucket_bits(score_bits: int) -> int:
    return max(6, score_bits) + 1


def read_bits(score_bits: int) -> int:
    """Bits of the ring that `numerators` reads."""
    return _LOCAL_BITS + _bucket_bits(score_bits)


def numerators_cost(ends: NDArray[np.int64], score_bits: int, *, wide: bool = False) -> Cost:
    """Cost of `numerators`."""
    plan, size = Plan(ends, score_bits), int(ends[-1])
    online = 2 * fields_bytes([plan.counts()]) + 2 * fields_bytes([plan.turned()])
    peak = Cost(rounds=2, online=online, offline=plan.dealt_bytes)
    width = RING_BITS if wide else _WIDTH
    return peak + remask_cost(size, width, dealt=False, shift=_SCALE - FRAC)


@protocol("histogram")
async def numerators(
    lane: Lane, x: SecretTensor, ends: NDArray[np.int64], score_bits: int, *, wide: bool = False
) -> SecretTensor:
    """exp(x - c) with `FRAC` fraction bits over Z_2^(FRAC + 3); c is a row's own, and the row's
    largest result is between exp(-REACH) and 1.

    Off by at most three units of 2^-26, 5e-8: one of the division, one for the roundings of the
    dealer's words and the evaluators' factors, half a unit each, and one for what lies below the
    window and for the tables.

    Args:
        x: (n,) with 18 fraction bits, |x| < 2^score_bits, over a ring of at least 37 bits (fewer
            for fewer score bits: 25 and these).
        ends: (rows,) the number of the entry after each row's last. No row is empty.
        wide: results are over Z_2^WIDE.

    Cost: 3 rounds. An entry: 29 bits each way (`wide`: 38); 448 bytes dealt at 11 score bits (32
    more for each bit more; 64 more if a row has more than 255 entries). A row, at 11 score bits and
    2^k > its length: 2,048 k bits each way, 256 2^k bytes dealt.
    """
    plan, bits = Plan(ends, score_bits), read_bits(score_bits)
    if x.frac != FRACTION_BITS or x.width < bits or x.shape != (int(ends[-1]),):
        raise LocalProtocolError(
            f"a histogram over {FRACTION_BITS} fraction bits and {bits} bits of ring, of "
            f"{int(ends[-1])} entries, was given {x.frac} and {x.width}, and {x.shape}"
        )
    if lane.tracing:
        lane.charge("histogram", numerators_cost(ends, score_bits, wide=wide))
        return lane.blank(x.shape, WIDE if wide else FRAC + 3, FRAC)
    middle = np.uint64(1 << plan.layout.bits - 2 + _LOCAL_BITS)
    moved = x.times(np.uint64(_GAIN)).add_public(middle)
    if lane.is_dealer:
        await _deal(lane, plan, moved.lam)
        part = np.zeros(x.shape, dtype=np.uint64)
    else:
        part = await _evaluate(lane, plan, moved.a)
    width = RING_BITS if wide else _WIDTH
    return await remask(lane, part, frac=FRAC, width=width, shift=_SCALE - FRAC, dealt=False)


async def _deal(lane: Lane, plan: Plan, lam: Words) -> None:
    turn, correction = await lane.run(_POINT * lam.size, _points, lane, plan, lam)
    await lane.broadcast(correction.size, correction)
    values = await lane.run(_TABLE * plan.rows * plan.asked, _answers, lane, plan, turn)
    await lane.share(plan.dealt(), values)


def _points(lane: Lane, plan: Plan, lam: Words) -> tuple[Words, Bytes]:
    """The rows' turns, and the corrections of the entries' point functions."""
    layout = plan.layout
    top, low = plan.split(lam)
    turn = lane.private((plan.rows,), plan.asked_bits)
    alpha = (top - np.uint64(_STEP) * plan.per_entry(turn)) & bit_mask(layout.bits)
    roots = [draw_roots(lane, evaluator, lam.size) for evaluator in EVALUATORS]
    return turn, generate(layout, alpha, _payload(low), *roots)


def _answers(lane: Lane, plan: Plan, turn: Words) -> list[Words]:
    """The tables that answer whether none is above, and where each row's lower half ends."""
    one, two = lane.masks(plan.counts().shape, plan.count_bits)
    masks = (one + two) & bit_mask(plan.count_bits)
    tables = turned_onehots.run(masks, turn, 1 << plan.count_bits - 6)
    return [tables, (turn + np.uint64(plan.asked // 2)) & bit_mask(plan.asked_bits)]


def _payload(low: Words) -> Words:
    """exp(-lam_low). Only the dealer computes it, so floats will do."""
    values = np.exp(low.astype(np.float64) * (-1 / (_GAIN << FRACTION_BITS)))
    return np.rint(values * 2.0**_DEALT).astype(np.uint64)


async def _evaluate(lane: Lane, plan: Plan, m: Words) -> Words:
    """An evaluator's part of the sum of `_SCALE` fraction bits."""
    layout, n, asked = plan.layout, m.size, plan.rows * plan.asked
    top, low = plan.split(m)
    points = draw_roots(lane, Role.DEALER, n), await lane.broadcast(8 * layout.words * n)
    work = n * layout.size + _COUNT * asked
    counts = await lane.run(work, _masked_counts, lane, plan, points, top)
    tables, end = await lane.share(plan.dealt())
    (opened,) = await lane.open([plan.counts()], [counts])
    word = await lane.run(_READ * asked, _changes, plan, tables, opened)
    (turned,) = await lane.open([plan.turned()], [word ^ end])
    return await lane.run(_POINT * n, _weighed, lane, plan, points, (top, low), turned)


def _masked_counts(lane: Lane, plan: Plan, points: tuple[Bytes, Bytes], top: Words) -> Words:
    """Shares of how many entries lie above, under masks: (rows, asked)."""
    ends, party = plan.ends.astype(np.uint64), 0 if lane.leads else 1
    shares: Words = half_turns.run(count(plan.layout, party, *points, top, ends))
    shares += lane.mask(plan.counts().shape, plan.count_bits)
    return shares


def _changes(plan: Plan, tables: Words, opened: Words) -> Words:
    """A share of the numbers of the buckets where each row's answer changes, XORed."""
    found: Words = answer_changes.run(tables, opened & bit_mask(plan.count_bits))
    return found


def _weighed(
    lane: Lane, plan: Plan, points: tuple[Bytes, Bytes], m: tuple[Words, Words], turned: Words
) -> Words:
    """An evaluator's part of the sum, given each row's turned bucket."""
    layout, (top, low), party = plan.layout, m, 0 if lane.leads else 1
    first = (top - np.uint64(_STEP) * plan.per_entry(turned)) & bit_mask(layout.bits)
    return weigh(layout, party, *points, first, _factors(low))


def _factors(low: Words) -> Words:
    """(n, window): exp(m_low - h d) for d = 1, 2, ...; the same at both evaluators."""
    upper, lower, lengths = bucket_tables()
    factor = upper[(low >> np.uint64(_LOCAL_BITS - _HALF_BITS)).astype(np.intp)]
    factor = factor * lower[(low & bit_mask(_LOCAL_BITS - _HALF_BITS)).astype(np.intp)]
    factor >>= _UNIT_BITS
    down = 2 * _UNIT_BITS - _PUBLIC
    whole: Words = ((factor[:, None] * lengths + (1 << down - 1)) >> down).view(np.uint64)
    return whole


@cache
def bucket_tables() -> tuple[NDArray[np.int64], ...]:
    """exp of the upper bits of m_low, of its lower bits, and of -h, -2 h, ..."""
    low_bits = _LOCAL_BITS - _HALF_BITS
    unit = Decimal(1) / (_GAIN << FRACTION_BITS)
    upper = exp_table(unit * (1 << low_bits), 1 << _HALF_BITS, _UNIT_BITS)
    lower = exp_table(unit, 1 << low_bits, _UNIT_BITS)
    length = unit * (1 << _LOCAL_BITS)
    lengths = [exp_fixed(-length * d, _UNIT_BITS) for d in range(1, _WINDOW + 1)]
    return upper, lower, np.array(lengths, dtype=np.int64)
