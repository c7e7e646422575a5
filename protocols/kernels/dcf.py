"""Distributed comparison functions, many at once: [x < alpha] * (two ring words).

Figure 1 of Boyle, Chandran, Gilboa, Gupta, Ishai, Kumar, Rathee, "Function Secret Sharing for
Mixed-Mode and Fixed-Point Secure Computation" (EUROCRYPT 2021). Each party draws a fresh 128-bit
root, both get the same correction, and what the two parties find at a point x adds up to the
payload if x < alpha and to 0 otherwise, modulo 2^64. One party alone learns nothing of alpha or
the payload. A party walks down a tree along the bits of x, the highest first. Where the walk
leaves alpha's path, the two parties' seeds become equal and their control bits too, so that later
levels add nothing; the level's own correction makes the difference the payload if the walk turned
left, and 0 if it turned right.

A node is a block as in `protocols.kernels.tree`: a seed of 126 bits, bit 0 of word 0 its control
bit, bit 1 unused. The hash of a block whose lowest two bits are

    0: the left child's node    1: the right child's node
    2: what turning left adds   3: what turning right adds

under one fixed key makes all that a node needs (see `protocols.kernels.aes.fixed_key`). A
correction is four words a level and two at the end: the children's seed and control bits as in
`tree`, and two words added to what the walk adds. Every bit of it is uniform. At the end the seed's
hash is added, corrected to make the difference 0 for x = alpha.

The roots must be fresh and uniform for every element. Bit 0 of their first byte is overwritten.
"""

import numpy as np

from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.kernels.aes.aesni import GROUP_LIMIT, available, make_block_hash, round_keys
from protocols.kernels.aes.fixed_key import COMPARISON, mmo
from protocols.kernels.jit import Bytes, Words, kernel
from protocols.kernels.tree import SEED_BITS, as_words, child_correction, root_words, seeds_of

_hash = make_block_hash()

_ZERO, _ONE, _TWO = np.uint64(0), np.uint64(1), np.uint64(2)
_ALL = ~_ZERO
_SEED = SEED_BITS
_LEVEL, _END = 4, 2  # words of a level's correction, and of the last
_SLACK = 2 * GROUP_LIMIT


def key_bytes(bits: int) -> int:
    """Bytes of the correction of one comparison of `bits` bits: 32 a bit, and 16."""
    return 8 * (_LEVEL * bits + _END)


# -- the dealer ------------------------------------------------------------------------------------


def generate(alpha: Words, payload: Words, roots_a: Bytes, roots_b: Bytes, bits: int) -> Bytes:
    """The dealer's part: one contiguous buffer of n * key_bytes(bits) bytes.

    Args:
        alpha: (n,) words below 2^bits; 1 <= bits <= 63.
        payload: (n, 2) ring words.
        roots_a, roots_b: (n, 16) bytes of each party.

    Raises:
        LocalProtocolError: the shapes do not fit, or a word is too large.
    """
    n = len(payload)
    _check_bits(bits)
    if alpha.shape != (n,) or payload.shape != (n, 2) or (n and int(alpha.max()) >> bits):
        raise LocalProtocolError(
            f"comparisons of {bits} bits need {n} words below 2^{bits} and two payload words each"
        )
    one, two = root_words(roots_a, n), root_words(roots_b, n)
    if not available():
        return generate_numpy(alpha, payload, one, two, bits).reshape(-1).view(np.uint8)
    out = np.empty(n * key_bytes(bits) // 8, dtype=np.uint64)
    alpha, payload = np.ascontiguousarray(alpha), np.ascontiguousarray(payload).reshape(-1)
    keys = round_keys(1, COMPARISON)
    generate_trees(keys, alpha, payload, one.reshape(-1), two.reshape(-1), bits, out)
    return out.view(np.uint8)


def generate_numpy(alpha: Words, payload: Words, root_a: Words, root_b: Words, bits: int) -> Words:
    """NumPy twin of `generate_trees`: roots (n, 2) words -> corrections (n, words)."""
    correction = np.empty((len(alpha), key_bytes(bits) // 8), dtype=np.uint64)
    nodes = np.stack([root_a & ~np.array([1, 0], np.uint64), root_b | np.array([1, 0], np.uint64)])
    reached = np.zeros_like(payload)  # the difference of both parties' sums along alpha's path
    for level in range(bits):
        bit = (alpha >> np.uint64(bits - 1 - level)) & _ONE
        right = (bit * _ALL)[:, None]
        children, added = _hashed(nodes)
        keep, lose = _chosen(children, right), _chosen(children, ~right)
        block = lose[0] ^ lose[1]
        left_bit = (children[0, 0, :, 0] ^ children[0, 1, :, 0] ^ bit ^ _ONE) & _ONE
        right_bit = (children[1, 0, :, 0] ^ children[1, 1, :, 0] ^ bit) & _ONE
        block[:, 0] = (block[:, 0] & SEED_BITS) | left_bit | (right_bit << _ONE)
        sign = _ONE - ((nodes[1, :, :1] & _ONE) << _ONE)
        kept, lost = _chosen(added, right), _chosen(added, ~right)
        step = (lost[1] - lost[0] - reached + (payload & right)) * sign
        reached = reached - kept[1] + kept[0] + step * sign
        applied = np.where(right, child_correction(block, 1), child_correction(block, 0))
        nodes = keep ^ (applied & ((nodes[..., :1] & _ONE) * _ALL))
        at = _LEVEL * level
        correction[:, at : at + 2], correction[:, at + 2 : at + 4] = block, step
    ends = mmo(COMPARISON, seeds_of(nodes))
    sign = _ONE - ((nodes[1, :, :1] & _ONE) << _ONE)
    correction[:, _LEVEL * bits :] = (ends[1] - ends[0] - reached) * sign
    return correction


def _hashed(nodes: Words) -> tuple[Words, Words]:
    """Nodes (..., 2) -> their children and what the turns add, each (2, ..., 2), left first."""
    seeds = seeds_of(nodes)
    blocks = np.stack([seeds, seeds, seeds, seeds])
    for use in range(4):
        blocks[use, ..., 0] |= np.uint64(use)
    made = mmo(COMPARISON, blocks)
    return made[:2], made[2:]


def _chosen(sides: Words, right: Words) -> Words:
    """The left (right: all zeros) or the right one (all ones) of two arrays."""
    chosen: Words = sides[0] ^ ((sides[0] ^ sides[1]) & right)
    return chosen


@kernel("void(in1, in1, in1, in1, in1, int64, uint64[::1])")
def generate_trees(
    keys: Words, alpha: Words, payload: Words, roots_a: Words, roots_b: Words, bits: int, out: Words
) -> None:
    """The dealer's corrections, flat, from flat inputs."""
    nodes = np.empty(4, np.uint64)  # of both parties
    blocks, made = np.zeros(16 + _SLACK, np.uint64), np.empty(16 + _SLACK, np.uint64)
    reached = np.empty(2, np.uint64)
    at = 0
    for e in range(alpha.size):
        nodes[0], nodes[1] = roots_a[2 * e] & ~_ONE, roots_a[2 * e + 1]
        nodes[2], nodes[3] = roots_b[2 * e] | _ONE, roots_b[2 * e + 1]
        reached[:] = 0
        for level in range(bits):
            bit = (alpha[e] >> np.uint64(bits - 1 - level)) & _ONE
            for use in range(4):  # both parties' blocks for a use stand side by side
                for party in range(2):
                    place = 4 * use + 2 * party
                    blocks[place] = (nodes[2 * party] & _SEED) | np.uint64(use)
                    blocks[place + 1] = nodes[2 * party + 1]
            _hash(keys, blocks, 8, made)
            keep = 4 * np.int64(bit)
            lose = 4 - keep
            word0 = (made[lose] ^ made[lose + 2]) & _SEED
            word1 = made[lose + 1] ^ made[lose + 3]
            left = (made[0] ^ made[2] ^ bit ^ _ONE) & _ONE
            right = (made[4] ^ made[6] ^ bit) & _ONE
            out[at], out[at + 1] = word0 | left | (right << _ONE), word1
            negative = nodes[2] & _ONE
            for i in range(2):
                step = made[8 + lose + 2 + i] - made[8 + lose + i] - reached[i]
                if bit:
                    step += payload[2 * e + i]
                reached[i] += made[8 + keep + i] - made[8 + keep + 2 + i] + step
                out[at + 2 + i] = -step if negative else step
            at += 4
            fix = word0 | (right if bit else left)
            for party in range(2):
                active = _ZERO - (nodes[2 * party] & _ONE)
                nodes[2 * party] = made[keep + 2 * party] ^ (fix & active)
                nodes[2 * party + 1] = made[keep + 2 * party + 1] ^ (word1 & active)
        for party in range(2):
            blocks[2 * party] = nodes[2 * party] & _SEED
            blocks[2 * party + 1] = nodes[2 * party + 1]
        _hash(keys, blocks, 2, made)
        for i in range(2):
            step = made[2 + i] - made[i] - reached[i]
            out[at + i] = -step if nodes[2] & _ONE else step
        at += 2


# -- an evaluator ----------------------------------------------------------------------------------


def evaluate(party: int, roots: Bytes, correction: Bytes, bits: int, points: Words) -> Words:
    """Shares (n, count, 2) of [x < alpha] * payload at public points x.

    Args:
        party: 0 or 1.
        roots: (n, 16) bytes.
        points: (n, count) words below 2^bits.

    Raises:
        LocalProtocolError: the shapes do not fit.
        RemoteProtocolError: the correction's length is not n * key_bytes(bits).
    """
    n, count = points.shape
    _check_bits(bits)
    if correction.size != n * key_bytes(bits):
        raise RemoteProtocolError(
            f"a comparison's correction has {correction.size} bytes, not {n * key_bytes(bits)}: "
            "both parties must run the same program"
        )
    seeds, words = root_words(roots, n), as_words(correction)
    if not available():
        return evaluate_numpy(party, seeds, words.reshape(n, _LEVEL * bits + _END), bits, points)
    out = np.empty((n, count, 2), dtype=np.uint64)
    keys, flat = round_keys(1, COMPARISON), np.ascontiguousarray(points).reshape(-1)
    evaluate_trees(keys, party, seeds.reshape(-1), words, bits, flat, out.reshape(-1))
    return out


def evaluate_numpy(party: int, roots: Words, correction: Words, bits: int, points: Words) -> Words:
    """NumPy twin of `evaluate_trees`: roots (n, 2), correction (n, words) -> (n, count, 2)."""
    nodes = np.repeat(roots[:, None, :], points.shape[1], axis=1)
    nodes[..., 0] = (nodes[..., 0] & ~_ONE) | np.uint64(party)
    total = np.zeros_like(nodes)
    for level in range(bits):
        words = correction[:, None, _LEVEL * level : _LEVEL * (level + 1)]
        right = (((points >> np.uint64(bits - 1 - level)) & _ONE) * _ALL)[..., None]
        active = (nodes[..., :1] & _ONE) * _ALL
        children, added = _hashed(nodes)
        total += _chosen(added, right) + (words[..., 2:] & active)
        block = words[..., :2]
        fix = np.where(right, child_correction(block, 1), child_correction(block, 0))
        nodes = _chosen(children, right) ^ (fix & active)
    active = (nodes[..., :1] & _ONE) * _ALL
    total += mmo(COMPARISON, seeds_of(nodes)) + (correction[:, None, _LEVEL * bits :] & active)
    return np.negative(total) if party else total


@kernel("void(in1, int64, in1, in1, int64, in1, uint64[::1])")
def evaluate_trees(
    keys: Words, party: int, roots: Words, correction: Words, bits: int, points: Words, out: Words
) -> None:
    """What a party finds at the points of each element, flat, from flat inputs."""
    n = roots.size // 2
    count = points.size // max(1, n)
    nodes, total = np.empty(2 * count, np.uint64), np.empty(2 * count, np.uint64)
    blocks = np.zeros(4 * count + _SLACK, np.uint64)
    made = np.empty(4 * count + _SLACK, np.uint64)
    at = 0
    for e in range(n):
        for j in range(count):
            nodes[2 * j] = (roots[2 * e] & ~_ONE) | np.uint64(party)
            nodes[2 * j + 1] = roots[2 * e + 1]
        total[:] = 0
        for level in range(bits):
            down = np.uint64(bits - 1 - level)
            for j in range(count):
                word = (nodes[2 * j] & _SEED) | ((points[e * count + j] >> down) & _ONE)
                blocks[4 * j], blocks[4 * j + 1] = word, nodes[2 * j + 1]
                blocks[4 * j + 2], blocks[4 * j + 3] = word | _TWO, nodes[2 * j + 1]
            _hash(keys, blocks, 2 * count, made)
            seed0 = correction[at] & _SEED
            for j in range(count):
                active = _ZERO - (nodes[2 * j] & _ONE)
                control = (correction[at] >> (blocks[4 * j] & _ONE)) & _ONE
                nodes[2 * j] = made[4 * j] ^ ((seed0 | control) & active)
                nodes[2 * j + 1] = made[4 * j + 1] ^ (correction[at + 1] & active)
                total[2 * j] += made[4 * j + 2] + (correction[at + 2] & active)
                total[2 * j + 1] += made[4 * j + 3] + (correction[at + 3] & active)
            at += 4
        for j in range(count):
            blocks[2 * j], blocks[2 * j + 1] = nodes[2 * j] & _SEED, nodes[2 * j + 1]
        _hash(keys, blocks, count, made)
        for j in range(count):
            active = _ZERO - (nodes[2 * j] & _ONE)
            for i in range(2):
                word = total[2 * j + i] + made[2 * j + i] + (correction[at + i] & active)
                out[(e * count + j) * 2 + i] = -word if party == 1 else word
        at += 2


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 63:
        raise LocalProtocolError(f"a comparison reads 1 to 63 bits, not {bits}")
