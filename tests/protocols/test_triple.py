"""Products of three that read narrow factors, against exact integers."""

import numpy as np
import pytest
from counting import same, tensor
from helpers import generator, ints, run, share_ints
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.base.cost import Cost
from protocols.base.ring import canonical, packed_bytes
from protocols.drivers.lockstep import combine
from protocols.errors import LocalProtocolError
from protocols.triple import mul3

SHAPES = [((4,), (4,)), ((3, 4), (3, 1)), ((2, 3, 5), (2, 3, 1)), ((3, 2), (1,))]
WIDTHS = st.one_of(st.just(64), st.integers(3, 63))


def quarter(rng, width, most, shape):
    """Integers of both signs up to a quarter of a ring, or 2^most; the ends among them."""
    end = 1 << min(width - 2, most)
    values = rng.integers(-end + 1, end, shape)
    values.reshape(-1)[0] = rng.choice([end - 1, 1 - end])
    return values


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(SHAPES), st.integers(1, 58), WIDTHS, WIDTHS, st.integers(0, 1000))
def test_narrow_factors(shapes, shift, x_width, t_width, seed):
    rng = generator(seed)
    x, t = quarter(rng, x_width, 28, shapes[0]), quarter(rng, t_width, 18, shapes[1])
    s = rng.integers(-(2**14), 2**14, shapes[1])
    shared = share_ints(x, x_width), share_ints(s), share_ints(t, t_width)
    exact = x.astype(object) * s.astype(object) * t.astype(object)
    got = ints(mul3, *shared, shift)
    low = np.asarray(exact // 2**shift, dtype=object)
    whole = np.asarray(exact % 2**shift == 0)
    off = got.astype(object) - low
    assert ((off == 0) | ((off == 1) & ~whole)).all()


@pytest.mark.parametrize("width", [64, 50])
@pytest.mark.parametrize("x_width", [7, 30, 50])
@pytest.mark.parametrize("t_width", [6, 40, 50])
def test_every_narrow_value_modulo_the_ring(width, x_width, t_width):
    """Without truncation, for arbitrary words of the wide factor."""
    rng = generator(4)
    for _ in range(4):
        t = np.arange(-15, 16)
        x = quarter(rng, x_width, 40, t.size)
        s = rng.integers(0, 2**64, t.size, dtype=np.uint64)
        shared = share_ints(x, x_width), share_ints(s.view(np.int64), width), share_ints(t, t_width)
        got = combine(run(mul3, *shared).results)
        exact = x.astype(np.uint64) * s * t.astype(np.uint64)
        np.testing.assert_array_equal(got, canonical(exact, width))


def test_a_map_of_the_product():
    x, s, t = share_ints([5, -7], 40), share_ints([3, 3]), share_ints([2, 9], 20)
    got = ints(lambda lane, *f: mul3(lane, *f, then=lambda w: w[::-1]), x, s, t)
    assert got.tolist() == [-189, 30]


def test_a_wide_factor_is_refused():
    narrow, wide = share_ints([1], 40), share_ints([1])
    with pytest.raises(LocalProtocolError, match="factors over 40 and 64 bits of one over 40"):
        run(mul3, narrow, narrow, wide)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(SHAPES), WIDTHS, WIDTHS)
def test_cost(shapes, x_width, t_width):
    shape, rows = shapes
    x, t = tensor(shape, x_width, min(2, x_width - 2)), tensor(rows, t_width, min(2, t_width - 2))
    cost = same(mul3, x, tensor(rows, 64, 2), t, 3)
    count, row = int(np.prod(shape)), int(np.prod(rows))
    x_gap, t_gap = 64 - x_width, 64 - t_width
    gap = max(0, x_gap - t_width) if x_gap and t_gap else 0
    extra = 5 * packed_bytes(count, x_gap) + 2 * packed_bytes(count, t_gap)
    extra += 3 * packed_bytes(row, t_gap) + 2 * packed_bytes(count, gap)
    wide = [tensor(each, 64, 2) for each in (shape, rows, rows)]
    assert cost == same(mul3, *wide, 3) + Cost(offline=extra)
