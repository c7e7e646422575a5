"""`puma models`: what the parties hold."""

from typing import Annotated

import anyio
import typer

from protocols.shares import Role
from puma_actors.cli.certs import Holder
from puma_actors.cli.hosts import CLUSTER, ClusterOption
from puma_actors.cli.options import InsecureOption

app = typer.Typer(
    help="Models whose shares the three parties keep.",
    short_help="List and remove the models that parties keep.",
    no_args_is_help=True,
)


@app.command("list")
def show(
    cluster: ClusterOption = CLUSTER,
    role: Annotated[
        Holder, typer.Option(help="Whose certificate: owner or client.")
    ] = Holder.OWNER,
    insecure_no_tls: InsecureOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the models, and whether all parties hold fitting shares of each."""
    from rich.table import Table

    from puma_actors.calls import list_models, problem_of
    from puma_actors.cli.output import amount, print_json, stdout
    from puma_actors.config import load_config

    config = load_config(cluster, insecure_no_tls=insecure_no_tls)
    models = anyio.run(list_models, config, Role(role))
    if as_json:
        entries = {
            name: {
                "problem": problem_of(held),
                "parties": {str(peer): entry.model_dump() for peer, entry in held.items()},
            }
            for name, held in models.items()
        }
        print_json({"models": entries})
        return
    table = Table(box=None)
    for heading in ("name", "architecture", "head", "at each evaluator", "uploaded", "state"):
        table.add_column(heading, overflow="fold")
    for name, held in models.items():
        first = next(iter(held.values()))
        size = amount(max(entry.bytes for entry in held.values()))
        state = problem_of(held) or "ready"
        table.add_row(name, first.architecture, first.head, size, first.created[:16], state)
    stdout.print(table if models else "no models: `puma upload` brings one")


@app.command("remove")
def remove(
    name: Annotated[str, typer.Argument(help="A model's name.")],
    cluster: ClusterOption = CLUSTER,
    insecure_no_tls: InsecureOption = False,
) -> None:
    """Remove a model from all parties. Sessions that use it may finish."""
    from puma_actors.calls import remove_model
    from puma_actors.config import load_config

    config = load_config(cluster, insecure_no_tls=insecure_no_tls)
    had = anyio.run(remove_model, config, name)
    typer.echo(f"{name} removed from {', '.join(had)}")
