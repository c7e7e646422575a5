"""Totals of a request's records: by layer, by place, by operation and by protocol."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from protocols.base.cost import Cost
from protocols.base.events import Key
from protocols.base.meter import Meter
from protocols.base.shares import COMPUTING, EVALUATORS, Role
from puma_actors.profiling.counts import (
    Counts,
    compare,
    counted,
    declared,
    layer_of,
    operation_of,
    place_of,
    protocol_of,
)
from puma_actors.profiling.sweep import (
    CAUSES,
    COMPUTE,
    HIDDEN,
    Seconds,
    flights,
    length,
    message_of,
    spend,
    there,
)
from puma_actors.session.recorder import Recorder

ROLES = (*COMPUTING, Role.CLIENT)
Grouping = Callable[[Key], str]


@dataclass
class Row:
    """Figures of one layer, place, operation or protocol.

    Attributes:
        rounds: on the longest chain. exchanges: all rounds, including concurrent ones.
        online, offline: bytes of all parties.
        seconds: by cause (see `sweep`), the mean of the two evaluators.
        compute: seconds by role; the dealer's run ahead.
    """

    name: str
    rounds: int = 0
    exchanges: int = 0
    online: int = 0
    offline: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CAUSES, 0.0))
    compute: dict[Role, float] = field(default_factory=lambda: dict.fromkeys(ROLES, 0.0))

    @property
    def total(self) -> float:
        """Seconds of all causes."""
        return sum(self.seconds.values())

    @property
    def blocked(self) -> float:
        """Seconds without computation."""
        return max(0.0, self.total - self.seconds[COMPUTE] - self.seconds[HIDDEN])

    def to_public(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "name": self.name,
            "rounds": self.rounds,
            "exchanges": self.exchanges,
            "online_bytes": self.online,
            "offline_bytes": self.offline,
            "seconds": {cause: round(value, 6) for cause, value in self.seconds.items()},
            "compute_seconds": {str(r): round(value, 6) for r, value in self.compute.items()},
        }


@dataclass(frozen=True, slots=True)
class Lead:
    """How far the dealer was ahead of the evaluators.

    Attributes:
        median, least: seconds from a dealt message's arrival until a lane wanted it; negative: the
            lane waited.
        messages, late: number of dealt messages, and of those that a lane waited for.
        waited: seconds that the evaluators were idle waiting for the dealer, mean of both.
        bytes: most bytes at both evaluators that were dealt and not yet used.
    """

    median: float
    least: float
    messages: int
    late: int
    waited: float
    bytes: int


@dataclass(frozen=True)
class Phase:
    """Totals of some steps of a request.

    Attributes:
        name: "prefill", "decode" or "forward". steps: their number.
        wall: seconds from the client's request to its answer.
        rounds: on the longest chain. online, offline: bytes of all parties.
        layers, places, operations, protocols: rows; `places` with the layers folded into one,
            `operations` are the outermost protocols, `protocols` the innermost.
        sent: bytes by (sender, receiver): online, offline.
        busy: seconds that each role computed; `blocked`: seconds that it waited, the rest.
        transfer: seconds in which messages of a round were in transit to an evaluator; `hidden`:
            those of them in which it computed.
        differences: from the prediction; empty if all counts match it.
    """

    name: str
    steps: int
    wall: float
    rounds: int
    exchanges: int
    online: int
    offline: int
    layers: list[Row]
    places: list[Row]
    operations: list[Row]
    protocols: list[Row]
    sent: dict[tuple[Role, Role], tuple[int, int]]
    busy: dict[Role, float]
    blocked: dict[Role, float]
    transfer: float
    hidden: float
    lead: Lead
    differences: list[str]
    keys: dict[tuple[str, Key], float]
    kernels: list[tuple[str, Role, int, float]]

    @property
    def hidden_share(self) -> float:
        """Part of the transfer time in which the receiver computed."""
        return self.hidden / self.transfer if self.transfer else 0.0

    def to_public(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "name": self.name,
            "steps": self.steps,
            "wall_seconds": round(self.wall, 6),
            "rounds": self.rounds,
            "exchanges": self.exchanges,
            "online_bytes": self.online,
            "offline_bytes": self.offline,
            "busy_seconds": {str(role): round(v, 6) for role, v in self.busy.items()},
            "blocked_seconds": {str(role): round(v, 6) for role, v in self.blocked.items()},
            "transfer_seconds": round(self.transfer, 6),
            "hidden_seconds": round(self.hidden, 6),
            "dealer": asdict(self.lead),
            "sent": [
                {"from": str(a), "to": str(b), "online_bytes": on, "offline_bytes": off}
                for (a, b), (on, off) in self.sent.items()
            ],
            "layers": [row.to_public() for row in self.layers],
            "places": [row.to_public() for row in self.places],
            "operations": [row.to_public() for row in self.operations],
            "protocols": [row.to_public() for row in self.protocols],
            "kernels": [
                {"name": name, "role": str(role), "calls": calls, "seconds": round(v, 6)}
                for name, role, calls, v in self.kernels
            ],
            "differences": self.differences,
        }


# -- one phase -------------------------------------------------------------------------------------


def window_of(recorder: Recorder, number: int) -> tuple[float, float]:
    """When the client's step began and ended."""
    slices = recorder.meters[Role.CLIENT, number].slices
    return slices[0].start, slices[-1].end


def analyse(
    recorder: Recorder, name: str, numbers: Sequence[int], predicted: Sequence[Meter]
) -> Phase:
    """Add up the steps `numbers`; `predicted` holds a traced meter for each."""
    counts, times, differences = [], [], []
    windows = [window_of(recorder, number) for number in numbers]
    for number, window, traced in zip(numbers, windows, predicted, strict=True):
        found = counted([recorder.meters[role, number] for role in ROLES])
        differences += compare(found, declared(traced))
        counts.append(found)
        times.append(_times(recorder, number, window))
    evaluators, total = _of_evaluators(times), _total(counts)
    transfer, hidden = transfer_of(recorder, numbers)
    busy = {role: sum(_computed(step[role]) for step in times) for role in ROLES}
    return Phase(
        name=name,
        steps=len(numbers),
        wall=sum(end - start for start, end in windows),
        rounds=total.rounds,
        exchanges=sum(sum(found.exchanges.values()) for found in counts),
        online=total.online,
        offline=total.offline,
        layers=_rows(layer_of, counts, times, evaluators),
        places=_rows(place_of, counts, times, evaluators),
        operations=_rows(operation_of, counts, times, evaluators),
        protocols=_rows(protocol_of, counts, times, evaluators),
        sent=_sent(recorder, numbers),
        busy=busy,
        blocked={
            role: sum(sum(step[role].values()) for step in times) - busy[role] for role in ROLES
        },
        transfer=transfer,
        hidden=hidden,
        lead=_lead(recorder, numbers, evaluators),
        differences=differences,
        keys=dict(evaluators),
        kernels=_kernels(recorder, numbers),
    )


def _times(recorder: Recorder, number: int, window: tuple[float, float]) -> dict[Role, Seconds]:
    """Times by role; for the dealer the whole step, which it begins earlier than the others."""
    return {
        role: spend(recorder, role, number, None if role.is_dealer else window) for role in ROLES
    }


def _of_evaluators(times: Iterable[Mapping[Role, Seconds]]) -> Seconds:
    """Mean of both evaluators over all steps together."""
    found: Seconds = defaultdict(float)
    for step in times:
        for role in EVALUATORS:
            for item, value in step[role].items():
                found[item] += value / len(EVALUATORS)
    return found


def _total(counts: Iterable[Counts]) -> Cost:
    costs = (
        Cost(*(sum(each.values()) for each in (found.critical, found.online, found.offline)))
        for found in counts
    )
    return sum(costs, Cost())


def _computed(seconds: Seconds) -> float:
    return sum(value for (cause, _), value in seconds.items() if cause in (COMPUTE, HIDDEN))


def _rows(
    group: Grouping,
    counts: Iterable[Counts],
    times: Iterable[Mapping[Role, Seconds]],
    evaluators: Mapping[tuple[str, Key], float],
) -> list[Row]:
    """Rows in the order of the program."""
    rows: dict[str, Row] = {}

    def row(key: Key) -> Row:
        name = group(key) or "between"
        return rows.setdefault(name, Row(name))

    for found in counts:
        for key, value in found.exchanges.items():
            row(key).exchanges += value
        for key, value in found.critical.items():
            row(key).rounds += value
        for key, value in found.online.items():
            row(key).online += value
        for key, value in found.offline.items():
            row(key).offline += value
    for (cause, key), seconds in evaluators.items():
        row(key).seconds[cause] += seconds
    for step in times:
        for role, spent in step.items():
            for (cause, key), seconds in spent.items():
                if cause in (COMPUTE, HIDDEN):
                    row(key).compute[role] += seconds
    return list(rows.values())


def _sent(recorder: Recorder, numbers: Sequence[int]) -> dict[tuple[Role, Role], tuple[int, int]]:
    found: dict[tuple[Role, Role], tuple[int, int]] = {}
    for number in numbers:
        for role in ROLES:
            for send in recorder.meters[role, number].sends:
                online, offline = found.get((role, send.peer), (0, 0))
                if send.online:
                    online += send.nbytes
                else:
                    offline += send.nbytes
                found[role, send.peer] = online, offline
    return found


def transfer_of(recorder: Recorder, numbers: Sequence[int]) -> tuple[float, float]:
    """Seconds in which messages of rounds were in transit to an evaluator (mean of both), and those
    in which it also computed.
    """
    whole, hidden = 0.0, 0.0
    for number in numbers:
        for role in EVALUATORS:
            meter = recorder.meters[role, number]
            busy = [(piece.start, piece.end) for piece in meter.slices]
            busy += [(call.start, call.end) for call in meter.calls if call.threaded]
            flying = flights(recorder, role, number)
            flown = length(flying)
            whole += flown / 2
            hidden += (flown + length(busy) - length([*flying, *busy])) / 2
    return whole, hidden


def _lead(
    recorder: Recorder, numbers: Sequence[int], evaluators: Mapping[tuple[str, Key], float]
) -> Lead:
    leads: list[float] = []
    changes: list[tuple[float, int]] = []
    arrivals = there(recorder)
    for number in numbers:
        for role in EVALUATORS:
            for wait in recorder.meters[role, number].receives:
                arrival = arrivals.get(message_of(role, number, wait))
                if wait.peer is Role.DEALER and arrival is not None:
                    leads.append(wait.start - arrival)
                    changes += [(arrival, wait.nbytes), (wait.end, -wait.nbytes)]
    held, most = 0, 0
    for _, nbytes in sorted(changes):
        held += nbytes
        most = max(most, held)
    waited = sum(value for (cause, _), value in evaluators.items() if cause == "dealer")
    if not leads:
        return Lead(0.0, 0.0, 0, 0, waited, 0)
    late = sum(lead < 0 for lead in leads)
    return Lead(statistics.median(leads), min(leads), len(leads), late, waited, most)


def _kernels(recorder: Recorder, numbers: Sequence[int]) -> list[tuple[str, Role, int, float]]:
    """Kernel, role, calls, seconds; the longest first."""
    calls: Counter[tuple[str, Role]] = Counter()
    seconds: defaultdict[tuple[str, Role], float] = defaultdict(float)
    for number in numbers:
        for role in ROLES:
            for call in recorder.meters[role, number].calls:
                calls[call.name, role] += 1
                seconds[call.name, role] += call.end - call.start
    longest = sorted(seconds.items(), key=lambda item: -item[1])
    return [(*item, calls[item], value) for item, value in longest]
