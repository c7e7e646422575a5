"""The model of time: its terms, on steps made up for the purpose."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.base.shares import Role
from puma_actors.planning.timing import (
    Part,
    Step,
    Time,
    chain_seconds,
    fitted,
    head_bytes,
    time_of,
    transfer_seconds,
)
from puma_actors.profiling.whatif.answer import COMPUTED, DOUBLED, HALVED, faster, gains
from puma_actors.transports.delay.channel import PIPE_BYTES
from puma_actors.transports.delay.network import Network, Route

SECOND = Network("a second each way, a byte a second each", Route(2.0, 8e3))
BYTES = 1e3  # what SECOND takes in within a second


def step(name="decode", *, sent=0.0, dealt=0.0, rounds=10, computation=0.0):
    """Two parts alike, whose figures add up to these."""
    parts = tuple(Part(which, rounds / 2, 0, sent / 2, dealt / 2) for which in ("embed", "head"))
    return Step(name, parts, computation)


def test_a_step_takes_its_flights_and_bytes_and_computation():
    found = time_of(step(sent=3 * BYTES, computation=0.5), SECOND)
    assert found == Time(latency=10 + 2, transfer=3, computation=0.5, waiting=0)
    assert found.total == 15.5
    assert found.to_public()["seconds"] == 15.5


def test_jitter_adds_its_mean():
    jittery = Network("", Route(2.0, 8e3, jitter=0.4))
    assert time_of(step(), jittery).latency == pytest.approx(12 * 1.1)


def test_messages_have_heads():
    part = Part("embed", 1, 5, 0, 0)
    found = time_of(Step("decode", (part,)), SECOND)
    assert found.transfer == pytest.approx(5 * head_bytes() / BYTES)
    assert 40 < head_bytes() < 100


def test_without_a_bandwidth_bytes_take_no_time():
    assert transfer_seconds(1e12, Route(1.0)) == 0
    assert chain_seconds(10, 1e12, Route(1.0)) == 5


def test_a_further_step_waits_only_for_what_the_dealer_cannot_deal_meanwhile():
    assert time_of(step(dealt=12 * BYTES), SECOND).waiting == 0
    assert time_of(step(dealt=15 * BYTES), SECOND).waiting == 3


def test_the_first_step_begins_with_the_dealers_answer_and_waits_for_what_it_deals():
    """The dealer is asked after a second, and its answer takes another; the evaluators work for ten
    seconds, while what is dealt comes, and answer in one.
    """
    assert time_of(step("prefill"), SECOND).total == 1 + 10 + 1
    first = time_of(step("prefill", dealt=4 * BYTES), SECOND)
    assert (first.total, first.waiting) == (1 + 1 + 10 + 1, 1)
    late = time_of(step("prefill", dealt=30 * BYTES), SECOND)
    left = 5 / 4  # of the last part
    assert (late.total, late.waiting) == (1 + 1 + 30 + left + 1, 21 + left)


def test_the_first_of_some_decode_steps_waits_for_what_was_dealt_for_it():
    """The prefill ends after 14.25 seconds. The dealer's bytes of three steps take 26, and its
    answer for the next token is behind them.
    """
    first = step("prefill", dealt=10 * BYTES)
    assert time_of(first, SECOND).total == 14.25
    further = step(dealt=8 * BYTES)
    assert time_of(further, SECOND).waiting == 0
    some = replace(further, after=first, count=2)
    assert time_of(some, SECOND).waiting == (26 - 14.25) / 2
    assert time_of(replace(some, count=1), SECOND).waiting == 18 - 14.25
    early = replace(some, parts=step().parts, after=step("prefill"))
    assert time_of(early, SECOND).waiting == 0


def test_a_link_holds_only_so_much_ahead_of_an_answer():
    network = Network("", Route(0.0, 8.0 * PIPE_BYTES))  # holds what it carries in a second
    first, further = step("prefill", dealt=3 * PIPE_BYTES), step(dealt=9 * PIPE_BYTES)
    found = time_of(replace(further, computation=9, after=first, count=1), network)
    assert found.waiting == 1


def test_the_dealers_slower_link_counts():
    far = Network("", Route(2.0, 8e3), ((("dealer", "evaluator-b"), Route(2.0, 4e3)),))
    assert time_of(step(dealt=12 * BYTES), far).waiting == 12
    assert far.route(Role.EVALUATOR_A, Role.EVALUATOR_B) == SECOND.default


@given(
    st.sampled_from(["prefill", "forward", "decode"]),
    st.integers(0, 2000),
    st.floats(0, 1e9),
    st.floats(0, 1e9),
    st.floats(0, 100),
    st.floats(0, 1),
    st.floats(1e3, 1e10),
)
def test_a_better_network_or_machine_never_takes_longer(
    name, rounds, sent, dealt, computation, round_trip, bandwidth
):
    made = step(name, sent=sent, dealt=dealt, rounds=rounds, computation=computation)
    network = Network("", Route(round_trip, bandwidth))
    now = time_of(made, network)
    assert now.total >= max(now.latency, now.transfer, now.computation, now.waiting)
    better = [
        time_of(made, faster(network, latency=0.5)),
        time_of(made, faster(network, bandwidth=2.0)),
        time_of(replace(made, computation=computation / 2), network),
    ]
    for found in better:
        assert found.total <= now.total * (1 + 1e-9) + 1e-9
    assert {gain.what for gain in gains(made, network)} == {HALVED, DOUBLED, COMPUTED}
    saved = [gain.seconds for gain in gains(made, network)]
    assert saved == sorted(saved, reverse=True)


@given(st.sampled_from(["prefill", "decode"]), st.floats(0, 1e6), st.floats(0, 1e6))
def test_the_computation_that_is_fitted_explains_the_measured_time(name, sent, dealt):
    made = step(name, sent=sent, dealt=dealt)
    network = Network("", Route(0.01, 1e8))
    wall = time_of(made, network).total + 1.25
    found = fitted(made, wall, network, least=0.1)
    assert time_of(found, network).total == pytest.approx(wall)


def test_computation_is_at_least_what_was_seen():
    assert fitted(step(), 1.0, SECOND, least=0.25).computation == pytest.approx(0.25)
    assert fitted(step(), 1.0, None, least=0.25).computation == 1.0


def test_what_gains_most_comes_first():
    first, second, third = gains(step(sent=BYTES, computation=4), SECOND)
    assert (first.what, first.seconds) == (HALVED, 6)
    assert (second.what, second.seconds) == (COMPUTED, 2)
    assert (third.what, third.seconds) == (DOUBLED, 0.5)
    assert first.share == pytest.approx(6 / 17)
