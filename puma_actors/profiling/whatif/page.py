"""The answer as one HTML page that works offline, without scripts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from puma_actors.profiling.whatif.chart import Curve, chart, sample
from puma_actors.profiling.whatif.path import beside
from puma_actors.profiling.whatif.words import TITLES, TYPICAL, duration, name_of, rate, shown

_MARK, _STYLE = "<!--BODY-->", "/*STYLE*/"
_CAUSES = {
    "latency": "latency of rounds",
    "transfer": "transfer between the evaluators",
    "computation": "computation",
    "waiting": "waiting for the dealer",
}
Found = Mapping[str, Any]


def render(found: Found) -> str:
    """The page for what `to_public` gave."""
    title = f"<h1>{escape(found['model'])}, {found['tokens_in']} tokens in</h1>"
    package = files("puma_actors.profiling.whatif")
    template = package.joinpath("page.html").read_text("utf-8")
    return template.replace(_STYLE, style()).replace(_MARK, f"{title}\n{body(found)}")


def style() -> str:
    """The rules that `body` needs."""
    return files("puma_actors.profiling.whatif").joinpath("page.css").read_text("utf-8")


def body(found: Found) -> str:
    """Everything below the title."""
    steps = found["variants"][0]["steps"]
    lines = [
        f'<p class="dim">Computation: {escape(found["computation"])}.</p>',
        '<p class="dim">Seconds are latency, transfer, computation and waiting for the dealer, '
        "added up.</p>",
        *(() if found["recorded"] else (f'<p class="dim">Rounds: {TYPICAL}.</p>',)),
        *(line for index in range(len(steps)) for line in _step(found, index)),
        *(_compare(found["compare"]) if "compare" in found else ()),
    ]
    return "\n".join(lines)


def _step(found: Found, index: int) -> Iterable[str]:
    variants = shown(found, index)
    name = variants[0][1]["name"]
    title = f"{name}: {TITLES[name]}"
    yield f"<h2>{escape(title)}</h2>"
    groups = _groups(found, index)
    yield _samples(list(groups))
    yield chart(found["grid"]["round_trips_ms"], _curves(groups, found["grid"]), title)
    yield "<h3>Networks</h3>"
    yield _legend()
    yield _networks(variants)
    best = [each[name] for each in found["best"]]
    least = ", with what takes least on each network" if len(variants) > 1 else ""
    yield f"<h3>Critical path{least}</h3>"
    yield _path(dict(variants), best)
    yield "<h3>What would gain most</h3>"
    yield _gains(dict(variants), best)
    yield f"<h3>By place, all layers together ({escape(variants[0][0])})</h3>"
    yield _places(variants[0][1])


def _groups(found: Found, index: int) -> dict[str, list[Found]]:
    """A step's variants by tree: those that differ in lanes or draft alone share a line."""
    groups: dict[str, list[Found]] = {}
    for variant in found["variants"]:
        groups.setdefault(variant["tree"], []).append(variant["steps"][index])
    return groups


def _samples(names: Sequence[str]) -> str:
    """What the kinds of lines stand for."""
    if len(names) == 1:
        return '<p class="dim">One line for each bandwidth.</p>'
    items = (f"<span>{sample(at)}{escape(name)}</span>" for at, name in enumerate(names))
    return (
        f'<div class="legend">{"".join(items)}</div>'
        '<p class="dim">A colour for each bandwidth, a kind of line for each tree: the least of '
        "its lanes and drafts.</p>"
    )


def _curves(groups: Mapping[str, Sequence[Found]], grid: Found) -> list[Curve]:
    curves = []
    for number, (name, steps) in enumerate(groups.items()):
        for column, mbit in enumerate(grid["bandwidths_mbit"]):
            rows = zip(*(step["grid_seconds"] for step in steps), strict=True)
            seconds = tuple(min(row[column] for row in each) for each in rows)
            label = rate(mbit) if number == 0 else ""
            title = f"{name}, {rate(mbit)}"
            curves.append(Curve(label, title, column, number, seconds))
    return curves


def _legend() -> str:
    items = (f'<span><i class="{key}"></i>{words}</span>' for key, words in _CAUSES.items())
    return f'<div class="legend">{"".join(items)}</div>'


def _networks(variants: Sequence[tuple[str, Found]]) -> str:
    rows = [
        (name, times)
        for at in range(len(variants[0][1]["networks"]))
        for name, times in ((name, step["networks"][at]) for name, step in variants)
    ]
    most = max(times["seconds"] for _, times in rows) or 1.0
    lines = [
        [
            escape(times["name"]),
            escape(name),
            f"{times['round_trip_ms']:g} ms",
            rate(times["bandwidth_mbit"]),
            *(duration(times[cause]) for cause in ("seconds", *_CAUSES)),
            _bar(times, most),
        ]
        for name, times in rows
    ]
    head = ["network", "tree", "round trip", "bandwidth", "time", *_CAUSES, ""]
    return _table(head, lines)


def _bar(times: Found, most: float) -> str:
    parts = "".join(
        f'<i class="{cause}" style="width: {100 * times[cause] / most:.2f}%" '
        f'title="{words}: {duration(times[cause])}"></i>'
        for cause, words in _CAUSES.items()
        if times[cause] > 0
    )
    return f"<div>{parts}</div>"


def _gains(steps: Mapping[str, Found], best: Sequence[Found]) -> str:
    lines = []
    for at, variant in enumerate(best):
        network = steps[name_of(variant)]["networks"][at]
        gains = network["gains"]
        cells = [_gain(gain) for gain in gains]
        lines.append([escape(network["name"]), *cells])
    return _table(["network", "1st", "2nd", "3rd"], lines)


def _gain(gain: Found) -> str:
    return f"{escape(gain['what'])}: {duration(gain['seconds'])} ({gain['share']:.0%})"


def _path(steps: Mapping[str, Found], best: Sequence[Found]) -> str:
    networks = [steps[name_of(each)]["networks"][at] for at, each in enumerate(best)]
    head = [
        f"{escape(network['name'])}, {escape(name_of(each))}"
        for network, each in zip(networks, best, strict=True)
    ]
    lines = [
        [escape(name), *(_leg(leg) for leg in legs)]
        for name, legs in beside([network["critical_path"] for network in networks])
    ]
    return _table(["", *head], lines)


def _leg(leg: Found | None) -> str:
    return "" if leg is None else f"{duration(leg['seconds'])} ({leg['share']:.0%})"


def _places(step: Found) -> str:
    lines = []
    for row in step["places"]:
        spent = row["computation_share"]
        lines.append(
            [
                escape(row["name"]),
                f"{row['rounds']:,.0f}",
                f"{row['rounds_share']:.1%}",
                f"{(row['online_bytes'] + row['offline_bytes']) / 1e6:,.3f} MB",
                f"{row['bytes_share']:.1%}",
                "" if spent is None else f"{spent:.1%}",
            ]
        )
    return _table(["", "rounds", "share", "bytes", "share", "computation"], lines)


def _compare(found: Found) -> Iterable[str]:
    yield f"<h2>Compared with {escape(found['model'])}, {found['tokens_in']} tokens in</h2>"
    yield f'<p class="dim">Computation there: {escape(found["computation"])}.</p>'
    old, new = (escape(name_of(found["variants"][which])) for which in ("old", "new"))
    for step in found["steps"]:
        lines = [
            _pair("rounds", step["rounds"]),
            _pair("messages", step["messages"]),
            _pair("bytes, busier direction", step["sent"]),
            _pair("bytes dealt, most", step["dealt"]),
            _pair("computation", step["computation"], duration),
        ]
        lines += [_pair(f"time on {each['name']}", each, duration) for each in step["networks"]]
        for place in step["places"]:
            if any(place[kind]["old"] != place[kind]["new"] for kind in ("rounds", "bytes")):
                lines.append(_pair(f"rounds of {place['name']}", place["rounds"]))
                lines.append(_pair(f"bytes of {place['name']}", place["bytes"]))
        yield f"<h3>{escape(step['name'])}</h3>"
        yield _table(["", f"old: {old}", f"new: {new}", "new / old"], lines)
        if len(lines) == 5 + len(step["networks"]):
            yield '<p class="dim">Rounds and bytes are equal at every place.</p>'


def _pair(name: str, pair: Found, text: Callable[[float], str] | None = None) -> list[str]:
    ratio = "" if pair["ratio"] is None else f"{pair['ratio']:.2f}"
    show = text or _number
    return [escape(name), show(pair["old"]), show(pair["new"]), ratio]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already."""

    def cell(text: str, tag: str) -> str:
        kind = ' class="mix"' if text.startswith("<div") else ""
        return f"<{tag}{kind}>{text}</{tag}>"

    def row(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(cell(text, tag) for text in cells)}</tr>"

    rows = [row(head, "th"), *(row(cells, "td") for cells in lines)]
    return f'<div class="scroll"><table>{"".join(rows)}</table></div>'
