"""Norms after the product that reads them: as exact as before it, in fewer rounds."""

import numpy as np
import pytest
from counting import same, tensor
from helpers import A, run, share, value_of
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.arithmetic import lift
from protocols.base.lane import Settings
from protocols.base.ring import RESIDUAL_BITS, WEIGHT_BITS
from protocols.base.shares import COMPUTING
from protocols.functions.late import (
    LEAST_ANGLE,
    Columns,
    LateRange,
    late_norm,
    late_range,
)
from protocols.functions.normalize import Norm, norm_range, normalize
from protocols.linear import Weight, linear

RNG = np.random.default_rng


def lengths(x, axis):
    return float(np.sqrt((x * x).sum(axis)).max())


def late_of(x, w, norm, angles=0, room=2.0):
    """A range for these rows, the longest of which is at its end, and this matrix."""
    bounds = norm_range(norm, lengths(x, -1) * 1.0001)
    result = room * lengths(w, 0) * np.sqrt(norm.size)
    found = late_range(
        norm, bounds, Columns(lengths(x, -1) * 1.0001, lengths(w, 0), result, angles)
    )
    return bounds, found


def secure(x, w, norm, bounds, late, width=64, then=None):
    rows, matrix = share(x, RESIDUAL_BITS, width), share(w, WEIGHT_BITS)

    async def program(lane, mine, weight):
        return await late_norm(lane, mine, norm, bounds, weight, late, then=then)

    weights = {role: Weight.of(matrix[role]) for role in COMPUTING}
    return run(program, rows, weights)


def exact(x, w, norm):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + norm.eps) @ w


@settings(max_examples=40, deadline=None)
@given(
    st.floats(-2, 3.5),
    st.floats(-1, 1),
    st.integers(1, 200),
    st.integers(1, 6),
    st.integers(0, 1000),
    st.booleans(),
)
def test_products_are_normalised(exponent, stretch, size, columns, seed, narrow):
    """Rows of very different lengths, the longest at the end of its range; over the whole ring and
    over the narrowest that the range fits.
    """
    rng, norm = RNG(seed), Norm(size, 1e-5)
    x = rng.normal(size=(4, size)) * 10.0**exponent
    x[1] /= 30
    x[2], x[2, 0] = 0, lengths(x, -1)
    w = rng.normal(size=(size, columns)) * 10.0**stretch
    bounds, found = late_of(x, w, norm)
    if found is None:
        return
    late, factor = found
    assert factor < 2
    width = next(k for k in range(8, 65) if bounds.fit(norm, k)) if narrow else 64
    results = secure(x, w, norm, bounds, late, width).results
    assert results[A].frac == 18
    assert results[A].width >= 36
    expected = exact(x, w, norm)
    square = np.sqrt((x * x).mean(-1, keepdims=True) + norm.eps)
    # What is dropped from x, the rounding of the product, and that of the sum of squares.
    lost = 2.0 ** (late.drop + 1 - RESIDUAL_BITS) * lengths(w, 0) * (late.drop > 0)
    lost += 2.0**-late.frac + 2.0 ** -(WEIGHT_BITS + 1) * np.sqrt(size) * square
    coarse = 2.0 ** (bounds.drop + 1 - RESIDUAL_BITS) / square
    relative = 2.0**-late.root * 2 + 1e-4 + coarse * (1 + np.abs(x).max(-1, keepdims=True) / square)
    error = np.abs(value_of(results) - expected)
    assert (error <= lost * np.sqrt(size) / square + relative * np.abs(expected) + 2.0**-17).all()


def test_the_largest_results_fit_the_ring():
    """All of a row in one entry, and all of a column: the result is the largest declared."""
    norm = Norm(64, 1e-5)
    x, w = np.zeros((2, 64)), np.zeros((64, 2))
    x[0, 3], x[1, 3], w[3] = 900.0, -900.0, [40.0, -40.0]
    bounds, found = late_of(x, w, norm, room=1.0)
    assert found is not None
    got = value_of(secure(x, w, norm, bounds, found[0]).results)
    assert np.abs(got - exact(x, w, norm)).max() < 2.0**-10 * 320


def test_a_public_map_is_applied_before_the_division():
    rng, norm = RNG(5), Norm(48, 1e-5)
    x, w = rng.normal(size=(3, 48)), rng.normal(size=(48, 4))
    bounds, found = late_of(x, w, norm, angles=14)
    assert found is not None
    late = found[0]
    assert LEAST_ANGLE <= late.rope <= 14

    def then(words):
        return words[:, ::-1] * np.uint64(3 << late.rope - 2)

    got = value_of(secure(x, w, norm, bounds, late, then=then).results)
    assert np.abs(got - 0.75 * exact(x, w, norm)[:, ::-1]).max() < 1e-3


def test_what_has_too_few_bits_is_not_normalised_late():
    norm = Norm(64, 1e-5)
    x, w = RNG(1).normal(size=(2, 64)), RNG(2).normal(size=(64, 3))
    assert late_of(x, w, norm)[1] is not None
    assert late_of(x * 1e6, w * 1e3, norm)[1] is None  # the product
    assert late_of(x * 1e5, w, norm, angles=16, room=1e4)[1] is None  # the product of three
    centred = Norm(64, 1e-5, center=True)
    bounds = norm_range(centred, 100.0)
    assert late_range(centred, bounds, Columns(100.0, 1.0, 10.0)) is None


@given(
    st.integers(1, 8192),
    st.floats(1e-2, 1e7),
    st.floats(1e-3, 1e4),
    st.floats(1e-2, 1e6),
    st.sampled_from([0, 12, 18]),
)
def test_every_range_keeps_its_products_in_the_ring(size, longest, weight, result, angles):
    norm = Norm(size, 1e-5)
    bounds = norm_range(norm, longest)
    found = late_range(norm, bounds, Columns(longest, weight, result, angles))
    if found is None:
        return
    late, factor = found
    assert factor >= 1
    noise = 2.0 ** (late.drop + 1 - RESIDUAL_BITS) * np.sqrt(size)
    assert (longest + noise) * weight * 2.0 ** (WEIGHT_BITS + RESIDUAL_BITS - late.drop) < 2.0**61
    mantissa = np.frexp(np.sqrt(size))[1] - 1
    power = bounds.high - (RESIDUAL_BITS - bounds.drop) - mantissa
    total = late.frac + late.root + power + late.rope
    assert result * factor * 2.0**total <= 2.0**61
    assert angles or 64 - (total - 18) >= 36


@pytest.mark.parametrize("width", [47, 64])
@pytest.mark.parametrize("tree", ["rounds", "balanced", "traffic"])
def test_two_rounds_less_than_before_the_product(width, tree):
    norm, bounds = Norm(8, 1e-5), norm_range(Norm(8, 1e-5), 1e4)
    late, chosen = LateRange(2, 14, 14), Settings(tree=tree)
    seen = {}
    words = np.ones((8, 6), dtype=np.uint64)

    def of(lane):
        factor = None if lane.tracing else words
        return Weight(lane.role, (8, 6), factor, WEIGHT_BITS)

    async def after(lane, x):
        return await late_norm(lane, x, norm, bounds, of(lane), late)

    async def before(lane, x):
        wide = x if width == 64 else await lift(lane, x)
        return await linear(lane, await normalize(lane, wide, norm, bounds), of(lane))

    x = tensor((3, 8), width, 22)
    seen = [same(program, x, settings=chosen).rounds for program in (after, before)]
    # With the least traffic, a row's inverse root is multiplied out before it is read.
    assert seen[1] - seen[0] == 2 + (width < 64) + (tree == "traffic")
