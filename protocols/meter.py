"""What a profiler notes of one party in one step: events, kept flat until somebody reads them.

Events hold times, sizes, names and places, never a value: what they say is what anybody learns who
watches the traffic and the clock.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, overload

from protocols.cost import Cost
from protocols.lane import Path
from protocols.shares import Role

if TYPE_CHECKING:
    from protocols.observed import ObservedLane

E = TypeVar("E")


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
    """A message was handed to the runtime; it took until `end` where that held the lane back."""

    start: float
    end: float
    lane: Path
    place: str
    protocol: str
    peer: Role
    nbytes: int
    number: int
    online: bool


class Receive(NamedTuple):
    """A lane wanted a message at `start` and went on with it at `end`."""

    start: float
    end: float
    lane: Path
    place: str
    protocol: str
    peer: Role
    nbytes: int
    number: int


class Round(NamedTuple):
    """Rounds that followed each other at one place. `before` is the number of the entry in front of
    it on the longest chain, or `NO_ROUND`.
    """

    before: int
    rounds: int
    place: str
    protocol: str


NO_ROUND = -1


class Key(NamedTuple):
    """Where in the model, and in which protocols (outermost first, "/" between them)."""

    place: str
    protocol: str


class Events(Sequence[E]):
    """Events that are noted flat and made when somebody reads them: thousands of small tuples would
    keep the garbage collector busy while the time is taken.
    """

    def __init__(self) -> None:
        self._flat: list[Any] = []
        self._made: list[E] = []
        self.note = self._flat.extend
        """Add one, given as a tuple of its fields."""

    def __len__(self) -> int:
        return len(self._events())

    @overload
    def __getitem__(self, index: int) -> E: ...

    @overload
    def __getitem__(self, index: slice) -> list[E]: ...

    def __getitem__(self, index: int | slice) -> E | list[E]:
        return self._events()[index]

    def __iter__(self) -> Iterator[E]:
        return iter(self._events())

    @abstractmethod
    def _events(self) -> list[E]:
        """All that were noted."""


class Log(Events[E]):
    """Events of one kind."""

    def __init__(self, kind: type[E]) -> None:
        super().__init__()
        self._kind: Any = kind

    def __len__(self) -> int:
        return len(self._flat) // len(self._kind._fields)

    def _events(self) -> list[E]:
        width = len(self._kind._fields)
        for start in range(len(self._made) * width, len(self._flat), width):
            first = self._flat[start : start + width]
            event = self._kind(*first)
            if not event.place:  # what has no place is named after its protocol
                event = event._replace(place=outermost(event.protocol))
            self._made.append(event)
        return self._made


class Slices(Events[Slice]):
    """Slices, noted as the moments at which something else begins to run: a time and a lane, its
    place and protocol, or None thrice.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen = 0

    def _events(self) -> list[Slice]:
        flat = self._flat
        for at in range(self._seen, len(flat) - 4, 4):  # the last moment has no end yet
            start, lane, place, protocol, end = flat[at : at + 5]
            if lane is not None:
                self._made.append(Slice(start, end, lane, place or outermost(protocol), protocol))
            self._seen = at + 4
        return self._made


def outermost(protocol: str) -> str:
    """The outermost of nested protocols, after which is named what has no place."""
    return protocol.partition("/")[0]


class Meter:
    """Events of one party in one step."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.slices: Sequence[Slice] = (moments := Slices())
        self.calls = Log(Call)
        self.sends = Log(Send)
        self.receives = Log(Receive)
        self.rounds = Log(Round)
        """Of the evaluator that leads: the other's are the same."""
        self.charges: list[tuple[Key, Cost]] = []
        """Declared costs, under `TRACE`."""
        self.chain = NO_ROUND
        """The last round on the longest chain of the program's first lane."""
        self.note = moments.note
        """Add a moment; see `Slices`."""
        self.lane: ObservedLane | None = None
        """The one that computes."""

    def critical(self) -> list[tuple[Key, int]]:
        """Rounds of the longest chain, from the first to the last."""
        found, at = [], self.chain
        while at != NO_ROUND:
            entry = self.rounds[at]
            found.append((Key(entry.place, entry.protocol), entry.rounds))
            at = entry.before
        return found[::-1]
