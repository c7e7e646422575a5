"""Splines at every scale, element by element, on AES instructions.

The tree, the layout of its correction and the NumPy twins are in `protocols.functions.ladder`; same
results bit for bit.
"""

import numpy as np

from protocols.kernels.aes.aesni import GROUP_LIMIT, KEY_WORDS, make_hash
from protocols.kernels.aes.fixed_key import LEAF
from protocols.kernels.forest import descend, grow, side_corrections
from protocols.kernels.jit import Words, kernel
from protocols.kernels.simd import make_pair_dot

_children = make_hash(2, add=False)
_leaf_pair = make_hash(2, add=True)
_pair_dot = make_pair_dot()

_ONE = np.uint64(1)
_LEAF_KEY = LEAF * KEY_WORDS
_SLACK = 2 * GROUP_LIMIT


@kernel()
def _part(word: np.uint64, at: int, bits: int) -> np.uint64:
    moved = word >> np.uint64(at) if at >= 0 else word << np.uint64(-at)
    return moved & ((_ONE << np.uint64(bits)) - _ONE)


@kernel("void(in1, in1, in1, in1, int64, int64, int64, uint64[::1])")
def generate_trees(
    keys: Words, lam: Words, roots_a: Words, roots_b: Words, top: int, steps: int, local: int,
    out: Words,
) -> None:  # fmt: skip
    """The dealer's corrections, flat, from flat inputs."""
    depth = 5 + 2 * steps
    nodes = np.zeros(_SLACK, np.uint64)
    both = np.empty(4 + _SLACK, np.uint64)
    leaves = np.empty(2 * (4 + _SLACK), np.uint64)
    fix, zeros = np.empty(4, np.uint64), np.zeros(4, np.uint64)
    for e in range(lam.size):
        nodes[0], nodes[1] = roots_a[2 * e] & ~_ONE, roots_a[2 * e + 1]
        nodes[2], nodes[3] = roots_b[2 * e] | _ONE, roots_b[2 * e + 1]
        base = e * (2 * depth + 4 * steps)
        for level in range(depth):
            bit = _part(lam[e], top - 1 - level, 1)
            descend(keys, nodes, both, fix, zeros, bit, out, base + 2 * level)
            if level > 5 and level % 2 == 0:
                _leaf_pair(keys, _LEAF_KEY, nodes, 0, 2, leaves, 0, 4 + _SLACK, zeros, 0)
                low = _part(lam[e], top - 1 - level - local, local)
                power = _ONE
                for i in range(4):
                    at = base + 2 * depth + 4 * ((level - 6) // 2) + i
                    place = i // 2 * (4 + _SLACK) + i % 2
                    difference = power - leaves[place] + leaves[place + 2]
                    out[at] = -difference if nodes[2] & _ONE else difference
                    power *= low


@kernel("void(in1, int64, in1, in1, in1, in1, in1, in1, int64, int64, int64, int64, uint64[::1])")
def evaluate_trees(
    keys: Words, party: int, roots: Words, correction: Words, m: Words, weights: Words,
    ways: Words, binomials: Words, top: int, steps: int, local: int, halves: int, out: Words,
) -> None:  # fmt: skip
    """Both shares, flat, from flat inputs."""
    n, depth, stride = m.size, 5 + 2 * steps, 160 + _SLACK
    front, nodes = np.zeros(stride, np.uint64), np.zeros(stride, np.uint64)
    leaves, fix = np.empty(2 * stride, np.uint64), np.empty(4, np.uint64)
    sums = np.empty(2, np.uint64)
    for e in range(n):
        base = e * (2 * depth + 4 * steps)
        grow(keys, party, roots, correction, e, base, 5, nodes, fix)
        head = _part(m[e], top - 5, 5)
        for t in range(20):
            place = 2 * np.int64(ways[128 + np.int64((head - np.uint64(t)) & np.uint64(31))])
            front[2 * t], front[2 * t + 1] = nodes[place], nodes[place + 1]
        value = scale = np.uint64(0)
        for step in range(steps):
            count = 20 if step == 0 else 16
            level = 5 + 2 * step
            at = base + 2 * level
            side_corrections(correction[at], correction[at + 1], fix)
            _children(keys, 0, front, 0, count, nodes, 0, 2 * count, fix, 0)
            side_corrections(correction[at + 2], correction[at + 3], fix)
            _children(keys, 0, nodes, 0, 2 * count, nodes, 0, 4 * count, fix, 0)
            at = base + 2 * depth + 4 * step
            for i in range(4):
                fix[i] = correction[at + i]
            _leaf_pair(keys, _LEAF_KEY, nodes, 0, 4 * count, leaves, 0, stride, fix, 0)
            way = (0 if step == 0 else 4) + np.int64(_part(m[e], top - level - 2, 2))
            low = _part(m[e], top - level - 2 - local, local)
            _moments(leaves, stride, weights, way, 8 * count, binomials, low, sums)
            value += sums[0]
            scale += sums[1] << np.uint64(halves * step)
            for t in range(16):
                place = 2 * np.int64(ways[16 * way + t])
                front[2 * t], front[2 * t + 1] = nodes[place], nodes[place + 1]
        out[e] = -value if party == 1 else value
        out[n + e] = -scale if party == 1 else scale


@kernel()
def _moments(
    leaves: Words, stride: int, weights: Words, way: int, words: int, binomials: Words,
    low: np.uint64, sums: Words,
) -> None:  # fmt: skip
    """A step's share of the value and of [the exponent is this one], to sums."""
    pair = np.empty(2, np.uint64)
    powers = np.empty(4, np.uint64)
    powers[0] = 1
    for k in range(1, 4):
        powers[k] = powers[k - 1] * low
    total = np.uint64(0)
    for k in range(4):
        row = (way * 5 + k) * 160
        for i in range(0, k + 1, 2):
            _pair_dot(leaves, i // 2 * stride, weights, row, words, pair, 0)
            total += binomials[4 * k + i] * powers[k - i] * pair[0]
            if i < k:
                total += binomials[4 * k + i + 1] * powers[k - i - 1] * pair[1]
    _pair_dot(leaves, 0, weights, (way * 5 + 4) * 160, words, pair, 0)
    sums[0], sums[1] = total, pair[0]
