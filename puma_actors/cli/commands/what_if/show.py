"""`puma what-if`: tables."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from puma_actors.cli.output import Plain, amount, figures, say, stdout
from puma_actors.profiling.whatif.path import beside
from puma_actors.profiling.whatif.words import TITLES, TYPICAL, duration, name_of, rate, shown

_WIDTH = 120  # where there is no terminal
_PLACES = 10
Found = Mapping[str, Any]


def show(found: Found) -> None:
    """Print what `to_public` gave."""
    say(f"{found['model']}, {found['tokens_in']} tokens in", style="bold")
    say(f"computation: {found['computation']}", style="dim")
    if not found["recorded"]:
        say(f"rounds: {TYPICAL}", style="dim")
    for index, step in enumerate(found["variants"][0]["steps"]):
        name = step["name"]
        variants, best = shown(found, index), [each[name] for each in found["best"]]
        say(f"\n{name}: {TITLES[name]}", style="bold")
        _print(_networks(variants, best))
        _print(_grid(variants, found["grid"]))
        _print(_path(variants, best))
        _print(_gains(variants, best))
        _print(_places(variants[0]))
    if "compare" in found:
        show_comparison(found["compare"])


def _print(table: Table) -> None:
    console = stdout if stdout.is_terminal else Plain(width=_WIDTH)
    console.print(table)


Variants = Sequence[tuple[str, Found]]


def _networks(variants: Variants, best: Sequence[Found]) -> Table:
    columns = ("network", "tree", "time", "latency", "transfer", "computation", "waiting", "")
    table = figures("\non these networks", *columns)
    for at, network in enumerate(variants[0][1]["networks"]):
        for name, step in variants:
            times = step["networks"][at]
            mark = "least" if len(variants) > 1 and name == name_of(best[at]) else ""
            causes = ("seconds", "latency", "transfer", "computation", "waiting")
            table.add_row(network["name"], name, *(duration(times[c]) for c in causes), mark)
    return table


def _grid(variants: Variants, grid: Found) -> Table:
    rates = [rate(each) for each in grid["bandwidths_mbit"]]
    title = "\nby round trip and bandwidth" + (", least of all trees" if len(variants) > 1 else "")
    table = figures(title, "", *rates)
    between = "\n" if any("," in name for name, _ in variants) else " "  # in a line if it fits
    for row, trip in enumerate(grid["round_trips_ms"]):
        cells = []
        for column in range(len(rates)):
            least, name = min((step["grid_seconds"][row][column], name) for name, step in variants)
            cells.append(duration(least) + (f"{between}{name}" if len(variants) > 1 else ""))
        table.add_row(f"{trip:g} ms", *cells)
    return table


def _path(variants: Variants, best: Sequence[Found]) -> Table:
    """For the variant that takes least on each network."""
    steps = dict(variants)
    networks = [steps[name_of(each)]["networks"][at] for at, each in enumerate(best)]
    heads = [
        f"{network['name']}\n{name_of(each)}" for network, each in zip(networks, best, strict=True)
    ]
    table = figures("\ncritical path", "", *heads)
    for name, legs in beside([network["critical_path"] for network in networks]):
        cells = [
            "" if leg is None else f"{duration(leg['seconds'])} ({leg['share']:.0%})"
            for leg in legs
        ]
        table.add_row(name, *cells)
    return table


def _gains(variants: Variants, best: Sequence[Found]) -> Table:
    """For the variant that takes least on each network."""
    steps = dict(variants)
    rows = [
        (network["name"], network["gains"])
        for at, each in enumerate(best)
        for network in (steps[name_of(each)]["networks"][at],)
    ]
    kinds = sorted(gain["what"] for gain in rows[0][1])
    table = figures("\nwhat would gain most", "network", *kinds, "most")
    for name, gains in rows:
        saved = {
            gain["what"]: f"{duration(gain['seconds'])} ({gain['share']:.0%})" for gain in gains
        }
        table.add_row(name, *(saved[kind] for kind in kinds), gains[0]["what"])
    return table


def _places(variant: tuple[str, Found]) -> Table:
    name, step = variant
    title = f"\nby place, all layers together ({name})"
    table = figures(title, "", "rounds", "share", "bytes", "share", "computing")
    for row in step["places"][:_PLACES]:
        spent = row["computation_share"]
        table.add_row(
            row["name"],
            f"{row['rounds']:,.0f}",
            f"{row['rounds_share']:.0%}",
            amount(row["online_bytes"] + row["offline_bytes"]),
            f"{row['bytes_share']:.0%}",
            "" if spent is None else f"{spent:.0%}",
        )
    return table


# -- two profiles ----------------------------------------------------------------------------------


def show_comparison(found: Found) -> None:
    """Print what `set_beside` gave."""
    say(f"\ncompared with {found['model']}, {found['tokens_in']} tokens in", style="bold")
    say(f"computation there: {found['computation']}", style="dim")
    old, new = (name_of(found["variants"][which]) for which in ("old", "new"))
    for step in found["steps"]:
        table = figures(f"\n{step['name']}", "", f"old: {old}", f"new: {new}", "new / old")
        for name in ("rounds", "messages"):
            _pair(table, name, step[name], "{:,.0f}".format)
        for name, words in (("sent", "bytes, busier direction"), ("dealt", "bytes dealt, most")):
            _pair(table, words, step[name], amount)
        _pair(table, "computation", step["computation"], duration)
        for network in step["networks"]:
            _pair(table, f"time on {network['name']}", network, duration)
        for place in step["places"]:
            if any(place[kind]["old"] != place[kind]["new"] for kind in ("rounds", "bytes")):
                _pair(table, f"rounds of {place['name']}", place["rounds"], "{:,.0f}".format)
                _pair(table, f"bytes of {place['name']}", place["bytes"], amount)
        _print(table)


def _pair(table: Table, name: str, pair: Found, text: Callable[[float], str]) -> None:
    ratio = pair["ratio"]
    table.add_row(
        name, text(pair["old"]), text(pair["new"]), "" if ratio is None else f"{ratio:.2f}"
    )
