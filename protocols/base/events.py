"""What a profiler records of one party in one step.

Events hold times, sizes, names and places, never a value: they say no more than anyone can learn by
watching the traffic and the clock.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from protocols.base.cost import Cost
from protocols.base.lane import Path
from protocols.base.shares import Role


class Key(NamedTuple):
    """Where in the model, and in which protocols (outermost first, "/" between them)."""

    place: str
    protocol: str


class Slice(NamedTuple):
    """A lane's code ran on the event loop."""

    start: float
    end: float
    lane: Path
    place: str
    protocol: str


class Call(NamedTuple):
    """A kernel ran: `Link.run`. `asked` is when the lane asked for it."""

    start: float
    end: float
    lane: Path
    place: str
    protocol: str
    name: str
    threaded: bool
    asked: float


class Send(NamedTuple):
    """A message was handed to the runtime; `end` is later than `start` if that held the lane back.

    `task` is the lane whose task sent it: `lane`, or a lane that it was forked from or lent to.
    """

    start: float
    end: float
    lane: Path
    place: str
    protocol: str
    peer: Role
    nbytes: int
    number: int
    online: bool
    task: Path = ()


class Receive(NamedTuple):
    """A lane asked for a message at `start` and went on with it at `end`. `task`: as for `Send`."""

    start: float
    end: float
    lane: Path
    place: str
    protocol: str
    peer: Role
    nbytes: int
    number: int
    task: Path = ()


class Round(NamedTuple):
    """Rounds that followed each other at one place. `before` is the index of the previous entry on
    the longest chain, or `NO_ROUND`.
    """

    before: int
    rounds: int
    place: str
    protocol: str


NO_ROUND = -1


@dataclass
class Story:
    """Events of one party in one step, each kind ordered by time.

    Attributes:
        rounds: of the leading evaluator, in program order; the other's are the same.
        charges: declared costs, under `TRACE`.
        chain: the last round on the longest chain of the program's first lane.
    """

    slices: list[Slice] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    sends: list[Send] = field(default_factory=list)
    receives: list[Receive] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    charges: list[tuple[Key, Cost]] = field(default_factory=list)
    chain: int = NO_ROUND

    def critical(self) -> list[tuple[Key, int]]:
        """Rounds of the longest chain, from the first to the last."""
        found, at = [], self.chain
        while at != NO_ROUND:
            entry = self.rounds[at]
            found.append((Key(entry.place, entry.protocol), entry.rounds))
            at = entry.before
        return found[::-1]
