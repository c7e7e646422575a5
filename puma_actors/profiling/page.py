"""A profile as one HTML page that works offline."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from typing import Any

from protocols.base.meter import outermost
from protocols.base.shares import Role
from puma_actors.profiling.advice import actions
from puma_actors.profiling.analysis import ROLES
from puma_actors.profiling.chrome import Bar, Track, tracks
from puma_actors.profiling.profile import Profile
from puma_actors.profiling.reconcile import lines
from puma_actors.profiling.whatif import answer as what_if
from puma_actors.profiling.whatif.answer import Grid, grid_of
from puma_actors.profiling.whatif.page import body, style
from puma_actors.profiling.whatif.recorded import request_of_profile
from puma_actors.profiling.whatif.variants import Request
from puma_actors.transports.delay.network import Network

_MARK, _STYLE, _WHAT_IF = "/*DATA*/null", "/*STYLE*/", "<!--WHAT-IF-->"
_JOIN = 2e-5
"""Seconds; bars of one lane with a smaller gap between them are drawn as one, unless they belong to
different places.
"""
_KINDS = ("compute", "kernel", "wait")


def render(profile: Profile, old: Request | None = None) -> str:
    """The page, including all figures, a timeline and the time on other networks.

    old: an older profile, to set beside this one.

    Raises:
        ConfigError: the old one is of a model of another kind.
    """
    public = profile.to_public()
    request = request_of_profile(profile)
    works, network = request.variants[0].works, profile.network
    found = what_if.to_public(request, _grid(network), old)
    data = {
        **public,
        "timeline": timeline(profile),
        "sums": lines(profile.phases, works, network),
        "actions": actions(request, network),
    }
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    template = files("puma_actors.profiling").joinpath("page.html").read_text("utf-8")
    for mark, part in ((_STYLE, style()), (_WHAT_IF, body(found)), (_MARK, text)):
        template = template.replace(mark, part)
    return template


def _grid(network: Network | None) -> Grid:
    """The usual networks, after the recorded one if it is none of them."""
    grid = grid_of()
    if network is None or network.name in {each.name for each in grid.named}:
        return grid
    return replace(grid, named=(network, *grid.named))


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
            {"name": title, "bars": [_packed(bar, zero, names) for bar in _joined(row.bars)]}
            for title, row in zip(_titles(rows), rows, strict=True)
        ]
        roles.append({"role": str(role), "lanes": lanes})
    steps = []
    for (role, number), meter in sorted(profile.recorder.meters.items(), key=lambda m: m[0][1]):
        if role is Role.CLIENT:
            start, end = meter.slices[0].start, meter.slices[-1].end
            steps.append([number, _micros(start, zero), _micros(end, zero)])
    return {"names": list(names), "kinds": _KINDS, "roles": roles, "steps": steps}


def _titles(rows: Sequence[Track]) -> list[str]:
    """What each row of lanes does most of its time; numbers tell rows that do the same apart."""
    found: list[str] = []
    for row in rows:
        name = _title(row)
        same = sum(title == name or title.startswith(f"{name} ") for title in found)
        found.append(f"{name} {same + 1}" if same else name)
    return found


def _title(row: Track) -> str:
    if row.name == "main":
        return row.name
    spent: defaultdict[str, float] = defaultdict(float)
    for bar in row.bars:
        if bar.kind != "wait":
            spent[bar.place.rpartition(".")[2] or outermost(bar.protocol)] += bar.end - bar.start
    return max(spent, key=spent.__getitem__, default="") or f"lane {row.name}"


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
