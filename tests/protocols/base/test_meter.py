"""Tapes, and the events that are read from them."""

import pytest

from protocols.base.cost import Cost
from protocols.base.events import Key, Story
from protocols.base.meter import (
    CALLED,
    CHARGED,
    ENTER,
    EXCHANGED,
    FORKED,
    GO,
    JOINED,
    LEAVE,
    RECEIVED,
    SENT,
    STOP,
    Meter,
    was_held,
)
from protocols.base.shares import Role

A, B = Role.EVALUATOR_A, Role.EVALUATOR_B
LATER = 1e-3


def story_of(*entries: tuple, role: Role = A) -> Story:
    """What one task's tape says."""
    meter = Meter(role)
    tape = meter.tape()
    meter.first.extend((FORKED, tape))
    for entry in entries:
        tape.extend(entry)
    return meter.story


def times(story: Story) -> list[tuple[float, float, str]]:
    return [(piece.start, piece.end, piece.protocol) for piece in story.slices]


def test_a_task_runs_until_it_waits():
    story = story_of(
        (GO, 1.0, ()),
        (RECEIVED, 2.0, 3.0, (), 1, B, 8),
        (CALLED, 4.0, 4.5, 5.5, 6.0, "gemm", True),
        (CALLED, 6.5, 6.5, 6.75, 6.75, "small", False),
        (SENT, 7.0, 8.0, (), 1, Role.DEALER, 8, False),
        (STOP, 9.0),
    )
    assert times(story) == [(1.0, 2.0, ""), (3.0, 4.0, ""), (6.0, 7.0, ""), (8.0, 9.0, "")]
    assert [(call.name, call.threaded, call.asked) for call in story.calls] == [
        ("gemm", True, 4.0),
        ("small", False, 6.5),
    ]


def test_what_takes_no_time_is_no_wait():
    story = story_of(
        (GO, 1.0, ()),
        (RECEIVED, 2.0, 2.00001, (), 1, B, 8),
        (SENT, 3.0, 3.00004, (), 1, B, 8, True),
        (SENT, 4.0, 4.9, (), 2, B, 1 << 30, True),  # it was copied all the time
        (STOP, 5.0),
    )
    assert times(story) == [(1.0, 5.0, "")]
    assert not was_held(0.9, 1 << 30)
    assert was_held(0.9, 1 << 20)


def test_places_and_protocols_nest():
    story = story_of(
        (GO, 0.0, ()),
        (ENTER, 1.0, None, "norm"),
        (ENTER, 2.0, None, "less"),
        (SENT, 2.5, 2.5, (), 1, B, 8, True),
        (LEAVE, 3.0),
        (ENTER, 4.0, "layers.0.up", None),
        (LEAVE, 5.0),
        (LEAVE, 6.0),
        (STOP, 7.0),
    )
    assert [(piece.place, piece.protocol) for piece in story.slices] == [
        ("", ""),
        ("norm", "norm"),  # what has no place is named after its protocol
        ("norm", "norm/less"),
        ("norm", "norm"),
        ("layers.0.up", "norm"),
        ("norm", "norm"),
        ("", ""),
    ]
    (send,) = story.sends
    assert (send.place, send.protocol, send.number, send.nbytes) == ("norm", "norm/less", 1, 8)


@pytest.mark.parametrize("role", [A, B])
def test_the_longest_chain_goes_through_the_longer_task(role):
    def exchange(number: int) -> tuple:
        return (EXCHANGED, 1.0, 1.0, 1.0, (), number, number, B, 8, 8)

    meter = Meter(role)
    main, short, long = (meter.tape() for _ in range(3))
    meter.first.extend((FORKED, main))
    main.extend((GO, 0.0, (), ENTER, 0.0, "head", "mul", *exchange(1)))
    main.extend((FORKED, short, FORKED, long, *exchange(2)))
    short.extend((GO, 1.0, (1, 0), ENTER, 1.0, None, "short", *exchange(1), LEAVE, 1.5, STOP, 1.5))
    long.extend((GO, 1.0, (1, 1), ENTER, 1.0, None, "long"))
    long.extend((*exchange(1), *exchange(2), LEAVE, 3.0, STOP, 3.0))
    main.extend((JOINED, 4.0, [short, long], *exchange(3), LEAVE, 5.0, STOP, 5.0))
    story = meter.story
    assert len(story.sends) == len(story.receives) == 6
    assert [(piece.start, piece.end) for piece in story.slices if piece.lane == ()] == [
        (0.0, 1.0),
        (4.0, 5.0),
    ]
    if role is B:  # its rounds are the same
        assert story.rounds == []
        return
    assert len(story.rounds) == 6
    assert story.critical() == [
        (Key("head", protocol), 1) for protocol in ("mul", "mul/long", "mul/long", "mul")
    ]


def test_a_task_that_nobody_waits_for_is_told_too():
    meter = Meter(Role.DEALER)
    main, beside = meter.tape(), meter.tape()
    meter.first.extend((FORKED, main))
    main.extend((GO, 0.0, (), FORKED, beside, STOP, 1.0))
    beside.extend((GO, 2.0, (1, 3), SENT, 2.5, 2.5, (1, 1), 1, A, 8, True, STOP, 3.0))
    (send,) = meter.sends
    assert (send.lane, send.task) == ((1, 1), (1, 3))
    assert [piece.lane for piece in meter.slices] == [(), (1, 3)]


def test_slices_never_overlap():
    """One task's short send let another run."""
    meter = Meter(A)
    one, two = meter.tape(), meter.tape()
    meter.first.extend((FORKED, one, FORKED, two))
    one.extend((GO, 0.0, (), STOP, 2.0))
    two.extend((GO, 1.99999, (1, 0), STOP, 3.0))
    assert [(piece.start, piece.end) for piece in meter.slices] == [(0.0, 1.99999), (1.99999, 3.0)]


def test_declared_costs_are_by_place():
    meter = Meter(Role.TRACE)
    meter.first.extend((ENTER, 0.0, "head", "linear", CHARGED, Cost(2, 10, 20), LEAVE, 1.0))
    assert meter.story.charges == [(Key("head", "linear"), Cost(2, 10, 20))]
    assert meter.story.critical() == [(Key("head", "linear"), 2)]
    assert meter.slices == []


def test_what_is_noted_later_is_told_later():
    meter = Meter(A)
    assert meter.story == Story()
    tape = meter.tape()
    meter.first.extend((FORKED, tape))
    tape.extend((GO, 0.0, ()))
    assert meter.slices == []
    tape.extend((STOP, LATER))
    assert times(meter.story) == [(0.0, LATER, "")]
