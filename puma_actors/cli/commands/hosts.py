"""`puma party`, `upload`, `ping` and `doctor`: roles on separate hosts."""

import resource
import signal
from contextlib import suppress
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import typer

from protocols.errors import ConfigError
from puma_actors.cli.commands.certs import Holder
from puma_actors.cli.early import refuse_unsupported
from puma_actors.cli.options import InsecureOption, JsonObjectOption

if TYPE_CHECKING:  # imports NumPy, which `puma --help` and completion do not need
    from protocols.base.shares import Role as _Role

ClusterOption = Annotated[
    Path, typer.Option("--cluster", "--config", help="The cluster.toml that names the parties.")
]
CLUSTER = Path("cluster.toml")


class Computing(StrEnum):
    """The roles that `puma party` can play."""

    DEALER = "dealer"
    EVALUATOR_A = "evaluator-a"
    EVALUATOR_B = "evaluator-b"


# -- party -----------------------------------------------------------------------------------------


def party(
    role: Annotated[
        Computing | None, typer.Option(help="The role of this host.", show_default=False)
    ] = None,
    cluster: ClusterOption = CLUSTER,
    listen: Annotated[
        str, typer.Option(help="Where to listen, if not at the role's own address.")
    ] = "",
    network: Annotated[
        str | None,
        typer.Option(
            help="Delay incoming frames as a network would, as for `generate --network`; all "
            "parties and clients need the same setting.",
            show_default=False,
        ),
    ] = None,
    compute: Annotated[
        str,
        typer.Option(
            help="The Dask scheduler (tls://HOST:PORT) of this party's own workers, which then "
            "hold the matrices and multiply by them. Needs puma-actors[dask]."
        ),
    ] = "",
    insecure_no_tls: InsecureOption = False,
    example: Annotated[
        bool, typer.Option("--example", help="Print a commented cluster.toml, and stop.")
    ] = False,
) -> None:
    """Run one computing party, until SIGTERM or Ctrl-C.

    It then takes no new sessions, gives running ones some time to finish, and ends.
    """
    from protocols.base.shares import Role
    from puma_actors.base.logs import show_logs
    from puma_actors.hosts.config import load_config
    from puma_actors.hosts.example import EXAMPLE

    if example:
        typer.echo(EXAMPLE, nl=False)
        return
    if role is None:
        raise ConfigError("--role is missing: use dealer, evaluator-a or evaluator-b")
    show_logs(1, as_json=True)
    config = load_config(
        cluster, insecure_no_tls=insecure_no_tls, listen=listen, network=network, compute=compute
    )
    anyio.run(_run_party, config, Role(role))


async def _run_party(config: Any, role: "_Role") -> None:
    from protocols.kernels import warm_up
    from puma_actors.base.concurrency import unwrap
    from puma_actors.base.logs import log
    from puma_actors.hosts.server import PartyServer

    with suppress(OSError, ValueError):  # models on disk keep their files open, two a matrix
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    server = PartyServer(config, role)

    async def obey(scope: anyio.CancelScope) -> None:
        """The first signal drains the party, the second ends it at once."""
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                log.info("signal", number=int(number))
                if server.draining or not server.listening.is_set():
                    scope.cancel()
                server.drain()

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(obey, group.cancel_scope)
            log.info("compiling or loading kernels")
            await anyio.to_thread.run_sync(warm_up, abandon_on_cancel=True)
            await server.run()
            group.cancel_scope.cancel()
    except BaseExceptionGroup as errors:
        root = unwrap(errors)
        raise root from root.__cause__


# -- upload ----------------------------------------------------------------------------------------


def upload(
    model: Annotated[str, typer.Argument(help="A model, as for `generate --model`.")],
    name: Annotated[str, typer.Option("--name", help="Its name at the parties.")],
    cluster: ClusterOption = CLUSTER,
    publish_tokenizer: Annotated[
        bool,
        typer.Option(
            "--tokenizer/--no-tokenizer",
            help="Publish the model's tokenizer to parties and clients, so that clients need none.",
        ),
    ] = True,
    head: Annotated[
        str | None,
        typer.Option(
            help="What to evaluate above the model: none (for features and embed), causal-lm, "
            "masked-lm, sequence-classification, token-classification or question-answering. "
            "Default: what the checkpoint is made for.",
            show_default=False,
        ),
    ] = None,
    public_weights: Annotated[
        bool,
        typer.Option(
            "--public-weights",
            help="For open models: the evaluators get the weights in the clear, as the checkpoint "
            "stores them. Prompts and answers stay private. Clients see the kind before they ask.",
        ),
    ] = False,
    insecure_no_tls: InsecureOption = False,
    as_json: JsonObjectOption = False,
) -> None:
    """Share a model's weights with the three parties, which keep the shares under a name.

    An upload that was cut is continued by the same command; what the parties have stays there.
    """
    refuse_unsupported(model)
    from puma_actors.cli.output import amount, print_json, progress, stdout, tell
    from puma_actors.hosts.config import load_config

    config = load_config(cluster, insecure_no_tls=insecure_no_tls)
    before = 0

    def already(held: int, whole: int) -> None:
        nonlocal before
        before = held
        if held and not as_json:
            tell(f"continuing an upload that was cut: {amount(held)} of {amount(whole)} were there")

    with progress(quiet=as_json) as report:
        told = (public_weights, report, already)
        seconds = anyio.run(_run_upload, config, model, name, publish_tokenizer, head, *told)
    weights = "public" if public_weights else "private"
    if as_json:
        print_json({"name": name, "weights": weights, "seconds": seconds, "already": before})
    else:
        total = sum(seconds.values())
        kind = ", with public weights" if public_weights else ""
        stdout.print(f"{name} is at all three parties{kind} ({total:.1f} s)", highlight=False)


async def _run_upload(
    config: Any,
    model: str,
    name: str,
    publish_tokenizer: bool,
    head: str | None,
    public_weights: bool,
    report: Any,
    already: Any,
) -> dict[str, float]:
    from models.checkpoints.hub import resolve_model
    from models.checkpoints.weights import open_checkpoint
    from models.configs.tasks.sentences import is_sentence_model
    from models.tokens.tokenizer import Tokenizer
    from protocols.errors import ModelError
    from puma_actors.api.remote import upload_model
    from puma_actors.cli.notice import warn
    from puma_actors.cli.output import tell

    path = resolve_model(model, head=head, progress=report)
    if head is None and is_sentence_model(path):
        head = "none"  # as sentence-transformers opens it, whatever its class
    with open_checkpoint(path, head=head) as checkpoint:
        if checkpoint.sentences is not None and checkpoint.sentences.refusal:
            tell(f"note: `puma embed` will refuse this model: {checkpoint.sentences.refusal}")
        tokenizer = None
        if publish_tokenizer:
            try:
                tokenizer = Tokenizer.load(checkpoint.path)
            except ModelError as error:
                raise ConfigError(f"{error} (or upload with --no-tokenizer)") from None
            warn(tokenizer)
        return await upload_model(
            config,
            checkpoint,
            name,
            tokenizer=tokenizer,
            public_weights=public_weights,
            progress=report,
            already=already,
        )


# -- ping ------------------------------------------------------------------------------------------


def ping(
    cluster: ClusterOption = CLUSTER,
    role: Annotated[Holder, typer.Option(help="Role of the certificate to use.")] = Holder.CLIENT,
    to: Annotated[
        Computing | None,
        typer.Option(
            "--to",
            help="Only ask whether this party answers; measure nothing. With its own role: a check "
            "of its health.",
            show_default=False,
        ),
    ] = None,
    insecure_no_tls: InsecureOption = False,
    as_json: JsonObjectOption = False,
) -> None:
    """Reach every party, and have each measure its connections to the others.

    Exit code 1 if any connection is broken, or if versions differ among the parties and this
    program: no session is possible between them.
    """
    from protocols.base.shares import Role
    from puma_actors.cli.output import print_json, tell
    from puma_actors.hosts.caller import ping as ping_one
    from puma_actors.hosts.caller import ping_all
    from puma_actors.hosts.config import load_config
    from puma_actors.hosts.visits import days_left

    config = load_config(cluster, insecure_no_tls=insecure_no_tls)
    if to is None:
        found = anyio.run(ping_all, config, Role(role))
    else:
        one = partial(ping_one, measure=False)
        found = [anyio.run(one, config, Role(role), Role(to))]
    rows = [row for pinged in found for row in _ways(pinged)]
    parties = _parties(found, days_left(config, Role(role)))
    differ = len({row["programs"] for row in parties if row["programs"]}) > 1
    if as_json:
        print_json({"ways": rows, "parties": parties, "versions_differ": differ})
    else:
        _ping_table(rows, parties)
    if differ:
        tell("versions differ: install the same version everywhere")
    _tell_expiring(parties)
    if differ or any(row["problem"] for row in rows):
        raise typer.Exit(1)


def _tell_expiring(parties: list[dict[str, Any]]) -> None:
    from puma_actors.base.certs import SOON_DAYS
    from puma_actors.cli.output import tell

    for row in parties:
        left = row["days_left"]
        if left is not None and left < SOON_DAYS:
            state = f"expires in {left:.0f} days" if left > 0 else "has expired"
            whose = "here" if row["who"] == "here" else f"at {row['who']}"
            tell(f"the certificate {whose} {state}: renew it, see `puma certs renew --help`")


def _parties(found: list[Any], days: float | None) -> list[dict[str, Any]]:
    """What runs here and at each party that answered."""
    from puma_actors.base.build import program_digest
    from puma_actors.hosts.admission import software

    rows = [("here", software(), program_digest(), days)]
    answers = [(str(pinged.peer), pinged.answer) for pinged in found if pinged.answer]
    rows += [(who, each.software, each.build, each.days) for who, each in answers]
    return [
        {
            "who": who,
            "version": version,
            "programs": programs,
            "days_left": None if left is None else round(left, 1),
        }
        for who, version, programs, left in rows
    ]


def _ways(pinged: Any) -> list[dict[str, Any]]:
    """The connection from here to a party, and its connections to the others."""
    answer = pinged.answer
    rows = [
        {
            "from": "here",
            "to": str(pinged.peer),
            "software": answer.software if answer else None,
            "round_trip": pinged.round_trip,
            "throughput": pinged.throughput,
            "problem": pinged.problem,
        }
    ]
    for link in answer.links if answer else []:
        values = link.model_dump(exclude={"peer"})
        rows.append({"from": str(pinged.peer), "to": link.peer, "software": None, **values})
    return rows


def _ping_table(rows: list[dict[str, Any]], parties: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from puma_actors.cli.output import amount, stdout

    table = Table(box=None)
    for heading in ("from", "to", "round trip", "throughput", ""):
        table.add_column(heading, overflow="fold")
    for row in rows:
        trip, speed = row["round_trip"], row["throughput"]
        cells = (
            row["from"],
            row["to"],
            "" if trip is None else f"{1e3 * trip:.2f} ms",
            "" if speed is None else f"{amount(speed)}/s",
            row["problem"],
        )
        table.add_row(*map(Text, cells))  # text from parties is never markup
    stdout.print(table)
    table = Table(box=None)
    for heading in ("", "version", "programs", "certificate"):
        table.add_column(heading, overflow="fold")
    for row in parties:
        days = row["days_left"]
        left = "" if days is None else f"{days:.0f} days left" if days > 0 else "EXPIRED"
        table.add_row(*map(Text, (row["who"], row["version"], row["programs"], left)))
    stdout.print(table)


# -- doctor ----------------------------------------------------------------------------------------


def doctor(
    cluster: Annotated[
        Path | None, typer.Option("--cluster", "--config", help="Also check this configuration.")
    ] = None,
    role: Annotated[
        Holder | None, typer.Option(help="The role of this host.", show_default=False)
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Do not read the stored models to verify them.")
    ] = False,
    insecure_no_tls: InsecureOption = False,
    as_json: JsonObjectOption = False,
) -> None:
    """Check whether this machine can take part. Exit code 1 if something would stop a run."""
    from rich.table import Table
    from rich.text import Text

    from protocols.base.shares import Role
    from puma_actors.cli.output import print_json, stdout
    from puma_actors.hosts.config import load_config
    from puma_actors.hosts.doctor import examine

    config = load_config(cluster, insecure_no_tls=insecure_no_tls) if cluster else None
    checks = examine(config, Role(role) if role else None, quick=quick)
    if as_json:
        print_json({"checks": [{"name": c.name, "state": c.state, "text": c.text} for c in checks]})
    else:
        table = Table(box=None, show_header=False)
        for check in checks:
            table.add_row(*map(Text, (check.state, check.name, check.text)))
        stdout.print(table)
    if any(check.state == "problem" for check in checks):
        raise typer.Exit(1)
