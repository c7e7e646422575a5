"""ANDs of any fan-in, and circuits of them, against truth tables."""

import itertools

import numpy as np
import pytest
from helpers import A, B, D, bits, combine_bits, generator, run, share_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.base.shares import COMPUTING
from protocols.boolean import and_bits, circuit, open_masked, products, to_bits
from protocols.compare import comparison_tree
from protocols.errors import LocalProtocolError
from protocols.kernels import bits as kernels


@pytest.mark.parametrize("fan_in", [2, 3, 4, 5, 8])
def test_and_over_the_whole_truth_table(fan_in):
    table = np.array(list(itertools.product((0, 1), repeat=fan_in)), dtype=np.uint8)
    table = np.tile(table, (max(1, 512 >> fan_in), 1))  # each row under many masks
    shared = [share_bits(table[:, i]) for i in range(fan_in)]
    np.testing.assert_array_equal(bits(and_bits, shared), table.all(axis=1))


def test_and_of_other_shapes():
    x, y = generator().integers(0, 2, (2, 3, 5, 2), dtype=np.uint8)
    np.testing.assert_array_equal(bits(and_bits, [share_bits(x), share_bits(y)]), x & y)


@pytest.mark.parametrize("count", [0, 1, 17])
def test_and_refuses_other_fan_ins(count):
    with pytest.raises(LocalProtocolError, match=f"not {count}: build a tree"):
        run(and_bits, [share_bits([1])] * count)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.lists(
                st.lists(st.integers(0, 2 ** min(n, 6) - 1), min_size=1, max_size=4).map(tuple),
                min_size=1,
                max_size=5,
            ),
        )
    ),
    st.integers(0, 1000),
)
def test_circuits(drawn, seed):
    """XORs of ANDs, the empty product among them."""
    inputs, outputs = drawn
    plan = circuit(inputs, tuple(outputs))
    words = generator(seed).integers(0, 2**inputs, (4, 9), dtype=np.uint64)

    async def program(lane, shared):
        share = shared.b.astype(np.uint64)  # XOR shares of the word: A adds the public part
        if lane.leads:
            share = share ^ shared.a
        opened, mask = await open_masked(lane, share, inputs, words.shape)
        return await products(lane, opened, mask, plan)

    results = run(program, share_word(words, inputs)).results
    expected = np.zeros_like(words)
    for place, terms in enumerate(outputs):
        for term in terms:
            hit = (words & np.uint64(term)) == term
            expected ^= hit.astype(np.uint64) << np.uint64(place)
    np.testing.assert_array_equal(results[A] ^ results[B], expected)


def share_word(words, inputs):
    """Words of bits with XOR masks, as (public, mask) pairs in the place of a sharing."""
    rng = generator(99)
    one, two = rng.integers(0, 2**inputs, (2, *words.shape), dtype=np.uint64)
    template = share_bits(np.zeros(1))
    public = words ^ one ^ two
    parts = {D: (one, two), A: (public, one), B: (public, two)}
    return {r: type(template[r])(r, *parts[r]) for r in COMPUTING}


def test_a_circuit_wider_than_a_word_of_subsets():
    """Six inputs in one product have 57 subsets of two and more; two such products need 114."""
    plan = circuit(12, (((1 << 6) - 1, ((1 << 6) - 1) << 6),))
    assert plan.fields == 2
    assert plan.widths == (64, 50)


def test_to_bits_makes_new_masks():
    values = generator().integers(0, 2, 1000, dtype=np.uint8)

    async def program(lane, shared):
        share = shared.b.astype(np.uint64) ^ (shared.a if lane.leads else np.uint64(0))
        return await to_bits(lane, share, shared.shape)

    shared = share_bits(values)
    results = run(program, shared).results
    np.testing.assert_array_equal(combine_bits(results), values)
    assert 350 < (results[A].a != shared[A].a).sum() < 650


PLANS = [level for d, r in ((5, 5), (5, 3), (2, 3)) for level in comparison_tree(d, r).levels]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("leads", [True, False])
def test_tables_say_what_the_rows_say(plan, leads):
    """Circuits are read from tables where they are small: the same bits as row by row."""
    rng = generator()
    opened, mask = rng.integers(0, 1 << plan.inputs, (2, 400), dtype=np.uint64)
    assert plan.small
    dealt = rng.integers(0, 1 << len(plan.subsets), (1, 400), dtype=np.uint64)
    expected = kernels.expand_products(opened, mask, dealt, plan.rows, leads)
    twin = kernels.expand_products_numpy(opened, mask, dealt, plan.rows, leads)
    np.testing.assert_array_equal(twin, expected)
    for kernel in (kernels.look_up_products, kernels.look_up_products_numpy):
        got = kernel(opened, mask, dealt[0], plan.asked, plan.inputs, leads)
        np.testing.assert_array_equal(got, expected)
    masks = kernels.mask_products(mask, plan.subsets, plan.fields)
    np.testing.assert_array_equal(plan.dealt[:, mask], masks)


def test_one_hots_equal_their_twin():
    values = generator().integers(0, 2**20, 100, dtype=np.uint64)
    np.testing.assert_array_equal(
        kernels.onehot_digits(values, 5), kernels.onehot_digits_numpy(values, 5)
    )
