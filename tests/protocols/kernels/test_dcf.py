"""Distributed comparison functions: exhaustive for small domains, uniform views, both paths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.kernels import dcf, tree
from protocols.kernels.aes import aesni

needs_aes = pytest.mark.skipif(not aesni.available(), reason="no AES instructions here")


def draw(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 2**64, shape, dtype=np.uint64)


def roots(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.integers(0, 256, (n, 16), dtype=np.uint8)


def found(rng: np.random.Generator, alpha: np.ndarray, payload: np.ndarray, bits: int, points):
    """The sum of what both parties find at points (n, count)."""
    n = len(alpha)
    a, b = roots(rng, n), roots(rng, n)
    correction = dcf.generate(alpha, payload, a, b, bits)
    assert correction.dtype == np.uint8
    assert correction.shape == (n * dcf.key_bytes(bits),)
    return dcf.evaluate(0, a, correction, bits, points) + dcf.evaluate(
        1, b, correction, bits, points
    )


def expected(alpha: np.ndarray, payload: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.where((points < alpha[:, None])[..., None], payload[:, None, :], np.uint64(0))


@pytest.fixture(params=["aes", "openssl"])
def path(request, monkeypatch):
    """Run a test on AES instructions and again through OpenSSL."""
    if request.param == "openssl":
        monkeypatch.setattr(dcf, "available", lambda: False)
    elif not aesni.available():
        pytest.skip("no AES instructions here")
    return request.param


@pytest.mark.parametrize("bits", range(1, 7))
def test_every_point_of_a_small_domain(bits, path):
    rng = np.random.default_rng(bits)
    n = 1 << bits
    alpha, payload = np.arange(n, dtype=np.uint64), draw(rng, n, 2)
    points = np.tile(alpha, (n, 1))
    got = found(rng, alpha, payload, bits, points)
    np.testing.assert_array_equal(got, expected(alpha, payload, points))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32), st.integers(1, 63), st.integers(0, 20), st.integers(0, 9), st.booleans()
)
def test_random_points(seed, bits, n, count, fused):
    """Half of the points are alpha or next to it."""
    rng = np.random.default_rng(seed)
    top = np.uint64((1 << bits) - 1)
    alpha, payload = draw(rng, n) & top, draw(rng, n, 2)
    near = alpha[:, None] + rng.integers(-1, 2, (n, count)).astype(np.uint64)
    points = np.where(rng.integers(0, 2, (n, count)) == 1, near, draw(rng, n, count)) & top
    with pytest.MonkeyPatch.context() as patch:
        if not fused:
            patch.setattr(dcf, "available", lambda: False)
        got = found(rng, alpha, payload, bits, points)
    np.testing.assert_array_equal(got, expected(alpha, payload, points))


@needs_aes
@pytest.mark.parametrize("bits", [1, 2, 5, 24, 58, 63])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 13])
def test_both_paths_agree_bit_for_bit(bits, count):
    rng = np.random.default_rng(bits)
    n = 9
    alpha, payload = draw(rng, n) >> np.uint64(64 - bits), draw(rng, n, 2)
    a, b = roots(rng, n), roots(rng, n)
    correction = dcf.generate(alpha, payload, a, b, bits)
    words = dcf.generate_numpy(alpha, payload, tree.root_words(a, n), tree.root_words(b, n), bits)
    assert correction.tobytes() == words.tobytes()
    points = draw(rng, n, count) >> np.uint64(64 - bits)
    for party, held in ((0, a), (1, b)):
        shares = dcf.evaluate(party, held, correction, bits, points)
        twin = dcf.evaluate_numpy(party, tree.root_words(held, n), words, bits, points)
        np.testing.assert_array_equal(shares, twin)


@pytest.mark.parametrize("point", [0, 5, 4095])
def test_one_partys_view_is_balanced(point, path):
    """Corrections, and what a party finds at, below and above alpha: every bit."""
    rng = np.random.default_rng(7)
    n, bits = 4000, 12
    alpha = np.full(n, 5, dtype=np.uint64)
    a, b = roots(rng, n), roots(rng, n)
    correction = dcf.generate(alpha, np.zeros((n, 2), np.uint64), a, b, bits)
    bound = 5.5 * 0.5 / np.sqrt(n)
    shown = np.unpackbits(correction.reshape(n, -1), axis=1).mean(axis=0)
    assert abs(shown - 0.5).max() < bound
    points = np.full((n, 1), point, dtype=np.uint64)
    for party, held in ((0, a), (1, b)):
        shares = dcf.evaluate(party, held, correction, bits, points)
        balance = np.unpackbits(shares.view(np.uint8).reshape(n, -1), axis=1).mean(axis=0)
        assert abs(balance - 0.5).max() < bound


def test_what_does_not_fit_is_refused():
    rng = np.random.default_rng(1)
    a, payload = roots(rng, 2), np.zeros((2, 2), np.uint64)
    with pytest.raises(LocalProtocolError, match="below 2\\^3"):
        dcf.generate(np.array([1, 8], dtype=np.uint64), payload, a, a, 3)
    with pytest.raises(LocalProtocolError, match="two payload words"):
        dcf.generate(np.array([1, 7], dtype=np.uint64), payload[:, :1], a, a, 3)
    with pytest.raises(LocalProtocolError, match="roots have shape"):
        dcf.generate(np.array([1, 7], dtype=np.uint64), payload, a[:1], a, 3)
    points = np.zeros((2, 1), dtype=np.uint64)
    with pytest.raises(RemoteProtocolError, match="16 bytes, not 224"):
        dcf.evaluate(0, a, np.zeros(16, dtype=np.uint8), 3, points)
    for bits in (0, 64):
        with pytest.raises(LocalProtocolError, match=f"1 to 63 bits, not {bits}"):
            dcf.evaluate(0, a, np.zeros(16, dtype=np.uint8), bits, points)
