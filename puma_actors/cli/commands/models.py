"""`puma models`: the models that the parties hold."""

from collections.abc import Mapping
from typing import Annotated, Any

import anyio
import typer

from puma_actors.cli.commands.certs import Holder
from puma_actors.cli.commands.hosts import CLUSTER, ClusterOption
from puma_actors.cli.options import InsecureOption, JsonObjectOption

app = typer.Typer(
    help="Models whose shares the three parties keep.",
    short_help="List and remove the models that parties keep.",
    no_args_is_help=True,
)


@app.command("list")
def show(
    cluster: ClusterOption = CLUSTER,
    role: Annotated[
        Holder, typer.Option(help="The role whose certificate to use: owner or client.")
    ] = Holder.OWNER,
    insecure_no_tls: InsecureOption = False,
    as_json: JsonObjectOption = False,
) -> None:
    """List the models, and whether all parties hold matching shares of each.

    Works with the parties that answer. A file with a wrong checksum makes its model damaged; files
    that have not been read since their party started are read now, for up to 10 seconds.
    """
    from protocols.base.shares import Role
    from puma_actors.cli.output import print_json, tell
    from puma_actors.hosts.caller import problem_of, survey_models
    from puma_actors.hosts.config import load_config

    config = load_config(cluster, insecure_no_tls=insecure_no_tls)
    listing = anyio.run(survey_models, config, Role(role))
    if as_json:
        entries = {
            name: {
                "problem": problem_of(held, listing.silent),
                "parties": {str(peer): entry.model_dump() for peer, entry in held.items()},
            }
            for name, held in listing.models.items()
        }
        silent = {str(peer): str(error) for peer, error in listing.silent.items()}
        print_json({"models": entries, "no_answer": silent})
        return
    _show(listing)
    for peer, error in listing.silent.items():
        problem = str(error).removeprefix(f"{peer}: ")  # most messages already name the party
        tell(f"no answer from {peer}: {problem}")


def _show(listing: Any) -> None:
    from rich.table import Table
    from rich.text import Text

    from puma_actors.cli.output import amount, stdout
    from puma_actors.hosts.caller import problem_of
    from puma_actors.hosts.unanimous import common_stock

    table = Table(box=None)
    for heading in ("name", "architecture", "head", "at each evaluator", "uploaded", "state"):
        table.add_column(heading, overflow="fold")
    for name, held in listing.models.items():
        good = [entry for entry in held.values() if not entry.problem] or [*held.values()]
        size = amount(max(entry.bytes for entry in held.values()))
        ready = "ready" if all(entry.verified for entry in good) else "ready, not yet verified"
        if units := sum(common_stock(held.values()).values()):
            ready += f", {units} prepared"
        state = problem_of(held, listing.silent) or ready
        first = good[0]
        kept = ", ".join(part for part in (size, first.weights) if part)
        cells = (name, first.architecture, first.head, kept, first.created[:16], state)
        table.add_row(*map(Text, cells))  # text from parties is never markup
    stdout.print(table if listing.models else "no models: add one with `puma upload`")


@app.command("remove")
def remove(
    name: Annotated[str, typer.Argument(help="A model's name.")],
    cluster: ClusterOption = CLUSTER,
    insecure_no_tls: InsecureOption = False,
    as_json: JsonObjectOption = False,
) -> None:
    """Remove a model from all parties. Sessions that use it can finish.

    Exit code 1 if a party could not be reached or kept it: run the command again later.
    """
    from puma_actors.cli.output import print_json, say, tell
    from puma_actors.hosts.caller import remove_model
    from puma_actors.hosts.config import load_config

    config = load_config(cluster, insecure_no_tls=insecure_no_tls)
    if not as_json:
        tell("asking the three parties ...")
    found = anyio.run(remove_model, config, name)
    done = all(each.done for each in found.values())
    if as_json:
        parties = {
            str(e.peer): {"state": e.state, "problem": e.problem, "weights": e.weights or None}
            for e in found.values()
        }
        print_json({"name": name, "done": done, "parties": parties})
    else:
        had = [str(each.peer) for each in found.values() if each.state == "removed"]
        say(f"{name}{_kind(found)} removed from {', '.join(had) or 'no party'}")
        for each in found.values():
            if each.state == "none":
                say(f"{each.peer} did not have it")
            elif not each.done:
                problem = each.problem.removeprefix(f"{each.peer}: ")
                tell(f"{each.peer} ({each.state}): {problem}")
    if not done:
        tell(f"run `puma models remove {name}` again later to finish")
        raise typer.Exit(1)


def _kind(found: Mapping[Any, Any]) -> str:
    """In brackets, if a removed model was not of the usual kind."""
    return " (public weights)" if any(each.weights == "public" for each in found.values()) else ""
