"""Recordings of one party in one step: tapes, which are turned into events when they are read.

Recording does as little work as possible. Each task has its own tape, so that entries need not name
the task, its place in the model or its protocol: an entry is an operation (`GO`, ...) and its
fields, all in one flat list. Thousands of small objects instead would take time to make and keep
the garbage collector busy.
"""

from collections.abc import Sequence
from itertools import islice, pairwise
from typing import Any, TypeAlias

from protocols.base.cost import Cost
from protocols.base.events import NO_ROUND, Call, Key, Receive, Round, Send, Slice, Story
from protocols.base.lane import Path
from protocols.base.shares import Role

GO, STOP, ENTER, LEAVE, SENT, RECEIVED, EXCHANGED, CALLED, CHARGED, FORKED, JOINED = range(11)

_READ = (
    ("go", 2),
    ("stop", 1),
    ("enter", 3),
    ("leave", 1),
    ("sent", 7),
    ("received", 6),
    ("exchanged", 9),
    ("called", 6),
    ("charged", 1),
    ("forked", 1),
    ("joined", 2),
)
"""The method of `_Head` that reads an operation, and the number of its fields."""

_STALL = 5e-5
_COPIED = 1e9
"""Seconds, and bytes per second: a send that took no longer than these allow was not held back."""
_AT_ONCE = 2e-5
"""Seconds; a receive that took less did not wait."""

Tape: TypeAlias = list[Any]
"""What a task did, in order: operations, each with its fields. Extend it by both in one call."""

_Chain: TypeAlias = tuple[int, int]
"""Index of a round's entry, and the number of rounds on the chain up to it."""


class Meter:
    """Events of one party in one step.

    Args:
        story: the events to return if nothing is recorded.
    """

    def __init__(self, role: Role, story: Story | None = None) -> None:
        self.role = role
        self._story = story or Story()
        self._tapes: list[Tape] = [[]]
        self._seen = 0

    @property
    def first(self) -> Tape:
        """The tape that all others are forked from."""
        return self._tapes[0]

    def tape(self) -> Tape:
        """A new one."""
        tape: Tape = []
        self._tapes.append(tape)
        return tape

    @property
    def story(self) -> Story:
        """All events recorded so far."""
        noted = sum(len(tape) for tape in self._tapes)
        if noted != self._seen:
            self._story, self._seen = told(self.first, leads=self.role is Role.EVALUATOR_A), noted
        return self._story

    @property
    def slices(self) -> list[Slice]:
        """When lanes ran on the event loop; never two at the same time."""
        return self.story.slices

    @property
    def calls(self) -> list[Call]:
        """Kernels."""
        return self.story.calls

    @property
    def sends(self) -> list[Send]:
        """Messages sent."""
        return self.story.sends

    @property
    def receives(self) -> list[Receive]:
        """Messages received."""
        return self.story.receives


def told(first: Tape, *, leads: bool) -> Story:
    """The events on this tape and on those forked from it. `leads`: whether rounds are counted."""
    story = Story()
    story.chain, _ = _Head(story, leads, Key("", ""), (NO_ROUND, 0)).read(first)
    for events in (story.slices, story.calls, story.sends, story.receives):
        events.sort(key=lambda event: event.start)
    story.slices = [
        piece._replace(end=min(piece.end, after.start)) for piece, after in pairwise(story.slices)
    ] + story.slices[-1:]
    return story


def was_held(seconds: float, nbytes: int) -> bool:
    """Whether a send that took this long waited, instead of just copying the message."""
    return seconds > _STALL + nbytes / _COPIED


def outermost(protocol: str) -> str:
    """The outermost of nested protocols; it names events that have no place in the model."""
    return protocol.partition("/")[0]


class _Head:
    """Reads a tape and those forked from it into a story."""

    def __init__(self, story: Story, leads: bool, key: Key, chain: _Chain) -> None:
        self._story = story
        self._leads = leads
        self._place, self._protocol = key
        self._outer: list[Key] = []
        self._chain = chain
        self._lane: Path | None = None  # the lane whose task this is, if any
        self._since: float | None = None  # when the task began to run; None: it is not running
        self._last = 0.0  # time of the last entry
        self._forks: dict[int, tuple[Tape, _Head]] = {}

    @property
    def _task(self) -> Path:
        return self._lane or ()

    @property
    def _key(self) -> Key:
        return Key(self._place or outermost(self._protocol), self._protocol)

    def read(self, tape: Tape) -> _Chain:
        """Read a tape; return the end of its longest chain of rounds."""
        entries = iter(tape)
        for operation in entries:
            name, fields = _READ[operation]
            getattr(self, name)(*islice(entries, fields))
        for fork, head in self._forks.values():  # forks that were never joined
            self._follow(head.read(fork))
        return self._chain

    def _follow(self, chain: _Chain) -> None:
        self._chain = max(self._chain, chain, key=lambda item: item[1])

    # -- when it runs ------------------------------------------------------------------------------

    def _ran(self, until: float, again: float | None) -> None:
        """The task ran until then, if it was running. `again`: when it went on."""
        if self._lane is None:
            return
        if self._since is not None and until > self._since:
            self._story.slices.append(Slice(self._since, until, self._lane, *self._key))
        self._since = again

    def go(self, time: float, lane: Path) -> None:
        self._lane = lane
        self._since = self._last = time

    def stop(self, time: float) -> None:
        self._ran(time, None)

    def forked(self, tape: Tape) -> None:
        key = Key(self._place, self._protocol)
        self._forks[id(tape)] = tape, _Head(self._story, self._leads, key, self._chain)

    def joined(self, time: float, tapes: Sequence[Tape]) -> None:
        """The task has waited since its last entry."""
        self._ran(self._last, time)
        self._last = time
        for tape in tapes:
            if found := self._forks.pop(id(tape), None):
                self._follow(found[1].read(tape))

    # -- where -------------------------------------------------------------------------------------

    def _moved(self, time: float) -> None:
        """The task changes its place or protocol: end the current slice."""
        if self._since is not None:
            self._ran(time, time)
        self._last = time

    def enter(self, time: float, place: str | None, label: str | None) -> None:
        self._moved(time)
        self._outer.append(Key(self._place, self._protocol))
        if place is not None:
            self._place = place
        if label is not None:
            self._protocol = f"{self._protocol}/{label}" if self._protocol else label

    def leave(self, time: float) -> None:
        self._moved(time)
        self._place, self._protocol = self._outer.pop()

    # -- what --------------------------------------------------------------------------------------

    def sent(
        self,
        start: float,
        end: float,
        lane: Path,
        number: int,
        peer: Role,
        nbytes: int,
        online: bool,
    ) -> None:
        if was_held(end - start, nbytes):
            self._ran(start, end)
        self._last = end
        self._story.sends.append(
            Send(start, end, lane, *self._key, peer, nbytes, number, online, self._task)
        )

    def received(
        self, start: float, end: float, lane: Path, number: int, peer: Role, nbytes: int
    ) -> None:
        if end - start > _AT_ONCE:
            self._ran(start, end)
        self._last = end
        self._story.receives.append(
            Receive(start, end, lane, *self._key, peer, nbytes, number, self._task)
        )

    def exchanged(
        self,
        start: float,
        middle: float,
        end: float,
        lane: Path,
        mine: int,
        theirs: int,
        peer: Role,
        sent: int,
        received: int,
    ) -> None:
        self.sent(start, middle, lane, mine, peer, sent, True)
        self.received(middle, end, lane, theirs, peer, received)
        if self._leads:  # the other evaluator's rounds are the same
            self.passed(1)

    def called(
        self, asked: float, start: float, end: float, again: float, name: str, threaded: bool
    ) -> None:
        if threaded:
            self._ran(asked, again)
        self._last = again
        self._story.calls.append(Call(start, end, self._task, *self._key, name, threaded, asked))

    def passed(self, rounds: int) -> None:
        before, count = self._chain
        self._chain = len(self._story.rounds), count + rounds
        self._story.rounds.append(Round(before, rounds, *self._key))

    def charged(self, cost: Cost) -> None:
        self._story.charges.append((self._key, cost))
        if cost.rounds:
            self.passed(cost.rounds)
