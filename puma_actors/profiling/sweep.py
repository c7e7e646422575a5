"""Attribute one party's time in one step: every instant gets one cause and one place.

An instant belongs to, in this order: code of the party that runs on the event loop; a kernel on a
thread; the oldest message that a lane waits for and that has not arrived, by its sender; a message
that has arrived while its lane waits for the processor; a send that is held back. While a message
of a round is in transit to the party, its computation counts as `hidden`: that transfer costs no
time.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeAlias

from protocols.base.events import Key, Receive, Send
from protocols.base.meter import Meter, was_held
from protocols.base.shares import Role
from puma_actors.session.recorder import Message, Recorder

COMPUTE, HIDDEN, NETWORK, DEALER, CLIENT, PROCESSOR, HELD = CAUSES = (
    "compute",
    "hidden",
    "network",
    "dealer",
    "client",
    "processor",
    "held",
)
"""`compute`: with no message in transit; `hidden`: while one was; `network`: waiting for the other
evaluator; `dealer`, `client`: waiting for them; `processor`: the message has arrived, but another
party computes; `held`: a send waits for credit or for a slow channel.
"""
_SENDERS = {Role.DEALER: DEALER, Role.CLIENT: CLIENT}

Seconds: TypeAlias = "defaultdict[tuple[str, Key], float]"


class Span(NamedTuple):
    """Seconds from `start` to `end`, for `key`; `rank` decides between spans at one instant."""

    start: float
    end: float
    rank: int
    cause: str
    key: Key


def tag_of(number: int, event: Send | Receive) -> tuple[int, ...]:
    """The message's tag in inference `number`."""
    return (number, *event.lane, event.number)


def message_of(role: Role, number: int, event: Send | Receive) -> Message:
    """The message that a party sent or received."""
    tag = tag_of(number, event)
    ends = (role, event.peer) if isinstance(event, Send) else (event.peer, role)
    return (*ends, tag)


def there(recorder: Recorder) -> Mapping[Message, float]:
    """When messages arrived; without a network, when they were sent, which is the same."""
    return recorder.arrivals or {
        message_of(role, number, send): send.end
        for (role, number), meter in recorder.meters.items()
        for send in meter.sends
    }


def _spans(meter: Meter, number: int, arrivals: Mapping[Message, float]) -> Iterable[Span]:
    for piece in meter.slices:
        yield Span(piece.start, piece.end, 0, COMPUTE, Key(piece.place, piece.protocol))
    for call in meter.calls:
        if call.threaded:
            yield Span(call.start, call.end, 1, COMPUTE, Key(call.place, call.protocol))
    for wait in meter.receives:
        key = Key(wait.place, wait.protocol)
        arrival = arrivals.get(message_of(meter.role, number, wait), wait.start)
        there = min(max(wait.start, arrival), wait.end)
        yield Span(wait.start, there, 2, _SENDERS.get(wait.peer, NETWORK), key)
        yield Span(there, wait.end, 3, PROCESSOR, key)
    for send in meter.sends:
        if was_held(send.end - send.start, send.nbytes):
            yield Span(send.start, send.end, 4, HELD, Key(send.place, send.protocol))


def flights(
    recorder: Recorder, role: Role, number: int, *, online: bool = True
) -> list[tuple[float, float]]:
    """When messages were in transit to a party: (sent, arrived), by time."""
    found = []
    for (sender, step), meter in recorder.meters.items():
        if step != number:
            continue
        for send in meter.sends:
            if send.peer is role and send.online == online:
                arrival = recorder.arrivals.get(message_of(sender, number, send))
                if arrival is not None and arrival > send.start:
                    found.append((send.start, arrival))
    return sorted(found)


def spend(
    recorder: Recorder, role: Role, number: int, window: tuple[float, float] | None = None
) -> Seconds:
    """Seconds of a party in a step by cause and place, within a window of the clock."""
    meter = recorder.meters[role, number]
    low, high = window or (float("-inf"), float("inf"))
    edges: list[tuple[float, int, int]] = []
    spans: list[Span] = []
    for span in _spans(meter, number, recorder.arrivals):
        start, end = max(span.start, low), min(span.end, high)
        if end > start:
            edges += [(start, 1, len(spans)), (end, 0, len(spans))]
            spans.append(span)
    under_way = flights(recorder, role, number)
    for start, end in under_way:
        edges += [(start, 1, -1), (end, 0, -1)]
    edges.sort()
    return _sweep(edges, spans)


def _sweep(edges: list[tuple[float, int, int]], spans: list[Span]) -> Seconds:
    seconds: Seconds = defaultdict(float)
    active: list[dict[int, Span]] = [{} for _ in range(5)]
    flying = 0
    before = 0.0
    for instant, begins, index in edges:
        if instant > before:
            chosen = next((found for found in active if found), None)
            if chosen:
                span = next(iter(chosen.values()))  # the oldest
                hidden = span.cause == COMPUTE and flying
                seconds[HIDDEN if hidden else span.cause, span.key] += instant - before
            before = instant
        if index < 0:
            flying += 1 if begins else -1
        elif begins:
            active[spans[index].rank][index] = spans[index]
        else:
            active[spans[index].rank].pop(index, None)
    return seconds


def union(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Disjoint intervals that cover the same instants, by time."""
    merged: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def length(spans: Iterable[tuple[float, float]]) -> float:
    """Seconds that the intervals cover."""
    return sum(end - start for start, end in union(spans))
