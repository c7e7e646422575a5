"""What a round and a byte take here, from two steps of a small model."""

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.tools.moment import measure, solve
from puma_actors.planning.machine import Speed

SPEEDS = st.floats(0, 1e-3)


@given(SPEEDS, st.floats(0, 1e-8))
def test_two_steps_give_the_speed(exchange, byte):
    speed = Speed(exchange, byte)
    sizes = ((120, 10**7), (90, 10**5))
    long, short = ((*each, speed.seconds(*each)) for each in sizes)
    found = solve(long, short)
    for each in sizes:
        assert found.seconds(*each) == pytest.approx(speed.seconds(*each), rel=1e-6, abs=1e-12)


@given(st.floats(1e-6, 10), st.floats(1e-6, 10))
def test_no_speed_is_negative_however_times_scatter(long, short):
    found = solve((120, 10**7, long), (90, 10**5, short))
    assert found.exchange >= 0
    assert found.byte >= 0
    assert found.exchange + found.byte > 0


def test_this_machine_is_measured():
    found = anyio.run(measure)
    assert found.exchange > 0 or found.byte > 0
    assert found.exchange < 1
