"""Secure embedding: rows of a shared table at indices that nobody knows, with point functions.

PUMA (arXiv 2307.12533, section 4.4) lets the servers turn a shared id into a one-hot vector and
look the row up. Here every pair of parties looks up, in the share of the table that both of them
hold, through a distributed point function dealt by the third: it picks a shift rho, the pair learns
delta = id + rho, and reads the expansion of the point rho at (delta - j). Three pairs give three
additive shares of the row, which are reshared. All that happens modulo 2^32, twice as fast as in
the whole ring; the rows found are lifted. The client shares a key with each party, so it knows
every rho and sends the deltas; an id alone never leaves it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocols.arithmetic import lift, lift_cost
from protocols.cost import Cost
from protocols.dpf import correction_bytes, expand, generate
from protocols.entry import protocol
from protocols.errors import LocalProtocolError
from protocols.kernels.matmul import Half, matmul32_into
from protocols.lane import Lane, field
from protocols.linear import Table
from protocols.ring import RING_BITS, Bytes, Words, canonical, packed_bytes
from protocols.shares import EVALUATORS, Role, SecretTensor

LOOKUP_BITS = 32
"""Ring of a look-up: entries of a table must stay below 2^30 with their fraction bits."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two parties that look up in a share both hold, and the third, which deals."""

    dealer: Role
    holders: tuple[Role, Role]
    sign: int


_PAIRS = (
    _Pair(Role.DEALER, (Role.EVALUATOR_A, Role.EVALUATOR_B), 1),  # m
    _Pair(Role.EVALUATOR_B, (Role.DEALER, Role.EVALUATOR_A), -1),  # lam1
    _Pair(Role.EVALUATOR_A, (Role.DEALER, Role.EVALUATOR_B), -1),  # lam2
)


def domain_bits(rows: int) -> int:
    """log2 of the point functions' domain for a table of `rows`."""
    return max(2, (rows - 1).bit_length())


def embed_cost(count: int, shape: tuple[int, int]) -> Cost:
    """Cost of `embed` for `count` indices into a table of `shape`, the client's deltas included."""
    v = domain_bits(shape[0])
    size = count * shape[1]
    found = Cost(
        rounds=1,
        online=6 * packed_bytes(count, v) + 4 * packed_bytes(size, LOOKUP_BITS),
        offline=6 * count * correction_bytes(v, 1),
    )
    return found + lift_cost(size, LOOKUP_BITS, RING_BITS)


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
async def embed(lane: Lane, table: Table, count: int) -> SecretTensor:
    """`count` rows of the table at the client's indices: (count, columns) over Z_2^64. Entries are
    below 2^30 in size, fraction bits included.

    The dealer's share of the work waits for the client, so it is deferred: the dealer runs on, and
    only this message of it comes after the input.

    Cost: 2 rounds after the client's message; per index 6 packed deltas, 4 * 32 bits a column and
    a lift, and six corrections dealt.
    """
    shape = (count, table.shape[1])
    if lane.tracing:
        lane.charge("embed", embed_cost(count, table.shape))
        return lane.blank(shape, 64, table.frac)
    *strands, reshare = lane.fork(len(_PAIRS) + 1)
    if lane.is_dealer:
        one, two = reshare.masks(shape, LOOKUP_BITS)
        lane.defer(_dealer_part(strands, reshare, table, one + two))
        return await lift(lane, SecretTensor(lane.role, one, two, LOOKUP_BITS, table.frac))
    mask = reshare.mask(shape, LOOKUP_BITS)
    part = await _look_up(strands, table, count)
    other = reshare.draw(reshare.peer, shape, LOOKUP_BITS)
    zero = other if lane.leads else np.uint64(0) - other
    dealer_pad = reshare.draw(Role.DEALER, shape, LOOKUP_BITS)
    zero = zero - dealer_pad if lane.leads else zero + dealer_pad
    fields = [field(shape, LOOKUP_BITS)]
    (m,) = await reshare.open(fields, [part + zero])
    (rest,) = await reshare.receive_words(Role.DEALER, fields)
    lane.join([reshare])
    return await lift(lane, SecretTensor(lane.role, m + rest, mask, LOOKUP_BITS, table.frac))


async def _dealer_part(strands: list[Lane], reshare: Lane, table: Table, masks: Words) -> None:
    part = await _look_up(strands, table, masks.shape[0])
    pad_one, pad_two = reshare.masks(masks.shape, LOOKUP_BITS)
    fields = [field(masks.shape, LOOKUP_BITS)]
    for evaluator in EVALUATORS:
        await reshare.send_words(evaluator, fields, [part + masks + pad_one - pad_two])


async def _look_up(strands: list[Lane], table: Table, count: int) -> Words:
    """This party's additive share of the rows: deal for one pair, look up with two others."""
    v = domain_bits(table.shape[0])
    nbytes = count * correction_bytes(v, 1)
    total = np.zeros((count, table.shape[1]), dtype=np.uint64)
    for pair, strand in zip(_PAIRS, strands, strict=True):
        if strand.role is pair.dealer:
            await _deal(strand, pair, count, v)
    for pair, strand in zip(_PAIRS, strands, strict=True):
        if strand.role is pair.dealer:
            continue
        party = pair.holders.index(strand.role)
        roots = strand.draw(pair.dealer, (count, 2)).view(np.uint8).reshape(count, 16)
        correction = await strand.receive_bytes(pair.dealer, nbytes)
        (delta,) = await strand.receive_words(Role.CLIENT, [field((count,), v)])
        share = _common_share(pair, table)
        work = count * table.shape[0] * table.shape[1]
        rows = await strand.run(work, _read, party, roots, correction, v, delta, share)
        total = total + rows if pair.sign > 0 else total - rows
    return total


async def _deal(strand: Lane, pair: _Pair, count: int, v: int) -> None:
    rho = strand.draw(Role.CLIENT, (count,), v)
    roots = [
        strand.draw(holder, (count, 2)).view(np.uint8).reshape(count, 16) for holder in pair.holders
    ]
    payload = np.ones((count, 1), dtype=np.uint64)
    correction = generate(rho, payload, roots[0], roots[1], v)
    for holder in pair.holders:
        await strand.send_bytes(holder, correction, online=False)


def _common_share(pair: _Pair, table: Table) -> Half:
    """The array of the table that both holders have: m, lam1 or lam2."""
    if table.halves is None:
        raise LocalProtocolError("this party holds no share of the table")
    first, second = table.halves
    if table.role.is_dealer:
        return first if Role.EVALUATOR_A in pair.holders else second
    return second if Role.DEALER in pair.holders else first


def _read(party: int, roots: Bytes, correction: Bytes, v: int, delta: Words, share: Half) -> Words:
    count, rows = delta.size, share.shape[0]
    leaves = expand(party, roots, correction, v, 1)[:, 0]
    weights = np.empty((count, rows), dtype=np.uint32)
    for row, (start, found) in enumerate(zip(delta.tolist(), leaves, strict=True)):
        # Entry j is the leaf at (start - j) modulo the domain.
        first = min(start + 1, rows)
        weights[row, :first] = found[start - first + 1 : start + 1][::-1]
        weights[row, first:] = found[found.size - (rows - first) :][::-1]
    out = np.empty((count, share.shape[1]), dtype=np.uint32)
    matmul32_into(weights, share, out, 0, share.shape[1])
    return out.astype(np.uint64)


# -- results for the client ------------------------------------------------------------------------


def reveal_cost(count: int, width: int) -> Cost:
    """Cost of `reveal`: one message from each evaluator."""
    return Cost(online=2 * packed_bytes(count, width))


@protocol("reveal")
async def reveal(lane: Lane, x: SecretTensor) -> None:
    """Give x to the client and nobody else. A sends m - lam1 and B lam2: uniform but for their
    difference, x.
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
