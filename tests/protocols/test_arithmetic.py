"""Products, truncation and lifting against exact integers, to the ends of their ranges."""

import numpy as np
import pytest
from helpers import A, floats, generator, ints, run, share, share_ints, words
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.arithmetic import (
    Polynomial,
    lift,
    matmul,
    mul,
    poly,
    remask,
    square_sum,
)
from protocols.base.ring import signed
from protocols.base.shares import EVALUATORS
from protocols.drivers.lockstep import combine
from protocols.errors import LocalProtocolError
from protocols.triple import mul3

MANY = 100_000


def assert_truncated(got, exact, shift):
    """Every result is exact / 2^shift rounded down or up, up only if that is not whole."""
    exact = [int(z) for z in np.asarray(exact, dtype=object).reshape(-1)]
    for result, z in zip(got.reshape(-1).tolist(), exact, strict=True):
        assert result - (z >> shift) in ((0, 1) if z % 2**shift else (0,)), (z, result)


def edges(width, count, seed=0):
    """Integers up to the largest size that a truncation takes, 2^(width-2) - 1."""
    limit = 2 ** (width - 2)
    values = generator(seed).integers(-limit + 1, limit, count)
    special = [0, 1, -1, limit - 1, 1 - limit, limit // 2, -limit // 2, 7, -8]
    values[: len(special)] = special
    return values[np.abs(values) < limit]


# -- remask ----------------------------------------------------------------------------------------


async def truncate(lane, z, shift, width):
    """`remask` of the obvious additive parts of z: m at A, and the masks."""
    if lane.is_dealer:
        part = np.uint64(0) - z.lam
    else:
        part = z.a if lane.leads else np.zeros_like(z.a)
    return await remask(lane, part, frac=0, width=width, shift=shift)


@pytest.mark.parametrize(
    ("width", "shift"), [(64, 1), (64, 18), (64, 20), (64, 38), (64, 61), (44, 18), (20, 3)]
)
def test_truncation_rounds_down_or_up(width, shift):
    z = edges(width, MANY)
    results = run(truncate, share_ints(z, width), shift, width).results
    assert results[A].width == width - shift
    got = signed(combine(results), width - shift)
    low, rest = z >> shift, z & ((1 << shift) - 1)
    assert np.isin(got - low, (0, 1)).all()
    np.testing.assert_array_equal(got[rest == 0], low[rest == 0])
    error = (got - low) - rest / 2.0**shift
    assert abs(error.mean()) < 5 * 0.5 / np.sqrt(MANY)


@pytest.mark.parametrize("z", [2**40 + 1, -(2**40) - 3, 2**62 - 1, 1 - 2**62, 1])
def test_truncation_is_unbiased_for_one_number(z):
    shift = 18
    got = ints(truncate, share_ints(np.full(MANY, z)), shift, 64)
    fraction = z % 2**shift / 2**shift
    rounded_up = (got - (z >> shift)).mean()
    assert abs(rounded_up - fraction) < 5 * np.sqrt(max(fraction * (1 - fraction), 1e-5) / MANY)


def test_remask_without_shift_is_exact():
    z = generator().integers(-(2**63), 2**63 - 1, 1000)
    np.testing.assert_array_equal(ints(truncate, share_ints(z), 0, 64), z)


def test_remask_draws_new_masks():
    shared = share_ints(np.zeros(500))
    results = run(truncate, shared, 0, 64).results
    for role, old in shared.items():
        assert (results[role].a != old.a).all()
        assert (results[role].b != old.b).all()


def test_remask_without_a_dealer_part():
    async def program(lane, x):
        part = x.a - x.b if lane.role is EVALUATORS[0] else np.uint64(0) - x.b
        return await remask(lane, part, frac=0, dealt=False)

    outcome = run(program, share_ints([5, -7]))
    assert signed(combine(outcome.results)).tolist() == [5, -7]
    assert outcome.cost.offline == 0


# -- lift ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "to"), [(46, 64), (44, 64), (2, 64), (3, 9), (20, 32), (63, 64), (26, 60)]
)
def test_lift_is_exact_to_the_edges(width, to):
    x = edges(width, 20_000)
    lifted = run(lift, share_ints(x, width), to).results
    assert lifted[A].width == to
    np.testing.assert_array_equal(signed(combine(lifted), to), x)


@pytest.mark.parametrize("width", [4, 8, 10])
def test_lift_of_every_value_under_many_masks(width):
    limit = 2 ** (width - 2)
    x = np.tile(np.arange(1 - limit, limit), 4000 // limit + 20)
    np.testing.assert_array_equal(ints(lift, share_ints(x, width)), x)


def test_lift_draws_new_upper_masks_and_is_free_downwards():
    results = run(lift, share_ints(np.zeros(300), 40)).results
    upper = results[A].b >> np.uint64(40)
    assert np.unique(upper).size > 290
    outcome = run(lift, share_ints([3, -3], 64), 20)
    assert outcome.cost.rounds == outcome.cost.online == 0
    assert signed(combine(outcome.results), 20).tolist() == [3, -3]


# -- products --------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([((3,), (3,)), ((2, 3), (3,)), ((2, 1), (1, 4)), ((1,), (5,)), ((0, 2), (2,))]),
    st.integers(0, 1000),
    st.integers(5, 64),
)
def test_mul_over_any_ring(shapes, seed, width):
    """Products up to the edge of what truncation takes, with broadcasting."""
    rng = generator(seed)
    bits = (width - 3) // 2
    x, y = (rng.integers(1 - 2**bits, 2**bits, shape) for shape in shapes)
    results = run(mul, share_ints(x, width), share_ints(y, width), 1).results
    assert results[A].width == width - 2
    got = signed(combine(results), width - 2)
    assert got.shape == np.broadcast_shapes(*shapes)
    assert_truncated(got, x.astype(object) * y.astype(object), 1)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(2, 59), st.integers(0, 1000))
def test_mul_with_truncation(shift, x_bits, seed):
    rng = generator(seed)
    x = rng.integers(-(2**x_bits) + 1, 2**x_bits, 200)
    y = rng.integers(-(2 ** (61 - x_bits)) + 1, 2 ** (61 - x_bits), 200)
    x[:2], y[:2] = 2**x_bits - 1, [2 ** (61 - x_bits) - 1, 1 - 2 ** (61 - x_bits)]
    got = ints(mul, share_ints(x), share_ints(y), shift)
    assert_truncated(got, x.astype(object) * y.astype(object), shift)


def test_mul_in_fixed_point_over_many_elements():
    rng = generator(5)
    x, y = rng.normal(size=(2, MANY)) * 100
    got = floats(mul, share(x), share(y), 18)
    inputs = 2.0**-19 * (np.abs(x) + np.abs(y)) + 2.0**-17
    assert (np.abs(got - x * y) <= inputs).all()


def test_factors_over_different_rings_are_refused():
    with pytest.raises(LocalProtocolError, match="lift or narrow"):
        run(mul, share([1.0]), share([1.0], width=40), 1)


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(*[st.integers(1, 5)] * 4),
    st.integers(1, 40),
    st.integers(0, 1000),
)
def test_matmul(sides, shift, seed):
    batch, rows, depth, columns = sides
    rng = generator(seed)
    limit = 2**29
    x = rng.integers(-limit, limit, (batch, rows, depth))
    y = rng.integers(-limit, limit, (batch, depth, columns))
    got = ints(matmul, share_ints(x), share_ints(y), shift)
    exact = np.matmul(x.astype(object), y.astype(object))
    assert got.shape == (batch, rows, columns)
    assert_truncated(got, exact, shift)


@pytest.mark.parametrize("product", [mul, matmul])
def test_products_are_truncated_by_one_bit_at_least(product):
    x = share_ints(np.ones((1, 2, 2), np.int64))
    with pytest.raises(LocalProtocolError, match="at least one bit"):
        run(product, x, x, 0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=3), st.integers(0, 1000))
def test_square_sum(shape, seed):
    x = generator(seed).integers(0, 2**64, shape, dtype=np.uint64)
    results = run(square_sum, share_ints(x.view(np.int64), frac=9)).results
    assert results[A].frac == 18
    np.testing.assert_array_equal(combine(results), (x * x).sum(-1, dtype=np.uint64))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([((4,), (4,)), ((3, 4), (3, 1)), ((2, 3, 5), (2, 3, 1)), ((3, 2), (1,))]),
    st.integers(1, 58),
    st.integers(0, 1000),
)
def test_mul3(shapes, shift, seed):
    rng = generator(seed)
    x = rng.integers(-(2**30), 2**30, shapes[0])
    s = rng.integers(-(2**15), 2**15, shapes[1])
    t = rng.integers(-(2**16), 2**16, shapes[1])
    got = ints(mul3, share_ints(x), share_ints(s), share_ints(t), shift)
    exact = x.astype(object) * np.asarray(s).astype(object) * np.asarray(t).astype(object)
    assert_truncated(got, exact, shift)


def test_mul3_at_the_edge_and_without_shift():
    x = np.array([2**31, -(2**31), 2**31 - 1])
    s, t = np.array([2**15] * 3), np.array([2**16 - 1] * 3)
    exact = x.astype(object) * s.astype(object) * t.astype(object)
    assert_truncated(ints(mul3, share_ints(x), share_ints(s), share_ints(t), 40), exact, 40)
    big = generator(3).integers(0, 2**64, (3, 50), dtype=np.uint64)
    shared = [share_ints(row.view(np.int64)) for row in big]
    got = combine(run(mul3, *shared).results)
    np.testing.assert_array_equal(got, big[0] * big[1] * big[2])


# -- polynomials -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "coefficients",
    [
        (0.5, -1.25),
        (0.1, 0.0, 3.0),
        (-0.5054, -0.4222, -0.118, -0.011),
        (0.0, 0.0, 0.0, 0.0, 1.0),
        (1.0, -0.5, 0.25, -0.125, 0.0625, -0.03125, 0.015625),
    ],
)
def test_poly_against_integers_and_floats(coefficients):
    polynomial = Polynomial(coefficients)
    frac, scale, out = 8, 50, 18
    x = generator(len(coefficients)).integers(-(2**10), 2**10, 3000)
    x[:3] = [0, 2**10, -(2**10)]

    async def program(lane, x):
        return await poly(lane, x, polynomial, scale=scale, frac=out)

    results = run(program, share_ints(x, frac=frac)).results
    got = signed(combine(results), results[A].width)
    encoded = [int(w) for w in signed(np.array(polynomial.encoded(frac, scale)))]
    exact = sum(c * x.astype(object) ** i for i, c in enumerate(encoded))
    assert_truncated(got, exact, scale - out)
    real = sum(c * (x / 2.0**frac) ** i for i, c in enumerate(coefficients))
    # Besides rounding the result: coefficient i is rounded at scale - i * frac bits.
    rounding = sum(
        2.0 ** -(scale - i * frac + 1) * np.abs(x / 2.0**frac) ** i
        for i in range(len(coefficients))
    )
    assert (np.abs(got / 2.0**out - real) <= 2.0**-out + rounding + 1e-12).all()


def test_poly_at_the_edge_of_its_range():
    """x^2 just below 2^62 before truncation."""
    x = np.array([2**31 - 1, 1 - 2**31, 2**30, -1, 0])

    async def program(lane, x):
        return await poly(lane, x, Polynomial((0.0, 0.0, 1.0)), scale=30, frac=10)

    assert_truncated(ints(program, share_ints(x, frac=15)), x.astype(object) ** 2, 20)


def test_poly_refuses_what_does_not_fit():
    async def program(lane, x):
        return await poly(lane, x, Polynomial((0.0,) * 4 + (1.0,)), scale=50, frac=18)

    with pytest.raises(LocalProtocolError, match="degree 4 at 18 fraction bits"):
        run(program, share([1.0]))
    with pytest.raises(LocalProtocolError, match="lift first"):
        run(program, share([1.0], width=40))


def test_helpers_words_are_twos_complement():
    assert words([-1]).tolist() == [2**64 - 1]
