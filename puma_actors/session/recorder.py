"""The profiler's data about the parties of a process: their meters, and when messages arrived.

    recorder = Recorder()
    LocalCluster.from_pretrained(path, recorder=recorder)

Without a recorder none of this exists, and lanes are plain ones.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

from protocols.base.lane import Path
from protocols.base.meter import Meter
from protocols.base.shares import Role
from protocols.drivers.observed import ObservedLane, clock
from puma_actors.session.inference import InferenceLink

if TYPE_CHECKING:
    from puma_actors.session.session import RoundScheduler

Message: TypeAlias = tuple[Role, Role, Path]
"""Sender, receiver, and the tag: inference number, lane, number of the message."""


class Recorder:
    """Args:
        network: there is a network between the parties; otherwise messages arrive as they are sent.

    Attributes:
        meters: one for each party in each inference.
        arrivals: when the last byte of a message arrived; empty without a network.
    """

    def __init__(self, *, network: bool = True) -> None:
        self.meters: dict[tuple[Role, int], Meter] = {}
        self.arrivals: Mapping[Message, float] = (noted := Arrivals())
        self._noted = noted
        self._network = network

    def attach(self, scheduler: "RoundScheduler") -> None:
        """Record the arrivals of a party's messages."""
        if not self._network:
            return
        for role, port in scheduler.ports.items():
            port.arrived = self._noted.of(role, scheduler.role)

    @staticmethod
    def detach(scheduler: "RoundScheduler") -> None:
        """Stop recording a party's messages."""
        for port in scheduler.ports.values():
            port.arrived = None

    def lane(self, link: InferenceLink) -> ObservedLane:
        """The first lane of a party in an inference."""
        meter = self.meters[link.role, link.number] = Meter(link.role)
        return ObservedLane.first(link, meter)

    def clear(self) -> None:
        """Forget everything; not while a request runs."""
        self.meters.clear()
        self._noted.clear()


class Arrivals(Mapping[Message, float]):
    """When the last byte of each message arrived. Recorded as a flat list, and sorted when read.

    Only the hash of a tag is kept: so many tuples would keep the garbage collector busy. So
    iteration yields (sender, receiver, hash of the tag).
    """

    def __init__(self) -> None:
        self._flat: list[Any] = []
        self._made: dict[tuple[Role, Role, int], float] = {}

    def of(self, sender: Role, receiver: Role) -> Callable[[Sequence[Any]], None]:
        """A callback for the tags of arriving messages between these two. If a message comes in
        parts, the last one counts.
        """
        note, between = self._flat.extend, (sender, receiver)

        def arrived(tags: Sequence[Any]) -> None:
            note((between, clock(), len(tags)))
            note(map(hash, map(tuple, tags)))

        return arrived

    def clear(self) -> None:
        """Forget all."""
        self._flat.clear()
        self._made.clear()

    def _all(self) -> dict[tuple[Role, Role, int], float]:
        entries = iter(self._flat)
        for between in entries:
            when, count = next(entries), next(entries)
            for tag in islice(entries, count):
                self._made[*between, tag] = when
        self._flat.clear()
        return self._made

    def __getitem__(self, message: Message) -> float:
        sender, receiver, tag = message
        return self._all()[sender, receiver, hash(tag)]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())
