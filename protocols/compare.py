"""Comparison of a secret with public thresholds, maximum and arg-max.

For x = m - lam, "x < 0" is a comparison of m, public to the evaluators, with lam, known to the
dealer. The dealer XOR-shares the one-hots of lam's 4-bit digits; against its public digits each
evaluator reads shares of "greater" and "equal" off them, and a small circuit over those bits gives
the result.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from protocols.base.blocks import MANY, saves_bytes
from protocols.base.cost import Cost
from protocols.base.entry import protocol
from protocols.base.fields import field
from protocols.base.lane import Lane
from protocols.base.ring import Words, packed_bytes, zero_words
from protocols.base.shares import SecretBits, SecretTensor, concat, stack, stack_bits
from protocols.boolean import (
    Circuit,
    and_bits,
    circuit,
    open_masked,
    open_masked_cost,
    products,
    products_cost,
    to_bits,
)
from protocols.errors import LocalProtocolError
from protocols.kernels.bits import DIGIT_BITS, digit_relations, onehot_digits
from protocols.kernels.elementwise import windows
from protocols.selection import Term, select

_RADIX = {"rounds": 5, "balanced": 5, "traffic": 3}
"""Digits combined in one level: 5 keeps the dealt subsets of a level below 40 bits per element."""
_NO_CUT = np.zeros(1, dtype=np.uint64)


@dataclass(frozen=True)
class Tree:
    """The circuits of a comparison of digits, one per level; level 0 reads digit relations."""

    digits: int
    levels: tuple[Circuit, ...]


@cache
def comparison_tree(digits: int, radix: int) -> Tree:
    """G = g_0 ^ p_0 g_1 ^ p_0 p_1 g_2 ..., cut into groups of at most `radix` digits per level."""
    greater = [1 << j for j in range(digits)]
    equal = [1 << (digits + j) for j in range(digits - 1)] + [0]
    sign: int | None = 1 << (2 * digits - 1)
    inputs, levels = 2 * digits, []
    while True:
        groups = _groups(len(greater), radix)
        last = len(groups) == 1
        outputs = [_greater_terms(greater, equal, group) for group in groups]
        outputs += [(_join(equal, group),) for group in groups[:-1]]
        if sign is not None and last:
            outputs[0] = (*outputs[0], sign)
        elif sign is not None:
            outputs.append((sign,))
        levels.append(circuit(inputs, tuple(outputs)))
        if last:
            return Tree(digits, tuple(levels))
        count = len(groups)
        greater = [1 << j for j in range(count)]
        equal = [1 << (count + j) for j in range(count - 1)] + [0]
        sign = 1 << (2 * count - 1)
        inputs = 2 * count


def _groups(count: int, radix: int) -> list[range]:
    """Runs of digits, as even in length as possible."""
    parts = -(-count // radix)
    cuts = [count * part // parts for part in range(parts + 1)]
    return [range(lo, hi) for lo, hi in itertools.pairwise(cuts)]


def _join(equal: list[int], group: Sequence[int]) -> int:
    product = 0
    for j in group:
        product |= equal[j]
    return product


def _greater_terms(greater: list[int], equal: list[int], group: range) -> tuple[int, ...]:
    return tuple(greater[j] | _join(equal, range(group.start, j)) for j in group)


def less_cost(count: int, thresholds: int, digits: int, radix: int) -> Cost:
    """Cost of `less` for `count` elements."""
    tree = comparison_tree(digits, radix)
    total = Cost(offline=packed_bytes(count * digits, 16))
    for level in tree.levels:
        total += open_masked_cost(count * thresholds, level.inputs)
        total += products_cost(count * thresholds, level)
    return total + open_masked_cost(count * thresholds, 1)


@protocol("less")
async def less(
    lane: Lane,
    x: SecretTensor,
    thresholds: Sequence[int] | None = None,
    *,
    digits: int,
    shift: int = 0,
) -> SecretBits:
    """[x < t] for every public threshold t (ring integers, default 0), at once.

    Looks at `4 * digits` bits from bit `shift` up: the differences x - t must stay below 2^(shift +
    4 digits - 1) in size. Exact for shift 0; otherwise wrong at most for x - t in [-2^shift, 0),
    which counts as not less.

    Returns:
        Bits of x's shape, with one more axis at the end if thresholds were given.

    Cost: levels + 1 rounds. At 5 digits, one threshold, "rounds" (1 level): 11 bits each way and
    117 dealt; "traffic" (2 levels), and "balanced" for `MANY` elements, 15 each way and 88
    dealt.
    """
    if digits * DIGIT_BITS + shift > x.width:
        raise LocalProtocolError(
            f"{digits} digits from bit {shift} do not fit the {x.width}-bit ring: use fewer digits"
        )
    cuts = np.array([t % 2**64 for t in thresholds or (0,)], dtype=np.uint64)
    shape = (*x.shape, cuts.size)
    radix = _radix(lane, x.size)
    if lane.tracing:
        lane.charge("less", less_cost(x.size, cuts.size, digits, radix))
        bits = lane.blank_bits(shape)
    else:
        word, public = await _relation(lane, x, cuts, digits, shift, radix)
        bits = await to_bits(lane, word, shape)
        if not lane.is_dealer:
            top = (public >> np.uint64(digits * DIGIT_BITS - 1)).astype(np.uint8)
            bits = SecretBits(bits.role, bits.a ^ top.reshape(shape), bits.b)
    return bits if thresholds is not None else bits.reshape(*x.shape)


def _radix(lane: Lane, count: int) -> int:
    """Digits of a level in which `count` elements are compared."""
    return _RADIX["traffic" if saves_bytes(lane, count) else lane.settings.tree]


async def _relation(
    lane: Lane, x: SecretTensor, cuts: Words, digits: int, shift: int, radix: int
) -> tuple[Words, Words]:
    """XOR shares of msb(lam') ^ [low(m') < low(lam')], shape (*x.shape, thresholds); and the
    evaluators' m', (x.size, thresholds).
    """
    tree = comparison_tree(digits, radix)
    shape, bits = (*x.shape, cuts.size), digits * DIGIT_BITS
    fields = [field((x.size, digits), 16, xor=True)]
    work = 40 * x.size * cuts.size * digits
    if lane.is_dealer:
        await lane.share(fields, [await lane.run(work, _dealt_digits, x, shift, digits)])
        word = zero_words(shape)
        public = word
    else:
        (onehots,) = await lane.share(fields)
        given = x, onehots, cuts, shift, bits
        word, public = await lane.run(work, _digit_relations, *given)
    for level in tree.levels:
        opened, mask = await open_masked(lane, word.reshape(shape), level.inputs, shape)
        word = await products(lane, opened, mask, level)
    return word, public


def _dealt_digits(x: SecretTensor, shift: int, digits: int) -> Words:
    """One-hots of the digits of the mask, (x.size, digits)."""
    hidden = windows(x.lam, _NO_CUT, x.width, shift, digits * DIGIT_BITS)
    onehots: Words = onehot_digits(hidden.reshape(-1), digits)
    return onehots


def _digit_relations(
    x: SecretTensor, onehots: Words, cuts: Words, shift: int, bits: int
) -> tuple[Words, Words]:
    """An evaluator's shares of how the mask's digits compare with those of the public m' at every
    threshold, and m': both (x.size, thresholds).
    """
    public = windows(x.a, cuts, x.width, shift, bits)
    return digit_relations(onehots, public), public


# -- maximum ---------------------------------------------------------------------------------------


@protocol("maximum")
async def maximum(
    lane: Lane, x: SecretTensor, payload: SecretTensor | None = None
) -> tuple[SecretTensor, SecretTensor | None]:
    """The largest entry along the last axis, and the payload entry (same shape, same ring) at the
    same place.

    A tree of radix 4: on each level six comparisons side by side, then one selection. Exact over
    the ring; the first of equal entries wins. Differences must stay below 2^(width-1); the width
    must be a multiple of 4. While there are `MANY` entries, the radix is 2 (except with "rounds"):
    two such levels take a third of the bytes of one of radix 4, which leaves as many entries.

    Cost: per level of the tree, the comparison's levels + 2 rounds (3 at 20 bits with "rounds";
    "traffic" takes one more where three or more are compared). Each level leaves a quarter of the
    entries, or half.
    """
    if x.width % DIGIT_BITS:
        raise LocalProtocolError(f"maximum needs a multiple of 4 bits, not {x.width}: narrow first")
    while x.shape[-1] > 1:
        x, payload = await _contest(lane, x, payload)
    return x[..., 0], None if payload is None else payload[..., 0]


async def _joined(
    lane: Lane, winners: list[tuple[SecretBits, ...]]
) -> list[tuple[SecretBits, ...]]:
    """The product of each tuple of bits as one bit: one more round, and a fifth of what is dealt
    for a selection by several bits.
    """
    places = range(len(winners[0]))
    factors = [stack_bits([bits[place] for bits in winners]) for place in places]
    product = await and_bits(lane, factors)
    return [(product[k],) for k in range(len(winners))]


async def _winners(lane: Lane, columns: list[SecretTensor]) -> list[tuple[SecretBits, ...]]:
    """For each column except the last: bits whose product says that its entry is the largest."""
    radix = len(columns)
    pairs = list(itertools.combinations(range(radix), 2))
    stacked = stack([columns[i] - columns[j] for i, j in pairs], axis=0)
    loses = await less(lane, stacked, digits=columns[0].width // DIGIT_BITS)
    beaten = {pair: loses[k] for k, pair in enumerate(pairs)}
    winners = []
    for k in range(radix - 1):
        before = [beaten[other, k] for other in range(k)]
        winners.append((*before, *(~beaten[k, other] for other in range(k + 1, radix))))
    joins = lane.settings.tree == "traffic" and radix > 2
    return await _joined(lane, winners) if joins else winners


def _columns(x: SecretTensor, radix: int) -> list[SecretTensor]:
    """The first, second, ... of every `radix` entries along the last axis; the last entry stands
    for those that are missing at the end.
    """
    missing = -x.shape[-1] % radix
    if missing:
        x = concat([x, *[x[..., -1:]] * missing], axis=-1)
    return [x[..., k::radix] for k in range(radix)]


async def _contest(
    lane: Lane, x: SecretTensor, payload: SecretTensor | None
) -> tuple[SecretTensor, SecretTensor | None]:
    pairs = lane.settings.tree != "rounds" and x.size >= MANY
    radix = min(2 if pairs else 4, x.shape[-1])
    columns = _columns(x, radix)
    winners = await _winners(lane, columns)
    jobs = [(columns, columns[-1])]
    if payload is not None:
        beside = _columns(payload, radix)
        jobs.append((beside, beside[-1]))

    async def pick(strand: Lane, job: int) -> SecretTensor:
        entries, base = jobs[job]
        terms = [Term(bits, entries[k] - base) for k, bits in enumerate(winners)]
        chosen = await select(strand, terms, width=base.width, frac=base.frac, shape=base.shape)
        return chosen + base

    if payload is None:
        return await pick(lane, 0), None
    best, carried = await lane.both(lambda s: pick(s, 0), lambda s: pick(s, 1))
    return best, carried
