"""The GGM tree of a distributed point function, level by level over many elements.

A node is a block of two uint64 words. Bit 0 of word 0 is its control bit; bits 0 and 1 are cleared
before the block is used as a seed (126 bits). The correction of a level is one block: bit 0
corrects the left child's control bit, bit 1 the right child's, the rest the seed. So a correction
is a whole number of words and every bit of it is uniform. All left children stand before all right
ones, so level l decides bit l of the leaf's number, the lowest first.
"""

import numpy as np

from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.kernels.aes.fixed_key import LEAF, LEFT, RIGHT, mmo
from protocols.kernels.jit import Bytes, Words

_ONE = np.uint64(1)
SEED_BITS = ~np.uint64(3)


def tree_depth(v: int, w: int) -> int:
    """Levels of the tree: with one payload word, two neighbouring leaves share a block."""
    return v - 1 if w == 1 else v


def leaf_words(w: int) -> int:
    """Words of the final correction."""
    return 2 if w == 1 else w


def correction_bytes(v: int, w: int) -> int:
    """Bytes per element of the correction: 16 per tree level, and 8 per word at its end."""
    if v < 1 or w < 1:
        raise LocalProtocolError(f"a point function needs v >= 1 and w >= 1, not v={v}, w={w}")
    return 16 * tree_depth(v, w) + 8 * leaf_words(w)


def seeds_of(nodes: Words) -> Words:
    """The nodes (..., 2) without control bits."""
    seeds = nodes.copy()
    seeds[..., 0] &= SEED_BITS
    return seeds


def convert(seeds: Words, words: int) -> Words:
    """The leaf conversion: seeds (..., 2) -> (..., words) pseudorandom ring words."""
    blocks = [mmo(LEAF + block, seeds) for block in range(-(-words // 2))]
    return np.concatenate(blocks, axis=-1)[..., :words]


def child_correction(correction: Words, right: int) -> Words:
    """The block (..., 2) to XOR into the left or right child of a node whose control bit is 1."""
    block = correction.copy()
    block[..., 0] &= SEED_BITS
    block[..., 0] |= (correction[..., 0] >> np.uint64(right)) & _ONE
    return block


def next_level(nodes: Words, correction: Words) -> Words:
    """(n, m, 2) nodes and their level's correction (n, 2) -> (n, 2m, 2)."""
    n, m, _ = nodes.shape
    active = (nodes[..., :1] & _ONE) * ~np.uint64(0)
    seeds = seeds_of(nodes)
    children = np.empty((n, 2, m, 2), dtype=np.uint64)
    for side, key in enumerate((LEFT, RIGHT)):
        block = child_correction(correction, side)
        np.bitwise_xor(mmo(key, seeds), block[:, None, :] & active, out=children[:, side])
    return children.reshape(n, 2 * m, 2)


def expand_numpy(party: int, roots: Words, correction: Words, v: int, w: int) -> Words:
    """NumPy twin of the expansion: roots (n, 2), correction (n, words) -> shares (n, 2^v, w)."""
    depth, words = tree_depth(v, w), leaf_words(w)
    nodes = roots[:, None, :].copy()
    nodes[..., 0] = (nodes[..., 0] & ~_ONE) | np.uint64(party)
    for level in range(depth):
        nodes = next_level(nodes, correction[:, 2 * level : 2 * level + 2])
    final = correction[:, None, 2 * depth :]
    shares = convert(seeds_of(nodes), words) + (nodes[..., :1] & _ONE) * final
    if party:
        np.negative(shares, out=shares)
    return shares.reshape(len(roots), 1 << v, w)


def _as_words(data: Bytes) -> Words:
    """Bytes as words; copied only where a frame put them at an odd address."""
    return np.require(np.ascontiguousarray(data).view(np.uint64), requirements="A")


def root_words(roots: Bytes, n: int) -> Words:
    """Roots (n, 16) bytes as blocks (n, 2)."""
    if roots.shape != (n, 16):
        raise LocalProtocolError(f"roots have shape {roots.shape}, but ({n}, 16) bytes are needed")
    return _as_words(roots)


def correction_words(correction: Bytes, n: int, v: int, w: int) -> Words:
    """A received correction as (n, words).

    Raises RemoteProtocolError if its length is not n * correction_bytes(v, w).
    """
    expected = n * correction_bytes(v, w)
    if correction.size != expected:
        raise RemoteProtocolError(
            f"point-function correction has {correction.size} bytes, but {n} elements of"
            f" v={v}, w={w} take {expected}; both parties must run the same program"
        )
    return _as_words(correction).reshape(n, correction_bytes(v, w) // 8)
