"""Point functions over buckets that can be read in two ways.

The dealer shares a function over 2^v buckets that is (1, payload) at one secret bucket alpha and 0
elsewhere: the 1 in a counter of 8 or 16 bits, the payload in Z_2^64. Evaluators expand all counters
(`count`), but the payload only where they need it (`weigh`), which takes a few paths of the tree.

It is the tree of `protocols.dpf`, cut short twice. Five levels above the buckets, a node yields the
counters of its 32 buckets; it goes on from there by three levels, to nodes that yield the payloads
of four. So a node above may be hashed under the keys of both children and of the counters; these
are different keys (see `protocols.kernels.aes.fixed_key` for the assumption).

An element's correction, in words: two for each of the upper v - 5 levels, those of the counters (4,
or 8 for counters of 16 bits), two for each of the lower three levels, and four for the payload.
"""

from dataclasses import dataclass

import numpy as np

from protocols.dpf import descend
from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.kernels.aes import buckets
from protocols.kernels.aes.aesni import available, round_keys
from protocols.kernels.aes.fixed_key import LEAF, mmo
from protocols.kernels.bits import Counts
from protocols.kernels.jit import Bytes, Words
from protocols.kernels.tree import convert, next_level, root_words, seeds_of

_ONE = np.uint64(1)
_ALL = ~np.uint64(0)
_CONTROL = np.array([1, 0], dtype=np.uint64)
_NODE_BITS = 5  # log2 of the buckets whose counters a node yields
_QUAD_BITS = 2  # and of those whose payloads a node yields
_CHUNK_WORDS = 1 << 18  # of expanded counters at a time in the NumPy twin
MIN_BITS = 7


@dataclass(frozen=True, slots=True)
class Layout:
    """Shape of the point functions.

    Attributes:
        bits: log2 of the number of buckets; at least `MIN_BITS`.
        wide: counters have 16 bits instead of 8.
    """

    bits: int
    wide: bool

    @property
    def size(self) -> int:
        """Number of buckets."""
        return 1 << self.bits

    @property
    def counter_words(self) -> int:
        """Words that hold the counters of a node."""
        return 8 if self.wide else 4

    @property
    def words(self) -> int:
        """Words of an element's correction."""
        return 2 * (self.bits - _QUAD_BITS) + self.counter_words + 4

    @property
    def upper(self) -> int:
        """Levels above the counters."""
        return self.bits - _NODE_BITS

    def steps(self) -> list[tuple[int, int]]:
        """For each level: where its correction starts, and the bit of a bucket that it decides."""
        below = range(self.upper, self.bits - _QUAD_BITS)
        upper = [(2 * level, _NODE_BITS + level) for level in range(self.upper)]
        return upper + [
            (2 * level + self.counter_words, _QUAD_BITS + level - self.upper) for level in below
        ]

    @property
    def _lanes(self) -> np.dtype[np.unsignedinteger]:
        return np.dtype("<u2" if self.wide else "u1")

    def lanes(self, words: Words) -> np.ndarray[tuple[int, ...], np.dtype[np.unsignedinteger]]:
        """The counters in words (..., n)."""
        return np.ascontiguousarray(words).view(self._lanes)


def generate(layout: Layout, alpha: Words, payload: Words, roots_a: Bytes, roots_b: Bytes) -> Bytes:
    """The dealer's part: one contiguous buffer of 8 n `layout.words` bytes.

    alpha (n,) buckets below 2^bits; payload (n,) ring words; roots (n, 16) bytes of each party.
    Raises LocalProtocolError if the shapes do not fit or a bucket lies outside.
    """
    n = payload.size
    if alpha.shape != (n,) or (n and int(alpha.max()) >> layout.bits):
        raise LocalProtocolError(f"give {n} buckets below 2^{layout.bits}: one for each payload")
    root_a, root_b = root_words(roots_a, n), root_words(roots_b, n)
    if not available():
        return generate_numpy(layout, alpha, payload, root_a, root_b).reshape(-1).view(np.uint8)
    out = np.empty(n * layout.words, dtype=np.uint64)
    flat = [np.ascontiguousarray(item).reshape(-1) for item in (alpha, payload, root_a, root_b)]
    buckets.generate(_keys(), *flat, layout.bits, layout.counter_words, out)
    return out.view(np.uint8)


def generate_numpy(
    layout: Layout, alpha: Words, payload: Words, root_a: Words, root_b: Words
) -> Words:
    """NumPy twin of the fused dealer: roots (n, 2) words -> corrections (n, words)."""
    n = alpha.size
    correction = np.empty((n, layout.words), dtype=np.uint64)
    nodes = np.stack([root_a & ~_CONTROL, root_b | _CONTROL])
    for level, (at, bit) in enumerate(layout.steps()):
        if level == layout.upper:
            correction[:, at - layout.counter_words : at] = _counter_fix(layout, alpha, nodes)
        block, nodes = descend(nodes, (alpha >> np.uint64(bit)) & _ONE)
        correction[:, at : at + 2] = block
    leaves = convert(seeds_of(nodes), 4)
    target = np.zeros((n, 4), dtype=np.uint64)
    target[np.arange(n), (alpha & np.uint64(3)).astype(np.intp)] = payload
    sign = (_ONE - ((nodes[1, :, 0] & _ONE) << _ONE))[:, None]
    correction[:, -4:] = (target - leaves[0] + leaves[1]) * sign
    return correction


def _counter_fix(layout: Layout, alpha: Words, nodes: Words) -> Words:
    """The words that turn the difference of both nodes' counters into a 1 at alpha."""
    n = alpha.size
    hashed = _counter_blocks(layout, seeds_of(nodes))
    first, second = layout.lanes(hashed[0]), layout.lanes(hashed[1])
    target = np.zeros_like(first)
    target[np.arange(n), (alpha & np.uint64(31)).astype(np.intp)] = 1
    gap = target - first + second
    gap = np.where((nodes[1, :, :1] & _ONE).astype(np.bool_), np.negative(gap), gap)
    return np.ascontiguousarray(gap).view(np.uint64)


def _counter_blocks(layout: Layout, seeds: Words) -> Words:
    """Seeds (..., 2) -> (..., counter_words) pseudorandom words."""
    blocks = [mmo(LEAF + 2 + b, seeds) for b in range(layout.counter_words // 2)]
    return np.concatenate(blocks, axis=-1)


def count(
    layout: Layout, party: int, roots: Bytes, correction: Bytes, top: Words, ends: Words
) -> Counts:
    """Shares (rows, 2^bits) of histograms: how many of a row's elements have alpha = top - p.

    Modulo 2^8 or 2^16, as the counters are; higher bits are meaningless.

    Args:
        party: 0 or 1. roots: (n, 16).
        top: (n,) words below 2^bits.
        ends: (rows,) the number of the element after each row's last.

    Raises RemoteProtocolError if the correction's length is wrong.
    """
    words, seeds = _words(layout, correction, len(roots)), root_words(roots, len(roots))
    if not available():
        return count_numpy(layout, party, seeds, words, top, ends)
    out = np.empty((ends.size, layout.size), dtype=np.uint32)
    flat = [np.ascontiguousarray(item).reshape(-1) for item in (seeds, words)]
    tops, stops = np.ascontiguousarray(top), np.ascontiguousarray(ends)
    buckets.count(_keys(), party, *flat, layout.bits, layout.counter_words, tops, stops, out)
    return out


def count_numpy(
    layout: Layout, party: int, roots: Words, correction: Words, top: Words, ends: Words
) -> Counts:
    """NumPy twin of the fused kernel: roots (n, 2), correction (n, words)."""
    out = np.zeros((ends.size, layout.size), dtype=np.uint32)
    row_of = np.searchsorted(ends, np.arange(len(roots)), side="right")
    places = np.arange(layout.size, dtype=np.uint64)
    step = max(1, _CHUNK_WORDS // layout.size)
    for lo in range(0, len(roots), step):
        part = slice(lo, min(len(roots), lo + step))
        shares = _counters(layout, party, roots[part], correction[part])
        turned = (top[part, None] - places) & np.uint64(layout.size - 1)
        np.add.at(out, row_of[part], np.take_along_axis(shares, turned.astype(np.intp), axis=1))
    return out


def _counters(layout: Layout, party: int, roots: Words, correction: Words) -> Counts:
    """Shares (n, 2^bits) of the counters."""
    nodes = roots[:, None, :].copy()
    nodes[..., 0] = (nodes[..., 0] & ~_ONE) | np.uint64(party)
    for level in range(layout.upper):
        nodes = next_level(nodes, correction[:, 2 * level : 2 * level + 2])
    at = 2 * layout.upper
    fix = correction[:, None, at : at + layout.counter_words]
    applied = layout.lanes(fix & ((nodes[..., :1] & _ONE) * _ALL))
    lanes = layout.lanes(_counter_blocks(layout, seeds_of(nodes))) + applied
    shares = lanes.reshape(len(roots), -1).astype(np.uint32)
    return np.negative(shares) if party else shares


def weigh(
    layout: Layout, party: int, roots: Bytes, correction: Bytes, first: Words, factors: Words
) -> Words:
    """Shares (n,) of factors[:, d] times the payload, if alpha = first + d for some d; else of 0.

    Args:
        first: (n,) words below 2^bits; first + d wraps around.
        factors: (n, D) words.

    Raises RemoteProtocolError if the correction's length is wrong.
    """
    words, seeds = _words(layout, correction, len(roots)), root_words(roots, len(roots))
    if not available():
        return weigh_numpy(layout, party, seeds, words, first, factors)
    out = np.empty(len(roots), dtype=np.uint64)
    flat = [np.ascontiguousarray(item).reshape(-1) for item in (seeds, words, first)]
    table = np.ascontiguousarray(factors)
    buckets.weigh(_keys(), party, *flat[:2], layout.bits, layout.counter_words, flat[2], table, out)
    return out


def weigh_numpy(
    layout: Layout, party: int, roots: Words, correction: Words, first: Words, factors: Words
) -> Words:
    """NumPy twin of the fused kernel: roots (n, 2), correction (n, words)."""
    total = np.zeros(len(roots), dtype=np.uint64)
    for d in range(factors.shape[1]):
        place = (first + np.uint64(d)) & np.uint64(layout.size - 1)
        nodes = roots.copy()
        nodes[:, 0] = (nodes[:, 0] & ~_ONE) | np.uint64(party)
        for at, bit in layout.steps():
            children = next_level(nodes[:, None], correction[:, at : at + 2])
            nodes = children[np.arange(len(roots)), ((place >> np.uint64(bit)) & _ONE).astype(int)]
        leaves = convert(seeds_of(nodes), 4) + (nodes[:, :1] & _ONE) * correction[:, -4:]
        share = leaves[np.arange(len(roots)), (place & np.uint64(3)).astype(int)]
        total += factors[:, d] * share
    return np.negative(total) if party else total


def _keys() -> Words:
    return round_keys(LEAF + 6)


def _words(layout: Layout, correction: Bytes, n: int) -> Words:
    expected = 8 * n * layout.words
    if correction.size != expected:
        raise RemoteProtocolError(
            f"a correction of {correction.size} bytes instead of {expected}: both parties must run "
            "the same program"
        )
    held = np.require(np.ascontiguousarray(correction).view(np.uint64), requirements="A")
    return held.reshape(n, layout.words)
