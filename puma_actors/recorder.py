"""What the profiler knows about the parties of a process: their meters, and when messages arrived.

    recorder = Recorder()
    LocalCluster.from_pretrained(path, recorder=recorder)

Without a recorder nothing of this exists and lanes are plain ones.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from protocols.lane import Path
from protocols.meter import Meter
from protocols.observed import ObservedLane, clock
from protocols.shares import Role
from puma_actors.link import InferenceLink
from puma_actors.mailbox import Mailbox
from puma_actors.wire import Tag

if TYPE_CHECKING:
    from puma_actors.rounds import RoundScheduler

Message: TypeAlias = tuple[Role, Role, Path]
"""Sender, receiver, and the tag: inference number, lane, number of the message."""


class Recorder:
    """Attributes:
    meters: of each party in each inference.
    arrivals: when the last byte of a message was there.
    """

    def __init__(self) -> None:
        self.meters: dict[tuple[Role, int], Meter] = {}
        self.arrivals: Mapping[Message, float] = (noted := Arrivals())
        self._noted = noted

    def attach(self, scheduler: "RoundScheduler") -> None:
        """Note the arrivals of a party's messages."""
        for role, port in scheduler.ports.items():
            port.mailbox_type = partial(NotingMailbox, self._noted.note, (role, scheduler.role))

    @staticmethod
    def detach(scheduler: "RoundScheduler") -> None:
        """Nobody notes anything of a party's messages any more."""
        for port in scheduler.ports.values():
            port.mailbox_type = Mailbox

    def lane(self, link: InferenceLink) -> ObservedLane:
        """The first lane of a party in an inference."""
        meter = self.meters[link.role, link.number] = Meter(link.role)
        return ObservedLane.first(link, meter)

    def clear(self) -> None:
        """Forget everything; not while a request runs."""
        self.meters.clear()
        self._noted.clear()


class Arrivals(Mapping[Message, float]):
    """When the last byte of each message was there. Noted flat, and sorted when somebody reads."""

    def __init__(self) -> None:
        self._flat: list[Any] = []
        self._made: dict[Message, float] = {}
        self.note = self._flat.extend
        """Add one, given as a tuple ((sender, receiver), tag, time). The last of a message counts.
        """

    def clear(self) -> None:
        """Forget all."""
        self._flat.clear()
        self._made.clear()

    def _all(self) -> dict[Message, float]:
        flat = self._flat
        for at in range(0, len(flat), 3):
            between, tag, when = flat[at : at + 3]
            self._made[*between, tag] = when
        flat.clear()
        return self._made

    def __getitem__(self, message: Message) -> float:
        return self._all()[message]

    def __iter__(self) -> Iterator[Message]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


class NotingMailbox(Mailbox):
    """A mailbox that notes when messages arrive."""

    def __init__(
        self, note: Callable[[tuple[Any, ...]], None], between: tuple[Role, Role], *args: Any
    ) -> None:
        super().__init__(*args)
        self._note = note
        self._between = between

    def put(self, tag: Tag, buffer: memoryview, dealt: bool) -> None:
        self._note((self._between, tag, clock()))
        super().put(tag, buffer, dealt)

    def put_chunk(self, tag: Tag, offset: int, total: int, buffer: memoryview, dealt: bool) -> None:
        self._note((self._between, tag, clock()))
        super().put_chunk(tag, offset, total, buffer, dealt)
