"""A clock for tests of delays: it stands while anything can happen, and when nothing can, it jumps
to the next alarm. Delays come out exactly as asked, on any machine, and take no time.

    clock = standing(monkeypatch)
    before = clock.now
    ...                                      through delayed channels
    assert clock.now - before == latency

A test that polls (`waiting.settled`, too) keeps it from jumping: wait for an event.
"""

import asyncio
import time
from collections.abc import Callable
from types import ModuleType

import pytest
from waiting import POLL, computing

from puma_actors.transports import multiplexer as mux
from puma_actors.transports.delay import alarm
from puma_actors.transports.delay import channel as delayed


class Clock:
    """Stands in for the module `time`, and for the timer of a loop's alarm."""

    margin = 0.0
    process_time = staticmethod(time.process_time)

    def __init__(self) -> None:
        self.now = 1000.0
        self._next: float | None = None
        self._quiet = 0
        self._looking = False

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic

    def tick(self) -> float:
        """For a profiler: everything takes a little."""
        self.now += 1e-6
        return self.now

    def timer(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> "Clock":
        """Called by `Alarm`, of which a loop has one at a time."""
        self._loop, self._wake = loop, wake
        self._next, self._looking = None, False
        return self

    def set(self, when: float) -> None:
        self._next, self._quiet = when, 0
        if not self._looking:
            self._looking = True
            self._loop.call_soon(self._look)

    def close(self) -> None:
        self._next = None

    def _look(self) -> None:
        """Jump if nothing else has happened for some turns of the loop."""
        if self._next is None:
            self._looking = False
            return
        busy = computing()
        self._quiet = 0 if busy or self._loop._ready else self._quiet + 1  # type: ignore[attr-defined]
        if busy:
            self._loop.call_later(POLL, self._look)
        elif self._quiet < 3:
            self._loop.call_soon(self._look)
        else:
            self.now, self._next = max(self.now, self._next), None
            self._looking = False
            self._wake()


def standing(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> Clock:
    """From now on delayed channels go by this clock, and so do `modules`, which import `time`."""
    clock = Clock()
    for module in (alarm, delayed, mux, *modules):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(alarm, "_timer", clock.timer)
    return clock
