"""The benchmark of closed streams, once, with a small model."""

from datetime import UTC, datetime, timedelta

import pytest

from bench.serve import closing
from bench.serve.closing import _stopped
from protocols.base.shares import COMPUTING

pytestmark = pytest.mark.slow
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def test_a_party_has_stopped_when_it_last_ended_something():
    events = [(at(-1), "step done"), (at(0.2), "step done"), (at(0.3), "request ended")]
    used = [(at(0.1), 5.0), (at(0.35), 6.0), (at(3.0), 6.25)]
    found = _stopped(NOW, events, used)
    assert found.seconds == pytest.approx(0.3)
    assert found.busy == pytest.approx(0.25)
    assert found.events == ["step done", "request ended"]
    assert _stopped(NOW, events[:1], used[:1]).seconds == 0.0


def test_streams_that_are_closed(monkeypatch):
    monkeypatch.setattr(closing, "_LOOK", 0.5)
    found = list(closing.run(None, ("40ms",), 8, 1))
    assert [each.case for each in found] == [
        "closed in the prompt, 40ms",
        "closed in a step, 40ms",
    ]
    for each in found:
        assert each.seconds.median > 0
        assert "processor after it" in each.note
        (stop,) = each.details["stops"]
        assert set(stop) == {str(role) for role in COMPUTING}
        assert all("request ended" in party["events"] for party in stop.values())
