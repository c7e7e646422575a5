"""Products with a model's weights against exact integers."""

import numpy as np
import pytest
from helpers import A, B, D, generator, run, share_ints
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.base.ring import RESIDUAL_BITS, WEIGHT_BITS, signed
from protocols.base.shares import COMPUTING, SecretTensor
from protocols.drivers.lockstep import combine, deal
from protocols.errors import LocalProtocolError
from protocols.linear import Table, Weight, linear, table_product, weight_mask

SEEDS = (bytes(range(32)), bytes(range(32, 64)))


def share_weight(values, frac=WEIGHT_BITS):
    """As an owner does it: m to both evaluators, the masks from two seeds."""
    words = values.view(np.uint64)
    one, two = (weight_mask(seed, 3, words.shape) for seed in SEEDS)
    m = words + one + two
    held = {D: (one, two), A: (m, one), B: (m, two)}
    return {role: Weight.of(SecretTensor(role, *pair, frac=frac)) for role, pair in held.items()}


def share_table(values):
    parts = deal(values.view(np.uint64), frac=RESIDUAL_BITS)
    return {role: Table.of(part) for role, part in parts.items()}


def assert_product(results, exact, shift):
    got = signed(combine(results), 63 - shift).reshape(-1).tolist()
    for result, z in zip(got, [int(v) for v in exact.reshape(-1)], strict=True):
        assert result - (z >> shift) in ((0, 1) if z % 2**shift else (0,))


shapes = st.tuples(st.integers(1, 6), st.integers(1, 40), st.integers(1, 20))


@settings(max_examples=30, deadline=None)
@given(shapes, st.integers(0, 1000))
def test_linear(shape, seed):
    rows, depth, columns = shape
    rng = generator(seed)
    x = rng.integers(-(2**26), 2**26, (rows, depth))
    w = rng.integers(-(2**28), 2**28, (depth, columns))

    async def program(lane, x, weight):
        return await linear(lane, x, weight)

    results = run(program, share_ints(x, frac=18), share_weight(w)).results
    assert (results[A].width, results[A].frac) == (43, 18)
    assert_product(results, x.astype(object) @ w.astype(object), 20)


def test_linear_at_the_edge_of_its_range():
    x = np.array([[2**29, 2**29 - 1], [-(2**29), 1 - 2**29]])
    w = np.array([[2**30, 1], [2**31 - 2, 0]])
    exact = x.astype(object) @ w.astype(object)
    assert 2**60.5 < abs(exact).max() < 2**61

    async def program(lane, x, weight):
        return await linear(lane, x, weight, frac=RESIDUAL_BITS)

    results = run(program, share_ints(x, frac=18), share_weight(w)).results
    assert results[A].frac == RESIDUAL_BITS
    assert_product(results, exact, 16)


def test_a_public_map_runs_before_truncation():
    rng = generator(5)
    x = rng.integers(-(2**20), 2**20, (3, 8))
    w = rng.integers(-(2**20), 2**20, (8, 4))

    def turn(words):
        return words[:, ::-1] * np.uint64(12345)

    async def program(lane, x, weight):
        return await linear(lane, x, weight, then=turn, then_frac=14)

    results = run(program, share_ints(x, frac=18), share_weight(w)).results
    assert (results[A].width, results[A].frac) == (63 - 34, 18)
    exact = (x.astype(object) @ w.astype(object))[:, ::-1] * 12345
    assert_product(results, exact, 34)


@settings(max_examples=30, deadline=None)
@given(shapes, st.integers(0, 1000))
def test_table_product(shape, seed):
    rows, columns, entries = shape
    rng = generator(seed)
    x = rng.integers(-(2**26), 2**26, (rows, columns))
    table = rng.integers(-(2**28), 2**28, (entries, columns))
    results = run(table_product, share_ints(x, frac=18), share_table(table)).results
    assert (results[A].width, results[A].frac) == (41, 18)
    assert_product(results, x.astype(object) @ table.T.astype(object), 22)


@pytest.mark.parametrize("rows", [1, 2, 8, 33])
def test_a_prefill_and_a_decode_shape(rows):
    """Larger matrices, where the kernels work in blocks; against products modulo 2^64."""
    rng = generator(rows)
    x = rng.integers(-(2**20), 2**20, (rows, 576))
    w = rng.integers(-(2**20), 2**20, (576, 200))
    exact = x @ w  # below 2^51

    async def program(lane, x, weight):
        return await linear(lane, x, weight)

    results = run(program, share_ints(x, frac=18), share_weight(w)).results
    assert_product(results, exact, 20)
    results = run(table_product, share_ints(x, frac=18), share_table(w.T.copy())).results
    assert_product(results, exact, 22)


def test_masks_of_weights():
    one = weight_mask(SEEDS[0], 0, (50, 3))
    assert one.shape == (50, 3)
    assert np.unique(one).size == one.size
    np.testing.assert_array_equal(one, weight_mask(SEEDS[0], 0, (50, 3)))
    for other in (weight_mask(SEEDS[0], 1, (50, 3)), weight_mask(SEEDS[1], 0, (50, 3))):
        assert not (one == other).any()


def test_a_party_without_a_share_says_so():
    weight = {role: Weight(role, (2, 2), None) for role in COMPUTING}

    async def program(lane, x, weight):
        return await linear(lane, x, weight)

    with pytest.raises(LocalProtocolError, match="has no share of the weight"):
        run(program, share_ints([[1, 2]], frac=18), weight)
