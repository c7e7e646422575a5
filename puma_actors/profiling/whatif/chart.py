"""A plot of seconds over round trips, as SVG: both axes are logarithmic."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 1000, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 170, 16, 46
_COLORS = 6
_KINDS = 4
_CLOSE = 14
"""Least distance of two labels, in the plot's units."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds for each round trip.

    Attributes:
        label: at its end, if not empty. color: an index; curves of one colour belong together.
        title: shown under the pointer. kind: an index; lines of one kind are dashed alike, those of
            kind 0 are full.
    """

    label: str
    title: str
    color: int
    kind: int
    seconds: tuple[float, ...]


class _Scale:
    """Places values on an axis; `low` and `high` are the ends of the axis in the plot's units."""

    def __init__(self, values: Sequence[float], low: float, high: float) -> None:
        self.values = [max(value, 1e-6) for value in values]
        self._from, self._to = math.log(min(self.values)), math.log(max(self.values))
        self._low, self._high = low, high

    def __call__(self, value: float) -> float:
        wide = self._to - self._from
        part = (math.log(max(value, 1e-6)) - self._from) / wide if wide else 0.5
        return self._low + part * (self._high - self._low)

    def ticks(self) -> list[float]:
        """1, 2 and 5 times the powers of ten, between the ends."""
        low, high = min(self.values), max(self.values)
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = (1, 2, 5) if len(powers) < 5 else (1,)
        found = [step * 10.0**power for power in powers for step in steps]
        return [tick for tick in found if low <= tick <= high]


def chart(round_trips_ms: Sequence[float], curves: Sequence[Curve], title: str) -> str:
    """The plot as an SVG element. `round_trips_ms`: ascending; 0 is drawn at the left end."""
    positive = [trip for trip in round_trips_ms if trip > 0] or [1.0]
    trips = [max(trip, min(positive) / 4) for trip in round_trips_ms]
    x = _Scale(trips, _LEFT, _WIDTH - _RIGHT)
    every = [value for curve in curves for value in curve.seconds]
    y = _Scale(every, _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"><title>{escape(title)}</title>',
        *_axes(round_trips_ms, trips, x, y),
        *(_line(curve, trips, x, y) for curve in curves),
        *_labels(curves, y),
        "</svg>",
    ]
    return "\n".join(parts)


def sample(kind: int) -> str:
    """A piece of a line of this kind, for a legend."""
    line = f'<line class="curve {_dashes(kind)}" x1="0" x2="44" y1="6" y2="6"/>'
    return f'<svg class="sample" viewBox="0 0 44 12" aria-hidden="true">{line}</svg>'


def _dashes(kind: int) -> str:
    return f"d{kind % _KINDS}"


def _axes(shown: Sequence[float], trips: Sequence[float], x: _Scale, y: _Scale) -> list[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    found = []
    for tick in y.ticks():
        at = y(tick)
        found.append(f'<line class="rule" x1="{_LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        found.append(f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{tick:g} s</text>')
    last = -math.inf
    for trip, place in zip(shown, trips, strict=True):
        at = x(place)
        found.append(f'<line class="rule" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{bottom}"/>')
        if at - last > 3 * _CLOSE:
            found.append(
                f'<text x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{trip:g} ms</text>'
            )
            last = at
    middle = (_LEFT + right) / 2
    found.append(f'<text x="{middle:g}" y="{_HEIGHT - 8}" text-anchor="middle">round trip</text>')
    return found


def _line(curve: Curve, trips: Sequence[float], x: _Scale, y: _Scale) -> str:
    points = [(x(trip), y(value)) for trip, value in zip(trips, curve.seconds, strict=True)]
    path = " ".join(f"{left:.1f},{top:.1f}" for left, top in points)
    color = curve.color % _COLORS
    dots = "".join(
        f'<circle class="f{color}" cx="{left:.1f}" cy="{top:.1f}" r="3.5"><title>'
        f"{escape(curve.title)}: {value:.4g} s</title></circle>"
        for (left, top), value in zip(points, curve.seconds, strict=True)
    )
    return f'<polyline class="curve s{color} {_dashes(curve.kind)}" points="{path}"/>{dots}'


def _labels(curves: Sequence[Curve], y: _Scale) -> list[str]:
    """At the ends of the curves, moved apart where they would cover each other."""
    named = sorted((y(c.seconds[-1]), c.color % _COLORS, c.label) for c in curves if c.label)
    found, last = [], -math.inf
    for at, color, label in named:
        last = max(at, last + _CLOSE)
        found.append(
            f'<text class="f{color}" x="{_WIDTH - _RIGHT + 10}" y="{last + 4:.1f}">'
            f"{escape(label)}</text>"
        )
    return found
