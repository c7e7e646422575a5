"""Selection by secret bits: sums of products of bits and words.

A bit b = c ^ r is c + (1 - 2c) r over the integers: linear in the mask r, which the dealer knows.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from protocols.arithmetic import remask, remask_cost
from protocols.base.cost import Cost
from protocols.base.entry import protocol
from protocols.base.fields import Field, elementwise_work, field, fields_bytes
from protocols.base.lane import Lane
from protocols.base.ring import Bytes, Words, zero_words
from protocols.base.shares import SecretBits, SecretTensor, side_by_side
from protocols.kernels.select import select_part, select_secrets


@dataclass(frozen=True, slots=True)
class Term:
    """The product of one to three shared bits, times y: a sharing, or public ring words."""

    bits: tuple[SecretBits, ...]
    y: SecretTensor | Words


_broadcast = lru_cache(maxsize=1024)(np.broadcast_shapes)


def _subset_masks(count: int) -> range:
    return range(1, 1 << count)


def select_cost(shape: tuple[int, ...], terms: Sequence[Term], width: int) -> Cost:
    """Cost of `select`; `shape` is that of the result."""
    return remask_cost(math.prod(shape), width, dealt=False) + Cost(
        offline=fields_bytes(_term_fields(terms, shape, width, _even(terms, shape)))
    )


def _even(terms: Sequence[Term], shape: tuple[int, ...]) -> bool:
    """Whether all terms have the same number of bits, and every array has the result's shape."""
    count = len(terms[0].bits)
    for term in terms:
        if not isinstance(term.y, SecretTensor) or term.y.shape != shape:
            return False
        if len(term.bits) != count:
            return False
        for bit in term.bits:
            if bit.shape != shape:
                return False
    return True


def _term_fields(
    terms: Sequence[Term], shape: tuple[int, ...], width: int, even: bool
) -> list[Field]:
    if even:
        rows = 2 * len(_subset_masks(len(terms[0].bits)))
        return [field((len(terms), rows, math.prod(shape)), width)]
    fields = []
    for term in terms:
        bits = _broadcast(*(bit.shape for bit in term.bits))
        for _ in _subset_masks(len(term.bits)):
            fields.append(field(bits, width))
            if isinstance(term.y, SecretTensor):
                fields.append(field(_broadcast(bits, term.y.shape), width))
    return fields


@protocol("select")
async def select(
    lane: Lane,
    terms: Sequence[Term],
    *,
    width: int,
    frac: int,
    shape: tuple[int, ...],
    total: bool = False,
) -> SecretTensor:
    """Sum over terms of (product of bits) * y, in one round for any number of terms.

    Args:
        shape: of the result; terms broadcast to it.
        total: terms have one more axis at the end, which is summed over.

    The dealer shares, for every subset S of a term's bits, r_S (the product of their masks) and r_S
    * lam_y.

    Cost: 1 round; width bits each way; for a term of one bit 2 width bits dealt (width if y is
    public), of three bits 14 width.
    """
    if lane.tracing:
        lane.charge("select", select_cost(shape, terms, width))
        return lane.blank(shape, width, frac)
    even = _even(terms, shape)
    fields = _term_fields(terms, shape, width, even)
    work = elementwise_work(sum(item.count for item in fields))
    if lane.is_dealer:
        await lane.share(fields, await lane.run(work, _dealt_even if even else _dealt, terms))
        part = zero_words(shape)
    elif even:
        part = await lane.run(work, _even_part, lane, terms, *await lane.share(fields))
        part = part.reshape(shape)
    else:
        part = await lane.run(work, _part, lane, terms, await lane.share(fields), shape, total)
    return await remask(lane, part, frac=frac, width=width, dealt=False)


def _rows(arrays: Sequence[Words]) -> Words:
    """Arrays of one shape, flattened, as the rows of a (count, n) array."""
    return side_by_side(arrays).reshape(len(arrays), -1)


def _bit_rows(terms: Sequence[Term], of: Callable[[SecretBits], Bytes]) -> Bytes:
    rows = side_by_side([of(bit) for term in terms for bit in term.bits])
    return rows.reshape(len(terms), len(terms[0].bits), -1)


def _factors(terms: Sequence[Term]) -> list[SecretTensor]:
    return [term.y for term in terms if isinstance(term.y, SecretTensor)]


def _dealt_even(terms: Sequence[Term]) -> list[Words]:
    masks = _bit_rows(terms, lambda bit: bit.mask)
    return [select_secrets(masks, _rows([y.lam for y in _factors(terms)]))]


def _even_part(lane: Lane, terms: Sequence[Term], dealt: Words) -> Words:
    factors = _factors(terms)
    y, mask = _rows([factor.a for factor in factors]), _rows([factor.b for factor in factors])
    own = y - mask if lane.leads else np.uint64(0) - mask
    return select_part(_bit_rows(terms, lambda bit: bit.a), y, own, dealt)


def _dealt(terms: Sequence[Term]) -> list[Words]:
    return [words for term in terms for words in _dealt_products(term)]


def _dealt_products(term: Term) -> list[Words]:
    masks = [bit.mask.astype(np.uint64) for bit in term.bits]
    values = []
    for subset in _subset_masks(len(masks)):
        product: Words = np.ones((), dtype=np.uint64)
        for place, mask in enumerate(masks):
            if subset >> place & 1:
                product = product * mask
        shape = _broadcast(*(mask.shape for mask in masks))
        values.append(np.broadcast_to(product, shape))
        if isinstance(term.y, SecretTensor):
            values.append(product * term.y.lam)
    return values


def _part(
    lane: Lane, terms: Sequence[Term], dealt: Sequence[Words], shape: tuple[int, ...], total: bool
) -> Words:
    """An evaluator's part of the sum over the terms, and over the last axis if `total`."""
    shares = iter(dealt)
    part = np.zeros(shape, dtype=np.uint64)
    for term in terms:
        product = _term_part(lane, term, shares)
        part = part + (product.sum(axis=-1, dtype=np.uint64) if total else product)
    return part


def _term_part(lane: Lane, term: Term, shares: Iterator[Words]) -> Words:
    secret = isinstance(term.y, SecretTensor)
    y = term.y.a if isinstance(term.y, SecretTensor) else term.y
    base = y if lane.leads else np.uint64(0)
    if isinstance(term.y, SecretTensor):
        base = base - term.y.b
    publics = [bit.a.astype(np.uint64) for bit in term.bits]
    flips = [np.uint64(1) - (public << np.uint64(1)) for public in publics]
    whole = publics[0]
    for public in publics[1:]:
        whole = whole * public
    part = whole * base
    for subset in _subset_masks(len(publics)):
        factor: Words = np.ones((), dtype=np.uint64)
        for place in range(len(publics)):
            factor = factor * (flips[place] if subset >> place & 1 else publics[place])
        inner = y * next(shares)
        if secret:
            inner = inner - next(shares)
        part = part + factor * inner
    return part
