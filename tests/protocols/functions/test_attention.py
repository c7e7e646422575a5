"""Attention: causal masks, scores of every width, and what no width may get wrong."""

import math

import numpy as np
import pytest
from helpers import declared, floats, generator, run, share

from protocols.base.lane import Settings
from protocols.errors import RangeError
from protocols.functions.attention import (
    MAX_SCORE_BITS,
    AttentionRange,
    attend,
    fit,
    near_dealt,
    near_plan,
    peak_width,
    reads_narrow,
    softmax_numerators,
    spare_bits,
)

TREES = ["rounds", "balanced", "traffic"]
WIDE = AttentionRange(score_bits=13, value_bits=8, rope_frac=0)
"""Too many bits of score for a histogram."""
NARROW = AttentionRange(score_bits=8, value_bits=8, rope_frac=0)


def softmax(scores, mask):
    scores = np.where(mask, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def causal(rows, length):
    return np.tri(rows, length, length - rows, dtype=np.bool_)


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("bounds", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize(
    ("heads", "rows", "length"), [(2, 7, 7), (1, 1, 1), (3, 1, 19), (2, 4, 9), (1, 33, 33)]
)
def test_attention_with_a_causal_mask(heads, rows, length, bounds, tree):
    rng = generator(length)
    scores = rng.normal(size=(heads, rows, length)) * 4
    values = rng.normal(size=(heads, length, 5))
    mask = causal(rows, length)
    got = floats(attend, share(scores), share(values), mask, bounds, settings=Settings(tree=tree))
    assert np.abs(got - softmax(scores, mask) @ values).max() < 5e-4


def test_large_scores_and_ties():
    rng = generator(1)
    scores = rng.uniform(-4000, 4000, (1, 6, 12))
    scores[0, 1] = 17.25  # all alike
    scores[0, 2, :] = -4000.0
    scores[0, 3, 5] = scores[0, 3].max() + 0.001
    scores[0, 4] = np.linspace(-16, 0, 12)
    values = rng.normal(size=(1, 12, 3)) * 50
    mask = causal(6, 12)
    got = floats(attend, share(scores), share(values), mask, WIDE)
    assert np.abs(got - softmax(scores, mask) @ values).max() < 2e-2


@pytest.mark.parametrize("score_bits", [9, 13])
def test_one_far_score_takes_all(score_bits):
    scores = np.full((1, 1, 5), -300.0)
    scores[0, 0, 3] = 300.0
    values = generator(2).normal(size=(1, 5, 4))
    bounds = AttentionRange(score_bits, 8, 0)
    got = floats(attend, share(scores), share(values), np.ones((1, 5), dtype=np.bool_), bounds)
    assert np.abs(got[0, 0] - values[0, 3]).max() < 2e-4


def test_puma_attention():
    rng = generator(3)
    scores, values = rng.normal(size=(2, 5, 5)) * 2, rng.normal(size=(2, 5, 4))
    mask = causal(5, 5)
    settings = Settings(approximation="puma")
    got = floats(attend, share(scores), share(values), mask, WIDE, settings=settings)
    exact = softmax(scores, mask) @ values
    assert 1e-4 < np.abs(got - exact).max() < 0.05


def test_numerators():
    scores = generator(4).normal(size=(2, 4, 6)) * 5
    mask = causal(4, 6)
    got = floats(softmax_numerators, share(scores, width=44), mask, 13)
    assert not got[:, ~mask].any()
    peak = np.where(mask, scores, -np.inf).max(-1, keepdims=True)
    expected = np.where(mask, np.exp(scores - peak), 0)
    # The peak is found in steps of 1/4, a step too low or two too high: a common factor.
    ratio = np.log(got.sum(-1) / expected.sum(-1))
    assert ratio.min() > -2 / 4
    assert ratio.max() < 1 / 4
    assert (
        np.abs(got / got.sum(-1)[..., None] - expected / expected.sum(-1)[..., None]).max() < 3e-4
    )


@pytest.mark.parametrize("tree", ["balanced", "traffic"])
def test_the_maximum_is_as_near_as_the_exponential_needs(tree):
    """Less than a step below the row's largest score, and less than two above, in every row: a
    score a step above it would count as one far below.
    """
    rows, length = 6000, 20
    scores = generator(5).normal(size=(1, rows, length)) * 4
    mask = np.ones((rows, length), dtype=np.bool_)
    settings = Settings(tree=tree)
    got = floats(softmax_numerators, share(scores), mask, 11, settings=settings)
    largest = np.take_along_axis(got, scores.argmax(-1)[..., None], axis=-1)
    assert math.exp(-0.5) - 2e-5 < largest.min()
    assert largest.max() < math.exp(0.25) + 2e-5
    assert (np.abs(got / largest - np.exp(scores - scores.max(-1, keepdims=True))) < 1e-4).all()


@pytest.mark.parametrize("score_bits", range(4, MAX_SCORE_BITS + 1))
def test_scores_of_every_width(score_bits):
    """Up to the last unit below 2^bits on both sides, which are furthest apart."""
    largest = 2.0**score_bits - 2.0**-10
    rng = generator(score_bits)
    scores = rng.uniform(-largest, largest, (2, 5, 9))
    scores[0, 0] = -largest
    scores[0, 0, 4] = largest
    scores[0, 1] = largest
    scores[0, 2] = -largest
    scores[0, 3] = largest - np.arange(9)
    scores[1, :, ::2] = -largest
    values = rng.normal(size=(2, 9, 3))
    mask = np.ones((5, 9), dtype=np.bool_)
    bounds = AttentionRange(score_bits, 3, 0)
    got = floats(attend, share(scores, width=46), share(values), mask, bounds)
    assert np.abs(got - softmax(scores, mask) @ values).max() < 1e-3


def test_a_width_holds_every_difference_in_whole_digits():
    for score_bits in range(1, MAX_SCORE_BITS + 1):
        width = peak_width(score_bits)
        assert width % 4 == 0
        assert 2.0 ** (score_bits + 1) * 2**2 <= 2.0 ** (width - 2)
        assert width < max(17, score_bits + 9)  # no digit more than is needed


@pytest.mark.parametrize("value_bits", [0, 5, 12, 18, 22])
@pytest.mark.parametrize("length", [2, 40, 300])
def test_values_as_large_as_their_range(value_bits, length):
    """Relative to the largest value the error stays what the range leaves for the reciprocal."""
    rng = generator(value_bits)
    scores = rng.normal(size=(1, 3, length)) * 2
    scores[0, 0] = 0.0  # all weights alike: the largest sum of a row
    values = rng.uniform(-1, 1, (1, length, 4)) * 2.0**value_bits
    values[0, :, 0] = 2.0**value_bits * 0.999
    mask = np.ones((3, length), dtype=np.bool_)
    got = floats(attend, share(scores), share(values), mask, AttentionRange(11, value_bits, 0))
    error = np.abs(got - softmax(scores, mask) @ values).max()
    assert error < 3e-4 * 2.0**value_bits + 1e-3


@pytest.mark.parametrize("bounds", [WIDE, NARROW], ids=["wide", "narrow"])
def test_a_mask_may_leave_one_entry_anywhere(bounds):
    """Windows and batches mask on both sides."""
    rng = generator(9)
    scores, values = rng.normal(size=(2, 4, 6)) * 9, rng.normal(size=(2, 6, 3))
    mask = np.zeros((4, 6), dtype=np.bool_)
    mask[0, 3] = mask[1, 5] = mask[2, 0] = True
    mask[3, 2:4] = True
    got = floats(attend, share(scores), share(values), mask, bounds)
    assert np.abs(got - softmax(scores, mask) @ values).max() < 1e-3
    assert math.isclose(float(got[0, 0, 0]), values[0, 3, 0], abs_tol=1e-3)


@pytest.mark.parametrize(
    ("score_bits", "heads", "length", "near"),
    [
        (11, 9, 64, True),
        (12, 9, 512, True),
        (13, 9, 64, False),
        (11, 9, 2048, False),  # too long a row
        (11, 1 << 13, 64, False),  # more would be dealt than for a layer may be
    ],
)
def test_which_rows_get_a_histogram(score_bits, heads, length, near):
    masks = [np.ones((1, length), dtype=np.bool_)] * 2
    dealt = near_dealt(Settings(tree="rounds"), masks, heads, score_bits)
    assert (dealt is not None) is near
    if dealt is not None:
        assert dealt == 2 * near_plan(masks[0], heads, score_bits).dealt_bytes
    for other in (Settings(tree="balanced"), Settings(tree="traffic"), Settings("puma", "rounds")):
        assert near_dealt(other, masks, heads, score_bits) is None


def test_values_that_would_lose_too_many_bits_keep_the_maximum():
    for value_bits, near in ((14, True), (15, False)):
        bounds = AttentionRange(11, value_bits, 0)
        assert fit(bounds, 64, near=True).near is near
        assert fit(bounds, 64, near=True).spare <= 6
    assert fit(bounds, 64, near=True) == fit(bounds, 64, near=False)


@pytest.mark.parametrize(("length", "found"), [(16, 9), (64, 12), (256, 15), (1024, 18)])
def test_rounds_near_the_maximum_do_not_grow_with_the_length_of_a_row(length, found):
    mask, scores = np.ones((1, length), dtype=np.bool_), share(np.zeros((1, 1, length)), width=45)
    settings = Settings(tree="balanced")
    exact = declared(softmax_numerators, scores, mask, 11, settings=settings)
    assert exact.rounds == found
    near = declared(lambda lane, x: softmax_numerators(lane, x, mask, 11, near=True), scores)
    assert near.rounds == 4


@pytest.mark.parametrize(
    ("rows", "length", "columns", "narrow"),
    [
        (1, 64, 64, True),
        (8, 200, 64, False),  # more would be dealt than the round is worth
        (64, 64, 64, False),
        (1, 1000, 1, False),  # a row's sum would not fit the narrow ring
    ],
)
def test_few_numerators_are_multiplied_without_a_lift(rows, length, columns, narrow):
    """A round less, and as accurate."""
    rng = generator(length)
    scores, values = rng.normal(size=(1, rows, length)) * 5, rng.normal(size=(1, length, columns))
    mask = np.ones((rows, length), dtype=np.bool_)
    given = share(scores, width=45), share(values), mask, NARROW
    cost = run(attend, *given).cost
    assert cost == declared(attend, *given)
    assert cost.rounds == (6 if narrow else 7)
    assert reads_narrow(fit(NARROW, length, near=True), scores.shape, columns) is narrow
    got = floats(attend, *given)
    assert np.abs(got - softmax(scores, mask) @ values).max() < 2e-4


def test_near_the_maximum_no_less_accurate_than_at_it():
    """The root of the mean square over many rows, of every distance to the end of a bucket."""
    rng = generator(5)
    scores, values = rng.normal(size=(4, 16, 64)) * 5, rng.normal(size=(4, 64, 16))
    mask = np.ones((16, 64), dtype=np.bool_)
    exact = softmax(scores, mask) @ values
    errors = {}
    for tree in ("rounds", "balanced"):
        got = floats(
            attend, share(scores), share(values), mask, NARROW, settings=Settings(tree=tree)
        )
        errors[tree] = np.sqrt(np.mean((got - exact) ** 2))
    assert errors["rounds"] <= 1.2 * errors["balanced"]


def test_values_beyond_every_context_are_refused():
    assert spare_bits(6, 64) == spare_bits(11, 8192) - 1 == 0
    assert spare_bits(20, 300) == 5
    with pytest.raises(RangeError, match=r"weighted sums of 1048576 values can reach 2\^41"):
        spare_bits(20, 1 << 20)
