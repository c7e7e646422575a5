"""`puma certs`: certificates for parties on different machines."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Certificates for parties on different machines: your own small authority, and a "
    "certificate for each party that names its role. They expire; to rotate one, remove its "
    ".pem and .key, issue a new pair, copy it to its party and restart that party. To rotate the "
    "authority, create one in a new folder and reissue everything.",
    short_help="Create, list and rotate certificates for parties on different machines.",
    invoke_without_command=True,
)


class Holder(StrEnum):
    """Roles that can hold a certificate."""

    DEALER = "dealer"
    EVALUATOR_A = "evaluator-a"
    EVALUATOR_B = "evaluator-b"
    OWNER = "owner"
    CLIENT = "client"


FolderOption = Annotated[
    Path, typer.Option("--folder", help="Where certificates and keys are kept.")
]


@app.callback()
def overview(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("init")
def init(
    folder: FolderOption = Path("certs"),
    days: Annotated[
        int, typer.Option(min=1, help="Days until the authority expires, and all its certificates.")
    ] = 3650,
) -> None:
    """Create an authority: ca.pem, which every party needs, and ca.key, which stays here.

    Anyone who has ca.key can create a certificate for any role: keep it off the parties' machines.
    Nothing is overwritten.
    """
    from puma_actors.base.certs import create_authority
    from puma_actors.cli.output import say

    path = create_authority(folder, days)
    say(f"{path} made, good for {days} days; keep {path.with_suffix('.key')} to yourself")


@app.command("issue")
def issue(
    role: Annotated[Holder, typer.Option(help="The party's role.")],
    name: Annotated[
        str, typer.Option(help="The party's name. Default: its role.", show_default=False)
    ] = "",
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or IP address where others call it; repeatable. Parties need one."),
    ] = None,
    folder: FolderOption = Path("certs"),
    days: Annotated[
        int, typer.Option(min=1, help="Days until it expires; issue a new one before then.")
    ] = 90,
) -> None:
    """Create a key and a certificate for a party; copy both to it, together with ca.pem.

    To rotate, remove the old .pem and .key first, issue again, and restart the party.
    """
    from protocols.base.shares import Role
    from puma_actors.base import certs
    from puma_actors.base.identity import PeerIdentity
    from puma_actors.cli.output import say

    identity = PeerIdentity(Role(role), name or str(role))
    path = certs.issue(folder, identity, host or [], days)
    say(
        f"{path} made for {identity}, good for {days} days; copy it, "
        f"{path.with_suffix('.key').name} and ca.pem to that party"
    )


@app.command("show")
def show(folder: FolderOption = Path("certs")) -> None:
    """List the certificates in a folder, and when each expires."""
    from rich.table import Table

    from puma_actors.base.certs import describe_all
    from puma_actors.cli.output import stdout

    table = Table(box=None)
    for heading in ("file", "role", "name", "hosts", "expires", "days left"):
        table.add_column(heading, overflow="fold")
    for found in describe_all(folder):
        role = found.identity.role if found.identity else "authority"
        name = found.identity.name if found.identity else ""
        left = f"{found.days_left:.0f}" if found.days_left > 0 else "EXPIRED"
        expires = f"{found.not_after:%Y-%m-%d}"
        table.add_row(found.path.name, role, name, ", ".join(found.hosts), expires, left)
    stdout.print(table)
