"""Whole point-function trees, element by element, on AES instructions (see `aesni`, `tree`).

A tree stays in the first-level cache: nobody else reads its nodes. Same results as the NumPy twins
of `tree` and `spline`, bit for bit.
"""

import numpy as np

from protocols.kernels.aes import LEAF
from protocols.kernels.aesni import GROUP_LIMIT, KEY_WORDS, make_hash
from protocols.kernels.jit import Words, kernel
from protocols.kernels.simd import make_pair_dots

_children = make_hash(2, add=False)
_leaf_pair = make_hash(2, add=True)
_leaf_single = make_hash(1, add=True)
_dots1, _dots2, _dots4 = make_pair_dots(1), make_pair_dots(2), make_pair_dots(4)

_ONE = np.uint64(1)
_SEED = ~np.uint64(3)
_LEAF_KEY = LEAF * KEY_WORDS
_BESIDE = 4  # trees that grow at the same time


@kernel()
def _side_corrections(word0: np.uint64, word1: np.uint64, fix: Words) -> None:
    """A level's correction -> the blocks for the left and for the right child."""
    seed = word0 & _SEED
    fix[0], fix[1] = seed | (word0 & _ONE), word1
    fix[2], fix[3] = seed | ((word0 >> _ONE) & _ONE), word1


@kernel()
def _grow(
    keys: Words, party: int, roots: Words, correction: Words, e: int, count: int, depth: int,
    words: int, nodes: Words, room: int, fix: Words,
) -> None:  # fmt: skip
    """The trees of elements e .. e + count - 1, element i's nodes from i * room on.

    They grow side by side, because one small level alone would wait for the latency of AES.
    """
    width = 2 * depth + words
    for i in range(count):
        nodes[i * room] = (roots[2 * (e + i)] & ~_ONE) | np.uint64(party)
        nodes[i * room + 1] = roots[2 * (e + i) + 1]
    for level in range(depth):
        for i in range(count):
            at = (e + i) * width + 2 * level
            _side_corrections(correction[at], correction[at + 1], fix)
            _children(keys, 0, nodes, i * room, 1 << level, nodes, i * room, 2 << level, fix, 0)


@kernel()
def _convert(
    keys: Words, correction: Words, e: int, depth: int, words: int, nodes: Words, start: int,
    leaves: Words, stride: int, fix: Words,
) -> None:  # fmt: skip
    """Leaf conversion b of element e's node j goes to leaves[b * stride + 2 j ..]."""
    final = e * (2 * depth + words) + 2 * depth
    fix[words] = 0
    for i in range(words):
        fix[i] = correction[final + i]
    blocks = (words + 1) // 2
    b = 0
    while b + 2 <= blocks:
        _leaf_pair(keys, _LEAF_KEY + b * KEY_WORDS, nodes, start, 1 << depth,
                   leaves, b * stride, stride, fix, 2 * b)  # fmt: skip
        b += 2
    if b < blocks:
        _leaf_single(keys, _LEAF_KEY + b * KEY_WORDS, nodes, start, 1 << depth,
                     leaves, b * stride, stride, fix, 2 * b)  # fmt: skip


@kernel("void(in1, int64, in1, in1, int64, int64, uint64[::1])")
def expand(
    keys: Words, party: int, roots: Words, correction: Words, v: int, w: int, out: Words
) -> None:
    """Roots (2 n,), corrections flat -> shares (n, w, 2^v), flat."""
    size = 1 << v
    depth, words = (v - 1, 2) if w == 1 else (v, w)
    stride = 2 * (1 << depth) + 2 * GROUP_LIMIT
    nodes = np.empty(stride, np.uint64)
    leaves = np.empty(stride * ((words + 1) // 2), np.uint64)
    fix = np.empty(max(4, words + 1), np.uint64)
    for e in range(roots.size // 2):
        _grow(keys, party, roots, correction, e, 1, depth, words, nodes, stride, fix)
        _convert(keys, correction, e, depth, words, nodes, 0, leaves, stride, fix)
        step = 1 if w == 1 else 2
        for i in range(w):
            source, target = (i // 2) * stride + i % 2, (e * w + i) * size
            if party == 1:
                for j in range(size):
                    out[target + j] = -leaves[source + step * j]
            else:
                for j in range(size):
                    out[target + j] = leaves[source + step * j]


@kernel()
def _moments(
    leaves: Words, stride: int, tables: Words, first: int, row: int, length: int, w: int,
    moments: Words,
) -> None:  # fmt: skip
    """Inner products of leaf block b (payload words 2 b and 2 b + 1) with table k, for k >= 2 b, at
    2 (b w + k)."""
    for b in range((w + 1) // 2):
        k = 2 * b
        while k < w:
            at, out = first + k * row, 2 * (b * w + k)
            if k + 4 <= w:
                _dots4(leaves, b * stride, tables, at, row, length, moments, out)
                k += 4
            elif k + 2 <= w:
                _dots2(leaves, b * stride, tables, at, row, length, moments, out)
                k += 2
            else:
                _dots1(leaves, b * stride, tables, at, row, length, moments, out)
                k += 1


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
    nodes = np.empty(_BESIDE * stride, np.uint64)
    leaves = np.empty(stride * ((words + 1) // 2), np.uint64)
    fix = np.empty(max(4, words + 1), np.uint64)
    moments = np.zeros(2 * w * ((w + 1) // 2), np.uint64)
    powers = np.ones(w, np.uint64)
    for e in range(n):
        place = e % _BESIDE
        if place == 0:
            count = min(_BESIDE, n - e)
            _grow(keys, party, roots, correction, e, count, depth, words, nodes, stride, fix)
        _convert(keys, correction, e, depth, words, nodes, place * stride, leaves, stride, fix)
        for k in range(1, w):
            powers[k] = powers[k - 1] * low[e]
        start = np.int64((np.uint64(size) - top[e]) & np.uint64(size - 1)) * step
        for c in range(classes):
            first = 2 * size * step * c * w + start
            _moments(leaves, stride, tables, first, 2 * size * step, size * step, w, moments)
            total = np.uint64(0)
            if w == 1:
                total = moments[0] + moments[1]
            else:
                for k in range(w):
                    for i in range(k + 1):
                        moment = moments[2 * ((i // 2) * w + k) + i % 2]
                        total += binomials[k * w + i] * powers[k - i] * moment
            out[c * n + e] = -total if party == 1 else total


@kernel()
def _descend(
    alpha: Words, first: int, count: int, bit_at: np.uint64, nodes: Words, both: Words, fix: Words,
    out: Words, at: int, width: int,
) -> None:  # fmt: skip
    """One level: children of both parties' nodes -> correction (to out) and the nodes kept.

    Element i's nodes stand at 4 i (party 0) and 4 i + 2 (party 1), as do the left children; all
    right children behind all left ones.
    """
    for i in range(count):
        bit = (alpha[first + i] >> bit_at) & _ONE
        left, right = 4 * i, 4 * count + 4 * i
        keep, lose = (right, left) if bit else (left, right)
        go_left = (both[left] ^ both[left + 2] ^ bit ^ _ONE) & _ONE
        go_right = (both[right] ^ both[right + 2] ^ bit) & _ONE
        word0 = ((both[lose] ^ both[lose + 2]) & _SEED) | go_left | (go_right << _ONE)
        word1 = both[lose + 1] ^ both[lose + 3]
        out[at + i * width], out[at + i * width + 1] = word0, word1
        _side_corrections(word0, word1, fix)
        for party in range(2):
            node = 4 * i + 2 * party
            mask = np.uint64(0) - (nodes[node] & _ONE)
            for word in range(2):
                corrected = fix[2 * np.int64(bit) + word] & mask
                nodes[node + word] = both[keep + 2 * party + word] ^ corrected


@kernel("void(in1, in1, in1, in1, in1, int64, int64, uint64[::1])")
def generate(
    keys: Words, alpha: Words, payload: Words, roots_a: Words, roots_b: Words, v: int, w: int,
    out: Words,
) -> None:  # fmt: skip
    """The dealer's corrections, flat, from flat inputs."""
    depth, words, early = (v - 1, 2, 1) if w == 1 else (v, w, 0)
    blocks, width = (words + 1) // 2, 2 * depth + words
    nodes = np.zeros(4 * _BESIDE + 2 * GROUP_LIMIT, np.uint64)
    both = np.empty(8 * _BESIDE + 2 * GROUP_LIMIT, np.uint64)
    stride = 4 * _BESIDE + 2 * GROUP_LIMIT
    leaves = np.empty(stride * blocks, np.uint64)
    fix, none, zeros = np.empty(4, np.uint64), np.zeros(2, np.uint64), np.zeros(4, np.uint64)
    for e in range(0, alpha.size, _BESIDE):
        count = min(_BESIDE, alpha.size - e)
        for i in range(count):
            nodes[4 * i], nodes[4 * i + 1] = roots_a[2 * (e + i)] & ~_ONE, roots_a[2 * (e + i) + 1]
            nodes[4 * i + 2] = roots_b[2 * (e + i)] | _ONE
            nodes[4 * i + 3] = roots_b[2 * (e + i) + 1]
        for level in range(depth):
            _children(keys, 0, nodes, 0, 2 * count, both, 0, 4 * count, zeros, 0)
            bit_at = np.uint64(level + early)
            _descend(alpha, e, count, bit_at, nodes, both, fix, out, e * width + 2 * level, width)
        for b in range(blocks):
            _leaf_single(keys, _LEAF_KEY + b * KEY_WORDS, nodes, 0, 2 * count,
                         leaves, b * stride, 0, none, 0)  # fmt: skip
        for i in range(count):
            at = (e + i) * width + 2 * depth
            for word in range(words):
                place = (word // 2) * stride + 4 * i + word % 2
                if w == 1:
                    hit = np.uint64(word) == alpha[e + i] & _ONE
                    target = payload[e + i] if hit else np.uint64(0)
                else:
                    target = payload[(e + i) * w + word]
                difference = target - leaves[place] + leaves[place + 2]
                out[at + word] = -difference if nodes[4 * i + 2] & _ONE else difference
