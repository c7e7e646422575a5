"""What a profiler knows of one party in one step.

Events hold times, sizes, names and places, never a value: what they say is what anybody learns who
watches the traffic and the clock.
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
    """A kernel ran: `Link.run`. `asked` is when the lane wanted it to."""

    start: float
    end: float
    lane: Path
    place: str
    protocol: str
    name: str
    threaded: bool
    asked: float


class Send(NamedTuple):
    """A message was handed to the runtime; it took until `end` where that held the lane back.

    `task` is the lane whose task did it: `lane`, or one that it was forked from or lent to.
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
    """A lane wanted a message at `start` and went on with it at `end`. `task`: as for `Send`."""

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
    """Rounds that followed each other at one place. `before` is the number of the entry in front of
    it on the longest chain, or `NO_ROUND`.
    """

    before: int
    rounds: int
    place: str
    protocol: str


NO_ROUND = -1


@dataclass
class Story:
    """Events of one party in one step, each kind by time.

    Attributes:
        rounds: of the evaluator that leads; the other's are the same. In program order.
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
