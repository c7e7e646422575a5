"""What `puma inspect` says about the choice of trees."""

from typing import Any

from rich.table import Table

from puma_actors.cli.output import Plain, amount, figures, say, stdout
from puma_actors.planning.choice import Choice, chosen_public
from puma_actors.profiling.whatif.words import duration
from puma_actors.transports.delay.network import Network

_WIDTH = 120  # where there is no terminal
_ONE_LANE = "one lane: more send more messages, and made no whole model faster that was measured"
_CAUSES = ("seconds", "latency", "transfer", "computation", "waiting")


def choice_report(choice: Choice, network: Network | None, first: str) -> dict[str, Any]:
    """What was compared for each kind of step, and what was chosen, as JSON types.

    first: what the first step is called, "prefill" or "forward".
    """
    kinds = {first: choice.first, **({"decode": choice.further} if choice.further else {})}
    return {
        "network": network.to_public() if network else None,
        **chosen_public(choice.settings, several=bool(choice.further)),
        "compared": {name: [each.to_public() for each in found] for name, found in kinds.items()},
    }


def print_choice(report: dict[str, Any]) -> None:
    """The report as tables, the least time first."""
    network = report["network"]
    console = stdout if stdout.is_terminal else Plain(width=_WIDTH)
    for name, options in report["compared"].items():
        console.print(_table(f"\n{name}, predicted", options))
    where = f"on {network['name']}" if network else "in one process, without a network"
    say(f"{_because(report['compared'])}; {where}", style="dim")
    if all(option["lanes"] == 1 for options in report["compared"].values() for option in options):
        say(_ONE_LANE, style="dim")


def _table(name: str, options: list[dict[str, Any]]) -> Table:
    columns = ("tree", "time", "latency", "transfer", "computation", "waiting")
    table = figures(name, *columns, "rounds", "online", "dealt ahead")
    for option in options:
        lanes = f", {option['lanes']} lanes" if option["lanes"] > 1 else ""
        table.add_row(
            option["tree"] + lanes,
            *(duration(option[cause]) for cause in _CAUSES),
            f"{option['rounds']:,}",
            amount(option["online_bytes"]),
            amount(option["offline_bytes"]),
        )
    return table


def _because(compared: dict[str, list[dict[str, Any]]]) -> str:
    """Why the first of each list was chosen."""
    words = []
    for name, options in compared.items():
        best, *others = options
        if not others:
            words.append(f"{name}: {best['tree']}, as asked")
        elif others[0]["seconds"] <= best["seconds"]:
            words.append(f"{name}: {best['tree']}, as good as {others[0]['tree']}")
        else:
            less = others[0]["seconds"] - best["seconds"]
            gains = {cause: others[0][cause] - best[cause] for cause in _CAUSES[1:]}
            most = max(gains, key=gains.__getitem__)
            words.append(
                f"{name}: {best['tree']}, which takes {duration(less)} less than "
                f"{others[0]['tree']}, by less {most}"
            )
    return "; ".join(words)
