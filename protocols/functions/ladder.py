"""Splines on a number of any size, at its own scale: one point function, read at every scale.

A number v = m - lam lies in one of the ranges [4^(j-1), 4^j), its exponent j in low + 1 .. high. A
spline of 64 segments is to be taken of v / 4^j, and the evaluators do not know j. For every j let
r = 2 j - 6; then T_j = floor(m / 2^r) - floor(lam / 2^r) is the segment of v / 4^j, up to one.
The dealer shares an incremental point function (Boneh, Boyle, Corrigan-Gibbs, Gilboa, Ishai,
"Lightweight Techniques for Private Heavy Hitters", IEEE S&P 2021): one tree along the bits of lam,
the highest first, with a payload at every depth that belongs to an exponent, there (1, l, l^2, l^3)
for the next 12 bits l of lam. An evaluator goes down from the root and keeps of each depth only the
16 nodes for which T_j would be 0 .. 15 (17 before the first exponent, where T may reach 16): for
these j is too large. Of their 64 grandchildren those with T_j >= 16 are segments of exponent j. As
in `protocols.kernels.spline` they are combined with public tables and powers of m's next 12 bits;
the sum of the payloads' first words is [v has exponent j].

Exactness. v = m - lam, so T_j is floor(v / 2^r) or one more, by whether the lower bits borrow, and
modulo 2^(2 high + 1 - r) it is the same number, which is at most 64 for j = high. Only the node on
lam's path counts. Let j be the largest exponent with T_j >= 16; there is one, because v >= 4^low
makes T_(low+1) >= 16. The nodes above have T < 16 (<= 16 above j = high) and were kept, this one
counts, and none below it is kept. Then v < 4^j, as otherwise T_(j+1) >= 16 (or j = high), and
v >= 15 2^r = 15/16 4^(j-1). With u the difference of m's and lam's next 12 bits, 2^12 T_j + u is
v / 2^(r-12), off by less than one, for the same reason.

Trees are those of `protocols.kernels.tree`, with the bits of lam in the opposite order. A
correction is two words a level, followed by four an exponent.
"""

from functools import cache, lru_cache

import numpy as np

from protocols.dpf import descend, final_words
from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.kernels.aes import ladder
from protocols.kernels.aes.aesni import available, round_keys
from protocols.kernels.aes.fixed_key import LEAF
from protocols.kernels.jit import Bytes, Words
from protocols.kernels.spline import combine, signed_binomials
from protocols.kernels.tree import convert, next_level, root_words, seeds_of

SEGMENTS = 64
_WORDS = 4  # of a payload
_ROOT_LEVELS = 5  # above the first exponent's parents: T there is 0 .. 16, below 2^5
_FIRST, _REST = 20, 16  # parents of the first exponent (17, up to whole vectors) and of the others
_KEPT = 16  # segments from which an exponent is the right one
_ONE = np.uint64(1)
_ROW = 2 * 4 * _FIRST  # words of one row of the tables


def tree_depth(steps: int) -> int:
    return _ROOT_LEVELS + 2 * steps


def ladder_bytes(steps: int) -> int:
    """Bytes of the correction for `steps` exponents: 16 a level and 32 an exponent."""
    return 8 * (2 * tree_depth(steps) + _WORDS * steps)


def _part(words: Words, at: int, bits: int) -> Words:
    """Bits at .. at + bits - 1; those below bit 0 are zeros."""
    moved = words >> np.uint64(at) if at >= 0 else words << np.uint64(-at)
    kept: Words = moved & np.uint64((1 << bits) - 1)
    return kept


def _check(steps: int, top: int, local: int) -> None:
    # Parts begin at most 19 bits below bit 0, where lam has no bits left.
    if not (1 <= steps <= top // 2 <= 31 and 1 <= local <= 16):
        raise LocalProtocolError(
            f"{steps} exponents and {local} local bits do not fit numbers of {top} bits"
        )


# -- the dealer ------------------------------------------------------------------------------------


def generate(lam: Words, roots_a: Bytes, roots_b: Bytes, top: int, steps: int, local: int) -> Bytes:
    """The dealer's part: one contiguous buffer of n * ladder_bytes(steps) bytes.

    Args:
        lam: (n,) words, of which the low `top` = 2 high + 1 bits are read, at most 63.
        roots_a, roots_b: (n, 16) bytes of each party.
        steps: high - low.
        local: bits of the local coordinate.

    Raises:
        LocalProtocolError: the shapes do not fit.
    """
    _check(steps, top, local)
    n = lam.size
    one, two = root_words(roots_a, n), root_words(roots_b, n)
    if not available():
        return generate_numpy(lam, one, two, top, steps, local).reshape(-1).view(np.uint8)
    out = np.empty(n * ladder_bytes(steps) // 8, dtype=np.uint64)
    keys, flat = round_keys(LEAF + 2), np.ascontiguousarray(lam)
    ladder.generate_trees(keys, flat, one.reshape(-1), two.reshape(-1), top, steps, local, out)
    return out.view(np.uint8)


def generate_numpy(
    lam: Words, root_a: Words, root_b: Words, top: int, steps: int, local: int
) -> Words:
    """NumPy twin of `generate_trees`: roots (n, 2) words -> corrections (n, words)."""
    depth = tree_depth(steps)
    out = np.empty((lam.size, ladder_bytes(steps) // 8), dtype=np.uint64)
    nodes = np.stack([root_a, root_b])
    nodes[..., 0] = (nodes[..., 0] & ~_ONE) | np.array([[0], [1]], dtype=np.uint64)
    for level in range(depth):
        block, nodes = descend(nodes, _part(lam, top - 1 - level, 1))
        out[:, 2 * level : 2 * level + 2] = block
        step, odd = divmod(level - _ROOT_LEVELS, 2)
        if step >= 0 and odd:
            low = _part(lam, top - 1 - level - local, local)
            payload = np.stack([low ** np.uint64(k) for k in range(_WORDS)], axis=1)
            leaves = convert(seeds_of(nodes), _WORDS)
            at = 2 * depth + _WORDS * step
            out[:, at : at + _WORDS] = final_words(leaves, nodes[1, :, 0] & _ONE, lam, payload)
    return out


# -- an evaluator ----------------------------------------------------------------------------------


@cache
def _places(count: int) -> Words:
    """(4, 4 count): for the two bits of m of a step, the T of each grandchild of `count` parents.

    Grandchild p + count b1 + 2 count b0 of parent p, whose T is p, has 4 p + bits - (2 b1 + b0).
    Negative ones, which do not occur, are 0 too.
    """
    p, b1, b0 = np.meshgrid(np.arange(count), [0, 1], [0, 1], indexing="ij")
    order = (p + count * b1 + 2 * count * b0).reshape(-1)
    found = np.zeros((4, 4 * count), dtype=np.int64)
    for bits in range(4):
        found[bits, order] = np.maximum(0, 4 * p + bits - (2 * b1 + b0)).reshape(-1)
    return found.astype(np.uint64)


@cache
def _next(count: int) -> Words:
    """(4, 16): where the grandchildren with T of 0 .. 15 are."""
    t = np.arange(_REST)
    rows = []
    for bits in range(4):
        turn = (bits - t) % 4
        p = (t - bits + turn) // 4
        rows.append(p + count * (turn >> 1) + 2 * count * (turn & 1))
    return np.array(rows, dtype=np.uint64)


@cache
def _turned() -> Words:
    """(32,): where the node at the end of a path of `_ROOT_LEVELS` bits is: its bits turned."""
    texts = [f"{path:0{_ROOT_LEVELS}b}" for path in range(1 << _ROOT_LEVELS)]
    return np.array([int(text[::-1], 2) for text in texts], dtype=np.uint64)


def _weights(tables: Words, count: int) -> Words:
    """Tables (4, 64) as (4, 5, 4 count): by bits of m, a row of ones below the four, and zeros for
    grandchildren that are not segments of the exponent.
    """
    places = _places(count).astype(np.intp)
    last = _REST if count == _FIRST else _REST - 1  # the parents' largest T
    parents = np.tile(np.arange(count), 4) <= last
    used = ((places >= _KEPT) & parents).astype(np.uint64)
    rows = [*tables[:, places % SEGMENTS], np.ones_like(used)]
    return np.stack(rows, axis=1) * used[:, None, :]


def evaluate(
    party: int, roots: Bytes, correction: Bytes, m: Words, tables: Words, top: int, steps: int,
    local: int, halves: int,
) -> Words:  # fmt: skip
    """Shares (2, n) of the tables' value at v / 4^j, and of 2^(halves (high - j)).

    Args:
        party: 0 or 1.
        roots: (n, 16) bytes.
        m: (n,) words, read as lam is by `generate`; top, steps, local likewise.
        tables: (4, 64): coefficients of a spline of degree 3, lowest first.

    Raises:
        LocalProtocolError: the shapes do not fit.
        RemoteProtocolError: the correction's length is not n * ladder_bytes(steps).
    """
    _check(steps, top, local)
    n = m.size
    if tables.shape != (_WORDS, SEGMENTS):
        raise LocalProtocolError(f"tables have shape {tables.shape}, not ({_WORDS}, {SEGMENTS})")
    if correction.size != n * ladder_bytes(steps):
        raise RemoteProtocolError(
            f"an incremental point function's correction has {correction.size} bytes, not "
            f"{n * ladder_bytes(steps)}: both parties must run the same program"
        )
    seeds = root_words(roots, n)
    words = np.require(np.ascontiguousarray(correction).view(np.uint64), requirements="A")
    if not available():
        shaped = words.reshape(n, ladder_bytes(steps) // 8)
        return evaluate_numpy(party, seeds, shaped, m, tables, top, steps, local, halves)
    out = np.empty((2, n), dtype=np.uint64)
    ladder.evaluate_trees(
        round_keys(LEAF + 2), party, seeds.reshape(-1), words, np.ascontiguousarray(m),
        _doubled(tables.tobytes()), _ways(), signed_binomials(_WORDS), top, steps, local, halves,
        out.reshape(-1),
    )  # fmt: skip
    return out


@lru_cache(maxsize=64)
def _doubled(data: bytes) -> Words:
    """`_weights` of tables (given as bytes), of the first exponent and of the others, as the fused
    kernel reads them: every word twice, because a block holds two payload words, in rows of `_ROW`
    words.
    """
    tables = np.frombuffer(data, dtype=np.uint64).reshape(_WORDS, SEGMENTS)
    out = np.zeros((2, 4, _WORDS + 1, _ROW), dtype=np.uint64)
    for kind, count in enumerate((_FIRST, _REST)):
        out[kind, :, :, : 8 * count] = np.repeat(_weights(tables, count), 2, axis=2)
    return out.reshape(-1)


@cache
def _ways() -> Words:
    """`_next` of the first exponent and of the others, and `_turned`, flat."""
    parts = [_next(_FIRST), _next(_REST), _turned()]
    return np.concatenate([part.reshape(-1) for part in parts])


def evaluate_numpy(
    party: int, roots: Words, correction: Words, m: Words, tables: Words, top: int, steps: int,
    local: int, halves: int,
) -> Words:  # fmt: skip
    """NumPy twin of `evaluate_trees`: roots (n, 2), correction (n, words) -> (2, n)."""
    nodes = roots[:, None, :].copy()
    nodes[..., 0] = (nodes[..., 0] & ~_ONE) | np.uint64(party)
    for level in range(_ROOT_LEVELS):
        nodes = next_level(nodes, correction[:, 2 * level : 2 * level + 2])
    rows, depth, count = np.arange(m.size)[:, None], tree_depth(steps), _FIRST
    starts = _starts(_part(m, top - _ROOT_LEVELS, _ROOT_LEVELS))
    front = nodes[rows, starts.astype(np.intp)]
    out = np.zeros((2, m.size), dtype=np.uint64)
    for step in range(steps):
        level = _ROOT_LEVELS + 2 * step
        for at in (2 * level, 2 * level + 2):
            front = next_level(front, correction[:, at : at + 2])
        at = 2 * depth + _WORDS * step
        active = front[..., :1] & _ONE
        shares = convert(seeds_of(front), _WORDS) + active * correction[:, None, at : at + _WORDS]
        bits = _part(m, top - level - 2, 2).astype(np.intp)
        moments = np.matmul(_weights(tables, count)[bits], shares)  # (n, 5, 4)
        low = _part(m, top - level - 2 - local, local)
        out[0] += combine(moments[:, None, :_WORDS], low)[0]
        out[1] += moments[:, _WORDS, 0] << np.uint64(halves * step)
        front = front[rows, _next(count)[bits].astype(np.intp)]
        count = _REST
    return np.negative(out) if party else out


def _starts(heads: Words) -> Words:
    """(n, 20): the nodes of `_ROOT_LEVELS` levels for which T is 0 .. 19, from m's first bits."""
    path = heads.astype(np.int64)[:, None] - np.arange(_FIRST)
    places: Words = _turned()[path % (1 << _ROOT_LEVELS)]
    return places
