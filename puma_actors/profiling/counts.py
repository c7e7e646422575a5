"""Rounds and bytes by place and protocol: counted, and as the protocols declare them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from protocols.base.events import Key
from protocols.base.meter import Meter, outermost
from protocols.base.shares import Role


@dataclass(frozen=True, slots=True)
class Counts:
    """Rounds (all, and on the longest chain) and bytes at each place and operation."""

    exchanges: Mapping[Key, int]
    critical: Mapping[Key, int]
    online: Mapping[Key, int]
    offline: Mapping[Key, int]

    def differences(self, other: "Counts") -> list[str]:
        """The differences between two counts, as text."""
        found = []
        for what in ("exchanges", "critical", "online", "offline"):
            mine, theirs = getattr(self, what), getattr(other, what)
            found += [
                f"{what} of {key.protocol} at {key.place}: {mine.get(key, 0)}, "
                f"predicted {theirs.get(key, 0)}"
                for key in sorted(mine.keys() | theirs.keys())
                if mine.get(key, 0) != theirs.get(key, 0)
            ]
        return found


# -- groupings -------------------------------------------------------------------------------------


def layer_of(key: Key) -> str:
    """`layers.3` for `layers.3.mlp_norm`; a place outside the layers gives itself."""
    parts = key.place.split(".")
    return ".".join(parts[:2]) if parts[0] == "layers" and len(parts) > 1 else key.place


def place_of(key: Key) -> str:
    """`layers.*.mlp_norm` for `layers.3.mlp_norm`."""
    parts = key.place.split(".")
    return ".".join(["layers", "*", *parts[2:]]) if parts[0] == "layers" else key.place


def operation_of(key: Key) -> str:
    """The outermost protocol."""
    return outermost(key.protocol)


def protocol_of(key: Key) -> str:
    """The innermost protocol."""
    return key.protocol.rpartition("/")[2]


def outer(key: Key) -> Key:
    """Place and outermost protocol: the resolution of declared costs."""
    return Key(key.place, operation_of(key))


# -- counting --------------------------------------------------------------------------------------


def counted(meters: Iterable[Meter]) -> Counts:
    """Counts of the parties in one step."""
    exchanges, critical, online, offline = (Counter[Key]() for _ in range(4))
    for meter in meters:
        for send in meter.sends:
            key = Key(send.place, send.protocol)
            (online if send.online else offline)[key] += send.nbytes
        if meter.role is Role.EVALUATOR_A:
            for entry in meter.story.rounds:
                exchanges[Key(entry.place, entry.protocol)] += entry.rounds
            for key, rounds in meter.story.critical():
                critical[key] += rounds
    return Counts(exchanges, critical, online, offline)


def declared(meter: Meter) -> Counts:
    """Costs charged to a tracing lane in one step."""
    exchanges, critical, online, offline = (Counter[Key]() for _ in range(4))
    for key, cost in meter.story.charges:
        exchanges[key] += cost.rounds
        online[key] += cost.online
        offline[key] += cost.offline
    for key, rounds in meter.story.critical():
        critical[key] += rounds
    return Counts(exchanges, critical, online, offline)


def _folded(counts: Counts) -> Counts:
    def fold(found: Mapping[Key, int]) -> Mapping[Key, int]:
        total = Counter[Key]()
        for key, value in found.items():
            total[outer(key)] += value
        return +total

    return Counts(*map(fold, (counts.exchanges, counts.critical, counts.online, counts.offline)))


def compare(found: Counts, predicted: Counts) -> list[str]:
    """Differences by place and outermost protocol."""
    return _folded(found).differences(_folded(predicted))
