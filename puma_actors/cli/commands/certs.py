"""`puma certs`: certificates for parties on different machines."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:  # imports NumPy, which `puma --help` and completion do not need
    from puma_actors.base.identity import PeerIdentity

app = typer.Typer(
    help="Certificates for parties on different machines: your own small authority, and a "
    "certificate for each party that names its role. They expire; renew makes new ones on the "
    "authority's machine. So that a key never leaves its machine, use request there, sign at the "
    "authority and install there. A running party takes new files for its next connections.",
    short_help="Create, list and renew certificates for parties on different machines.",
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
RoleOption = Annotated[Holder, typer.Option(help="The party's role.")]
NameOption = Annotated[
    str, typer.Option(help="The party's name. Default: its role.", show_default=False)
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
    role: RoleOption,
    name: NameOption = "",
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

    `puma certs request` and `sign` do the same with a key that never leaves the party's machine.
    """
    from puma_actors.base import certs
    from puma_actors.cli.output import say

    identity = _holder(role, name)
    path = certs.issue(folder, identity, host or [], days)
    say(
        f"{path} made for {identity}, good for {days} days; copy it, "
        f"{path.with_suffix('.key').name} and ca.pem to that party"
    )


@app.command("renew")
def renew(
    role: Annotated[
        Holder | None, typer.Option(help="Renew only this role's, whenever it expires.")
    ] = None,
    name: NameOption = "",
    within: Annotated[
        int, typer.Option(min=0, help="Without --role: renew those that expire in so many days.")
    ] = 30,
    authority: Annotated[
        bool,
        typer.Option("--authority", help="Renew ca.pem itself, with the same key."),
    ] = False,
    days: Annotated[
        int | None,
        typer.Option(
            min=1, help="Days until the new ones expire. Default: 90, of an authority 3650."
        ),
    ] = None,
    folder: FolderOption = Path("certs"),
) -> None:
    """Replace certificates and keys by new ones for the same names, on the authority's machine.

    Copy the new .pem and .key to their party; the old pair stays valid until it expires. After
    --authority copy ca.pem to every machine before the old one expires: until then old and new
    accept each other.
    """
    from protocols.errors import ConfigError
    from puma_actors.base.rotation.renewing import due, renew_authority
    from puma_actors.cli.output import say

    if authority and (role or name):
        raise ConfigError("--authority renews ca.pem alone: leave out --role and --name")
    if name and role is None:
        raise ConfigError("--name needs --role: `puma certs show` lists both")
    if authority:
        made = renew_authority(folder, 3650 if days is None else days)
        say(f"{made.path} renewed, good for {made.days_left:.0f} days; copy it to every machine")
    elif role is not None:
        _renew_one(folder, _holder(role, name), days)
    elif found := due(folder, within):
        for each in found:
            _renew_due(folder, each.identity, days)
    else:
        say(f"nothing in {folder} expires within {within} days")


def _renew_due(folder: Path, identity: "PeerIdentity | None", days: int | None) -> None:
    from puma_actors.base.rotation.renewing import has_key
    from puma_actors.cli.output import say

    if identity is not None and has_key(folder, identity):
        _renew_one(folder, identity, days)
    else:
        say(f"{identity} expires soon: its key is on its own machine, see `puma certs request`")


def _renew_one(folder: Path, identity: "PeerIdentity", days: int | None) -> None:
    from puma_actors.base.rotation.renewing import renew as renew_one
    from puma_actors.cli.output import say

    made = renew_one(folder, identity, 90 if days is None else days)
    private = made.path.with_suffix(".key").name
    say(
        f"{made.path} renewed for {identity}, good for {made.days_left:.0f} days; copy it and "
        f"{private} to that party"
    )


@app.command("request")
def request(role: RoleOption, name: NameOption = "", folder: FolderOption = Path("certs")) -> None:
    """Make a key on this machine, where it stays, and a request (.csr) for the authority.

    Works for a first certificate and for a new one; the pair in use stays until install.
    """
    from puma_actors.base.rotation.requesting import request as ask
    from puma_actors.cli.output import say

    path, mark = ask(folder, _holder(role, name))
    say(f"{path} made; send it to the authority, and tell it by another way: {mark}")


@app.command("sign")
def sign(
    file: Annotated[Path, typer.Argument(help="The request that the party sent.")],
    role: RoleOption,
    name: NameOption = "",
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name or IP address where others call it; repeatable. Default: those of the "
            "certificate that is renewed.",
            show_default=False,
        ),
    ] = None,
    folder: FolderOption = Path("certs"),
    days: Annotated[int, typer.Option(min=1, help="Days until it expires.")] = 90,
) -> None:
    """Sign a party's request, on the authority's machine; send the .pem back.

    Compare the fingerprint that is shown with the one that the party told you: whoever sent the
    request gets the role.
    """
    from puma_actors.base.rotation.requesting import sign_request
    from puma_actors.cli.output import say

    identity = _holder(role, name)
    made, mark = sign_request(folder, file, identity, host or [], days)
    say(
        f"{made.path} made for {identity}, good for {made.days_left:.0f} days, if its key is the "
        f"one that the party told you: {mark}"
    )


@app.command("install")
def install(
    file: Annotated[Path, typer.Argument(help="From the authority: the party's .pem, or ca.pem.")],
    folder: FolderOption = Path("certs"),
) -> None:
    """Put a certificate in place on the machine that made its request, or the authority's ca.pem.

    A key that was made at the authority must lie beside it. Everything is proven first; a running
    party takes it for its next connections.
    """
    from puma_actors.base.rotation.requesting import install as put
    from puma_actors.cli.output import say

    made = put(folder, file)
    say(f"{made.path} in place, good for {made.days_left:.0f} days")


def _holder(role: Holder, name: str) -> "PeerIdentity":
    from protocols.base.shares import Role
    from puma_actors.base.identity import PeerIdentity

    return PeerIdentity(Role(role), name or str(role))


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
