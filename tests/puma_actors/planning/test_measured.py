"""The network between remote parties, as they tell it: bounded, and nothing of it is believed
beyond that.
"""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.base.shares import COMPUTING, Role
from puma_actors.hosts.admission import LinkEntry
from puma_actors.planning.measured import measured

A, B, DEALER = Role.EVALUATOR_A, Role.EVALUATOR_B, Role.DEALER


def entry(peer, trip=0.04, rate=1e6):
    return LinkEntry(peer=str(peer), round_trip=trip, throughput=rate)


def test_what_the_parties_measured():
    found = measured({DEALER: [], A: [entry(DEALER, 0.1, 2e6)], B: [entry(DEALER), entry(A, 0.02)]})
    assert found is not None
    assert (found.route(A, B).round_trip, found.route(A, B).bandwidth) == (0.02, 8e6)
    assert (found.route(DEALER, A).round_trip, found.route(DEALER, A).bandwidth) == (0.1, 16e6)
    assert found.route(B, DEALER).round_trip == 0.04
    assert found.route(Role.CLIENT, A) == found.route(A, B)


@pytest.mark.parametrize(
    "wrong",
    [
        {"trip": -1.0},
        {"trip": 11.0},
        {"trip": math.nan},
        {"trip": None},
        {"rate": 0.0},
        {"rate": -1e6},
        {"rate": math.inf},
        {"rate": math.nan},
        {"rate": None},
    ],
    ids=str,
)
def test_figures_out_of_bounds_are_as_good_as_none(wrong):
    assert measured({B: [entry(A, **wrong)]}) is None
    found = measured({B: [entry(DEALER, **wrong), entry(A)]})
    assert found is not None
    assert found.route(B, DEALER) == found.route(A, B)


def test_only_connections_of_a_party_to_another_one_count():
    assert measured({}) is None
    assert measured({B: [entry(B), entry("client"), entry(A)]}) is None  # more than there can be
    assert measured({A: [entry(A)], B: [entry("")]}) is None


@given(
    st.dictionaries(
        st.sampled_from(COMPUTING),
        st.lists(
            st.builds(
                LinkEntry,
                peer=st.sampled_from([*COMPUTING, "x"]).map(str),
                round_trip=st.none() | st.floats(),
                throughput=st.none() | st.floats(),
            ),
            max_size=3,
        ),
    )
)
def test_whatever_they_say_is_a_network_or_none(told):
    found = measured(told)
    if found is not None:
        for one in COMPUTING:
            for two in COMPUTING:
                route = found.route(one, two)
                assert 0 <= route.round_trip <= 10
                assert route.bandwidth is not None
                assert 1e3 <= route.bandwidth < math.inf
