"""A plot of both systems as an SVG file: for each workload two dots on a logarithmic axis."""

from collections.abc import Sequence
from html import escape
from math import ceil, floor, log10

_WIDTH, _LEFT, _RIGHT, _TOP, _STEP = 920, 330, 90, 70, 30
_OURS, _THEIRS = "#3b74c9", "#d9902f"
_STYLE = (
    "text{font-family:Inter,Segoe UI,Helvetica,Arial,sans-serif;font-size:13px;fill:#46505e}"
    ".t{font-size:17px;font-weight:600;fill:#1d2430}.r{font-weight:600;fill:#1d2430}"
)


def plot(title: str, unit: str, rows: Sequence[tuple[str, float, float, str]]) -> str:
    """An SVG document.

    Args:
        rows: workload, our figure, SPU's figure, both above 0, and what stands right of them.
    """
    values = [value for _, ours, theirs, _ in rows for value in (ours, theirs)]
    low, high = floor(log10(min(values))), ceil(log10(max(values)))
    high = max(high, low + 1)
    bottom = _TOP + _STEP * len(rows)

    def across(value: float) -> float:
        return _LEFT + (log10(value) - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {bottom + 50}" '
        f'width="{_WIDTH}" height="{bottom + 50}" role="img" aria-label="{escape(title)}">',
        f'<style>{_STYLE}</style><rect width="100%" height="100%" rx="12" fill="#ffffff"/>',
        _text(24, 32, title, "t"),
        *_legend(),
    ]
    for power in range(low, high + 1):
        x = across(10.0**power)
        parts.append(f'<path d="M{x:.1f} {_TOP - 12}V{bottom - 6}" stroke="#e3e7ec"/>')
        parts.append(_text(x, bottom + 14, f"{10.0**power:,.10g}", anchor="middle"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, bottom + 36, unit, anchor="middle"))
    for number, (name, ours, theirs, label) in enumerate(rows):
        y = _TOP + _STEP * number + 4
        start, end = across(ours), across(theirs)
        parts += [
            _text(_LEFT - 18, y + 4, name, anchor="end"),
            f'<path d="M{start:.1f} {y}H{end:.1f}" stroke="#c4ccd6" stroke-width="3"/>',
            f'<circle cx="{end:.1f}" cy="{y}" r="6" fill="{_THEIRS}"/>',
            f'<circle cx="{start:.1f}" cy="{y}" r="6" fill="{_OURS}"/>',
            _text(_WIDTH - 20, y + 4, label, "r", "end"),
        ]
    return "\n".join([*parts, "</svg>", ""])


def _legend() -> list[str]:
    found = []
    for x, color, name in ((_WIDTH - 260, _OURS, "PUMA actors"), (_WIDTH - 140, _THEIRS, "SPU")):
        found += [f'<circle cx="{x}" cy="27" r="6" fill="{color}"/>', _text(x + 12, 32, name)]
    return found


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{style} text-anchor="{anchor}">{escape(text)}</text>'
