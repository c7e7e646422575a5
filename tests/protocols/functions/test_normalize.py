"""RMSNorm and LayerNorm over seven orders of magnitude, with gains before and after the root."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import floats, generator, share
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.base.lane import Settings
from protocols.base.ring import RESIDUAL_BITS
from protocols.errors import RangeError
from protocols.functions.normalize import Norm, NormRange, norm_range, normalize

TREES = ["rounds", "balanced", "traffic"]
KINDS = [False, True]


def exact(x, norm, gain=None, shift=None, unit=False):
    if norm.center:
        x = x - x.mean(-1, keepdims=True)
    scale = norm.size if unit else 1
    y = x / np.sqrt(((x * x).mean(-1, keepdims=True) + norm.eps) * scale)
    y = y if gain is None else y * gain
    return y if shift is None else y + shift


def length_of(x):
    """The longest row."""
    return float(np.sqrt((x * x).sum(-1)).max())


def secure(x, norm, bounds, gain=None, shift=None, tree="rounds", unit=False, width=64):
    async def program(lane, x, *affine):
        gain, shift = affine or (None, None)
        frac = RESIDUAL_BITS if affine else 18
        return await normalize(lane, x, norm, bounds, gain=gain, shift=shift, frac=frac, unit=unit)

    affine = [] if gain is None else [share(gain), share(shift, RESIDUAL_BITS)]
    return floats(program, share(x, RESIDUAL_BITS, width), *affine, settings=Settings(tree=tree))


def check(x, norm, bounds, tolerance, **options):
    error = np.abs(secure(x, norm, bounds, **options) - exact(x, norm)).max()
    assert error < tolerance


# -- without a gain --------------------------------------------------------------------------------


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("center", KINDS)
@pytest.mark.parametrize("scale", [0.02, 0.1, 1.0, 30.0])
def test_rows_of_usual_sizes(scale, center, tree):
    x = generator().normal(size=(5, 96)) * scale + 2 * scale
    norm = Norm(96, 1e-5, center)
    check(x, norm, norm_range(norm, 4 * length_of(x)), 1e-3, tree=tree)


@pytest.mark.parametrize("center", KINDS)
def test_massive_entries(center):
    """One entry of 25,000 in a row of 576 ones: a mean square of 1.1e6, and rows without it."""
    x = generator().normal(size=(4, 576))
    x[0, 17] = 25_000.0
    x[1, 3] = -25_000.0
    x[2] *= 30
    norm = Norm(576, 1e-5, center)
    bounds = norm_range(norm, 4 * 25_000.0)
    assert bounds.drop > 0
    got, expected = secure(x, norm, bounds), exact(x, norm)
    assert np.abs(expected).max() > 23
    assert np.abs(got - expected)[:2].max() < 2e-3
    assert np.abs(got - expected)[2:].max() < 1e-2


@pytest.mark.parametrize("center", KINDS)
def test_tiny_rows_are_damped_by_eps(center):
    x = generator().normal(size=(3, 64)) * np.array([[1e-2], [1e-3], [0.0]])
    norm = Norm(64, 1e-5, center)
    bounds = norm_range(norm, 8.0)
    got = secure(x, norm, bounds)
    # Entries of 0.01 have 15 bits, those of 0.001 have 12; each is divided by at least sqrt(eps).
    resolution = 2.0 ** (bounds.drop - RESIDUAL_BITS) / np.sqrt(1e-5)
    assert np.abs(got - exact(x, norm)).max() < 1e-3 + 2 * resolution
    assert np.abs(got[2]).max() < 1e-3


@pytest.mark.parametrize("constant", [0.0, 1.0, -300.0])
def test_a_constant_row_is_centred_to_nothing(constant):
    norm = Norm(48, 1e-5, center=True)
    got = secure(np.full((2, 48), constant), norm, norm_range(norm, 48 * 300.0))
    assert np.abs(got).max() < 1e-3


@pytest.mark.parametrize("size", [1, 2, 8, 576, 4096])
@pytest.mark.parametrize("deviation", [1e-1, 1.0, 1e2])
@pytest.mark.parametrize("center", KINDS)
def test_ranges_hold_what_they_promise(size, deviation, center):
    norm = Norm(size, 1e-5, center)
    x = deviation * np.where(np.arange(size) % 2, 1.0, -1.0)[None]
    largest = length_of(x) * 1.001
    bounds = norm_range(norm, largest)
    frac = 2 * (RESIDUAL_BITS - bounds.drop)
    total = (largest**2 + size * 1e-5) * norm.stretch**2
    assert total * 2.0**frac < 4.0**bounds.high
    assert max(1.0, float(bounds.eps_word(norm))) >= 4.0**bounds.low
    check(x, norm, bounds, 1e-3)


@settings(max_examples=20, deadline=None)
@given(st.floats(-3, 4), st.integers(2, 80), st.integers(1, 3), st.integers(0, 1000), st.booleans())
def test_rows_of_any_size(exponent, size, rows, seed, center):
    scale = 10.0**exponent
    x = generator(seed).normal(size=(rows, size)) * scale
    norm = Norm(size, 1e-5, center)
    bounds = norm_range(norm, 4 * length_of(x))
    moved = x - x.mean(-1, keepdims=True) if center else x
    smallest = float((moved * moved).mean(-1).min())
    # Half a step of each entry that is squared, and of the entries themselves.
    step = 2.0 ** (bounds.drop + 1 - RESIDUAL_BITS)
    resolution = step * (1 + np.abs(moved).max() / np.sqrt(smallest + 1e-5))
    error = np.abs(secure(x, norm, bounds) - exact(x, norm)).max()
    assert error < 2e-3 + resolution / np.sqrt(smallest + 1e-5)


def narrowest(norm, bounds):
    """The width of the narrowest ring that the range fits."""
    width = next(width for width in range(8, 65) if bounds.fit(norm, width))
    assert width == 64 or not bounds.fit(norm, width - 1)
    return width


@settings(max_examples=40, deadline=None)
@given(
    st.floats(-3, 3.5),
    st.integers(1, 80),
    st.sampled_from([1e-5, 1e-12]),
    st.integers(0, 1000),
    st.booleans(),
    st.sampled_from(["rounds", "balanced", "traffic"]),
)
def test_rows_over_the_narrowest_ring_they_fit(exponent, size, eps, seed, center, tree):
    """As over the whole ring, up to the roundings of a shift; the longest rows that are allowed
    among them, all in one entry.
    """
    norm, scale = Norm(size, eps, center), 10.0**exponent
    x = generator(seed).normal(size=(4, size)) * scale
    x[1], x[2] = 0, -scale
    x[1, 0], x[2, -1] = 4 * length_of(x), 4 * length_of(x)
    bounds = norm_range(norm, length_of(x))
    whole = secure(x, norm, bounds, tree=tree)
    got = secure(x, norm, bounds, tree=tree, width=narrowest(norm, bounds))
    moved = x - x.mean(-1, keepdims=True) if center else x
    square = (moved * moved).mean(-1) + eps
    step = 2.0 ** (bounds.drop + 2 - RESIDUAL_BITS) / np.sqrt(square)
    error = np.abs(got - whole).max(-1)
    size = np.abs(whole).max(-1)
    assert (error <= 2.0**-13 * (1 + size) + 2 * step * (1 + size)).all()


@pytest.mark.parametrize("center", KINDS)
def test_a_row_that_is_constant_gives_zeros_over_a_narrow_ring(center):
    norm = Norm(48, 1e-12, center)
    x = np.full((2, 48), 300.0) * np.array([[center], [0.0]])
    bounds = norm_range(norm, 48 * 300.0)
    assert not secure(x, norm, bounds, width=narrowest(norm, bounds)).any()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_rows_of_length_one(scale):
    x = generator(5).normal(size=(4, 40)) * scale
    x[3] = 0
    norm = Norm(40, 1e-24)
    got = secure(x, norm, norm_range(norm, 2 * length_of(x)), unit=True)
    expected = exact(x, norm, unit=True)
    np.testing.assert_allclose(np.linalg.norm(expected[:3], axis=1), 1.0)
    assert np.abs(got - expected).max() < 2e-3
    assert not got[3].any()


# -- with gain and shift ---------------------------------------------------------------------------


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("center", KINDS)
@pytest.mark.parametrize("factor", [0.0, 0.01, 1.0, 1000.0])
def test_gain_and_shift(center, early, factor):
    """Both orders give the same numbers, up to the precision of the gain's 18 bits."""
    rng = generator(3)
    x = rng.normal(size=(4, 64)) * 3 + 1
    gain, shift = rng.uniform(-1, 1, 64) * factor, rng.normal(size=64) * 10
    norm = Norm(64, 1e-5, center)
    chosen = norm_range(norm, 2 * length_of(x), max(1e-3, factor))
    assert chosen.early
    bounds = chosen if early else replace(norm_range(norm, 2 * length_of(x)), early=False)
    got = secure(x, norm, bounds, gain, shift)
    expected = exact(x, norm, gain, shift)
    assert np.abs(got - expected).max() < 1e-4 + 3e-4 * factor


def test_a_gain_that_would_not_fit_comes_late():
    """Rows of length 5e4 times a gain of 1000 are beyond what one product holds."""
    x = generator(4).normal(size=(3, 64)) * 2000
    gain, shift = np.full(64, 1000.0), np.zeros(64)
    norm = Norm(64, 1e-5, center=True)
    bounds = norm_range(norm, 2 * length_of(x), 1000.0)
    assert not bounds.early
    got = secure(x, norm, bounds, gain, shift)
    assert np.abs(got / 1000 - exact(x, norm)).max() < 1e-3


# -- ranges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("largest", "gain"),
    [(1e16, 1.0), (1e9, 1.0), (np.inf, 1.0), (np.nan, 1.0), (1.0, np.nan), (1.0, np.inf)],
)
def test_what_no_range_holds_is_refused(largest, gain):
    with pytest.raises(RangeError, match="too large"):
        norm_range(Norm(4096, 1e-5), largest, gain)


@given(
    st.integers(1, 8192),
    st.floats(1e-3, 1e7),
    st.floats(1e-13, 1e-2),
    st.floats(1e-3, 1e5),
    st.booleans(),
)
def test_every_range_keeps_its_products_in_the_ring(size, largest, eps, gain, center):
    """The largest products of the protocol stay below 2^62."""
    norm = Norm(size, eps, center)
    try:
        bounds = norm_range(norm, largest, gain)
    except RangeError:
        return
    assert isinstance(bounds, NormRange)
    assert 0 <= bounds.low < bounds.high <= 29
    assert 8 <= bounds.frac <= 26
    stretched = largest * norm.stretch
    factor = max(gain, 1.0) if bounds.early else 1.0
    product = stretched * 2.0**RESIDUAL_BITS * gain * 2.0**18
    assert not bounds.early or product < 2.0**62
    # Entries times the power of two are below 2^(high + drop); the mantissa below 4.
    assert factor * 2.0 ** (bounds.high + bounds.drop + bounds.frac + 2) <= 2.0**61
    assert stretched * 2.0 ** (RESIDUAL_BITS - bounds.drop) <= 2.0**bounds.high
    # The root of the smallest sum there is, and of the largest, are both within the powers.
    assert float(bounds.eps_word(norm)) >= 4.0**bounds.low
