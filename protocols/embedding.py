"""Secure embedding: look up rows of a shared table at secret indices, with point functions.

PUMA (arXiv 2307.12533, section 4.4) lets the servers turn a shared id into a one-hot vector and
look the row up. Here every pair of parties looks the row up in the share of the table that both
hold, with a distributed point function dealt by the third: it picks a shift rho, the pair learns
delta = id + rho, and reads the expansion of the point rho at (delta - j). The client shares a key
with each party, so it knows every rho and sends the deltas; a bare id never leaves it.

The payload of these point functions is one bit: the two parties of a pair choose sets of rows that
differ only in the wanted row, and the difference of their sums is that row, up to a sign. Only sums
of rows are computed, a fraction of the work of products; the party that dealt the point function
knows the sign. Three pairs give three rows, which are shared anew, and one selection by the signs
adds them up. All this happens modulo 2^32, with half the memory traffic of the whole ring; the rows
found are then lifted.

What is dealt before the client comes (`Settings.prepared`) cannot depend on the client's keys. Then
the dealer of a pair draws a shift s of its own, and once the client is here it tells them s - rho:
both read at delta + s - rho = id + s. They see id + rho and s - rho, two words that are uniform and
independent, as rho and s are.
"""

from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from protocols.arithmetic import lift, lift_cost
from protocols.base.cost import Cost
from protocols.base.entry import protocol
from protocols.base.fields import field
from protocols.base.lane import Lane
from protocols.base.ring import RING_BITS, Bytes, Words, canonical, packed_bytes
from protocols.base.shares import EVALUATORS, Role, SecretBits, SecretTensor
from protocols.dpf import expand_selectors, generate_selectors, selector_bytes
from protocols.errors import LocalProtocolError
from protocols.kernels.sums import Half, chosen_sums
from protocols.linear import AnyTable
from protocols.public_weight import PublicTable
from protocols.selection import Term, select, select_cost

LOOKUP_BITS = 32
"""Ring width of a look-up: table entries, fraction bits included, must stay below 2^30."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two parties that look up in a share that both hold, and the third party, which deals."""

    dealer: Role
    holders: tuple[Role, Role]


_M = _Pair(Role.DEALER, (Role.EVALUATOR_A, Role.EVALUATOR_B))
_LAM1 = _Pair(Role.EVALUATOR_B, (Role.DEALER, Role.EVALUATOR_A))
_LAM2 = _Pair(Role.EVALUATOR_A, (Role.DEALER, Role.EVALUATOR_B))
_PAIRS = (_M, _LAM1, _LAM2)


def domain_bits(rows: int) -> int:
    """log2 of the point functions' domain for a table of `rows`."""
    return max(2, (rows - 1).bit_length())


def embed_cost(count: int, shape: tuple[int, int], *, prepared: bool = False) -> Cost:
    """Cost of `embed` for `count` indices into a table of `shape`, the client's deltas included.

    prepared: as in `Settings`.
    """
    v = domain_bits(shape[0])
    size = count * shape[1]
    row, bits = packed_bytes(size, LOOKUP_BITS), packed_bytes(count, 1)
    found = Cost(
        rounds=1,
        online=6 * packed_bytes(count, v) + 8 * row + 2 * bits,
        offline=6 * count * selector_bytes(v) + bits,
    )
    if prepared:
        found += Cost(online=6 * packed_bytes(count, v))
    zeros = np.zeros((count, shape[1]), dtype=np.uint64)
    blank, bit = SecretTensor(Role.TRACE, zeros, zeros), np.zeros((count, 1), dtype=np.uint8)
    terms = [Term((SecretBits(Role.TRACE, bit, bit),), blank)] * len(_PAIRS)
    signed = select_cost(blank.shape, terms, LOOKUP_BITS)
    return found + signed + lift_cost(size, LOOKUP_BITS, RING_BITS)


@protocol("embed")
async def request_rows(lane: Lane, ids: NDArray[np.int64], rows: int) -> None:
    """The client's part of `embed`: send every pair its deltas."""
    v = domain_bits(rows)
    fields = [field((ids.size,), v)]
    for pair, strand in zip(_PAIRS, lane.fork(len(_PAIRS) + 1), strict=False):
        rho = strand.draw(pair.dealer, (ids.size,), v)
        delta = canonical(ids.reshape(-1).astype(np.uint64) + rho, v)
        for holder in pair.holders:
            await strand.send_words(holder, fields, [delta])


@protocol("embed")
async def embed(lane: Lane, table: AnyTable, count: int) -> SecretTensor:
    """`count` rows of the table at the client's indices: (count, columns) over Z_2^64. Entries are
    below 2^30 in size, fraction bits included.

    The dealer's part of the work waits for the client, so it is deferred: this is its only message
    that comes after the input, and the dealer may run on until then.

    Cost: 3 rounds after the client's message; per index 6 packed deltas (and 6 changes of them, if
    prepared), 8 + 2 + 3 words of 32 bits a column (shared anew, selected, dealt) and a lift, and
    six corrections dealt.
    """
    shape = (count, table.shape[1])
    if lane.tracing:
        lane.charge("embed", embed_cost(count, table.shape, prepared=lane.settings.prepared))
        return lane.blank(shape, RING_BITS, table.frac)
    *strands, reshare = lane.fork(len(_PAIRS) + 1)
    if lane.is_dealer:
        rows, negative, rest = await _dealer_found(strands, reshare, table, count)
        await reshare.defer(rest, *strands)
    else:
        rows, negative = await _found(strands, reshare, table, count)
    lane.join([reshare])
    # Each is the row or its negative: y - 2 [negative] y.
    weights = (rows[0], -rows[1], -rows[2])
    terms = [Term((bit,), -(y + y)) for bit, y in zip(negative, weights, strict=True)]
    turned = await select(lane, terms, width=LOOKUP_BITS, frac=table.frac, shape=shape)
    return await lift(lane, turned + weights[0] + weights[1] + weights[2])


_Found: TypeAlias = tuple[list[SecretTensor], list[SecretBits]]
"""For each pair: the row up to its sign, over Z_2^32, and bits (count, 1): 1 if negated."""


async def _dealer_found(
    strands: list[Lane], lane: Lane, table: AnyTable, count: int
) -> tuple[list[SecretTensor], list[SecretBits], Coroutine[Any, Any, None]]:
    """The dealer's view: it knows the first sign, and one mask of each of the others. The last
    result is the work left to do once the client has sent its deltas.
    """
    shape, bit = (count, table.shape[1]), (count, 1)
    own, shift = await _deal(strands, table, count)
    masks = [lane.masks(shape, LOOKUP_BITS) for _ in _PAIRS]
    one, two = (mask.astype(np.uint8) for mask in lane.masks(bit, 1))
    first = lane.draw(Role.EVALUATOR_A, bit, 1).astype(np.uint8)
    second = own ^ first
    sign = [second.astype(np.uint64)]
    await lane.send_words(Role.EVALUATOR_B, [field(bit, 1)], sign, online=False)
    zero = np.zeros_like(own)
    negative = [
        SecretBits(lane.role, *pair) for pair in ((first, second), (zero, two), (one, zero))
    ]
    rows = [SecretTensor(lane.role, *pair, LOOKUP_BITS, table.frac) for pair in masks]
    return rows, negative, _dealer_part(strands, lane, table, shift, masks[1:])


async def _found(strands: list[Lane], lane: Lane, table: AnyTable, count: int) -> _Found:
    shape, bit, width = (count, table.shape[1]), (count, 1), LOOKUP_BITS
    own, shift = await _deal(strands, table, count)
    await _change(strands, table, shift)
    masks = [lane.mask(shape, width) for _ in _PAIRS]
    veil = lane.mask(bit, 1).astype(np.uint8)
    if lane.leads:
        first = lane.draw(Role.DEALER, bit, 1).astype(np.uint8)
    else:
        (dealt_sign,) = await lane.receive_words(Role.DEALER, [field(bit, 1)])
        first = dealt_sign.astype(np.uint8)
    pad = lane.draw(Role.DEALER, shape, width)
    mine, other = (_LAM1, _LAM2) if lane.leads else (_LAM2, _LAM1)
    parts = await _look_up(strands, table, count)

    words = [field(shape, width)] * 2
    sign = own ^ veil
    sent = [parts[_M] + masks[0], parts[mine] - pad, sign.astype(np.uint64)]
    *theirs, their_sign = await lane.swap([*words, field(bit, 1)], sent)
    dealt = dict(zip(_PAIRS[1:], await lane.receive_words(Role.DEALER, words), strict=True))
    opened = {
        _M: sent[0] + theirs[0],
        mine: dealt[mine] + sent[1],
        other: dealt[other] + theirs[1],
    }
    rows = [
        SecretTensor(lane.role, opened[pair], mask, width, table.frac)
        for pair, mask in zip(_PAIRS, masks, strict=True)
    ]
    zero = np.zeros(bit, dtype=np.uint8)
    known = SecretBits(lane.role, sign, veil)  # for the pair that this evaluator dealt for
    hidden = SecretBits(lane.role, their_sign.astype(np.uint8), zero)
    middle, last = (hidden, known) if lane.leads else (known, hidden)
    return rows, [SecretBits(lane.role, zero, first), middle, last]


async def _dealer_part(
    strands: list[Lane],
    lane: Lane,
    table: AnyTable,
    shift: Words,
    masks: list[tuple[Words, Words]],
) -> None:
    """Send the dealer's halves of both rows of masks, under the new masks and a pad known to the
    other holder of that half.
    """
    count = shift.size
    await _change(strands, table, shift)
    pads = lane.masks((count, table.shape[1]), LOOKUP_BITS)
    parts = await _look_up(strands, table, count)
    values = [
        parts[pair] + one + two + pad
        for pair, (one, two), pad in zip(_PAIRS[1:], masks, pads, strict=True)
    ]
    fields = [field(values[0].shape, LOOKUP_BITS)] * 2
    for evaluator in EVALUATORS:
        await lane.send_words(evaluator, fields, values)


@protocol("embed")
async def deal_rows(lane: Lane, table: AnyTable, count: int) -> None:
    """An evaluator's part of `embed` that needs no one's input: what it deals to the other two. The
    dealer runs `embed` itself, whose deferred rest is left out then.

    For a lane with prepared settings. `embed` on a lane with the same streams sends the same words.
    """
    strands = lane.fork(len(_PAIRS) + 1)[: len(_PAIRS)]
    await _deal(strands, table, count)


async def _deal(strands: list[Lane], table: AnyTable, count: int) -> tuple[Bytes, Words]:
    """Deal for the other two parties; return the bits (count, 1) of the signs they will find, and
    the shifts (count,).
    """
    v = domain_bits(table.shape[0])
    for pair, strand in zip(_PAIRS, strands, strict=True):
        if strand.role is pair.dealer:
            whose = strand.role if strand.settings.prepared else Role.CLIENT
            shift = strand.draw(whose, (count,), v)
            roots = [_roots(strand, holder, count) for holder in pair.holders]
            correction, found = generate_selectors(shift, roots[0], roots[1], v)
            for holder in pair.holders:
                await strand.send_bytes(holder, correction, online=False)
            return (found ^ np.uint8(1)).reshape(count, 1), shift
    raise LocalProtocolError("only computing parties look up")


async def _change(strands: list[Lane], table: AnyTable, shift: Words) -> None:
    """Tell the other two parties how the shift that was dealt for them differs from the client's,
    unless it is the client's.
    """
    v = domain_bits(table.shape[0])
    for pair, strand in zip(_PAIRS, strands, strict=True):
        if strand.settings.prepared and strand.role is pair.dealer:
            change = canonical(shift - strand.draw(Role.CLIENT, shift.shape, v), v)
            for holder in pair.holders:
                await strand.send_words(holder, [field(shift.shape, v)], [change])


async def _look_up(strands: list[Lane], table: AnyTable, count: int) -> dict[_Pair, Words]:
    """This party's additive shares of the rows of both its pairs, up to their signs."""
    v = domain_bits(table.shape[0])
    fields = [field((count,), v)]
    parts = {}
    for pair, strand in zip(_PAIRS, strands, strict=True):
        if strand.role is pair.dealer:
            continue
        party = pair.holders.index(strand.role)
        roots = _roots(strand, pair.dealer, count)
        correction = await strand.receive_bytes(pair.dealer, count * selector_bytes(v))
        (delta,) = await strand.receive_words(Role.CLIENT, fields)
        if strand.settings.prepared:
            (change,) = await strand.receive_words(pair.dealer, fields)
            delta = canonical(delta + change, v)
        share = _common_share(pair, table)
        if share is None:
            parts[pair] = np.zeros((count, table.shape[1]), dtype=np.uint64)
            continue
        work = count * table.shape[0] * table.shape[1] // 8
        rows = await strand.run(work, _read, party, roots, correction, v, delta, share)
        parts[pair] = rows if party == 0 else np.uint64(0) - rows
    return parts


def _roots(strand: Lane, peer: Role, count: int) -> Bytes:
    return strand.draw(peer, (count, 2)).view(np.uint8).reshape(count, 16)


def _common_share(pair: _Pair, table: AnyTable) -> "Half | PublicTable | None":
    """What both parties of the pair hold of the table: m, lam1 or lam2. The masks of a public table
    are zero: None.
    """
    if isinstance(table, PublicTable):
        return table if pair is _M else None
    if table.halves is None:
        raise LocalProtocolError("this party has no share of the table")
    first, second = table.halves
    if table.role.is_dealer:
        return first if Role.EVALUATOR_A in pair.holders else second
    return second if Role.DEALER in pair.holders else first


def _read(
    party: int,
    roots: Bytes,
    correction: Bytes,
    v: int,
    delta: Words,
    share: Half | PublicTable,
) -> Words:
    """The sum of the rows that this party's bits choose: (n, columns) below 2^32."""
    count, rows = delta.size, share.shape[0]
    leaves = expand_selectors(party, roots, correction, v)
    chosen = np.empty((count, rows), dtype=np.uint8)
    for row, (start, found) in enumerate(zip(delta.tolist(), leaves, strict=True)):
        # Entry j is the leaf at (start - j) modulo the domain.
        first = min(start + 1, rows)
        chosen[row, :first] = found[start - first + 1 : start + 1][::-1]
        chosen[row, first:] = found[found.size - (rows - first) :][::-1]
    if isinstance(share, PublicTable):
        return share.chosen_sums(chosen).astype(np.uint64)
    return chosen_sums(chosen, share).astype(np.uint64)


# -- results for the client ------------------------------------------------------------------------


def reveal_cost(count: int, width: int) -> Cost:
    """Cost of `reveal`: one message from each evaluator."""
    return Cost(online=2 * packed_bytes(count, width))


@protocol("reveal")
async def reveal(lane: Lane, x: SecretTensor) -> None:
    """Reveal x to the client only. A sends m - lam1 and B sends lam2: uniform words except that
    their difference is x.
    """
    if lane.tracing:
        lane.charge("reveal", reveal_cost(x.size, x.width))
    elif not lane.is_dealer:
        share = x.a - x.b if lane.leads else x.b
        await lane.send_words(Role.CLIENT, [field(x.shape, x.width)], [share])


@protocol("reveal")
async def revealed(lane: Lane, shape: tuple[int, ...], width: int) -> Words:
    """The client's part of `reveal`: the ring words of x."""
    fields = [field(shape, width)]
    (first,) = await lane.receive_words(Role.EVALUATOR_A, fields)
    (second,) = await lane.receive_words(Role.EVALUATOR_B, fields)
    return canonical(first - second, width)
