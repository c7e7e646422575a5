"""Products that read a narrow ring, against exact integers, to the ends of their ranges."""

import numpy as np
import pytest
from counting import same, tensor
from helpers import A, generator, ints, run, share_ints
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.arithmetic import lift, mul, square_sum
from protocols.base.cost import Cost
from protocols.base.ring import packed_bytes, signed
from protocols.drivers.lockstep import combine
from protocols.errors import LocalProtocolError
from protocols.narrow import narrow_matmul, narrow_mul, narrow_square_sum


def drawn(rng: np.random.Generator, width: int, shape: tuple[int, ...]) -> np.ndarray:
    """Integers up to the largest size that is allowed, 2^(width-2) - 1, with both ends."""
    limit = 2 ** (width - 2)
    values = rng.integers(1 - limit, limit, shape)
    ends = [limit - 1, 1 - limit, 0, 1 if limit > 1 else 0]
    values.flat[: len(ends)] = ends[: values.size]
    return values


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple),
    st.integers(2, 63),
    st.integers(0, 1000),
)
def test_square_sums_are_exact(shape, width, seed):
    x = drawn(generator(seed), width, shape)
    results = run(narrow_square_sum, share_ints(x, width, frac=9)).results
    assert (results[A].width, results[A].frac) == (64, 18)
    exact = (x.astype(object) ** 2).sum(axis=-1) % 2**64
    np.testing.assert_array_equal(combine(results), np.asarray(exact, dtype=np.uint64))


@pytest.mark.parametrize("width", [4, 8, 10])
def test_square_sums_of_every_value_under_many_masks(width):
    limit = 2 ** (width - 2)
    x = np.tile(np.arange(1 - limit, limit), 4000 // limit + 20)[:, None]
    np.testing.assert_array_equal(ints(narrow_square_sum, share_ints(x, width)), x[:, 0] ** 2)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple),
    st.integers(2, 63),
    st.integers(0, 61),
    st.integers(0, 1000),
)
def test_products_are_rounded_down_or_up(shape, width, shift, seed):
    rng = generator(seed)
    x = drawn(rng, width, shape)
    y = drawn(rng, 66 - width, shape)  # |x y| < 2^62, with both at their ends
    results = run(narrow_mul, share_ints(x, width), share_ints(y), shift).results
    assert results[A].width == 64 - shift
    got = signed(combine(results), 64 - shift).reshape(-1).tolist()
    exact = (x.astype(object) * y.astype(object)).reshape(-1)
    for found, z in zip(got, exact, strict=True):
        assert found - (int(z) >> shift) in ((0, 1) if int(z) % 2**shift else (0,))


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(*[st.integers(1, 5)] * 4), st.integers(2, 63), st.integers(0, 61), st.integers(0, 999)
)
def test_matrix_products_are_rounded_down_or_up(sizes, width, shift, seed):
    batch, rows, depth, columns = sizes
    rng = generator(seed)
    x = drawn(rng, width, (batch, rows, depth))
    # A sum of up to eight products below 2^62, with factors at their ends.
    y = drawn(rng, max(2, 63 - width), (batch, depth, columns))
    results = run(narrow_matmul, share_ints(x, width, 3), share_ints(y, frac=70), shift).results
    assert (results[A].width, results[A].frac) == (64 - shift, 73 - shift)
    got = signed(combine(results), 64 - shift).reshape(-1).tolist()
    exact = (x.astype(object) @ y.astype(object)).reshape(-1)
    for found, z in zip(got, exact, strict=True):
        assert found - (int(z) >> shift) in ((0, 1) if int(z) % 2**shift else (0,))


def test_matrix_products_of_every_value_under_many_masks():
    limit = 2**4
    x = np.tile(np.arange(1 - limit, limit), 300).reshape(-1, 3, 1, 10)[:, 0]
    y = generator().integers(-(2**40), 2**40, (len(x), 10, 2))
    np.testing.assert_array_equal(ints(narrow_matmul, share_ints(x, 6), share_ints(y), 0), x @ y)


def test_products_of_every_value_under_many_masks():
    limit = 2**4
    x = np.tile(np.arange(1 - limit, limit), 300)
    y = generator().integers(-(2**40), 2**40, x.shape)
    np.testing.assert_array_equal(ints(narrow_mul, share_ints(x, 6), share_ints(y), 0), x * y)


@pytest.mark.parametrize("width", [2, 31, 32, 47, 62, 63])
def test_declared_costs_are_counted(width):
    x, y = tensor((3, 8), width, min(4, width - 2)), tensor((3, 8))
    dealt = 3 * packed_bytes(24, 63 - width)
    assert same(narrow_square_sum, x) == Cost(1, 2 * 8 * 3, 8 * 3 + dealt)
    dealt = 3 * packed_bytes(24, 64 - width)
    sent = 2 * packed_bytes(24, 64 - 18)
    assert same(narrow_mul, x, y, 18) == Cost(1, sent, 8 * 24 + dealt)
    rows, matrix = tensor((1, 3, 8), width, min(4, width - 2)), tensor((1, 8, 5))
    bits = 64 - width
    dealt = 2 * packed_bytes(24, bits) + packed_bytes(24 * 5, bits)
    sent = 2 * packed_bytes(15, 64 - 18)
    assert same(narrow_matmul, rows, matrix, 18) == Cost(1, sent, 8 * 15 + dealt)


@pytest.mark.parametrize("width", [20, 33, 47, 58])
def test_they_cost_a_round_and_bytes_less_than_a_lift_first(width):
    async def lifted(lane, x):
        return await square_sum(lane, await lift(lane, x))

    async def multiplied(lane, x, y):
        return await mul(lane, await lift(lane, x), y, 18)

    x, y = tensor((4, 16), width, 4), tensor((4, 16))
    for new, old in (
        (same(narrow_square_sum, x), same(lifted, x)),
        (same(narrow_mul, x, y, 18), same(multiplied, x, y)),
    ):
        assert new.rounds == old.rounds - 1
        assert new.online < old.online
        assert new.online + new.offline < old.online + old.offline


def test_a_second_factor_that_is_narrow_or_of_another_shape_is_refused():
    x = share_ints([1, 2], 40)
    with pytest.raises(LocalProtocolError, match="lift or broadcast"):
        run(narrow_mul, x, x, 1)
    with pytest.raises(LocalProtocolError, match="lift or broadcast"):
        run(narrow_mul, x, share_ints([1]), 1)
    row, column = [[[1, 2]]], [[[1], [2]]]
    for first, second in ((40, 50), (64, 64)):
        with pytest.raises(LocalProtocolError, match=f"not over {first} and {second}: use `matmul"):
            run(narrow_matmul, share_ints(row, first), share_ints(column, second), 1)
