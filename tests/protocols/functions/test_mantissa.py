"""Mantissa and power of two of a shared number, over the whole of its range."""

import numpy as np
import pytest
from helpers import generator, run, share_ints
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocols.drivers.lockstep import combine
from protocols.errors import LocalProtocolError
from protocols.functions.mantissa import Exponents, mantissa

FRAC = 18


def parts(v, low, high, *, halves=2, width=64, frac=FRAC):
    """Mantissas and powers of two, as Python integers."""

    async def program(lane, v):
        return await mantissa(lane, v, Exponents(low, high), halves=halves, frac=frac)

    results = run(program, share_ints(v, width, 0)).results
    u, scale = (combine({role: pair[i] for role, pair in results.items()}) for i in (0, 1))
    return [int(x) for x in u.reshape(-1)], [int(x) for x in scale.reshape(-1)]


def edges(low, high):
    """Around every power of four, and those that may count as either."""
    span = Exponents(low, high)
    step = 1 << span.start
    near = [
        4**j + d for j in range(low, high + 1) for d in (-step, -1, 0, 1, step - 1, step, step + 1)
    ]
    return [v for v in near if 4**low <= v < 4**high]


def check(v, low, high, **how):
    """The bounds that `mantissa` states, element by element."""
    halves, frac = how.get("halves", 2), how.get("frac", FRAC)
    start = Exponents(low, high).start
    unclear = 1 << start if start else 0
    for value, u, scale in zip(v, *parts(v, low, high, **how), strict=True):
        j = high - (scale.bit_length() - 1) // halves
        assert scale == 1 << halves * (high - j)
        largest = (value.bit_length() + 1) // 2  # 4^(largest - 1) <= value < 4^largest
        assert j == largest or (low < j == largest - 1 and value < 4**j + unclear)
        # u is off by at most one unit, modulo 2^frac.
        off = (u * 4**j - value * 2**frac) % (2**frac * 4**j)
        assert off <= 4**j or off >= (2**frac - 1) * 4**j


@pytest.mark.parametrize(
    ("low", "high", "width"),
    [(8, 14, 64), (0, 8, 64), (0, 29, 64), (28, 29, 64), (3, 9, 19), (1, 2, 40), (0, 1, 64)],
)
@pytest.mark.parametrize("halves", [1, 2])
def test_every_exponent_and_edge(low, high, width, halves):
    v = edges(low, high)
    v += [int(4**u) for u in generator().uniform(low, high - 1e-9, 200)]
    check(v, low, high, halves=halves, width=width)


def test_all_numbers_of_a_small_range():
    """Every number, under many masks."""
    for _ in range(4):
        check(list(range(4, 4**5)), 1, 5, frac=12)


@settings(max_examples=25, deadline=None)
@example(0, 1, 0, 18, 1)
@example(28, 1, 5, 18, 2)
@given(
    st.integers(0, 28),
    st.integers(1, 29),
    st.integers(0, 2**32),
    st.integers(6, 30),
    st.sampled_from([1, 2]),
)
def test_any_range(low, span, seed, frac, halves):
    high = min(29, low + span)
    rng = generator(seed)
    v = [min(4**high - 1, max(4**low, int(4**u))) for u in rng.uniform(low, high, 30)]
    check([*v, *edges(low, high)], low, high, frac=frac, halves=halves)


def test_the_mantissa_is_right_on_average():
    """Its error has mean zero: no bias is left by shifting shares."""
    v = [3 * 4**12 + 1234567] * 4000
    u, _ = parts(v, 8, 14)
    error = np.array(u) - v[0] * 2**FRAC / 4**13
    assert abs(error.mean()) < 5 * error.std() / np.sqrt(len(v))
    assert np.abs(error).max() < 1


def test_shapes_are_kept():
    async def program(lane, v):
        u, scale = await mantissa(lane, v, Exponents(2, 6), halves=1, frac=FRAC)
        assert u.shape == scale.shape == (2, 3)
        assert (u.width, u.frac, scale.width, scale.frac) == (FRAC, FRAC, 64, 0)

    run(program, share_ints([[17, 99, 1000], [4095, 256, 64]], 64, 0))


@pytest.mark.parametrize(("high", "width"), [(9, 18), (30, 64)])
def test_a_ring_without_room_is_refused(high, width):
    async def program(lane, v):
        return await mantissa(lane, v, Exponents(3, high), halves=1, frac=FRAC)

    with pytest.raises(LocalProtocolError, match=rf"4\^{high} leave no room in a ring of {width}"):
        run(program, share_ints([64], width, 0))
