"""The critical path: what each place of the model adds to a step's time on a network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from protocols.base.shares import EVALUATORS, Role
from puma_actors.planning.timing import (
    OUTSIDE,
    Time,
    chain_seconds,
    head_bytes,
    one_way,
    time_of,
    transfer_seconds,
)
from puma_actors.profiling.whatif.variants import Row, Work
from puma_actors.transports.delay.network import Network

OF_CLIENT = "the client's request and the answer"
OF_DEALER = "waiting for the dealer"
COMPUTATION = "computation"
"""A leg of its own where nobody saw which place computed."""


@dataclass(frozen=True, slots=True)
class Leg:
    """A part of the path: seconds for each token that the step yields, and their share of all."""

    name: str
    time: Time
    share: float

    def to_public(self) -> dict[str, Any]:
        """As JSON types."""
        return {"name": self.name, **self.time.to_public(), "share": round(self.share, 6)}


def critical_path(work: Work, network: Network) -> list[Leg]:
    """The legs, the longest first. They add up to the step's time."""
    step, whole = work.step, time_of(work.step, network)
    online = sum(row.online for row in work.places)
    spent = sum(row.seconds or 0.0 for row in work.places)
    known = step.computation / spent if spent else 0.0

    def place(row: Row) -> Time:
        route = network.route(*EVALUATORS)
        sent = step.sent * row.online / online if online else 0.0
        moved = transfer_seconds(sent + row.exchanges * head_bytes(), route)
        return Time(chain_seconds(row.rounds, 0, route), moved, known * (row.seconds or 0.0), 0.0)

    client = OUTSIDE * one_way(network.route(Role.CLIENT, EVALUATORS[0]))
    times = {row.name: place(row) for row in work.places}
    times[OF_CLIENT] = Time(client, 0.0, 0.0, 0.0)
    times[OF_DEALER] = Time(0.0, 0.0, 0.0, whole.waiting)
    if not spent:
        times[COMPUTATION] = Time(0.0, 0.0, step.computation, 0.0)
    legs = [
        Leg(name, time.of_each(step.tokens), time.total / whole.total)
        for name, time in times.items()
        if time.total > 0
    ]
    return sorted(legs, key=lambda leg: -leg.time.total)


Found = Mapping[str, Any]


def beside(paths: Sequence[Sequence[Found]]) -> list[tuple[str, list[Found | None]]]:
    """Paths on several networks, as JSON types, side by side: a row for each leg of any of them,
    the one with the largest share first.
    """
    known = [{leg["name"]: leg for leg in path} for path in paths]
    rows = [
        (name, [path.get(name) for path in known])
        for name in dict.fromkeys(name for path in known for name in path)
    ]
    return sorted(rows, key=lambda row: -max(leg["share"] for leg in row[1] if leg is not None))
