"""A profile as one HTML page that works offline."""

import json
from importlib.resources import files
from typing import Any

from protocols.base.shares import Role
from puma_actors.profiling.analysis import ROLES
from puma_actors.profiling.chrome import Bar, tracks
from puma_actors.profiling.profile import Profile

_MARK = "/*DATA*/null"
_JOIN = 2e-5
"""Seconds; bars of one lane with a smaller gap between them are drawn as one, unless they belong to
different places.
"""
_KINDS = ("compute", "kernel", "wait")


def render(profile: Profile) -> str:
    """The page, including all figures and a timeline."""
    data = {**profile.to_public(), "timeline": timeline(profile)}
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    template = files("puma_actors.profiling").joinpath("page.html").read_text("utf-8")
    return template.replace(_MARK, text)


def timeline(profile: Profile) -> dict[str, Any]:
    """Bars by role and lane: [start, length] in microseconds, kind, place, protocol.

    Places and protocols are indices into `names`.
    """
    names: dict[str, int] = {}
    roles = []
    every = [(role, tracks(profile.recorder, role)[0]) for role in ROLES]
    zero = min(row.bars[0].start for _, rows in every for row in rows)
    for role, rows in every:
        lanes = [
            {"name": row.name, "bars": [_packed(bar, zero, names) for bar in _joined(row.bars)]}
            for row in rows
        ]
        roles.append({"role": str(role), "lanes": lanes})
    steps = []
    for (role, number), meter in sorted(profile.recorder.meters.items(), key=lambda m: m[0][1]):
        if role is Role.CLIENT:
            start, end = meter.slices[0].start, meter.slices[-1].end
            steps.append([number, _micros(start, zero), _micros(end, zero)])
    return {"names": list(names), "kinds": _KINDS, "roles": roles, "steps": steps}


def _joined(bars: list[Bar]) -> list[Bar]:
    joined: list[Bar] = []
    for bar in bars:
        last = joined[-1] if joined else None
        if (
            last is not None
            and bar.kind == last.kind != "kernel"
            and (bar.place, bar.protocol) == (last.place, last.protocol)
            and bar.start - last.end < _JOIN
        ):
            joined[-1] = last._replace(end=max(last.end, bar.end))
        else:
            joined.append(bar)
    return joined


def _packed(bar: Bar, zero: float, names: dict[str, int]) -> list[float]:
    place, protocol = (
        names.setdefault(name, len(names))
        for name in (bar.place, bar.details.get("kernel") or bar.protocol)
    )
    start = _micros(bar.start, zero)
    return [start, _micros(bar.end, zero) - start, _KINDS.index(bar.kind), place, protocol]


def _micros(seconds: float, zero: float) -> int:
    return round((seconds - zero) * 1e6)
