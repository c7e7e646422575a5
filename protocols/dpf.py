"""Distributed point functions over a domain of 2^v points, many at once.

The dealer shares the function that is `payload` at the point alpha and 0 elsewhere: each party
draws a fresh 128-bit root, both get the same correction, and the expansions of the two parties add
up to the function modulo 2^64. One party alone learns nothing of alpha or payload. This is the
tree construction of Boyle, Gilboa, Ishai (CCS 2016, figure 1) over a fixed-key AES
(see `protocols.kernels.aes.fixed_key` for the assumption), with two variations: seeds of 126 bits
leave room in each block for the two control bits, and for payloads of one word two leaves share a
block (early termination).

Where the payload is one bit, 128 neighbouring leaves share a block and both parties' bits differ at
alpha alone (`generate_selectors`): the same tree with seven levels fewer.

The roots must be fresh and uniform for every element; a root used twice breaks the scheme. Party
0's root has control bit 0, party 1's has 1, so bit 0 of the roots' first byte is overwritten.
"""

import numpy as np

from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.kernels import forest
from protocols.kernels.aes.aesni import available, round_keys
from protocols.kernels.aes.fixed_key import LEAF, LEFT, RIGHT, mmo
from protocols.kernels.jit import Bytes, Words
from protocols.kernels.spline import spline_shares
from protocols.kernels.tree import (
    SEED_BITS,
    child_correction,
    convert,
    correction_bytes,
    leaf_words,
    next_level,
    root_words,
    seeds_of,
    tree_depth,
)

__all__ = [
    "correction_bytes",
    "expand_selectors",
    "generate",
    "generate_selectors",
    "selector_bytes",
    "spline_shares",
]

_ONE = np.uint64(1)
_ALL = ~np.uint64(0)
_CONTROL = np.array([1, 0], dtype=np.uint64)  # bit 0 of a block's word 0


def generate(alpha: Words, payload: Words, roots_a: Bytes, roots_b: Bytes, v: int) -> Bytes:
    """The dealer's part: one contiguous buffer of n * correction_bytes(v, w) bytes.

    alpha (n,) points below 2^v; payload (n, w) ring words; roots (n, 16) bytes of each party.
    Raises LocalProtocolError if the shapes do not fit or a point lies outside the domain.
    """
    n, w = payload.shape
    size = correction_bytes(v, w)
    if alpha.shape != (n,) or (n and int(alpha.max()) >> v):
        raise LocalProtocolError(f"points must be {n} words below 2^{v}: one for each payload")
    root_a, root_b = root_words(roots_a, n), root_words(roots_b, n)
    if not available():
        return generate_numpy(alpha, payload, root_a, root_b, v).reshape(-1).view(np.uint8)
    out = np.empty(n * size // 8, dtype=np.uint64)
    alpha, payload = np.ascontiguousarray(alpha), np.ascontiguousarray(payload).reshape(-1)
    keys = round_keys(LEAF + (leaf_words(w) + 1) // 2)
    forest.generate(keys, alpha, payload, root_a.reshape(-1), root_b.reshape(-1), v, w, out)
    return out.view(np.uint8)


def generate_numpy(alpha: Words, payload: Words, root_a: Words, root_b: Words, v: int) -> Words:
    """NumPy twin of the fused dealer: roots (n, 2) words -> corrections (n, words)."""
    n, w = payload.shape
    depth, words = tree_depth(v, w), leaf_words(w)
    correction = np.empty((n, correction_bytes(v, w) // 8), dtype=np.uint64)
    nodes = _walk(alpha >> np.uint64(v - depth), root_a, root_b, depth, correction)
    leaves = convert(seeds_of(nodes), words)
    correction[:, 2 * depth :] = final_words(leaves, nodes[1, :, 0] & _ONE, alpha, payload)
    return correction


def _walk(path: Words, root_a: Words, root_b: Words, depth: int, correction: Words) -> Words:
    """Both parties' nodes (2, n, 2) at the end of the path; fills the levels' corrections."""
    nodes = np.stack([root_a & ~_CONTROL, root_b | _CONTROL])
    for level in range(depth):
        block, nodes = descend(nodes, (path >> np.uint64(level)) & _ONE)
        correction[:, 2 * level : 2 * level + 2] = block
    return nodes


def descend(nodes: Words, bit: Words) -> tuple[Words, Words]:
    """One level on both parties' paths: nodes (2, n, 2), next bit of alpha -> correction, nodes."""
    seeds = seeds_of(nodes)
    left, right = mmo(LEFT, seeds), mmo(RIGHT, seeds)
    go_right = (bit * _ALL)[:, None]
    keep = left ^ ((left ^ right) & go_right)
    lose = left ^ right ^ keep
    block = lose[0] ^ lose[1]
    control_left = (left[0, :, 0] ^ left[1, :, 0] ^ bit ^ _ONE) & _ONE
    control_right = (right[0, :, 0] ^ right[1, :, 0] ^ bit) & _ONE
    block[:, 0] = (block[:, 0] & SEED_BITS) | control_left | (control_right << _ONE)
    sides = child_correction(block, 0), child_correction(block, 1)
    applied = sides[0] ^ ((sides[0] ^ sides[1]) & go_right)
    active = (nodes[..., :1] & _ONE) * _ALL
    return block, keep ^ (applied & active)


def final_words(leaves: Words, control_b: Words, alpha: Words, payload: Words) -> Words:
    """The words that turn the difference of both leaves (2, n, words) into the payload."""
    w = payload.shape[1]
    if w == 1:
        target = np.zeros(leaves.shape[1:], dtype=np.uint64)
        np.put_along_axis(target, (alpha & _ONE).astype(np.intp)[:, None], payload, axis=1)
    else:
        target = payload
    difference = target - leaves[0] + leaves[1]
    sign = (_ONE - (control_b << _ONE))[:, None]
    corrected: Words = difference * sign
    return corrected


# -- one bit per point -----------------------------------------------------------------------------

_BLOCK_BITS = 7
"""log2 of the points that share a block."""


def _selector_depth(v: int) -> int:
    return max(0, v - _BLOCK_BITS)


def selector_bytes(v: int) -> int:
    """Bytes per element of a selector's correction: one block per level, and one at the end."""
    return 16 * (_selector_depth(v) + 1)


def generate_selectors(alpha: Words, roots_a: Bytes, roots_b: Bytes, v: int) -> tuple[Bytes, Bytes]:
    """The dealer's part of point functions over bits: both parties' bits differ at alpha alone.

    Returns:
        The correction for both parties, n * selector_bytes(v) bytes; and the bits (n,) that party 0
        will find at alpha, which neither party may learn.
    """
    n, depth = alpha.size, _selector_depth(v)
    if n and int(alpha.max()) >> v:
        raise LocalProtocolError(f"points must be below 2^{v}")
    correction = np.empty((n, 2 * depth + 2), dtype=np.uint64)
    roots = root_words(roots_a, n), root_words(roots_b, n)
    nodes = _walk(alpha >> np.uint64(_BLOCK_BITS), *roots, depth, correction)
    leaves = convert(seeds_of(nodes), 2)
    target = np.zeros((n, 2), dtype=np.uint64)
    place = alpha & np.uint64((1 << _BLOCK_BITS) - 1)
    word = (place >> np.uint64(6)).astype(np.intp)
    bit = place & np.uint64(63)
    target[np.arange(n), word] = _ONE << bit
    final = leaves[0] ^ leaves[1] ^ target
    correction[:, 2 * depth :] = final
    first = leaves[0] ^ (final & (nodes[0, :, :1] & _ONE) * _ALL)
    found = (first[np.arange(n), word] >> bit) & _ONE
    return correction.reshape(-1).view(np.uint8), found.astype(np.uint8)


def expand_selectors(party: int, roots: Bytes, correction: Bytes, v: int) -> Bytes:
    """The bits (n, 2^v) of `party` (0 or 1), one per byte, from roots (n, 16).

    Raises RemoteProtocolError if the correction's length is not n * selector_bytes(v).
    """
    n, depth = len(roots), _selector_depth(v)
    if correction.size != n * selector_bytes(v):
        raise RemoteProtocolError(
            f"a selector's correction has {correction.size} bytes, not {n * selector_bytes(v)}: "
            "both parties must run the same program"
        )
    levels = np.require(np.ascontiguousarray(correction).view(np.uint64), requirements="A")
    levels = levels.reshape(n, 2 * depth + 2)
    nodes = root_words(roots, n)[:, None, :].copy()
    nodes[..., 0] = (nodes[..., 0] & ~_ONE) | np.uint64(party)
    for level in range(depth):
        nodes = next_level(nodes, levels[:, 2 * level : 2 * level + 2])
    blocks = convert(seeds_of(nodes), 2)
    blocks ^= levels[:, None, 2 * depth :] & ((nodes[..., :1] & _ONE) * _ALL)
    whole = blocks.reshape(n, -1).view(np.uint8)
    return np.unpackbits(whole, axis=1, count=1 << v, bitorder="little")
