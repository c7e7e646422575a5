"""Distributed point functions: exhaustive for small domains, uniform corrections, both paths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import dpf
from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.kernels import spline, tree
from protocols.kernels.aes import aesni

needs_aes = pytest.mark.skipif(not aesni.available(), reason="no AES instructions here")
ALL_SHAPES = [(v, w) for v in range(1, 7) for w in (1, 2, 3, 4, 5)]


def draw(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 2**64, shape, dtype=np.uint64)


def roots(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.integers(0, 256, (n, 16), dtype=np.uint8)


def expand(party: int, held: np.ndarray, correction: np.ndarray, v: int, w: int) -> np.ndarray:
    """The additive shares (n, w, 2^v) of a party; the protocols never make all of them at once."""
    words = tree.correction_words(correction, len(held), v, w)
    shares = tree.expand_numpy(party, tree.root_words(held, len(held)), words, v, w)
    return shares.transpose(0, 2, 1)


@pytest.fixture(params=["aes", "openssl"])
def path(request, monkeypatch):
    """Run a test on AES instructions and again through OpenSSL."""
    if request.param == "openssl":
        for module in (dpf, spline):
            monkeypatch.setattr(module, "available", lambda: False)
    elif not aesni.available():
        pytest.skip("no AES instructions here")
    return request.param


@pytest.mark.parametrize(("v", "w"), ALL_SHAPES)
def test_every_point_of_a_small_domain(v, w, path):
    rng = np.random.default_rng(v * 10 + w)
    n = 1 << v
    alpha, payload = np.arange(n, dtype=np.uint64), draw(rng, n, w)
    a, b = roots(rng, n), roots(rng, n)
    correction = dpf.generate(alpha, payload, a, b, v)
    assert correction.dtype == np.uint8
    assert correction.shape == (n * dpf.correction_bytes(v, w),)
    total = expand(0, a, correction, v, w) + expand(1, b, correction, v, w)
    expected = np.zeros((n, w, n), np.uint64)
    expected[np.arange(n), :, np.arange(n)] = payload
    np.testing.assert_array_equal(total, expected)


@needs_aes
@pytest.mark.parametrize(("v", "w"), [*ALL_SHAPES, (9, 4), (12, 1)])
def test_both_paths_agree_bit_for_bit(v, w):
    rng = np.random.default_rng(v * 10 + w)
    n = 9
    alpha, payload = draw(rng, n) >> np.uint64(64 - v), draw(rng, n, w)
    a, b = roots(rng, n), roots(rng, n)
    correction = dpf.generate(alpha, payload, a, b, v)
    root_a, root_b = tree.root_words(a, n), tree.root_words(b, n)
    words = dpf.generate_numpy(alpha, payload, root_a, root_b, v)
    assert correction.tobytes() == words.tobytes()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 10), st.integers(0, 40), st.integers(1, 5))
def test_random_points_and_payloads(seed, v, n, w):
    rng = np.random.default_rng(seed)
    alpha, payload = draw(rng, n) >> np.uint64(64 - v), draw(rng, n, w)
    a, b = roots(rng, n), roots(rng, n)
    correction = dpf.generate(alpha, payload, a, b, v)
    total = expand(0, a, correction, v, w) + expand(1, b, correction, v, w)
    assert np.count_nonzero(total) == np.count_nonzero(payload)
    np.testing.assert_array_equal(total[np.arange(n), :, alpha.astype(int)], payload)


# -- one bit a point -------------------------------------------------------------------------------


@pytest.mark.parametrize("v", [1, 3, 7, 8, 10])
def test_selectors_differ_at_their_point_alone(v):
    rng = np.random.default_rng(v)
    n = 1 << v
    alpha, a, b = np.arange(n, dtype=np.uint64), roots(rng, n), roots(rng, n)
    correction, found = dpf.generate_selectors(alpha, a, b, v)
    assert correction.shape == (n * dpf.selector_bytes(v),)
    first, second = (
        dpf.expand_selectors(0, a, correction, v),
        dpf.expand_selectors(1, b, correction, v),
    )
    np.testing.assert_array_equal(first ^ second, np.eye(n, dtype=np.uint8))
    np.testing.assert_array_equal(first[np.arange(n), np.arange(n)], found)


@pytest.mark.parametrize("v", [3, 12])
def test_selectors_and_their_corrections_are_balanced(v):
    """Also at the point itself: a party's bit there says nothing."""
    rng = np.random.default_rng(7)
    n = 4000
    alpha = np.full(n, 5, dtype=np.uint64)
    a, b = roots(rng, n), roots(rng, n)
    correction, found = dpf.generate_selectors(alpha, a, b, v)
    bound = 5 * 0.5 / np.sqrt(n)
    assert abs(found.mean() - 0.5) < bound
    for party, seeds in ((0, a), (1, b)):
        bits = dpf.expand_selectors(party, seeds, correction, v)
        assert abs(bits[:, 5].mean() - 0.5) < bound
        assert abs(bits.mean(axis=0) - 0.5).max() < bound
    shown = np.unpackbits(correction.reshape(n, -1), axis=1).mean(axis=0)
    assert abs(shown - 0.5).max() < bound


def test_selectors_refuse_what_does_not_fit():
    rng = np.random.default_rng(1)
    a = roots(rng, 2)
    with pytest.raises(LocalProtocolError, match="below 2\\^3"):
        dpf.generate_selectors(np.array([1, 8], dtype=np.uint64), a, a, 3)
    with pytest.raises(RemoteProtocolError, match="not 32"):
        dpf.expand_selectors(0, a, np.zeros(16, dtype=np.uint8), 3)


def test_vocabulary_domain():
    rng = np.random.default_rng(5)
    v, n = 16, 3
    alpha = np.array([0, 40_000, 65_535], np.uint64)
    a, b = roots(rng, n), roots(rng, n)
    correction = dpf.generate(alpha, np.ones((n, 1), np.uint64), a, b, v)
    assert correction.size == n * 16 * v
    total = expand(0, a, correction, v, 1) + expand(1, b, correction, v, 1)
    assert total.sum() == n
    assert total[np.arange(n), 0, alpha.astype(int)].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("v", "degree", "classes"), [(1, 3, 1), (2, 0, 2), (3, 1, 1), (5, 2, 2), (6, 3, 2), (7, 3, 1)]
)
def test_spline_shares_equal_the_direct_formula(v, degree, classes, path):
    rng = np.random.default_rng(v)
    n, w = 150, degree + 1
    point, lam = draw(rng, n) >> np.uint64(64 - v), draw(rng, n)
    payload = np.stack([lam ** np.uint64(i) for i in range(w)], axis=1)
    a, b = roots(rng, n), roots(rng, n)
    correction = dpf.generate(point, payload, a, b, v)
    top, low, tables = draw(rng, n), draw(rng, n), draw(rng, classes, w, 1 << v)
    total = dpf.spline_shares(0, a, correction, v, top, low, tables)
    total += dpf.spline_shares(1, b, correction, v, top, low, tables)
    segment = ((top - point) % np.uint64(1 << v)).astype(int)
    expected = sum(tables[:, k, segment] * (low - lam) ** np.uint64(k) for k in range(w))
    np.testing.assert_array_equal(total, expected)


@needs_aes
@pytest.mark.parametrize(("v", "w"), [*ALL_SHAPES, (6, 4), (9, 4), (12, 1)])
def test_spline_twin_agrees_share_by_share(v, w):
    rng, n = np.random.default_rng(8), 33
    correction = draw(rng, n, tree.correction_bytes(v, w) // 8)
    seeds, top, low = roots(rng, n), draw(rng, n), draw(rng, n)
    tables = draw(rng, 2, w, 1 << v)
    for party in (0, 1):
        fused = dpf.spline_shares(party, seeds, correction.view(np.uint8), v, top, low, tables)
        root = tree.root_words(seeds, n)
        twin = spline.spline_shares_numpy(party, root, correction, v, top, low, tables)
        np.testing.assert_array_equal(fused, twin)


def test_no_elements():
    empty = roots(np.random.default_rng(0), 0)
    correction = dpf.generate(np.empty(0, np.uint64), np.empty((0, 4), np.uint64), empty, empty, 6)
    assert correction.size == 0
    assert expand(0, empty, correction, 6, 4).shape == (0, 4, 64)
    nothing = np.empty(0, np.uint64)
    tables = np.zeros((2, 4, 64), np.uint64)
    assert dpf.spline_shares(1, empty, correction, 6, nothing, nothing, tables).shape == (2, 0)


def test_buffers_at_odd_addresses_inside_a_frame():
    rng = np.random.default_rng(3)
    a, point = roots(rng, 4), np.arange(4, dtype=np.uint64)
    correction = dpf.generate(point, draw(rng, 4, 4), a, a, 5)
    frame = np.frombuffer(b"x" + a.tobytes() + correction.tobytes(), np.uint8)
    held, received = frame[1:65].reshape(4, 16), frame[65:]
    expected = expand(0, a, correction, 5, 4)
    np.testing.assert_array_equal(expand(0, held, received, 5, 4), expected)


def test_wrong_lengths_are_the_peers_fault():
    rng = np.random.default_rng(1)
    a = roots(rng, 3)
    correction = dpf.generate(np.arange(3, dtype=np.uint64), draw(rng, 3, 4), a, a, 5)
    tables, ring = np.zeros((1, 4, 32), np.uint64), draw(rng, 3)
    for wrong in (correction[:-1], np.append(correction, correction[:8]), correction[:0]):
        with pytest.raises(RemoteProtocolError, match="point-function correction"):
            expand(0, a, wrong, 5, 4)
        with pytest.raises(RemoteProtocolError, match="point-function correction"):
            dpf.spline_shares(0, a, wrong, 5, ring, ring, tables)


def test_bad_arguments_are_our_fault():
    rng = np.random.default_rng(1)
    a, one = roots(rng, 2), np.ones((2, 1), np.uint64)
    with pytest.raises(LocalProtocolError, match="below 2\\^3"):
        dpf.generate(np.array([1, 8], np.uint64), one, a, a, 3)
    with pytest.raises(LocalProtocolError, match="below 2\\^3"):
        dpf.generate(np.array([1], np.uint64), one, a, a, 3)
    with pytest.raises(LocalProtocolError, match="roots have shape"):
        dpf.generate(np.array([1, 2], np.uint64), one, a[:, :8], a, 3)
    with pytest.raises(LocalProtocolError, match="v >= 1"):
        dpf.correction_bytes(0, 1)
    correction = dpf.generate(np.array([1, 2], np.uint64), one, a, a, 3)
    with pytest.raises(LocalProtocolError, match="4 segments, but v=3 needs 8"):
        tables = np.zeros((1, 1, 4), np.uint64)
        dpf.spline_shares(0, a, correction, 3, one[:, 0], one[:, 0], tables)


def chi_square(samples: np.ndarray) -> np.ndarray:
    """Per column of bytes (n, columns): the statistic against uniform, 255 degrees of freedom."""
    expected = len(samples) / 256
    counts = np.stack([np.bincount(column, minlength=256) for column in samples.T])
    return ((counts - expected) ** 2 / expected).sum(axis=1)


@pytest.mark.parametrize(("v", "w"), [(5, 1), (5, 4)])
@pytest.mark.parametrize("point", [0, 21])
def test_corrections_are_uniform_whatever_the_point(v, w, point):
    """Mean 255, standard deviation 22.6; 390 is six of them away, for at most 112 columns."""
    rng = np.random.default_rng(point)
    n = 20_000
    alpha, payload = np.full(n, point, np.uint64), np.full((n, w), 3, np.uint64)
    correction = dpf.generate(alpha, payload, roots(rng, n), roots(rng, n), v)
    statistics = chi_square(correction.reshape(n, -1))
    assert statistics.size == dpf.correction_bytes(v, w)
    assert statistics.max() < 390


def test_one_partys_expansion_hides_the_point():
    """With the other root unknown, each word of one expansion is uniform, the point included."""
    rng = np.random.default_rng(4)
    n, v = 20_000, 3
    a, b = roots(rng, n), roots(rng, n)
    correction = dpf.generate(np.full(n, 5, np.uint64), np.ones((n, 1), np.uint64), a, b, v)
    shares = expand(0, a, correction, v, 1)
    assert chi_square(shares.reshape(n, -1).view(np.uint8)).max() < 390


def test_the_uniformity_test_notices_equal_roots():
    """Negative control: with the parties' roots equal, the corrections are far from uniform."""
    rng = np.random.default_rng(6)
    a = roots(rng, 20_000)
    a[:, 1:] = 0
    correction = dpf.generate(np.zeros(20_000, np.uint64), np.ones((20_000, 1), np.uint64), a, a, 3)
    assert chi_square(correction.reshape(20_000, -1)).max() > 1_000
