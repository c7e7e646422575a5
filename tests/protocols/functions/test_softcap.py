"""Soft caps and the scores of disentangled attention: errors, ranges and costs."""

import numpy as np
import pytest
from counting import ALL_SETTINGS, same, tensor
from helpers import floats, generator, share
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.base.cost import Cost
from protocols.base.lane import APPROXIMATIONS, Settings
from protocols.base.ring import packed_bytes
from protocols.functions.disentangled import disentangled_scores
from protocols.functions.softcap import (
    CAP_ERROR,
    CAP_ROUNDING,
    CAPPED_WIDTH,
    MAX_POWER,
    Cap,
    softcap,
)

CAPS = (1.0, 30.0, 50.0, 64.0, 1000.0)


@pytest.mark.parametrize("cap", CAPS)
def test_a_cap_is_taken_at_the_least_power_of_two_above_it(cap):
    found = Cap(cap)
    assert 2.0 ** (found.power - 1) < cap <= 2.0**found.power
    assert 1 <= found.factor < 2
    assert found.power <= MAX_POWER
    x = np.linspace(-9, 9, 4001) * 2.0**found.power
    assert np.abs(found.tightly(x) - found.exact(x)).max() < CAP_ERROR * cap
    inner = np.abs(x) < 6.25 * 2.0**found.power
    assert np.abs(found.tightly(x) - found.exact(x))[inner].max() < CAP_ROUNDING * cap


@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("width", [37, 45])
def test_the_error_of_a_soft_cap(cap, width):
    bend = Cap(cap)
    near = generator(3).uniform(-8, 8, 300) * 2.0**bend.power
    far = np.array([-1.0, 1.0]) * bend.limit(width) * (1 - 2.0**-12)
    x = np.concatenate([near, far, [0.0, 6.5 * 2.0**bend.power, -6.5 * 2.0**bend.power]])
    found = floats(softcap, share(x, width=width), bend)
    assert np.abs(found - bend.exact(x)).max() < CAP_ERROR * cap + 2.0**-17


@settings(max_examples=8, deadline=None)
@given(st.floats(1.0, 2.0**MAX_POWER), st.lists(st.floats(-40, 40), min_size=1, max_size=9))
def test_any_cap_and_input(cap, values):
    bend = Cap(cap)
    x = np.round(np.array(values) * cap * 2.0**18) * 2.0**-18
    found = floats(softcap, share(x, width=45), bend)
    assert np.abs(found - bend.exact(x)).max() < CAP_ERROR * cap + 2.0**-17


@pytest.mark.parametrize("kind", APPROXIMATIONS)
def test_every_set_of_approximations_has_the_same_caps(kind):
    x = np.linspace(-80, 80, 50)
    found = floats(softcap, share(x, width=45), Cap(50.0), settings=Settings(approximation=kind))
    assert np.abs(found - Cap(50.0).exact(x)).max() < 50 * CAP_ERROR


@pytest.mark.parametrize("settings", ALL_SETTINGS)
@pytest.mark.parametrize("width", [37, 45])
def test_the_cost_of_a_soft_cap(settings, width):
    async def program(lane, x):
        found = await softcap(lane, x, Cap(50.0))
        assert found.width == CAPPED_WIDTH
        return found

    assert same(program, tensor((8, 5), width), settings=settings).rounds in (3, 4, 5)


def direct(q, k, keys, queries, index):
    scores = q @ k.transpose(0, 2, 1)
    for head, row, column in np.ndindex(scores.shape):
        at = index[row, column]
        scores[head, row, column] += q[head, row] @ keys[head, at]
        scores[head, row, column] += k[head, column] @ queries[head, at]
    return scores


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (5, 5), (1, 7), (3, 6)])
def test_disentangled_scores(rows, length):
    rng = generator(length)
    q, k = rng.normal(size=(2, rows, 4)), rng.normal(size=(2, length, 4))
    keys, queries = rng.normal(size=(2, 9, 4)), rng.normal(size=(2, 9, 4))
    index = rng.integers(0, 9, (rows, length))
    shares = [share(each) for each in (q, k, keys, queries)]
    found = floats(disentangled_scores, *shares, index)
    assert np.abs(found - direct(q, k, keys, queries, index)).max() < 2e-4


def test_positions_cost_no_more_than_contents():
    index = generator(1).integers(0, 9, (5, 7))

    async def program(lane, q, k, keys, queries):
        return await disentangled_scores(lane, q, k, keys, queries, index)

    given = [tensor((2, n, 4)) for n in (5, 7, 9, 9)]
    count = 2 * 5 * 7
    assert same(program, *given) == Cost(1, 2 * packed_bytes(count, 45), 8 * count)
