"""Inference numbers: each good once, and forgotten without a trace."""

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import save_model, save_tokenizer

from protocols.base.shares import Role
from protocols.errors import LocalProtocolError
from puma_actors.api.local import LocalCluster
from puma_actors.session.numbers import Numbers
from puma_actors.session.session import RoundScheduler

SMALL = st.integers(0, 40)


@given(st.lists(st.tuples(SMALL, SMALL), max_size=30), st.lists(SMALL, max_size=10))
def test_as_a_set_would(ended: list[tuple[int, int]], begun: list[int]) -> None:
    numbers, over = Numbers(), set()
    for number in set(begun):
        numbers.begin(number)
    for start, stop in ended:
        numbers.end(start, stop)
        over |= set(range(start, stop))
    assert [number for number in range(45) if numbers.over(number)] == sorted(over)
    assert numbers.open == set(begun) - over
    edges = sum(number - 1 not in over for number in over)
    assert numbers.ranges == edges
    for number in range(45):
        if number in over or number in begun:
            with pytest.raises(LocalProtocolError, match="used or negative"):
                numbers.begin(number)
        else:
            numbers.begin(number)


def test_a_negative_number_and_large_ones() -> None:
    numbers = Numbers()
    with pytest.raises(LocalProtocolError, match="-1 is used or negative"):
        numbers.begin(-1)
    numbers.end(0, 1 << 62)
    assert numbers.over((1 << 62) - 1)
    numbers.begin(1 << 62)


def test_thousands_of_long_requests_leave_nothing() -> None:
    """Two at a time, one step of 2,048 taken: memory does not grow with the requests made."""
    scheduler = RoundScheduler(Role.DEALER, [])
    steps, requests = 2048, 3000

    def serve(first: int, count: int) -> None:
        for number in range(first * steps, (first + count) * steps, 2 * steps):
            both = (number, number + steps)
            for each in both:
                scheduler.link(each)
            for each in reversed(both):  # the later one ends first
                scheduler.end(each)
                scheduler.end(each, each + steps)

    serve(0, 100)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        serve(100, requests)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 10_000
    assert (scheduler.numbers.ranges, scheduler.numbers.open) == (1, set())
    with pytest.raises(LocalProtocolError, match="is used"):
        scheduler.link(requests * steps)


async def test_a_session_of_many_answers(tmp_path: Path) -> None:
    """Also of answers that end early, and of numbers that a client leaves out."""
    model = save_tokenizer(save_model(tmp_path / "model", seed=3))
    async with LocalCluster.from_pretrained(model) as cluster:
        for round_ in range(4):
            answer = cluster.generate([1, 3, 7], max_new_tokens=8)
            async for _ in answer:
                break
            await answer.aclose()
            await cluster.forward([1, 3])
            cluster.client._next += round_
        actors = [*cluster._parties, cluster.client]
        for actor in actors:
            scheduler = actor.scheduler
            assert scheduler.numbers.open == set()
            assert scheduler.numbers.ranges <= (1 if actor is not cluster.client else 5)
            for port in scheduler.ports.values():
                assert not port.mailboxes
                assert not port.windows
