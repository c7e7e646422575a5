"""Many ANDs in one round: sums over Z_2 of products of bits whose masks the dealer knows.

With `b_i = o_i ^ r_i`, o_i public to the evaluators and r_i known to the dealer, a product of any
fan-in is `prod (o_i ^ r_i) = XOR over subsets S of prod_{i not in S} o_i * prod_{i in S} r_i`. The
dealer XOR-shares the products of masks over every subset of two or more that occurs; the rest is
local (ABY2.0, section on multi-input gates).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache

import numpy as np

from protocols.base.cost import Cost
from protocols.base.entry import protocol
from protocols.base.fields import Field, elementwise_work, field
from protocols.base.lane import Lane
from protocols.base.ring import Words, packed_bytes, zero_words
from protocols.base.shares import SecretBits, side_by_side
from protocols.errors import LocalProtocolError
from protocols.kernels.bits import expand_products, look_up_products, mask_products

_WORD = 64
_TABLE_INPUTS = 11
"""Circuits with at most this many inputs are read from tables, of a few hundred KB at most."""


_WORK = 20
"""Work of one element of a circuit, in multiply-adds."""


@dataclass(frozen=True)
class Circuit:
    """Outputs that are XORs of ANDs of the bits of one word, as flat tables for the kernels.

    Attributes:
        inputs: number of bits of the word.
        outputs: number of outputs.
        subsets: masks of the bits of every subset of size two and more, in the order they are
            dealt.
        rows: (n, 4) of (bits that must be set in the public word, kind, index, output); kind 0 is
            the empty
            subset, 1 a single bit of the mask (index: which), 2 a dealt product (index: which).
    """

    inputs: int
    outputs: int
    subsets: Words
    rows: Words

    @cached_property
    def fields(self) -> int:
        """Words per element that hold the dealt products."""
        return -(-len(self.subsets) // _WORD)

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Bits used in each of those words."""
        left = len(self.subsets)
        return tuple(min(_WORD, left - _WORD * i) for i in range(self.fields))

    @cached_property
    def small(self) -> bool:
        """Whether tables over all public words are worth their memory, and an evaluator's terms fit
        a word: the constant, the bits of the mask, the dealt products.
        """
        return self.inputs <= _TABLE_INPUTS and 1 + self.inputs + len(self.subsets) <= _WORD

    @cached_property
    def asked(self) -> Words:
        """For `look_up_products`: (2^inputs, outputs)."""
        publics = np.arange(1 << self.inputs, dtype=np.uint64)
        table = np.zeros((publics.size, self.outputs), dtype=np.uint64)
        for need, kind, index, output in self.rows.tolist():
            place = (0, 1, 1 + self.inputs)[kind] + index
            hit = (publics & np.uint64(need)) == np.uint64(need)
            table[hit, output] ^= np.uint64(1 << place)
        return table

    @cached_property
    def dealt(self) -> Words:
        """The dealt products of every mask word: (fields, 2^inputs)."""
        masks = np.arange(1 << self.inputs, dtype=np.uint64)
        bits: Words = mask_products(masks, self.subsets, self.fields)
        return bits


@cache
def circuit(inputs: int, outputs: tuple[tuple[int, ...], ...]) -> Circuit:
    """Compile outputs, each a tuple of products given as bit masks over the inputs."""
    subsets: dict[int, int] = {}
    rows = []
    for output, products in enumerate(outputs):
        for product in products:
            for subset in _subsets(product):
                size = subset.bit_count()
                if size >= 2:
                    index = subsets.setdefault(subset, len(subsets))
                else:
                    index = subset.bit_length() - 1 if size else 0
                rows.append((product & ~subset, min(size, 2), index, output))
    return Circuit(
        inputs,
        len(outputs),
        np.array(list(subsets), dtype=np.uint64),
        np.array(rows, dtype=np.uint64).reshape(-1, 4),
    )


def _subsets(mask: int) -> list[int]:
    found, subset = [0], mask
    while subset:
        found.append(subset)
        subset = (subset - 1) & mask
    return found


def products_cost(count: int, plan: Circuit) -> Cost:
    """Cost of `products`: no round, the dealt subsets."""
    return Cost(offline=sum(packed_bytes(count, width) for width in plan.widths))


async def products(lane: Lane, opened: Words, mask: Words, plan: Circuit) -> Words:
    """XOR shares of the circuit's outputs: one word of `plan.outputs` bits per element.

    Args:
        opened: the word `o` (ignored at the dealer).
        mask: the dealer's whole mask `r`, or an evaluator's XOR share of it.

    Cost: no round; one bit dealt per subset.
    """
    fields, work = _fields(plan.widths, mask.size), mask.size * _WORK
    if lane.is_dealer:
        if fields:
            await lane.share(fields, await lane.run(work, _dealt_products, mask, plan))
        return zero_words(mask.shape)
    shares = await lane.share(fields) if fields else []
    return await lane.run(work, _shared_products, opened, mask, shares, plan, lane.leads)


def _dealt_products(mask: Words, plan: Circuit) -> list[Words]:
    flat = mask.ravel()
    return list(
        plan.dealt[:, flat] if plan.small else mask_products.run(flat, plan.subsets, plan.fields)
    )


def _shared_products(
    opened: Words, mask: Words, shares: Sequence[Words], plan: Circuit, leads: bool
) -> Words:
    """An evaluator's XOR shares of the circuit's outputs."""
    whole = opened if opened.shape == mask.shape else np.broadcast_to(opened, mask.shape)
    public, flat = whole.ravel(), mask.ravel()
    word: Words
    if plan.small:
        dealt = shares[0] if shares else np.zeros_like(flat)
        word = look_up_products.run(public, flat, dealt, plan.asked, plan.inputs, leads)
    else:
        words = side_by_side(shares) if shares else np.zeros((0, flat.size), dtype=np.uint64)
        word = expand_products.run(public, flat, words, plan.rows, leads)
    return word.reshape(mask.shape)


@lru_cache(maxsize=1024)
def _fields(widths: tuple[int, ...], count: int) -> tuple[Field, ...]:
    """Of the products dealt for `count` elements."""
    return tuple(field((count,), width, xor=True) for width in widths)


def open_masked_cost(count: int, width: int) -> Cost:
    """Cost of `open_masked`."""
    return Cost(rounds=1, online=2 * packed_bytes(count, width))


async def open_masked(
    lane: Lane, share: Words, width: int, shape: tuple[int, ...]
) -> tuple[Words, Words]:
    """Open `width` XOR-shared bits per element under a fresh mask that the dealer knows.

    Returns:
        (public word, mask). An evaluator gets the word and its XOR share of the mask; the dealer
        gets the whole mask, and its first result is meaningless.

    Cost: 1 round; width bits each way.
    """
    work = elementwise_work(math.prod(shape))
    if lane.is_dealer:
        return await lane.run(work, _whole_mask, lane, shape, width)
    given = lane, share, width, shape
    word, mask = await lane.run(work, _masked, *given) if work else _masked(*given)
    (opened,) = await lane.open([field(shape, width, xor=True)], [word])
    return opened, mask


def _whole_mask(lane: Lane, shape: tuple[int, ...], width: int) -> tuple[Words, Words]:
    one, two = lane.masks(shape, width)
    return one, one ^ two


def _masked(lane: Lane, share: Words, width: int, shape: tuple[int, ...]) -> tuple[Words, Words]:
    """An evaluator's share under its share of a mask, and that share."""
    mask = lane.mask(shape, width)
    return share ^ mask, mask


async def to_bits(lane: Lane, share: Words, shape: tuple[int, ...]) -> SecretBits:
    """Turn one XOR-shared bit per element into a sharing. Cost: 1 round; 1 bit each way."""
    if lane.tracing:
        lane.charge("to_bits", open_masked_cost(int(np.prod(shape)), 1))
        return lane.blank_bits(shape)
    if lane.is_dealer:
        one, two = lane.masks(shape, 1)
        return SecretBits(lane.role, one.astype(np.uint8), two.astype(np.uint8))
    opened, mask = await open_masked(lane, share, 1, shape)
    return SecretBits(lane.role, opened.astype(np.uint8), mask.astype(np.uint8))


@protocol("and")
async def and_bits(lane: Lane, bits: Sequence[SecretBits]) -> SecretBits:
    """The AND of up to 16 shared bits of one shape.

    Cost: 1 round; 1 bit each way; 2^n - n - 1 bits dealt.
    """
    if not 2 <= len(bits) <= 16:
        raise LocalProtocolError(f"and_bits takes 2 to 16 bits, not {len(bits)}: build a tree")
    plan = circuit(len(bits), (((1 << len(bits)) - 1,),))
    shape = bits[0].shape
    if lane.tracing:
        lane.charge("and", products_cost(int(np.prod(shape)), plan))
        return await to_bits(lane, np.zeros(shape, dtype=np.uint64), shape)
    opened, mask = np.zeros(shape, dtype=np.uint64), np.zeros(shape, dtype=np.uint64)
    for place, bit in enumerate(bits):
        first = bit.a ^ bit.b if lane.is_dealer else bit.a
        opened |= first.astype(np.uint64) << np.uint64(place)
        mask |= (first if lane.is_dealer else bit.b).astype(np.uint64) << np.uint64(place)
    return await to_bits(lane, await products(lane, opened, mask, plan), shape)
