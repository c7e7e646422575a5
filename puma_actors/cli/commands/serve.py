"""`puma serve`: the gateway on this machine."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import anyio
import typer

from protocols.errors import ConfigError
from puma_actors.cli.early import refuse_unsupported
from puma_actors.cli.options import JsonObjectOption, RunChoice, SecretLogitsOption
from puma_actors.cli.where import Where

if TYPE_CHECKING:  # they are heavy
    from models.programs.steps import RequestSettings

_PORT = 8642
_AT_ONCE = 4
_SocketOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--socket",
        metavar="PATH",
        help="A Unix socket instead of a port, in a folder that only you can enter; it is made "
        "if there is none.",
        show_default=False,
    ),
]


def serve(
    *,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="What to serve: a folder, a .gguf file or a name on the hub, or with --cluster "
            "its name at the parties. Repeatable. Default: the demo model.",
            show_default=False,
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = _PORT,
    at: _SocketOption = None,
    api_key: Annotated[
        str,
        typer.Option(
            "--api-key",
            envvar="PUMA_API_KEY",
            help="The key that clients must show. Others on this machine can read arguments: "
            "better set PUMA_API_KEY, or leave it out for one that is made and kept in a file.",
            show_default=False,
            show_envvar=False,
        ),
    ] = "",
    at_once: Annotated[
        int | None,
        typer.Option(
            "--at-once",
            min=1,
            max=64,
            help="With --cluster: requests of each model that run at a time, each in a session of "
            "its own; never more than limits.sessions in cluster.toml. Default: 4.",
            show_default=False,
        ),
    ] = None,
    secret_logits: SecretLogitsOption = False,
    choice: RunChoice,
    where: Where,
    as_json: JsonObjectOption = False,
) -> None:
    """Serve a chat page and OpenAI's web interface on this machine, until Ctrl-C.

    Prompts leave this machine only as secret shares. Clients set their base URL to the
    one that is printed.
    """
    wanted: list[str | None] = [*dict.fromkeys(model)] if model else [None]
    for name in wanted:
        refuse_unsupported(None if where.cluster else name)
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise ConfigError(
            "the gateway needs two more packages: pip install 'puma-actors[serve]'"
        ) from None
    from puma_actors.cli.settings import settings_of
    from puma_actors.serve.keys import check_key

    key = check_key(api_key, "--api-key") if api_key else ""
    settings = settings_of(choice, secret_logits=secret_logits)
    most = _at_once(at_once, len(wanted), where)
    place = _place(port, at)
    anyio.run(partial(_serve, wanted, place, key, settings, where, most, as_json=as_json))


def _place(port: int, at: Path | None) -> int | Path:
    """Where to listen. Raises ConfigError if both are given."""
    if at is not None and port != _PORT:
        raise ConfigError(f"--port {port} and --socket {at}: give one of them")
    return port if at is None else at.absolute()


def _at_once(asked: int | None, models: int, where: Where) -> int:
    """How many requests of each model run at a time: the other models need a session each.

    Raises:
        ConfigError: several are wanted of a model in this process.
    """
    if where.cluster is None:
        if asked is not None and asked > 1:
            raise ConfigError(
                f"--at-once {asked}: a model in this process computes one request at a time: "
                "use --cluster"
            )
        return 1
    from puma_actors.hosts.config import load_config

    config = load_config(
        where.cluster, insecure_no_tls=where.insecure_no_tls, network=where.network
    )
    return min(asked or _AT_ONCE, max(1, config.limits.sessions - models + 1))


async def _serve(
    wanted: list[str | None],
    place: int | Path,
    key: str,
    settings: RequestSettings,
    where: Where,
    at_once: int,
    *,
    as_json: bool,
) -> None:
    from puma_actors.cli.output import progress
    from puma_actors.cli.requests import open_one
    from puma_actors.serve.facts import Models
    from puma_actors.serve.keys import key_file, stored_key
    from puma_actors.serve.served import Served
    from puma_actors.serve.server import listen, listen_at, serve

    file = None if key else key_file()
    key = key or stored_key(key_file())
    with ExitStack() as stack:
        listening = listen(place) if isinstance(place, int) else listen_at(place)
        socket_ = stack.enter_context(listening)
        shown = stack.enter_context(ExitStack())  # until everything is ready
        report = shown.enter_context(progress(quiet=as_json))
        served = {}
        for model in wanted:
            name = _public_name(model, where)
            if name in served:
                raise ConfigError(f"--model: two are called {name}: rename a folder")
            # Again and again, so the kind of weights is told once.
            opener = partial(open_one, model, settings, where, report, set())
            served[name] = Served(name, opener, at_once)

        async def ready(base: str) -> None:
            shown.close()
            at = None if isinstance(place, int) else place
            (_print_json if as_json else _print)(base, [*served], at, file, key)

        await serve(Models(served), key, socket_, ready=ready)


def _print_json(base: str, models: list[str], at: Path | None, file: Path | None, key: str) -> None:
    """Say where the gateway is, for programs; never its key."""
    from puma_actors.cli.output import print_json

    paths = {"socket": at, "key_file": file}
    told = {name: None if path is None else str(path) for name, path in paths.items()}
    print_json({"base_url": f"{base}/v1", "models": models, **told})


def _print(base: str, models: list[str], at: Path | None, file: Path | None, key: str) -> None:
    """Say where the gateway is. The page's link has the key in it, unless the user gave one."""
    from puma_actors.cli.output import say, tell

    say("models     ", (", ".join(models), "bold"))
    say("base URL   ", (f"{base}/v1", "bold"))
    say("API key    ", "as given" if file is None else f"in {file}")
    if at is None:
        say("chat page  ", (base if file is None else f"{base}/#key={key}", "bold"))
    else:
        say("socket     ", (str(at), "bold"))
    tell("Ctrl-C ends the gateway.")


def _public_name(model: str | None, where: Where) -> str:
    from models.files.locate import demo_model_path

    if where.cluster is not None:
        if model is None:
            raise ConfigError("--cluster needs --model NAME: `puma models list` shows them")
        return model
    path = demo_model_path() if model is None else Path(model)
    return path.stem if path.suffix == ".gguf" else path.name or str(path)
