"""Numerators near a row's maximum: exact bounds, rows of every length, the edges of the range."""

import numpy as np
import pytest
from helpers import A, declared, floats, generator, run, share
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocols.base.cost import Cost
from protocols.base.ring import packed_bytes
from protocols.errors import LocalProtocolError
from protocols.functions import histogram
from protocols.functions.histogram import BUCKET, FRAC, REACH, bucket_tables, numerators
from protocols.kernels.bits import answer_changes, half_turns, turned_onehots

UNIT = 2.0**-18


def check(rows, score_bits, width=45):
    """Each row's results are exp(x - c) for one c on the buckets' grid, its largest in range."""
    x = np.rint(np.concatenate(rows) / UNIT) * UNIT
    ends = np.cumsum([len(row) for row in rows])
    got = floats(numerators, share(x, width=width), ends, score_bits)
    for row, values in zip(np.split(x, ends[:-1]), np.split(got, ends[:-1]), strict=True):
        place = int(row.argmax())
        assert np.exp(-REACH) * (1 - 1e-4) <= values[place] < 1
        grid = (row[place] - np.log(values[place])) / BUCKET
        shift = np.rint(grid) * BUCKET
        assert abs(grid - np.rint(grid)) < 1e-4
        assert np.abs(values - np.exp(row - shift)).max() <= 3 * 2.0**-FRAC


def largest(score_bits):
    return 2.0**score_bits - UNIT


@pytest.mark.parametrize("score_bits", [1, 5, 6, 7, 11, 12])
def test_rows_of_every_length(score_bits):
    rng = generator(score_bits)
    limit = largest(score_bits)
    lengths = [1, 2, 3, 64, 255, 256, 700] if score_bits < 8 else [1, 2, 64, 300]
    check([np.clip(rng.normal(size=n) * limit / 3, -limit, limit) for n in lengths], score_bits)


@pytest.mark.parametrize("score_bits", [6, 11])
def test_the_edges_of_the_range(score_bits):
    """Both ends, ties, and every unit around the ends of buckets."""
    limit = largest(score_bits)
    around = UNIT * np.arange(-3, 4)
    cuts = np.concatenate([BUCKET * n + around for n in (-5, 0, 1, 8)])
    spread = np.array([-limit, limit, -limit, 0.25])
    check([spread, np.full(5, limit), np.full(3, -limit), np.zeros(4)], score_bits)
    check([np.array([cut, -limit]) for cut in cuts], score_bits)
    check([limit - np.arange(0, 40, 0.37), -limit + np.arange(0, 40, 0.37)], score_bits)


@settings(max_examples=30, deadline=None)
@example([[63.9], [-63.9, 63.9]], 45)
@given(
    st.lists(st.lists(st.floats(-63.9, 63.9), min_size=1, max_size=6), min_size=1, max_size=4),
    st.integers(31, 64),
)
def test_any_rows(rows, width):
    check([np.array(row) for row in rows], 6, width)


def test_in_a_ring_where_a_whole_row_can_be_added_up():
    """The same numbers, over as many bits more as the declared cost has."""
    rows = [np.zeros(1000), generator(1).normal(size=24)]
    x, ends = share(np.concatenate(rows), width=45), np.cumsum([len(row) for row in rows])

    async def wide(lane, x):
        return await numerators(lane, x, ends, 6, wide=True)

    done = run(wide, x)
    assert done.results[A].width == histogram.WIDE == 38
    assert done.cost == declared(wide, x)
    more = done.cost.online - declared(numerators, x, ends, 6).online
    assert more == 2 * (packed_bytes(1024, 38) - packed_bytes(1024, 29))
    total = floats(sums, x, ends)
    assert abs(total - floats(numerators, x, ends, 6)[:1000].sum()) <= 1000 * 2.0 ** (1 - FRAC)


async def sums(lane, x, ends):
    return (await numerators(lane, x, ends, 6, wide=True))[:1000].sum(0)


@pytest.mark.parametrize(
    ("lengths", "score_bits"), [([1], 4), ([64] * 9, 11), ([3, 1, 300], 7), ([5, 70], 12)]
)
def test_declared_cost_is_counted_cost(lengths, score_bits):
    ends = np.cumsum(lengths)
    x = share(np.zeros(int(ends[-1])), width=45)
    cost = run(numerators, x, ends, score_bits).cost
    assert cost == declared(numerators, x, ends, score_bits)
    assert cost.rounds == 3
    if lengths[0] == 64:  # the figures of the docstring
        entries, rows = 2 * 576 * 29 // 8, 9 * (2 * 2048 * 7 // 8) + 2 * -(-9 * 11 // 8)
        assert cost == Cost(3, entries + rows, 576 * 448 + 9 * 256 * 128 + -(-9 * 11 // 8))


def test_what_does_not_fit_is_refused():
    x = share(np.zeros(4), width=45)
    for ends, bits in (([2, 2, 4], 6), ([4], 13), ([2048], 6)):
        with pytest.raises(LocalProtocolError, match="rows must have 1 to 2047 entries below"):
            run(numerators, x, np.array(ends), bits)
    for wrong in (share(np.zeros(4), width=30), share(np.zeros(4), 17), share(np.zeros(3))):
        with pytest.raises(LocalProtocolError, match="18 fraction bits and 31 bits of ring, of 4"):
            run(numerators, wrong, np.array([4]), 6)


def test_the_evaluators_factors_are_right_to_the_last_bit():
    upper, lower, lengths = bucket_tables()
    unit = UNIT / 31
    for table, step in ((upper, unit * 2**12), (lower, unit)):
        exact = np.exp(np.arange(table.size) * step) * 2.0**29
        assert np.abs(table - exact).max() <= 0.51
    exact = np.exp(-BUCKET * np.arange(1, 10)) * 2.0**29
    assert np.abs(lengths - exact).max() <= 0.51


def test_a_turn_that_is_always_the_same_shows():
    """Negative control: without the dealer's turn, the second opening is the maximum's bucket."""

    async def opened(lane, x):
        words = []
        opening = lane.open

        async def watched(fields, values):
            sums = await opening(fields, values)
            words.append(sums[0])
            return sums

        lane.open = watched
        await numerators(lane, x, np.array([2]), 6)
        return words[1] if words else None

    def seen():
        found = run(opened, share(np.array([1.0, -3.0]), width=45)).results
        return {int(words[0]) for words in found.values() if words is not None}

    every = [seen() for _ in range(24)]
    assert all(len(words) == 1 for words in every)  # both evaluators know the same
    assert len(set.union(*every)) > 8
    deal = histogram._deal

    async def unturned(lane, plan, lam):
        private = lane.private
        lane.private = lambda shape, width: private(shape, width) & np.uint64(0)
        await deal(lane, plan, lam)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(histogram, "_deal", unturned)
        assert len(set.union(*(seen() for _ in range(24)))) <= 2  # a borrow is one more


@given(st.integers(0, 2**32), st.integers(1, 3), st.sampled_from([2, 64, 1024]), st.integers(0, 2))
def test_kernels_equal_their_twins(seed, rows, asked, more):
    rng, words = np.random.default_rng(seed), 1 << more
    masks, opened = rng.integers(0, 64 * words, (2, rows, asked), dtype=np.uint64)
    turn = rng.integers(0, asked, rows, dtype=np.uint64)
    tables = rng.integers(0, 2**64, (rows, asked, words), dtype=np.uint64)
    counts = rng.integers(0, 2**32, (rows, 2 * asked), dtype=np.uint32)
    for kernel, args in (
        (turned_onehots, (masks, turn, words)),
        (answer_changes, (tables, opened)),
        (half_turns, (counts,)),
    ):
        expected = kernel.twin(*args)
        got = kernel.compiled()(*args)
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)
