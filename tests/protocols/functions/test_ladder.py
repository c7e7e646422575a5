"""Splines at every scale: the direct formula, uniform views, both paths."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.functions import ladder
from protocols.kernels import tree
from protocols.kernels.aes import aesni

needs_aes = pytest.mark.skipif(not aesni.available(), reason="no AES instructions here")
RING = 2**64


def draw(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, RING, shape, dtype=np.uint64)


def roots(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.integers(0, 256, (n, 16), dtype=np.uint8)


@pytest.fixture(params=["aes", "openssl"])
def path(request, monkeypatch):
    """Run a test on AES instructions and again through OpenSSL."""
    if request.param == "openssl":
        monkeypatch.setattr(ladder, "available", lambda: False)
    elif not aesni.available():
        pytest.skip("no AES instructions here")
    return request.param


def part(word: int, at: int, bits: int) -> int:
    return (word >> at if at >= 0 else word << -at) % 2**bits


def expected(v: int, lam: int, tables: np.ndarray, low: int, high: int, local: int, halves: int):
    """The exponent by its definition, and the table's polynomial there, in Python integers."""
    m = (v + lam) % RING
    bits = 2 * high + 1

    def segment(j: int) -> int:
        width = bits - 2 * j + 6
        return (part(m, 2 * j - 6, width) - part(lam, 2 * j - 6, width)) % 2**width

    j = next((j for j in range(high, low, -1) if segment(j) >= 16), None)
    assert j is not None
    assert 4 ** (j - 1) <= v < 4**j or (j > low + 1 and 15 * 4 ** (j - 1) <= 16 * v < 16 * 4**j)
    u = part(m, 2 * j - 6 - local, local) - part(lam, 2 * j - 6 - local, local)
    # What is read is v in units of the local part, off by less than one.
    unit = Fraction(4**j, 2 ** (6 + local))
    assert abs((segment(j) << local) + u - v / unit) < 1
    value = sum(int(tables[k, segment(j) % 64]) * u**k for k in range(4))
    return value % RING, 1 << halves * (high - j)


def check(rng, v, low, high, local=12, halves=1):
    v = np.asarray(v, dtype=np.uint64)
    n = v.size
    lam, tables = draw(rng, n), draw(rng, 4, 64)
    # Some masks next to the ends of their ranges, where borrows and wraps are.
    lam[::3] = (np.uint64(0) - rng.integers(0, 3, lam[::3].size).astype(np.uint64)) << np.uint64(
        rng.integers(0, 40)
    )
    a, b = roots(rng, n), roots(rng, n)
    shape = (2 * high + 1, high - low, local)
    correction = ladder.generate(lam, a, b, *shape)
    assert correction.shape == (n * ladder.ladder_bytes(high - low),)
    got = sum(
        ladder.evaluate(party, held, correction, v + lam, tables, *shape, halves)
        for party, held in ((0, a), (1, b))
    )
    for i in range(n):
        found = expected(int(v[i]), int(lam[i]), tables, low, high, local, halves)
        assert (int(got[0, i]), int(got[1, i])) == found


def edges(low: int, high: int) -> list[int]:
    """Around every power of four, and the sixteenths near it."""
    near = [
        4**j * k // 16 + d for j in range(low, high + 1) for k in (15, 16, 17) for d in (-1, 0, 1)
    ]
    return [v for v in near if 4**low <= v < 4**high]


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 2), (1, 3), (3, 4), (0, 5), (8, 13), (0, 29), (28, 29), (18, 29)]
)
def test_every_exponent_and_edge(low, high, path):
    rng = np.random.default_rng(low + high)
    v = edges(low, high) + [int(4**u) for u in rng.uniform(low, high - 1e-9, 60)]
    check(rng, v, low, high)


def test_all_numbers_of_a_small_range(path):
    rng = np.random.default_rng(4)
    for _ in range(3):
        check(rng, range(4, 4**5), 1, 5, halves=2)


@settings(max_examples=40, deadline=None)
@example(0, 0, 29, 12, 2)
@example(0, 28, 1, 1, 1)
@given(
    st.integers(0, 2**32),
    st.integers(0, 28),
    st.integers(1, 29),
    st.integers(1, 16),
    st.sampled_from([1, 2]),
)
def test_any_range(seed, low, steps, local, halves):
    high = min(29, low + steps)
    rng = np.random.default_rng(seed)
    v = [min(4**high - 1, max(4**low, int(4**u))) for u in rng.uniform(low, high, 9)]
    check(rng, v, low, high, local, halves)


@needs_aes
@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 29), (9, 13)])
def test_both_paths_agree_bit_for_bit(low, high):
    """On any words, sensible or not."""
    rng = np.random.default_rng(low)
    n, shape = 11, (2 * high + 1, high - low, 12)
    lam, m, tables, a, b = (
        draw(rng, n),
        draw(rng, n),
        draw(rng, 4, 64),
        roots(rng, n),
        roots(rng, n),
    )
    correction = ladder.generate(lam, a, b, *shape)
    held = tree.root_words(a, n), tree.root_words(b, n)
    words = ladder.generate_numpy(lam, *held, *shape)
    assert correction.tobytes() == words.tobytes()
    for party, seeds in ((0, a), (1, b)):
        got = ladder.evaluate(party, seeds, correction, m, tables, *shape, 2)
        twin = ladder.evaluate_numpy(party, held[party], words, m, tables, *shape, 2)
        np.testing.assert_array_equal(got, twin)


def test_no_elements(path):
    nothing, none = np.zeros(0, np.uint64), np.zeros((0, 16), np.uint8)
    correction = ladder.generate(nothing, none, none, 11, 3, 12)
    tables = np.zeros((4, 64), np.uint64)
    found = ladder.evaluate(0, none, correction, nothing, tables, 11, 3, 12, 1)
    assert found.shape == (2, 0)


@pytest.mark.parametrize("v", [4, 100, 1023])
def test_one_partys_view_is_balanced(v, path):
    """Corrections, and what a party finds: every bit, for one mask."""
    rng = np.random.default_rng(7)
    n, shape = 4000, (11, 4, 12)
    lam = np.full(n, 12345, dtype=np.uint64)
    a, b = roots(rng, n), roots(rng, n)
    correction = ladder.generate(lam, a, b, *shape)
    bound = 5.5 * 0.5 / np.sqrt(n)
    shown = np.unpackbits(correction.reshape(n, -1), axis=1).mean(axis=0)
    assert abs(shown - 0.5).max() < bound
    tables = draw(rng, 4, 64)
    for party, held in ((0, a), (1, b)):
        found = ladder.evaluate(party, held, correction, lam + np.uint64(v), tables, *shape, 0)
        for shares in found:
            balance = np.unpackbits(shares.view(np.uint8).reshape(n, -1), axis=1).mean(axis=0)
            assert abs(balance - 0.5).max() < bound


def test_what_does_not_fit_is_refused():
    rng = np.random.default_rng(1)
    a, lam = roots(rng, 2), np.zeros(2, dtype=np.uint64)
    tables = np.zeros((4, 64), np.uint64)
    with pytest.raises(LocalProtocolError, match="roots have shape"):
        ladder.generate(lam, a[:1], a, 11, 3, 12)
    with pytest.raises(LocalProtocolError, match="6 exponents and 12 local bits do not fit"):
        ladder.generate(lam, a, a, 11, 6, 12)
    with pytest.raises(LocalProtocolError, match="0 exponents"):
        ladder.evaluate(0, a, np.zeros(16, np.uint8), lam, tables, 11, 0, 12, 1)
    with pytest.raises(LocalProtocolError, match=r"not \(4, 64\)"):
        ladder.evaluate(0, a, np.zeros(16, np.uint8), lam, tables[:3], 11, 3, 12, 1)
    with pytest.raises(RemoteProtocolError, match="16 bytes, not 544"):
        ladder.evaluate(0, a, np.zeros(16, np.uint8), lam, tables, 11, 3, 12, 1)
