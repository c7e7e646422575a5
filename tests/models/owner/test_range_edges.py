"""Operations at the very edge of the range that is stated for them."""

import numpy as np
import pytest
from helpers import floats, ints, share, share_ints, words

from models.owner.bounds import ACTIVATION_LIMIT, HELD, Bound, Bounds
from protocols.arithmetic import PRODUCT_BITS, mul
from protocols.base.ring import FRACTION_BITS, RESIDUAL_BITS, decode
from protocols.drivers.ops import Ranges
from protocols.drivers.secure import OUTPUT_LIMIT, Secure
from protocols.drivers.trace import run_now
from protocols.errors import RangeError
from protocols.functions.activations import ACTIVATIONS, activate
from protocols.functions.attention import (
    MAX_SCORE_BITS,
    AttentionRange,
    attend,
    peak_width,
)
from protocols.triple import mul3

SIGNS = np.array([1, -1, 1, -1])


def ops(lane):
    return Secure(lane, Ranges({}, {}))


@pytest.mark.parametrize("shift", [1, 18, 40])
def test_products_just_below_their_limit(shift):
    x = SIGNS * (2**31 - 1)
    y = np.array([1, 1, -1, -1]) * 2 ** (PRODUCT_BITS - 31)
    found = ints(lambda lane, x, y: mul(lane, x, y, shift), share_ints(x), share_ints(y))
    for got, left, right in zip(found, x, y, strict=True):
        product = int(left) * int(right)
        assert abs((int(got) << shift) - product) < 1 << shift


@pytest.mark.parametrize("shift", [0, 1, 30])
def test_triple_products_just_below_their_limit(shift):
    x, s, t = SIGNS * (2**22 - 1), np.full(4, 2**20), np.array([1, 1, -1, -1]) * (2**20 - 1)
    found = ints(lambda lane, *f: mul3(lane, *f, shift), *(share_ints(f) for f in (x, s, t)))
    for got, *factors in zip(found, x, s, t, strict=True):
        product = int(factors[0]) * int(factors[1]) * int(factors[2])
        assert 2**61 < abs(product) < 2**62
        assert abs((int(got) << shift) - product) < max(1, (1 << shift))


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
@pytest.mark.parametrize("width", [36, 39, 43])
def test_activations_at_their_limit(name, width):
    most = 2.0**15 - 2.0**-11 - 2.0**-18
    x = np.array([most, -most, HELD * 2.0**15, 0.0])

    async def program(lane, x):
        return await activate(lane, x, ACTIVATIONS[name])

    found = floats(program, share(x, FRACTION_BITS, width))
    assert np.abs(found - ACTIVATIONS[name].exact(x)).max() < 1e-3


@pytest.mark.parametrize("limit", [ACTIVATION_LIMIT, OUTPUT_LIMIT])
def test_biases_beside_a_limit_are_refused(limit):
    """Only a bias: no product leaves any reserve."""
    for share_of, given in ((HELD - 1e-6, True), (1 - 2.0**-22, False)):
        matrix = np.zeros((5, 3))
        matrix[4] = limit * share_of
        bounds, x = Bounds(8), Bound(4, 1.0)
        task = (
            bounds.dense(x, matrix, "layers.0.up", "relu")
            if limit == ACTIVATION_LIMIT
            else bounds.output(x, matrix, "head")
        )
        if given:
            assert run_now(task).length >= matrix[4, 0]
            continue
        with pytest.raises(RangeError, match=r"^(layers\.0\.up|head): values can reach"):
            run_now(task)


@pytest.mark.parametrize("size", [2, 5, 40])
def test_an_arg_max_of_logits_as_far_apart_as_can_be(size):
    most = OUTPUT_LIMIT * HELD
    logits = np.full((size, size), -most)
    np.fill_diagonal(logits, most)

    async def program(lane, x):
        return await ops(lane).argmax(x)

    np.testing.assert_array_equal(ints(program, share(logits, FRACTION_BITS, 37)), np.arange(size))


@pytest.mark.parametrize("count", [1, 3, 1000])
def test_means_of_rows_at_the_output_limit(count):
    most = OUTPUT_LIMIT * (1 - 2.0**-16)
    x = np.broadcast_to(np.array([most, -most, 0.0, 1.0]), (count, 4))

    async def program(lane, x):
        return await ops(lane).mean(x, [count])

    found = floats(program, share(x, RESIDUAL_BITS))
    assert np.abs(found - x[:1]).max() <= 2.0**-17 + np.abs(most) * count * 2.0**-23


def test_results_at_the_output_limit():
    x = np.array([[OUTPUT_LIMIT - 2.0**-16, -OUTPUT_LIMIT + 2.0**-16, 0.5, -0.5]])

    async def program(lane, x):
        return ops(lane).result(x)

    assert np.abs(floats(program, share(x, RESIDUAL_BITS)) - x).max() <= 2.0**-17


@pytest.mark.parametrize("sign", [1, -1])
def test_scores_as_far_apart_as_can_be(sign):
    most = 2.0**MAX_SCORE_BITS / 1.001
    scores = sign * np.array([[[most, -most, -most, most - 1]]])
    values = np.arange(4.0).reshape(1, 4, 1)
    width = 64 - 1 - FRACTION_BITS
    assert peak_width(MAX_SCORE_BITS) <= width - 16 < peak_width(MAX_SCORE_BITS + 1)

    async def program(lane, scores, values):
        mask = np.ones((1, 4), dtype=bool)
        return await attend(lane, scores, values, mask, AttentionRange(MAX_SCORE_BITS, 2, 0))

    found = floats(program, share(scores, FRACTION_BITS, width), share(values))
    weights = np.exp(scores - scores.max())
    assert np.abs(found - (weights / weights.sum()) @ values).max() < 1e-3
    assert decode(words([1 << FRACTION_BITS]), FRACTION_BITS)[0] == 1.0
