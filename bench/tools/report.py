"""Results as tables for reading."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.tools.harness import Result, Spread
from bench.tools.reference import PAPER_ERRORS, PUMA_PAPER, SPU_GPT2, SPU_SYSTEM

_WIDTH = 170  # where the output is not a terminal


def console() -> Console:
    """Standard output, wide enough for the tables if it is a file or a pipe."""
    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=_WIDTH)


def show(out: Console, machine: dict[str, Any], results: Sequence[Result]) -> None:
    """Print everything."""
    memory = machine["memory_bytes"]
    size = f", {memory / 2**30:.0f} GiB" if memory else ""
    out.print(f"{machine['cpu']}, {machine['cores']} cores{size}, {machine['os']}", style="dim")
    groups = dict.fromkeys(result.group for result in results)
    for group in groups:
        rows = [result for result in results if result.group == group]
        out.print()
        out.print(_TABLES[group](rows))
        for line in _notes(group, rows):
            out.print(line, style="dim" if isinstance(line, str) else None)


# -- cells -----------------------------------------------------------------------------------------


def seconds_text(value: float | None) -> str:
    """2.34 s, 12.1 ms, 350 µs."""
    if value is None:
        return ""
    if value >= 1:
        return f"{value:.3g} s" if value < 999.5 else f"{value:.0f} s"
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"


def scaled(value: float) -> str:
    """3 significant digits with k, M or G."""
    for suffix, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g} {suffix}"
    return f"{value:.3g}"


def _spread(spread: Spread | None) -> tuple[str, str]:
    """Median; lowest and highest, if there was more than one run."""
    if spread is None:
        return "", ""
    low, high = seconds_text(spread.low), seconds_text(spread.high)
    return seconds_text(spread.median), f"{low} .. {high}" if spread.runs > 1 else ""


def _rate(result: Result) -> str:
    return f"{scaled(result.rate.median)} {result.unit}/s" if result.rate else ""


def _megabytes(nbytes: float) -> str:
    return f"{nbytes / 1e6:.3g}" if nbytes < 999.5e6 else f"{nbytes / 1e6:.0f}"


def _error(value: float) -> str:
    return "0" if value == 0 else f"{value:.3g}"


def _table(title: str, columns: Iterable[str], left: int = 2) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim")
    table.box = None
    table.pad_edge = False
    for number, column in enumerate(columns):
        # Figures are never cut; descriptions get the rest of the width.
        table.add_column(column, justify="left" if number < left else "right", no_wrap=number != 1)
    return table


def _short(result: Result) -> str:
    return result.name.partition(".")[2]


# -- tables ----------------------------------------------------------------------------------------


def _kernels(rows: Sequence[Result]) -> Table:
    table = _table("Kernels", ("kernel", "case", "median", "min .. max", "rate"))
    for result in rows:
        table.add_row(_short(result), result.case, *_spread(result.seconds), _rate(result))
    return table


def _protocols(rows: Sequence[Result]) -> Table:
    columns = (
        *("protocol", "case", "set", "median", "min .. max", "dealer ahead", "rate"),
        *("rounds", "online MB", "dealt MB", "max error", "mean"),
    )
    table = _table("Protocols, all parties in one process", columns, left=3)
    for result in rows:
        cost, errors = result.cost, result.errors
        assert cost is not None and errors is not None
        table.add_row(
            _short(result),
            result.case,
            result.approximation,
            *_spread(result.seconds),
            seconds_text(result.online_seconds),
            _rate(result),
            str(cost.rounds),
            _megabytes(cost.online),
            _megabytes(cost.offline),
            _error(errors.largest),
            _error(errors.mean),
        )
    return table


def comparison(rows: Sequence[Result]) -> Table:
    """Results that have a reference, next to it."""
    columns = (
        *("protocol", "case", "set", "MB", "SPU MB", "MB / SPU", "rounds", "SPU sends"),
        *("max error", "SPU error", "seconds", "SPU seconds*", "ratio*"),
    )
    table = _table("Beside SecretFlow-SPU (* other machine, as many cores)", columns, left=3)
    for result in rows:
        cost, errors, reference = result.cost, result.errors, result.reference
        if not (cost and errors and reference and result.seconds):
            continue
        seconds = result.seconds.median
        table.add_row(
            _short(result),
            result.case,
            result.approximation,
            _megabytes(cost.online + cost.offline),
            f"{reference.megabytes:g}",
            f"{result.traffic_ratio:.2g}",
            str(cost.rounds),
            str(reference.sends),
            _error(errors.largest),
            _error(reference.error),
            seconds_text(seconds),
            seconds_text(reference.seconds),
            f"{seconds / reference.seconds:.2f}",
        )
    return table


def _model(rows: Sequence[Result]) -> Table:
    columns = (
        *("model", "phase", "median", "min .. max", "rate", "rounds", "online MB", "dealt MB"),
        *("rounds per layer", "online MB per layer", "dealt MB per layer"),
    )
    table = _table("Demo model, five roles in one process", columns)
    for result in rows:
        if peak := result.details.get("peak_rss_bytes"):
            table.add_row(_short(result), result.case, f"{peak / 1e9:.2f} GB")
            continue
        cells = ["", "", ""]
        if cost := result.cost:
            cells = [str(cost.rounds), _megabytes(cost.online), _megabytes(cost.offline)]
        if layer := result.details.get("per_layer"):
            cells += [
                str(layer["rounds"]),
                _megabytes(layer["online_bytes"]),
                _megabytes(layer["offline_bytes"]),
            ]
        table.add_row(_short(result), result.case, *_spread(result.seconds), _rate(result), *cells)
    return table


def _network(rows: Sequence[Result]) -> Table:
    columns = ("network", "case", "asked", "delivered", "min .. max", "off by", "cores used")
    table = _table("Modelled networks", columns)
    for result in rows:
        details = result.details
        if result.rate:
            shown = [f"{scaled(details[key])}{result.unit}/s" for key in ("asked", "delivered")]
        else:
            shown = [seconds_text(details[key]) for key in ("asked", "delivered")]
        table.add_row(
            _short(result),
            result.case,
            *shown,
            _spread(result.seconds)[1],
            f"{(details['ratio'] - 1) * 100:+.1f} %",
            f"{details['cores']:.2f}",
        )
    return table


def _paper(rows: Sequence[Result]) -> Table:
    columns = (
        *("model", "published (other machines)", "seconds", "min .. max", "rounds", "online MB"),
        *("dealt MB", "max error", "SPU s*", "SPU MB", "MB / SPU", "peak memory"),
        "disk s (bound)",
    )
    table = _table("The paper's models, five roles in one process", columns)
    for result in rows:
        cost, errors, reference = result.cost, result.errors, result.reference
        assert cost is not None
        peak, bound = (result.details.get(key) for key in ("peak_bytes", "bound_seconds"))
        table.add_row(
            result.case,
            result.note,
            *_spread(result.seconds),
            str(cost.rounds),
            _megabytes(cost.online),
            _megabytes(cost.offline),
            _error(errors.largest) if errors else "",
            f"{reference.seconds:g}" if reference else "",
            f"{reference.megabytes:g}" if reference else "",
            f"{result.traffic_ratio:.2g}" if reference else "",
            f"{peak / 1e9:.1f} GB" if peak else "",
            f"{bound['disk']:.0f}" if bound else "",
        )
    return table


def _fidelity(rows: Sequence[Result]) -> Table:
    columns = ("model", "case", "set", "median", "equal tokens", "max error", "mean")
    table = _table("Fidelity: logits, unless stated below", columns, left=3)
    for result in rows:
        details, errors = result.details, result.errors
        equal = f"{details['equal']} of {details['tokens']}" if "equal" in details else ""
        table.add_row(
            _short(result),
            result.case,
            result.approximation,
            _spread(result.seconds)[0],
            equal,
            *((_error(errors.largest), _error(errors.mean)) if errors else ("", "")),
        )
    return table


def _errors(rows: Sequence[Result]) -> Table:
    columns = (
        *("function", "arguments", "set", "max error", "mean", "rounds", "online MB", "dealt MB"),
        *("elements", "seconds", "paper max", "paper mean"),
    )
    table = _table("Accuracy, against float64 (seconds: the parties one by one)", columns, left=3)
    for result in rows:
        cost, errors = result.cost, result.errors
        assert cost is not None and errors is not None
        paper = result.details.get("paper") or {}
        table.add_row(
            _short(result),
            result.case,
            result.approximation or "all",
            _error(errors.largest),
            _error(errors.mean),
            str(cost.rounds),
            _megabytes(cost.online),
            _megabytes(cost.offline),
            scaled(result.work),
            _spread(result.seconds)[0],
            *(_error(paper[key]) if paper.get(key) else "" for key in ("largest", "mean")),
        )
    return table


def _waiting(rows: Sequence[Result]) -> Table:
    """Results that are described in words."""
    table = _table("Whole requests", ("benchmark", "case", "median", "min .. max", "", ""))
    for result in rows:
        cells = (*_spread(result.seconds), _rate(result), result.note)
        table.add_row(_short(result), result.case, *cells)
    return table


def _memory(rows: Sequence[Result]) -> Table:
    table = _table("Memory of a party", ("party", "predicted", "counted", "off by"))
    for result in rows:
        predicted, counted = result.details["predicted"], result.details["counted"]
        off = f"{(predicted / counted - 1) * 100:+.0f} %"
        table.add_row(result.case, f"{predicted / 1e6:,.0f} MB", f"{counted / 1e6:,.0f} MB", off)
    return table


def _calls(rows: Sequence[Result]) -> Table:
    table = _table(
        "Function calls of a decode step", ("case", "where", "function", "calls"), left=3
    )
    for result in rows:
        details = result.details
        table.add_row(result.case, "", "all", f"{details['calls']:,}")
        table.add_row("", "", "of them in Python", f"{details['python']:,}")
        for place, count in details["places"]:
            table.add_row("", place, "all", f"{count:,}")
        for place, name, count in details["functions"]:
            table.add_row("", place, name, f"{count:,}")
    return table


_TABLES = {
    "calls": _calls,
    "errors": _errors,
    "kernels": _kernels,
    "memory": _memory,
    "protocols": _protocols,
    "network": _network,
    "overlap": _waiting,
    "serve": _waiting,
    "waiting": _waiting,
    "model": _model,
    "paper": _paper,
    "fidelity": _fidelity,
}


# -- below the tables ------------------------------------------------------------------------------


def _notes(group: str, rows: Sequence[Result]) -> Iterable[Any]:
    if group == "protocols":
        noted = {(_short(r), r.note, r.case) for r in rows if r.note}
        for name, note, case in sorted(noted):
            yield f"{name}, {case}: {note}"
        yield from _meanings(rows)
        if any(result.reference for result in rows):
            yield ""
            yield comparison(rows)
            yield SPU_SYSTEM
    elif group == "errors":
        yield from _meanings(rows)
        for name in dict.fromkeys(_short(r) for r in rows if r.details.get("paper")):
            known = PAPER_ERRORS[name]
            yield f"{name}: the paper's formula itself is off by {known.worst:g} {known.where}"
    elif group == "model":
        yield from (SPU_GPT2, PUMA_PAPER)
    elif group == "fidelity":
        for result in rows:
            if result.note:
                what = filter(None, (_short(result), result.approximation))
                yield f"{', '.join(what)}: {result.note}"
        yield from _meanings(rows)
        yield from _differences(rows)


def _meanings(rows: Sequence[Result]) -> Iterable[str]:
    for name in dict.fromkeys(_short(r) for r in rows):
        meanings = {r.errors.meaning for r in rows if _short(r) == name and r.errors}
        for meaning in sorted(meanings - {"absolute"}):
            yield f"{name}: the error is {meaning}"


def _differences(rows: Sequence[Result]) -> Iterable[str]:
    for result in rows:
        for report in result.details.get("prompts", ()):
            for item in report.get("differences", ()):
                yield (
                    f"{report['prompt'][:40]!r} token {item['position']}: {item['ours']}, but "
                    f"torch has {item['torch']}; torch's two best are {item['gap']:.4f} apart"
                )
