"""Records as trace events, for ui.perfetto.dev and chrome://tracing.

The format: "Trace Event Format" (Google). A process for each role, a thread for each row of lanes
that ran side by side, complete events for their work, and a flow arrow from each message's send to
its receive.
"""

import json
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path as File
from typing import Any, NamedTuple, TypeAlias

from protocols.base.events import Receive, Send
from protocols.base.lane import Path
from protocols.base.meter import Meter
from protocols.base.shares import Role
from puma_actors.profiling.analysis import ROLES
from puma_actors.profiling.sweep import message_of
from puma_actors.session.recorder import Recorder

_LEAST = 1e-6
"""Seconds; shorter waits are ignored."""


class Bar(NamedTuple):
    """Something that took time on a lane. `kind` is compute, kernel or wait."""

    start: float
    end: float
    kind: str
    place: str
    protocol: str
    details: dict[str, Any]


LaneId: TypeAlias = tuple[int, Path]
"""Inference number and path."""


@dataclass
class Track:
    """Lanes of a role that share a row, since they never overlap."""

    role: Role
    name: str
    end: float = float("-inf")
    bars: list[Bar] = field(default_factory=list)


def tracks(recorder: Recorder, role: Role) -> tuple[list[Track], dict[LaneId, int]]:
    """A role's rows, and the row of each lane."""
    lanes: dict[LaneId, list[Bar]] = {}
    for number in sorted(number for who, number in recorder.meters if who is role):
        for path, bars in _bars(recorder.meters[role, number]).items():
            lanes[number, path] = bars
    rows: list[Track] = []
    places: dict[LaneId, int] = {}
    for lane, bars in sorted(lanes.items(), key=lambda item: item[1][0].start):
        name = "/".join(str(index) for index in lane[1][1::2]) or "main"
        last = max(bar.end for bar in bars)
        free = (i for i, row in enumerate(rows) if row.name == name and row.end <= bars[0].start)
        place = next(free, None)
        if place is None:
            place = len(rows)
            rows.append(Track(role, name))
        rows[place].bars += bars
        rows[place].end = last
        places[lane] = place
    return rows, places


def _bars(meter: Meter) -> dict[Path, list[Bar]]:
    """The work of each lane, by time; waits are cut to the gaps between its code."""
    found: dict[Path, list[Bar]] = {}
    edges: dict[Path, list[tuple[float, float]]] = {}
    for piece in meter.slices:
        bar = Bar(piece.start, piece.end, "compute", piece.place, piece.protocol, {})
        found.setdefault(piece.lane, []).append(bar)
        edges.setdefault(piece.lane, []).append((piece.start, piece.end))
    for call in meter.calls:
        details = {"kernel": call.name, "thread": call.threaded}
        bar = Bar(call.start, call.end, "kernel", call.place, call.protocol, details)
        found[call.lane].append(bar)
    waits: dict[Path, list[Receive]] = {}
    for wait in meter.receives:
        waits.setdefault(wait.task, []).append(wait)
    for path, waited in waits.items():
        found[path] += _in_gaps(waited, _gaps(edges[path]))
    for bars in found.values():
        bars.sort(key=lambda bar: (bar.start, -bar.end))
    return found


def _in_gaps(waits: list[Receive], gaps: list[tuple[float, float]]) -> Iterator[Bar]:
    starts = [start for start, _ in gaps]
    for wait in waits:
        index = max(0, bisect_right(starts, wait.start) - 1)
        if index < len(gaps) and gaps[index][1] <= wait.start:
            index += 1
        if index == len(gaps):
            continue
        start, end = max(wait.start, gaps[index][0]), min(wait.end, gaps[index][1])
        if end - start > _LEAST:
            details = {"from": str(wait.peer), "bytes": wait.nbytes}
            yield Bar(start, end, "wait", wait.place, wait.protocol, details)


def _gaps(slices: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The gaps between the slices of a lane, which are disjoint and in order."""
    return [(before[1], after[0]) for before, after in pairwise(slices) if after[0] > before[1]]


def trace_events(recorder: Recorder) -> dict[str, Any]:
    """The whole document that `--trace` writes. Times are microseconds since the first event."""
    starts = [meter.slices[0].start for meter in recorder.meters.values() if meter.slices]
    zero = min(starts, default=0.0)
    events: list[dict[str, Any]] = []
    threads: dict[tuple[Role, LaneId], tuple[int, int]] = {}
    for pid, role in enumerate(ROLES, 1):
        rows, places = tracks(recorder, role)
        events += _names(pid, role, rows)
        for lane, row in places.items():
            threads[role, lane] = pid, row + 1
        for tid, track in enumerate(rows, 1):
            events += [_complete(pid, tid, bar, zero) for bar in track.bars]
    events += _flows(recorder, threads, zero)
    return {"displayTimeUnit": "ms", "traceEvents": events}


def _names(pid: int, role: Role, rows: list[Track]) -> list[dict[str, Any]]:
    def named(what: str, tid: int, name: str) -> dict[str, Any]:
        return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}}

    order = {
        "ph": "M",
        "name": "process_sort_index",
        "pid": pid,
        "tid": 0,
        "args": {"sort_index": pid},
    }
    threads = [named("thread_name", tid, f"lane {row.name}") for tid, row in enumerate(rows, 1)]
    return [named("process_name", 0, str(role)), order, *threads]


def _complete(pid: int, tid: int, bar: Bar, zero: float) -> dict[str, Any]:
    name = bar.details.get("kernel") or bar.protocol.rpartition("/")[2] or "program"
    return {
        "ph": "X",
        "name": f"wait: {name}" if bar.kind == "wait" else name,
        "cat": bar.kind,
        "pid": pid,
        "tid": tid,
        "ts": _micros(bar.start, zero),
        "dur": round((bar.end - bar.start) * 1e6, 3),
        "args": {"place": bar.place, "protocol": bar.protocol, **bar.details},
    }


def _micros(seconds: float, zero: float) -> float:
    return round((seconds - zero) * 1e6, 3)


def _flows(
    recorder: Recorder, threads: dict[tuple[Role, LaneId], tuple[int, int]], zero: float
) -> Iterator[dict[str, Any]]:
    """Arrows for the messages that were both sent and received."""
    sent: dict[Any, tuple[Send, Role, int]] = {}
    for (role, number), meter in recorder.meters.items():
        for send in meter.sends:
            sent[message_of(role, number, send)] = send, role, number
    count = 0
    for (role, number), meter in recorder.meters.items():
        for wait in meter.receives:
            found = sent.get(message_of(role, number, wait))
            if found is None:
                continue
            send, sender, step = found
            count += 1
            kind = "online" if send.online else "dealt"
            for phase, who, lane, when in (
                ("s", sender, (step, send.task), send.start),
                ("f", role, (number, wait.task), wait.end),
            ):
                pid, tid = threads[who, lane]
                event = {"ph": phase, "id": count, "name": kind, "cat": "message"}
                yield {
                    **event,
                    "pid": pid,
                    "tid": tid,
                    "ts": _micros(when, zero),
                    **({"bp": "e"} if phase == "f" else {}),
                }


def write(recorder: Recorder, file: File) -> None:
    """Write the events to a file."""
    file.write_text(json.dumps(trace_events(recorder), separators=(",", ":")), "utf-8")
