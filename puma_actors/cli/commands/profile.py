"""`puma profile`."""

from pathlib import Path

import anyio
from rich.table import Table

from models.checkpoints.weights import demo_model_path
from models.texts.requested import DraftOptions
from puma_actors.api.drafting import check_draft
from puma_actors.api.options import KeepingOptions
from puma_actors.cli.commands.what_if.show import show_comparison
from puma_actors.cli.output import (
    Plain,
    amount,
    check_file,
    figures,
    print_json,
    progress,
    say,
    stdout,
    writing,
)
from puma_actors.profiling import chrome, page
from puma_actors.profiling.advice import actions
from puma_actors.profiling.analysis import ROLES, Phase, Row
from puma_actors.profiling.profile import Profile, run_profile
from puma_actors.profiling.reconcile import lines
from puma_actors.profiling.sweep import COMPUTE, HIDDEN
from puma_actors.profiling.whatif.answer import grid_of, set_beside
from puma_actors.profiling.whatif.recorded import read_profile, request_of_profile
from puma_actors.profiling.whatif.words import duration

_PROTOCOLS = 14
_WIDTH = 120  # where there is no terminal


def run(
    model: str | None,
    tokens_in: int,
    tokens_out: int | None,
    draft: DraftOptions,
    options: KeepingOptions,
    *,
    network: str | None,
    trace: Path | None,
    html: Path | None,
    compare: Path | None,
    as_json: bool,
) -> None:
    """Profile a request and print or write the result. Of a draft only the number of tokens that it
    proposes matters: they are made up, too.
    """
    if trace is not None:
        check_file("--trace", trace, ".json")
    if html is not None:
        check_file("--html", html, ".html")

    old = None if compare is None else read_profile(compare)

    async def profiled() -> Profile:
        with progress(quiet=as_json) as report:
            return await run_profile(
                demo_model_path() if model is None else model,
                tokens_in=tokens_in,
                tokens_out=tokens_out,
                network=network,
                draft=check_draft(draft)[1],
                progress=report,
                **options,
            )

    profile = anyio.run(profiled)
    if trace is not None:
        with writing("--trace", trace):
            chrome.write(profile.recorder, trace)
    if html is not None:
        with writing("--html", html):
            html.write_text(page.render(profile, old), "utf-8")
    beside = None if old is None else set_beside(request_of_profile(profile), grid_of(), old)
    if as_json:
        print_json(profile.to_public() | ({} if beside is None else {"compare": beside}))
        return
    show(profile)
    if beside is not None:
        show_comparison(beside)
    for file in (trace, html):
        if file is not None:
            say(f"written: {file}", style="dim")


# -- tables ----------------------------------------------------------------------------------------


def show(profile: Profile) -> None:
    """Print everything, as tables."""
    say(profile.model, style="bold")
    between = profile.network.describe() if profile.network else "in memory, no network"
    say(between, style="dim")
    _print(_summary(profile))
    request = request_of_profile(profile)
    sums = lines(profile.phases, request.variants[0].works, profile.network)
    doing = actions(request, profile.network)
    for phase, line, todo in zip(profile.phases, sums, doing, strict=True):
        say(f"\n{_title(phase)}", style="bold")
        say(f"a step: {line}", style="dim")
        _print(_roles(phase))
        _print(_rows("by layer", condensed(phase.layers), phase))
        _print(_rows("by place, all layers together", phase.places, phase))
        longest = sorted(phase.protocols, key=lambda row: -row.total)[:_PROTOCOLS]
        _print(_rows("by protocol, innermost", longest, phase))
        _print(_ranking(profile, phase))
        say("\nwhat to do")
        for text in todo or ["nothing stands out"]:
            say(f"- {text}")
    if profile.matches:
        say("\nrounds and bytes match the prediction at every place", style="dim")
    else:
        say("\nrounds or bytes differ from the prediction:", style="bold red")
        for line in [line for phase in profile.phases for line in phase.differences]:
            say(line)


def _print(table: Table) -> None:
    console = stdout if stdout.is_terminal else Plain(width=_WIDTH)
    console.print(table)


def _title(phase: Phase) -> str:
    return phase.name if phase.steps == 1 else f"{phase.name}, {phase.steps} steps together"


def _summary(profile: Profile) -> Table:
    table = figures(
        "", "", "time", "rounds", "online", "dealt ahead", "transfer", "hidden", "dealer's lead"
    )
    for phase in profile.phases:
        table.add_row(
            _title(phase),
            duration(phase.wall),
            f"{phase.rounds:,}",
            amount(phase.online),
            amount(phase.offline),
            duration(phase.transfer),
            f"{phase.hidden_share:.0%}",
            duration(phase.lead.median),
        )
    return table


def _roles(phase: Phase) -> Table:
    table = figures("by role", "", "computing", "blocked", "sent online", "sent ahead")
    for role in ROLES:
        sent = [both for (sender, _), both in phase.sent.items() if sender is role]
        table.add_row(
            str(role),
            duration(phase.busy[role]),
            duration(phase.blocked[role]),
            amount(sum(online for online, _ in sent)),
            amount(sum(offline for _, offline in sent)),
        )
    return table


def condensed(rows: list[Row]) -> list[Row]:
    """All layers as one row with their mean, and the first and the last if there are more."""
    layers = [row for row in rows if row.name.startswith("layers.")]
    if len(layers) < 3:
        return rows
    mean = Row(f"each of {len(layers)} layers (mean)")
    for row in layers:
        mean.rounds += row.rounds
        mean.exchanges += row.exchanges
        mean.online += row.online
        mean.offline += row.offline
        for cause, value in row.seconds.items():
            mean.seconds[cause] += value / len(layers)
        for role, value in row.compute.items():
            mean.compute[role] += value / len(layers)
    for name in ("rounds", "exchanges", "online", "offline"):
        setattr(mean, name, round(getattr(mean, name) / len(layers)))
    at = rows.index(layers[0])
    kept = [row for row in rows if row not in layers[1:-1]]
    return [*kept[:at], mean, *kept[at:]]


def _rows(title: str, rows: list[Row], phase: Phase) -> Table:
    table = figures(
        f"\n{title}",
        "",
        "rounds",
        "all",
        "online",
        "ahead",
        "computing",
        "hidden",
        "blocked",
        "share",
    )
    for row in rows:
        table.add_row(
            row.name,
            f"{row.rounds:,}",
            f"{row.exchanges:,}",
            amount(row.online),
            amount(row.offline),
            duration(row.seconds[COMPUTE]),
            duration(row.seconds[HIDDEN]),
            duration(row.blocked),
            f"{row.total / phase.wall:.0%}" if phase.wall else "",
        )
    return table


def _ranking(profile: Profile, phase: Phase) -> Table:
    table = Table(
        title="\nwhere the time goes",
        title_justify="left",
        box=None,
        pad_edge=False,
        title_style="",
    )
    for name in ("share", "time", "what", "why"):
        table.add_column(
            name, justify="right" if name in ("share", "time") else "left", no_wrap=name != "why"
        )
    table.show_header = False
    for advice in profile.ranking(phase):
        table.add_row(f"{advice.share:.0%}", duration(advice.seconds), advice.what, advice.reason)
    return table
