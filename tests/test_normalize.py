"""RMSNorm over seven orders of magnitude, and attention with causal masks."""

import numpy as np
import pytest
from helpers import floats, generator, share
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import RangeError
from protocols.lane import Settings
from protocols.normalize import attend, norm_range, rms_norm, softmax_numerators
from protocols.ring import RESIDUAL_BITS

TREES = ["rounds", "traffic"]


# -- RMSNorm ---------------------------------------------------------------------------------------


def norm(x, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)


def secure_norm(x, bounds, tree="rounds"):
    shared = share(x, frac=RESIDUAL_BITS)
    return floats(rms_norm, shared, bounds, settings=Settings(tree=tree))


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("scale", [0.02, 0.1, 1.0, 30.0])
def test_rms_norm(scale, tree):
    x = generator().normal(size=(5, 96)) * scale
    bounds = norm_range(96, 1e-5, 16 * scale**2)
    assert np.abs(secure_norm(x, bounds, tree) - norm(x, 1e-5)).max() < 1e-3


def test_massive_entries():
    """One entry of 25,000 in a row of 576 ones: a mean square of 1.1e6, and rows without it."""
    x = generator().normal(size=(4, 576))
    x[0, 17] = 25_000.0
    x[1, 3] = -25_000.0
    x[2] *= 30
    bounds = norm_range(576, 1e-5, 16 * 25_000.0**2 / 576)
    assert bounds.drop > 0
    got, expected = secure_norm(x, bounds), norm(x, 1e-5)
    assert np.abs(expected).max() > 23
    assert np.abs(got - expected)[0].max() < 2e-3
    assert np.abs(got - expected)[1].max() < 2e-3
    assert np.abs(got - expected)[2:].max() < 1e-2


def test_tiny_rows_are_damped_by_eps():
    x = generator().normal(size=(3, 64)) * np.array([[1e-2], [1e-3], [0.0]])
    bounds = norm_range(64, 1e-5, 1.0)
    got = secure_norm(x, bounds)
    # Entries of 0.01 have 15 bits, those of 0.001 have 12; each is divided by at least sqrt(eps).
    resolution = 2.0 ** (bounds.drop - RESIDUAL_BITS) / np.sqrt(1e-5)
    assert np.abs(got - norm(x, 1e-5)).max() < 1e-3 + 2 * resolution
    assert np.abs(got[2]).max() < 1e-3


@pytest.mark.parametrize("size", [1, 2, 8, 576, 4096])
@pytest.mark.parametrize("mean_square", [1e-2, 1.0, 1e4])
def test_ranges_hold_what_they_promise(size, mean_square):
    bounds = norm_range(size, 1e-5, mean_square)
    frac = 2 * (RESIDUAL_BITS - bounds.drop)
    assert size * (mean_square + 1e-5) * 2.0**frac < 4.0**bounds.high
    assert max(1.0, int(bounds.eps_word)) >= 4.0**bounds.low
    x = np.full((1, size), np.sqrt(mean_square) * 0.99)
    assert np.abs(secure_norm(x, bounds) - norm(x, 1e-5)).max() < 1e-3


@settings(max_examples=20, deadline=None)
@given(st.floats(-4, 4), st.integers(2, 80), st.integers(1, 3), st.integers(0, 1000))
def test_rows_of_any_size(exponent, size, rows, seed):
    scale = 10.0**exponent
    x = generator(seed).normal(size=(rows, size)) * scale
    largest = float((x * x).mean(-1).max())
    bounds = norm_range(size, 1e-5, 16 * largest)
    resolution = 2.0 ** (bounds.drop + 1 - RESIDUAL_BITS) / np.sqrt(largest / 1000 + 1e-5)
    error = np.abs(secure_norm(x, bounds) - norm(x, 1e-5))
    assert error.max() < 2e-3 + resolution


def test_what_no_range_holds_is_refused():
    with pytest.raises(RangeError, match="activations are too large"):
        norm_range(4096, 1e-5, 1e16)


# -- attention -------------------------------------------------------------------------------------


def softmax(scores, mask):
    scores = np.where(mask, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def causal(rows, length):
    return np.tri(rows, length, length - rows, dtype=np.bool_)


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize(
    ("heads", "rows", "length"), [(2, 7, 7), (1, 1, 1), (3, 1, 19), (2, 4, 9), (1, 33, 33)]
)
def test_attention_with_a_causal_mask(heads, rows, length, tree):
    rng = generator(length)
    scores = rng.normal(size=(heads, rows, length)) * 4
    values = rng.normal(size=(heads, length, 5))
    mask = causal(rows, length)
    got = floats(attend, share(scores), share(values), mask, settings=Settings(tree=tree))
    assert np.abs(got - softmax(scores, mask) @ values).max() < 1e-3


def test_large_scores_and_ties():
    rng = generator(1)
    scores = rng.uniform(-4000, 4000, (1, 6, 12))
    scores[0, 1] = 17.25  # all alike
    scores[0, 2, :] = -4000.0
    scores[0, 3, 5] = scores[0, 3].max() + 0.001
    scores[0, 4] = np.linspace(-16, 0, 12)
    values = rng.normal(size=(1, 12, 3)) * 50
    mask = causal(6, 12)
    got = floats(attend, share(scores), share(values), mask)
    assert np.abs(got - softmax(scores, mask) @ values).max() < 2e-2


def test_one_far_score_takes_all():
    scores = np.full((1, 1, 5), -300.0)
    scores[0, 0, 3] = 300.0
    values = generator(2).normal(size=(1, 5, 4))
    got = floats(attend, share(scores), share(values), np.ones((1, 5), dtype=np.bool_))
    assert np.abs(got[0, 0] - values[0, 3]).max() < 2e-4


def test_puma_attention():
    rng = generator(3)
    scores, values = rng.normal(size=(2, 5, 5)) * 2, rng.normal(size=(2, 5, 4))
    mask = causal(5, 5)
    settings = Settings(approximation="puma")
    got = floats(attend, share(scores), share(values), mask, settings=settings)
    exact = softmax(scores, mask) @ values
    assert 1e-4 < np.abs(got - exact).max() < 0.05


def test_numerators():
    scores = generator(4).normal(size=(2, 4, 6)) * 5
    mask = causal(4, 6)
    got = floats(softmax_numerators, share(scores, width=44), mask)
    assert not got[:, ~mask].any()
    peak = np.where(mask, scores, -np.inf).max(-1, keepdims=True)
    expected = np.where(mask, np.exp(scores - peak), 0)
    # The peak is found in steps of 1/64 and truncated: a common factor close to 1.
    ratio = got.sum(-1) / expected.sum(-1)
    assert np.abs(ratio - 1).max() < 0.05
    assert (
        np.abs(got / got.sum(-1)[..., None] - expected / expected.sum(-1)[..., None]).max() < 3e-4
    )
