"""Point functions over buckets, element by element, on AES instructions.

The tree is that of `protocols.functions.buckets`, where the layout of a correction is and the NumPy
twins are; same results bit for bit.
"""

import numpy as np

from protocols.kernels.aes.aesni import GROUP_LIMIT, KEY_WORDS, make_hash, make_tally
from protocols.kernels.aes.fixed_key import LEAF
from protocols.kernels.bits import Counts
from protocols.kernels.forest import descend, grow, side_corrections
from protocols.kernels.jit import Words, kernel

_child = make_hash(1, add=False)
_hashed = make_hash(2, add=False)
_leaf_pair = make_hash(2, add=True)
_tally_bytes = make_tally(2, 8)
_tally_pairs = make_tally(4, 16)

_ONE = np.uint64(1)
_LEAF_KEY = LEAF * KEY_WORDS
_COUNT_KEY = (LEAF + 2) * KEY_WORDS
_BYTE_TOPS = np.uint64(0x8080808080808080)
_PAIR_TOPS = np.uint64(0x8000800080008000)


@kernel()
def _plus(a: np.uint64, b: np.uint64, tops: np.uint64) -> np.uint64:
    """The sum of two words lane by lane; `tops` has the top bit of every lane."""
    return ((a & ~tops) + (b & ~tops)) ^ ((a ^ b) & tops)


@kernel()
def _minus(a: np.uint64, b: np.uint64, tops: np.uint64) -> np.uint64:
    return ((a | tops) - (b & ~tops)) ^ ((a ^ ~b) & tops)


@kernel("void(in1, int64, in1, in1, int64, int64, in1, in1, uint32[:, ::1])")
def count(
    keys: Words, party: int, roots: Words, correction: Words, v: int, words: int,
    top: Words, ends: Words, out: Counts,
) -> None:  # fmt: skip
    """Add up the counters of each row's elements, turned by `top`: out (rows, 2^v)."""
    size, depth, counter = 1 << v, v - 5, words // 4
    each = 2 * (v - 2) + words + 4
    nodes = np.empty((2 << depth) + 2 * GROUP_LIMIT, np.uint64)
    fix = np.empty(4, np.uint64)
    nodes[:] = 0
    # Twice around, so that a turned element is one run: folded at the end.
    held = np.empty(2 * size * counter, np.uint8)
    bytewise, pairwise = held, held.view(np.uint16)
    start = np.int64(0)
    for row in range(ends.size):
        end = np.int64(ends[row])
        held[:] = 0
        for e in range(start, end):
            grow(keys, party, roots, correction, e, e * each, depth, nodes, fix)
            # The share of bucket j counts at top - j; `held` runs backwards, so that both ascend.
            first, at = (size - np.int64(top[e])) * counter, e * each + 2 * depth
            if words == 4:
                _tally_bytes(keys, _COUNT_KEY, nodes, 1 << depth, correction, at, held, first)
            else:
                _tally_pairs(keys, _COUNT_KEY, nodes, 1 << depth, correction, at, held, first)
        start = end
        for p in range(size):
            back = (size - p) & (size - 1)
            if words == 4:
                word = np.uint32(bytewise[back] + bytewise[back + size])
            else:
                word = np.uint32(pairwise[back] + pairwise[back + size])
            out[row, p] = np.uint32(0) - word if party == 1 else word


@kernel()
def _walk(
    keys: Words, place: int, correction: Words, at: int, bit: int, levels: int, node: Words,
    fix: Words,
) -> None:  # fmt: skip
    """Move a node down to the one above `place`, by levels that decide the bits from `bit` on."""
    for level in range(levels):
        side = (place >> (bit + level)) & 1
        side_corrections(correction[at + 2 * level], correction[at + 2 * level + 1], fix)
        _child(keys, side * KEY_WORDS, node, 0, 1, node, 0, 0, fix, 2 * side)


@kernel("void(in1, int64, in1, in1, int64, int64, in1, in2, uint64[::1])")
def weigh(
    keys: Words, party: int, roots: Words, correction: Words, v: int, words: int,
    first: Words, factors: Words, out: Words,
) -> None:  # fmt: skip
    """For each element the sum of factors[:, d] times the payload's share at first + d."""
    depth, above = v - 2, v - 5
    each = 2 * depth + words + 4
    node = np.empty(2 + 2 * GROUP_LIMIT, np.uint64)
    upper = np.empty(2, np.uint64)
    leaf = np.empty(4 + 2 * GROUP_LIMIT, np.uint64)
    fix = np.empty(4, np.uint64)
    node[:] = 0
    for e in range(first.size):
        total, found, base = np.uint64(0), np.int64(-1), e * each
        for d in range(factors.shape[1]):
            place = (np.int64(first[e]) + d) & ((1 << v) - 1)
            if place >> 2 != found:
                if found < 0 or place >> 5 != found >> 3:  # else below the same node
                    node[0] = (roots[2 * e] & ~_ONE) | np.uint64(party)
                    node[1] = roots[2 * e + 1]
                    _walk(keys, place, correction, base, 5, above, node, fix)
                    upper[0], upper[1] = node[0], node[1]
                found = place >> 2
                node[0], node[1] = upper[0], upper[1]
                _walk(keys, place, correction, base + 2 * above + words, 2, 3, node, fix)
                for i in range(4):
                    fix[i] = correction[base + 2 * depth + words + i]
                _leaf_pair(keys, _LEAF_KEY, node, 0, 1, leaf, 0, 2, fix, 0)
            total += factors[e, d] * leaf[place & 3]
        out[e] = -total if party == 1 else total


@kernel("void(in1, in1, in1, in1, in1, int64, int64, uint64[::1])")
def generate(
    keys: Words, alpha: Words, payload: Words, roots_a: Words, roots_b: Words, v: int, words: int,
    out: Words,
) -> None:  # fmt: skip
    """The dealer's corrections, flat."""
    depth, above = v - 2, v - 5
    each = 2 * depth + words + 4
    nodes = np.empty(2 * GROUP_LIMIT, np.uint64)
    both = np.empty(4 + 2 * GROUP_LIMIT, np.uint64)
    leaves = np.empty(4 * (words // 2) + 2 * GROUP_LIMIT, np.uint64)
    fix, zeros = np.empty(4, np.uint64), np.zeros(4, np.uint64)
    tops = _BYTE_TOPS if words == 4 else _PAIR_TOPS
    lanes = 32 // words
    nodes[:] = 0
    for e in range(alpha.size):
        nodes[0], nodes[1] = roots_a[2 * e] & ~_ONE, roots_a[2 * e + 1]
        nodes[2], nodes[3] = roots_b[2 * e] | _ONE, roots_b[2 * e + 1]
        at = e * each
        for level in range(depth):
            if level == above:
                for b in range(0, words // 2, 2):
                    _hashed(keys, _COUNT_KEY + b * KEY_WORDS, nodes, 0, 2,
                            leaves, 4 * b, 4, zeros, 0)  # fmt: skip
                lane = np.int64(alpha[e]) & 31
                for i in range(words):
                    one = np.uint64(0)
                    if lane // lanes == i:
                        one = _ONE << np.uint64(lane % lanes * (64 // lanes))
                    place = 4 * (i // 2) + i % 2
                    gap = _plus(_minus(one, leaves[place], tops), leaves[place + 2], tops)
                    out[at + i] = _minus(np.uint64(0), gap, tops) if nodes[2] & _ONE else gap
                at += words
            place = 5 + level if level < above else 2 + level - above
            bit = (alpha[e] >> np.uint64(place)) & _ONE
            descend(keys, nodes, both, fix, zeros, bit, out, at)
            at += 2
        _hashed(keys, _LEAF_KEY, nodes, 0, 2, leaves, 0, 4, zeros, 0)
        for i in range(4):
            place = 4 * (i // 2) + i % 2
            target = payload[e] if np.int64(alpha[e]) & 3 == i else np.uint64(0)
            gap = target - leaves[place] + leaves[place + 2]
            out[at + i] = -gap if nodes[2] & _ONE else gap
