"""Point functions over buckets: exhaustive for the smallest domain, both paths, uniform words."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.functions import buckets
from protocols.functions.buckets import Layout
from protocols.kernels.aes import aesni
from protocols.kernels.tree import root_words

needs_aes = pytest.mark.skipif(not aesni.available(), reason="no AES instructions here")
LAYOUTS = [Layout(7, False), Layout(7, True), Layout(9, False), Layout(12, True)]


def draw(rng, *shape):
    return rng.integers(0, 2**64, shape, dtype=np.uint64)


def roots(rng, n):
    return rng.integers(0, 256, (n, 16), dtype=np.uint8)


@pytest.fixture(params=["aes", "openssl"])
def path(request, monkeypatch):
    """Run a test on AES instructions and again through OpenSSL."""
    if request.param == "openssl":
        monkeypatch.setattr(buckets, "available", lambda: False)
    elif not aesni.available():
        pytest.skip("no AES instructions here")


def histogram(layout, a, b, correction, top, ends):
    shares = [
        buckets.count(layout, party, held, correction, top, ends)
        for party, held in enumerate((a, b))
    ]
    return (shares[0] + shares[1]) & np.uint32(0xFFFF if layout.wide else 0xFF)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_every_bucket_of_a_small_domain(layout):
    rng = np.random.default_rng(1)
    n = layout.size
    alpha, payload = np.arange(n, dtype=np.uint64), draw(rng, n)
    a, b = roots(rng, n), roots(rng, n)
    correction = buckets.generate(layout, alpha, payload, a, b)
    assert correction.shape == (8 * n * layout.words,)
    ends, none = np.arange(1, n + 1, dtype=np.uint64), np.zeros(n, dtype=np.uint64)
    expected = np.eye(n, dtype=np.uint64)[(-np.arange(n)) % n]
    np.testing.assert_array_equal(histogram(layout, a, b, correction, none, ends), expected)
    factors = draw(rng, n, 3)
    for first in range(n):
        start = np.full(n, first, dtype=np.uint64)
        total = buckets.weigh(layout, 0, a, correction, start, factors)
        total += buckets.weigh(layout, 1, b, correction, start, factors)
        place = (np.arange(n) - first) % n
        found = np.where(place < 3, factors[np.arange(n), np.minimum(place, 2)], 0)
        np.testing.assert_array_equal(total, found * payload)


@needs_aes
@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_paths_agree_bit_for_bit(layout):
    rng = np.random.default_rng(layout.bits)
    n = 9
    alpha, payload = draw(rng, n) >> np.uint64(64 - layout.bits), draw(rng, n)
    top, first = (draw(rng, n) >> np.uint64(64 - layout.bits) for _ in range(2))
    a, b = roots(rng, n), roots(rng, n)
    made = buckets.generate(layout, alpha, payload, a, b)
    words = buckets.generate_numpy(layout, alpha, payload, root_words(a, n), root_words(b, n))
    assert made.tobytes() == words.tobytes()
    ends, factors = np.array([2, 3, 9], dtype=np.uint64), draw(rng, n, 9)
    low = np.uint32(0xFFFF if layout.wide else 0xFF)
    for party, held in enumerate((a, b)):
        seeds = root_words(held, n)
        one = buckets.count(layout, party, held, made, top, ends)
        two = buckets.count_numpy(layout, party, seeds, words, top, ends)
        np.testing.assert_array_equal(one & low, two & low)
        np.testing.assert_array_equal(
            buckets.weigh(layout, party, held, made, first, factors),
            buckets.weigh_numpy(layout, party, seeds, words, first, factors),
        )


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32), st.integers(7, 13), st.lists(st.integers(1, 300), min_size=1, max_size=4)
)
def test_histograms_of_rows(seed, bits, lengths):
    """Rows of up to 300 entries, half of them in one bucket: no counter overflows."""
    rng = np.random.default_rng(seed)
    layout, ends = Layout(bits, max(lengths) > 255), np.cumsum(lengths)
    n = int(ends[-1])
    alpha, top = (draw(rng, n) >> np.uint64(64 - bits) for _ in range(2))
    half = rng.integers(0, 2, n).astype(np.bool_)
    top[half] = (alpha[half] + np.uint64(5)) & np.uint64(layout.size - 1)
    a, b = roots(rng, n), roots(rng, n)
    correction = buckets.generate(layout, alpha, draw(rng, n), a, b)
    got = histogram(layout, a, b, correction, top, ends.astype(np.uint64))
    place = ((top - alpha) & np.uint64(layout.size - 1)).astype(int)
    rows = np.split(place, ends[:-1])
    expected = [np.bincount(row, minlength=layout.size) for row in rows]
    np.testing.assert_array_equal(got, np.array(expected, dtype=np.uint64))


def test_what_does_not_fit_is_refused():
    rng, layout = np.random.default_rng(0), LAYOUTS[0]
    a, one = roots(rng, 2), np.ones(2, dtype=np.uint64)
    with pytest.raises(LocalProtocolError, match=r"give 2 buckets below 2\^7"):
        buckets.generate(layout, np.array([1, 128], dtype=np.uint64), one, a, a)
    short = np.zeros(16, dtype=np.uint8)
    with pytest.raises(RemoteProtocolError, match="16 bytes instead of 288"):
        buckets.count(layout, 0, a, short, one, np.array([2], dtype=np.uint64))
    with pytest.raises(RemoteProtocolError, match="16 bytes instead of 288"):
        buckets.weigh(layout, 0, a, short, one, np.ones((2, 1), dtype=np.uint64))


def most_uneven(words):
    """The largest chi-square over the byte positions of many corrections."""
    counts = [np.bincount(column, minlength=256) for column in words.T]
    expected = len(words) / 256
    return max(float(((count - expected) ** 2 / expected).sum()) for count in counts)


@pytest.mark.parametrize(("equal", "uneven"), [(False, False), (True, True)])
def test_corrections_are_uniform(equal, uneven):
    """With equal roots, the negative control, they are not."""
    rng, layout, n = np.random.default_rng(4), LAYOUTS[0], 20_000
    a, b = roots(rng, n), roots(rng, n)
    if equal:
        a[:, 1:] = 0
        b = a
    alpha, payload = np.full(n, 5, dtype=np.uint64), np.ones(n, dtype=np.uint64)
    made = buckets.generate(layout, alpha, payload, a, b).reshape(n, -1)
    assert (most_uneven(made) > 400) is uneven
