"""`puma prepare`: have parties deal for requests before they are made."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import typer

from protocols.errors import ConfigError
from puma_actors.cli.commands.certs import Holder
from puma_actors.cli.commands.hosts import CLUSTER, ClusterOption
from puma_actors.cli.options import (
    Choice,
    InsecureOption,
    JsonObjectOption,
    SecretLogitsOption,
)

if TYPE_CHECKING:
    from puma_actors.hosts.config import ClusterConfig
    from puma_actors.hosts.prepared.asking import PrepareOptions, Preparing


def prepare(
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A model's name at the parties.")
    ] = None,
    tokens_in: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="The number of tokens of a prompt: a unit fits prompts of exactly this length.",
            show_default=False,
        ),
    ] = None,
    tokens_out: Annotated[int, typer.Option(min=1, help="The most new tokens.")] = 32,
    count: Annotated[int, typer.Option(min=1, help="How many units; each serves one request.")] = 1,
    *,
    choice: Choice,
    lanes: Annotated[
        int, typer.Option(min=1, max=1024, help="Groups of attention heads that run side by side.")
    ] = 1,
    secret_logits: SecretLogitsOption = False,
    listing: Annotated[
        bool, typer.Option("--list", help="Show how many units there are of which shape, and stop.")
    ] = False,
    cluster: ClusterOption = CLUSTER,
    role: Annotated[
        Holder, typer.Option(help="The role whose certificate to use: owner or client.")
    ] = Holder.OWNER,
    insecure_no_tls: InsecureOption = False,
    as_json: JsonObjectOption = False,
) -> None:
    """Have the parties deal for requests before these are made, and keep that on their disks.

    A request with exactly as many tokens in, and at most as many out, uses one unit, once: nothing
    is dealt for it any more. Ctrl-C leaves the units that are whole.
    """
    from puma_actors.cli.settings import fixed_settings_of
    from puma_actors.hosts.config import load_config
    from puma_actors.hosts.prepared.asking import PrepareOptions

    config = load_config(cluster, insecure_no_tls=insecure_no_tls)
    if listing:
        _list(config, role, model, as_json=as_json)
        return
    if model is None or tokens_in is None:
        raise ConfigError("puma prepare needs --model NAME and --tokens-in N (or --list)")
    settings = replace(
        fixed_settings_of(choice), lanes=lanes, reveal="argmax" if secret_logits else "logits"
    )
    options = PrepareOptions(
        tokens_in=tokens_in, tokens_out=tokens_out, count=count, settings=settings
    )
    _prepare(config, role, model, options, as_json=as_json)


def _prepare(
    config: "ClusterConfig", role: Holder, model: str, options: "PrepareOptions", *, as_json: bool
) -> None:
    from functools import partial

    from protocols.base.shares import Role
    from puma_actors.cli.output import amount, print_json, progress, say, tell
    from puma_actors.hosts.prepared.asking import prepare_units

    with progress(quiet=as_json) as report:
        begun = False

        def show(found: "Preparing") -> None:
            nonlocal begun
            if not begun and not as_json:
                each = found.sizes
                tell(
                    f"a unit of {found.shape.describe()}: {amount(each.dealt)} dealt, up to "
                    f"{amount(each.expected)} on the disk of each evaluator; all {found.count}: "
                    f"{amount(found.count * each.expected)}"
                )
            begun = True
            report(f"preparing units, {found.units} of {found.count} whole", found.done)

        run = partial(prepare_units, config, model, options, role=Role(role), report=show)
        made = anyio.run(run)
    if as_json:
        print_json(
            {
                "model": model,
                "shape": made.shape.model_dump(),
                "count": made.count,
                "seconds": made.seconds,
                "bytes": {str(peer): nbytes for peer, nbytes in made.nbytes.items()},
            }
        )
        return
    most = max(made.nbytes.values())
    say(
        f"{made.count} prepared for {model}, {made.shape.describe()} ({made.seconds:.1f} s, up to "
        f"{amount(most)} at a party)"
    )


def _list(config: "ClusterConfig", role: Holder, model: str | None, *, as_json: bool) -> None:
    from protocols.base.shares import Role
    from puma_actors.cli.output import print_json, tell
    from puma_actors.hosts.caller import survey_models
    from puma_actors.hosts.unanimous import common_stock

    found = anyio.run(survey_models, config, Role(role))
    if model is not None and model not in found.models:
        raise ConfigError(f"no party has a model {model!r}: `puma models list` shows them")
    rows = [
        {
            "model": name,
            **shape.model_dump(),
            "count": count,
            "bytes": {
                str(peer): each.bytes
                for peer, entry in held.items()
                for each in entry.prepared
                if each.shape == shape
            },
        }
        for name, held in found.models.items()
        if model in (None, name)
        for shape, count in common_stock(held.values()).items()
    ]
    if as_json:
        silent = {str(peer): str(error) for peer, error in found.silent.items()}
        print_json({"units": rows, "no_answer": silent})
        return
    _show(rows)
    for peer, error in found.silent.items():
        tell(f"no answer from {peer}: {str(error).removeprefix(f'{peer}: ')}")


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from puma_actors.cli.output import amount, stdout

    table = Table(box=None)
    for heading in ("model", "units", "tokens in", "tokens out", "settings", "most at a party"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        secret = ", secret logits" if row["reveal"] == "argmax" else ""
        settings = f"{row['approximation']}, tree {row['tree']}, lanes {row['lanes']}{secret}"
        size = amount(max(row["bytes"].values()))
        numbers = (str(row[key]) for key in ("count", "tokens", "steps"))
        table.add_row(*map(Text, (row["model"], *numbers, settings, size)))
    stdout.print(table if rows else "no units: make some with `puma prepare`")
