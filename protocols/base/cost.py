"""The cost of a protocol: declared by the protocol, predicted by `Trace`, counted by the links."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of one call.

    Attributes:
        rounds: sequential exchanges between the evaluators (or messages that a party waits for).
        online: bytes sent by all parties together once the input is known.
        offline: bytes sent by the dealer, ahead of the input.
    """

    rounds: int = 0
    online: int = 0
    offline: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.rounds + other.rounds, self.online + other.online, self.offline + other.offline
        )

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(
            self.rounds - other.rounds, self.online - other.online, self.offline - other.offline
        )

    def beside(self, other: "Cost") -> "Cost":
        """Run at the same time: traffic adds up, rounds do not."""
        return Cost(
            max(self.rounds, other.rounds),
            self.online + other.online,
            self.offline + other.offline,
        )


@dataclass(slots=True)
class Traffic:
    """Payload bytes and messages sent over a party's links so far (frame headers not included)."""

    online_bytes: int = 0
    offline_bytes: int = 0
    messages: int = 0
    by_label: dict[str, Cost] = field(default_factory=dict)

    def count(self, nbytes: int, *, online: bool) -> None:
        self.messages += 1
        if online:
            self.online_bytes += nbytes
        else:
            self.offline_bytes += nbytes

    def note(self, label: str, cost: Cost) -> None:
        self.by_label[label] = self.by_label.get(label, Cost()) + cost
