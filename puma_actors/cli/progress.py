"""Progress of long tasks, on standard error.

    with progress(quiet=as_json) as report:
        report("sharing the weights", 0.4)          a phase, and the fraction done
        with report.following(describe):            or a text that is requested again and again
            report.write("Par")                     to standard output

On a terminal it is one status line that keeps ticking. Elsewhere it is a line when a phase begins,
and a line every few seconds for long phases.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from puma_actors.base.texts import printable
from puma_actors.cli.screen import Screen

EVERY = 5.0
"""Seconds between two lines if there is no terminal."""
TICK = 0.25
_SURE = 0.02
"""Fraction of a phase from which its speed is used to estimate the rest."""
_PATIENCE = 2.0

Describe = Callable[[], str]


def left(fraction: float, spent: float) -> str:
    """A text like "about 40 s left", from the time of a part; empty if it is too early."""
    if not _SURE <= fraction < 1 or spent < _PATIENCE:
        return ""
    return f"about {duration(spent * (1 - fraction) / fraction)} left"


def duration(seconds: float) -> str:
    """A readable duration: 40 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def joined(*parts: str) -> str:
    """Join the parts that are not empty."""
    return " · ".join(part for part in parts if part)


class Reporter:
    """Created by `progress`; called with a phase and a fraction, as owners do."""

    def __init__(self, screen: Screen | None) -> None:
        self._screen = screen
        self._what, self._fraction = "", 0.0
        self._began = self._told = time.monotonic()
        self._describe: Describe | None = None
        self._lock = threading.Lock()
        self._seen: set[str] = set()

    def __call__(self, what: str, fraction: float) -> None:
        """Report a phase; the first word of `what` names it."""
        if self._screen is None:
            return
        what = printable(what)
        with self._lock:
            phase, now = what.partition(" ")[0], time.monotonic()
            if _kind(what) != _kind(self._what):
                self._began = now
            self._what, self._fraction = what, fraction
            new = phase not in self._seen
            self._seen.add(phase)
            if new and not self._screen.live:
                self._told = now
                self._screen.line(f"{what} ...")
        if new:
            self.tick()

    @contextmanager
    def following(self, describe: Describe) -> Iterator[None]:
        """Show the text of `describe` until the block ends."""
        self._began = self._told = time.monotonic()
        self._describe = describe
        try:
            yield
        finally:
            self._describe = None

    def write(self, text: str) -> None:
        """Write to standard output at once; no-op if quiet."""
        if self._screen is not None:
            self._screen.write(text)

    def tick(self) -> None:
        """Update the status line, or print a line if the last one is old."""
        if self._screen is None or not (self._what or self._describe):
            return
        if self._screen.live:
            self._screen.status(self._text())
        elif time.monotonic() - self._told >= EVERY:
            self._told = time.monotonic()
            self._screen.line(self._text())

    def _text(self) -> str:
        describe = self._describe
        if describe is not None:
            return printable(describe())
        spent = time.monotonic() - self._began
        percent = f"{self._fraction:.0%}" if self._fraction else ""
        return joined(self._what, percent, f"{spent:.0f} s", left(self._fraction, spent))


def _kind(what: str) -> str:
    """The part of a counting phase's text that stays the same."""
    return re.split(r"[0-9]", what, maxsplit=1)[0]


@contextmanager
def progress(*, quiet: bool) -> Iterator[Reporter]:
    """A reporter for a block; with `quiet` it prints nothing."""
    if quiet:
        yield Reporter(None)
        return
    with Screen() as screen:
        report, ended = Reporter(screen), threading.Event()

        def keep_ticking() -> None:
            while not ended.wait(TICK):
                report.tick()

        ticker = threading.Thread(target=keep_ticking, daemon=True, name="puma-progress")
        ticker.start()
        try:
            yield report
        finally:
            ended.set()
            ticker.join()
