"""Callbacks at a precise time, on the running event loop.

    alarm = Alarm.acquire()              the loop's own, shared and counted
    alarm.at(when, callback)             `when` in seconds of `time.monotonic`
    alarm.release()                      the last one to release it ends it

Why not `loop.call_at`: on Linux asyncio rounds its timeouts up to the next whole millisecond, since
`epoll_wait` takes nothing finer, so that a frame which should travel for 0.25 ms takes 1.1 ms. A
timer file descriptor in the same epoll set has no such rounding and costs nothing while it waits.
It still wakes the loop 40 to 110 µs late on a virtual machine (sleeping processor, scheduler).
So the timer is set `_MARGIN` early, and the rest is turn after turn of the loop (`call_soon`, 2 µs
each) until the time has come; everything else on the loop keeps running meanwhile.

Measured on two shared cores with one frame after another in flight: 4 µs late (median), with half
of one core busy at 0.25 ms one way, a quarter at 0.5 ms and 1 % at 20 ms. Spinning through the
whole millisecond that `call_at` leaves open would be as exact, but would take a whole core in the
first two cases, which the computing threads need. A sleeping helper thread needs two switches of
the interpreter lock per frame, and was therefore rejected.

Where there are no timer file descriptors, `call_later` does the long part and the margin is wider.
"""

import asyncio
import ctypes
import heapq
import itertools
import os
import sys
import time
from collections.abc import Callable
from typing import ClassVar, Protocol
from weakref import WeakKeyDictionary

_MARGIN = 120e-6  # how late a timer file descriptor may wake the loop
_WIDE_MARGIN = 1.5e-3  # and `call_later`
_CLOCK_MONOTONIC = 1
_TIMER_ABSTIME = 1


class _Timer(Protocol):
    margin: float

    def set(self, when: float) -> None:
        """Wake at `when` instead of at the time set before."""

    def close(self) -> None: ...


class _LoopTimer:
    """`loop.call_later`."""

    margin = _WIDE_MARGIN

    def __init__(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
        self._loop = loop
        self._wake = wake
        self._handle: asyncio.TimerHandle | None = None

    def set(self, when: float) -> None:
        self.close()
        self._handle = self._loop.call_later(max(0.0, when - time.monotonic()), self._wake)

    def close(self) -> None:
        if self._handle is not None:
            self._handle.cancel()


class _Setting(ctypes.Structure):
    """`struct itimerspec`: interval, then first expiry."""

    _fields_ = (
        ("interval_seconds", ctypes.c_long),
        ("interval_nanoseconds", ctypes.c_long),
        ("seconds", ctypes.c_long),
        ("nanoseconds", ctypes.c_long),
    )


class _FileTimer:
    """A timer file descriptor of Linux, through the C library (the `os` module has it from 3.13).

    Raises:
        OSError: this system has none.
    """

    margin = _MARGIN

    def __init__(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
        library = ctypes.CDLL(None, use_errno=True)
        try:
            create, self._set = library.timerfd_create, library.timerfd_settime
        except AttributeError as error:
            raise OSError(str(error)) from error
        number = create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if number < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._loop = loop
        self._wake = wake
        self._file = os.fdopen(number, "rb", buffering=0)
        loop.add_reader(number, self._ready)

    def _ready(self) -> None:
        if self._file.read(8):
            self._wake()

    def set(self, when: float) -> None:
        seconds, fraction = divmod(when, 1.0)
        setting = _Setting(0, 0, int(seconds), int(fraction * 1e9))
        self._set(self._file.fileno(), _TIMER_ABSTIME, ctypes.byref(setting), None)

    def close(self) -> None:
        self._loop.remove_reader(self._file.fileno())
        self._file.close()


def _timer(loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> _Timer:
    if sys.platform == "linux":
        try:
            return _FileTimer(loop, wake)
        except (OSError, NotImplementedError):  # an old kernel; a loop that cannot watch files
            pass
    return _LoopTimer(loop, wake)


class Alarm:
    """See the module docstring. Callbacks run in the order of their times.

    Attributes:
        users: number of users that have acquired it and not released it.
    """

    _of_loops: ClassVar["WeakKeyDictionary[asyncio.AbstractEventLoop, Alarm]"] = WeakKeyDictionary()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.users = 0
        self._turning = False  # a turn is scheduled or under way
        self._waiting: list[tuple[float, int, Callable[[], None]]] = []  # a heap
        self._order = itertools.count()
        self._timer = _timer(loop, self._start)

    @classmethod
    def acquire(cls) -> "Alarm":
        """The alarm of the running loop."""
        loop = asyncio.get_running_loop()
        alarm = cls._of_loops.get(loop)
        if alarm is None:
            alarm = cls._of_loops[loop] = cls(loop)
        alarm.users += 1
        return alarm

    def release(self) -> None:
        """Drop one user; after the last no callback runs any more."""
        self.users -= 1
        if self.users == 0:
            self._waiting.clear()
            self._timer.close()
            del self._of_loops[self._loop]

    def at(self, when: float, callback: Callable[[], None]) -> None:
        """Call `callback` at `when`, or in the next turn if that has passed."""
        entry = (when, next(self._order), callback)
        heapq.heappush(self._waiting, entry)
        if self._waiting[0] is entry and not self._turning:
            self._wait()

    def _wait(self) -> None:
        early = self._waiting[0][0] - self._timer.margin
        if early <= time.monotonic():
            self._turning = True
            self._loop.call_soon(self._turn)
        else:
            self._timer.set(early)

    def _start(self) -> None:
        if not self._turning and self._waiting:
            self._wait()

    def _turn(self) -> None:
        now = time.monotonic()
        try:
            while self._waiting and self._waiting[0][0] <= now:
                heapq.heappop(self._waiting)[2]()
        finally:
            self._turning = False
            if self._waiting:
                self._wait()
