"""Whole point-function trees, element by element, on AES instructions (see `aesni`, `tree`).

A tree stays in the first-level cache: no other code reads its nodes. Same results as the NumPy
twins of `tree` and `spline`, bit for bit.
"""

import numpy as np

from protocols.kernels.aes.aesni import GROUP_LIMIT, KEY_WORDS, make_hash
from protocols.kernels.aes.fixed_key import LEAF
from protocols.kernels.jit import Words, kernel
from protocols.kernels.simd import make_pair_dot

_children = make_hash(2, add=False)
_leaf_pair = make_hash(2, add=True)
_leaf_single = make_hash(1, add=True)
_pair_dot = make_pair_dot()

_ONE = np.uint64(1)
_SEED = ~np.uint64(3)
_LEAF_KEY = LEAF * KEY_WORDS


@kernel()
def side_corrections(word0: np.uint64, word1: np.uint64, fix: Words) -> None:
    """A level's correction -> the blocks for the left and for the right child."""
    seed = word0 & _SEED
    fix[0], fix[1] = seed | (word0 & _ONE), word1
    fix[2], fix[3] = seed | ((word0 >> _ONE) & _ONE), word1


@kernel()
def grow(
    keys: Words, party: int, roots: Words, correction: Words, e: int, base: int, depth: int,
    nodes: Words, fix: Words,
) -> None:  # fmt: skip
    """All nodes of element e at level `depth`; the levels' corrections start at word `base`."""
    nodes[0] = (roots[2 * e] & ~_ONE) | np.uint64(party)
    nodes[1] = roots[2 * e + 1]
    for level in range(depth):
        at = base + 2 * level
        side_corrections(correction[at], correction[at + 1], fix)
        _children(keys, 0, nodes, 0, 1 << level, nodes, 0, 2 << level, fix, 0)


@kernel()
def _leaves(
    keys: Words, party: int, roots: Words, correction: Words, e: int, depth: int, words: int,
    nodes: Words, leaves: Words, stride: int, fix: Words,
) -> None:  # fmt: skip
    """Expand element e. Leaf conversion b of node j goes to leaves[b * stride + 2 j ..]."""
    base = e * (2 * depth + words)
    grow(keys, party, roots, correction, e, base, depth, nodes, fix)
    final = base + 2 * depth
    fix[words] = 0
    for i in range(words):
        fix[i] = correction[final + i]
    blocks = (words + 1) // 2
    b = 0
    while b + 2 <= blocks:
        _leaf_pair(keys, _LEAF_KEY + b * KEY_WORDS, nodes, 0, 1 << depth,
                   leaves, b * stride, stride, fix, 2 * b)  # fmt: skip
        b += 2
    if b < blocks:
        _leaf_single(keys, _LEAF_KEY + b * KEY_WORDS, nodes, 0, 1 << depth,
                     leaves, b * stride, stride, fix, 2 * b)  # fmt: skip


@kernel("void(in1, int64, in1, in1, int64, int64, in1, in1, in1, in1, uint64[::1])")
def spline(
    keys: Words, party: int, roots: Words, correction: Words, v: int, w: int,
    top: Words, low: Words, tables: Words, binomials: Words, out: Words,
) -> None:  # fmt: skip
    """Tables as `spline.turned_tables` makes them, binomials[k w + i] signed; out (C, n), flat."""
    size, n = 1 << v, roots.size // 2
    depth, words, step = (v - 1, 2, 1) if w == 1 else (v, w, 2)
    classes = out.size // max(1, n)
    stride = 2 * (1 << depth) + 2 * GROUP_LIMIT
    nodes = np.empty(stride, np.uint64)
    leaves = np.empty(stride * ((words + 1) // 2), np.uint64)
    fix = np.empty(max(4, words + 1), np.uint64)
    moment = np.empty(2, np.uint64)
    powers = np.ones(w, np.uint64)
    for e in range(n):
        _leaves(keys, party, roots, correction, e, depth, words, nodes, leaves, stride, fix)
        for k in range(1, w):
            powers[k] = powers[k - 1] * low[e]
        start = np.int64((np.uint64(size) - top[e]) & np.uint64(size - 1))
        for c in range(classes):
            total = np.uint64(0)
            for k in range(w):
                row = ((c * w + k) * 2 * size + start) * step
                for b in range(k // 2 + 1):
                    _pair_dot(leaves, b * stride, tables, row, size * step, moment, 0)
                    if w == 1:
                        total += moment[0] + moment[1]
                        continue
                    i = 2 * b
                    total += binomials[k * w + i] * powers[k - i] * moment[0]
                    if i < k:
                        total += binomials[k * w + i + 1] * powers[k - i - 1] * moment[1]
            out[c * n + e] = -total if party == 1 else total


@kernel()
def descend(
    keys: Words, nodes: Words, both: Words, fix: Words, zeros: Words, bit: np.uint64,
    out: Words, at: int,
) -> None:  # fmt: skip
    """The dealer's step down one level: both parties' nodes (words 0..3) go to the child that `bit`
    names, and the level's correction to out[at ..]. `both`, `fix` are scratch, `zeros` four zeros.
    """
    # Words 0..3: left children of both parties; 4..7: right children.
    _children(keys, 0, nodes, 0, 2, both, 0, 4, zeros, 0)
    keep = 4 * np.int64(bit)
    lose = 4 - keep
    left = (both[0] ^ both[2] ^ bit ^ _ONE) & _ONE
    right = (both[4] ^ both[6] ^ bit) & _ONE
    word0 = ((both[lose] ^ both[lose + 2]) & _SEED) | left | (right << _ONE)
    word1 = both[lose + 1] ^ both[lose + 3]
    out[at], out[at + 1] = word0, word1
    side_corrections(word0, word1, fix)
    for party in range(2):
        mask = np.uint64(0) - (nodes[2 * party] & _ONE)
        for i in range(2):
            corrected = fix[2 * np.int64(bit) + i] & mask
            nodes[2 * party + i] = both[keep + 2 * party + i] ^ corrected


@kernel("void(in1, in1, in1, in1, in1, int64, int64, uint64[::1])")
def generate(
    keys: Words, alpha: Words, payload: Words, roots_a: Words, roots_b: Words, v: int, w: int,
    out: Words,
) -> None:  # fmt: skip
    """The dealer's corrections, flat, from flat inputs."""
    depth, words, early = (v - 1, 2, 1) if w == 1 else (v, w, 0)
    blocks = (words + 1) // 2
    nodes = np.empty(2 * GROUP_LIMIT, np.uint64)
    both = np.empty(4 + 2 * GROUP_LIMIT, np.uint64)
    leaves = np.empty(4 * blocks + 2 * GROUP_LIMIT, np.uint64)
    fix, none = np.empty(4, np.uint64), np.zeros(2, np.uint64)
    zeros = np.zeros(4, np.uint64)
    nodes[:] = 0
    for e in range(alpha.size):
        nodes[0], nodes[1] = roots_a[2 * e] & ~_ONE, roots_a[2 * e + 1]
        nodes[2], nodes[3] = roots_b[2 * e] | _ONE, roots_b[2 * e + 1]
        at = e * (2 * depth + words)
        for level in range(depth):
            bit = (alpha[e] >> np.uint64(level + early)) & _ONE
            descend(keys, nodes, both, fix, zeros, bit, out, at)
            at += 2
        for b in range(blocks):
            _leaf_single(keys, _LEAF_KEY + b * KEY_WORDS, nodes, 0, 2, leaves, 4 * b, 0, none, 0)
        for i in range(words):
            place = 4 * (i // 2) + i % 2
            if w == 1:
                target = payload[e] if np.uint64(i) == alpha[e] & _ONE else np.uint64(0)
            else:
                target = payload[e * w + i]
            difference = target - leaves[place] + leaves[place + 2]
            out[at + i] = -difference if nodes[2] & _ONE else difference
