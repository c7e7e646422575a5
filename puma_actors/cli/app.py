"""Commands and their options."""

import sys
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from pydantic import ValidationError

from protocols.errors import (
    EXIT_BAD_INPUT,
    EXIT_BUSY,
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    EXIT_STORE,
    Busy,
    PumaError,
)
from puma_actors.base.sizes import parse_size
from puma_actors.cli.commands import (
    certs,
    generate_options,
    hosts,
    models,
    serve,
    text_commands,
)
from puma_actors.cli.commands.converting import convert
from puma_actors.cli.commands.preparing.prepare import prepare
from puma_actors.cli.commands.talking import options as talking_options
from puma_actors.cli.commands.texts import labels
from puma_actors.cli.commands.what_if import options as what_if_options
from puma_actors.cli.early import refuse_unsupported
from puma_actors.cli.options import (
    Choice,
    CodecOption,
    JsonOption,
    MemoryOption,
    ModelOption,
    NetworkOption,
    PublicOption,
    RunChoice,
)
from puma_actors.cli.spread import spread
from puma_actors.cli.streams import abandon_stdout, prepare_streams
from puma_actors.cli.where import Where

app = typer.Typer(
    name="puma",
    help="Private inference: a language model answers without anyone seeing the prompt or the "
    "weights. Three parties compute on secret shares; only the client learns the answer.",
    epilog=f"Exit codes: 0 done, {EXIT_FAILURE} failed on the way, {EXIT_BAD_INPUT} wrong input, "
    f"{EXIT_BUSY} parties are busy, {EXIT_STORE} a party's store is damaged, "
    f"{EXIT_INTERRUPTED} interrupted.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_state: dict[str, Any] = {"debug": False}


def _print_version(wanted: bool) -> None:
    if wanted:
        from puma_actors.hosts.admission import software

        typer.echo(f"puma-actors {software()}")
        raise typer.Exit


@app.callback()
def configure(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    verbose: Annotated[int, typer.Option("--verbose", "-v", count=True, help="Log more.")] = 0,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Options of every command."""
    from puma_actors.base.logs import show_logs

    _state["debug"] = debug
    show_logs(verbose)


app.command()(spread(generate_options.generate))
app.command()(spread(talking_options.chat))
app.command()(spread(serve.serve))


@app.command()
@spread
def forward(
    input_ids: Annotated[str, typer.Option("--input-ids", help="Token ids: 1,2,3")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .npz file to write.")],
    model: ModelOption = None,
    *,
    choice: RunChoice,
    where: Where,
    as_json: JsonOption = False,
) -> None:
    """Run a model privately on token ids; write logits, or a bare model's last hidden states."""
    refuse_unsupported(None if where.cluster else model)
    from puma_actors.cli.commands.generate import run_forward
    from puma_actors.cli.settings import settings_of

    settings = settings_of(choice)
    run_forward(model, input_ids, output, settings, where=where, as_json=as_json)


@app.command()
@spread
def costs(
    *,
    choice: Choice,
    as_json: JsonOption = False,
) -> None:
    """Print the cost of each protocol: rounds, and online and offline bits per element."""
    from puma_actors.cli.commands.reports import run_costs
    from puma_actors.cli.settings import fixed_settings_of

    run_costs(fixed_settings_of(choice), as_json=as_json)


@app.command()
@spread
def inspect(
    path: Annotated[
        str | None, typer.Argument(help="A model, as for --model.", show_default=False)
    ] = None,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Length of the prompt. Default: 32, or as many as the model's positions allow.",
            show_default=False,
        ),
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=0, help="Tokens to decode after the prompt.")] = 1,
    *,
    choice: RunChoice,
    drafting: generate_options.DraftChoice,
    network: NetworkOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show whether a model is supported, what it would cost to run, and with which trees."""
    if not as_json:
        refuse_unsupported(path)
    from puma_actors.cli.commands.reports import Inspected, run_inspect
    from puma_actors.cli.settings import settings_of

    asked = Inspected(prompt_tokens, new_tokens, settings_of(choice), network, drafting.given())
    run_inspect(path, asked, as_json=as_json)


@app.command()
@spread
def compare(
    text: Annotated[
        list[str] | None,
        typer.Option(help="A text to evaluate the model on; - reads one from stdin. Repeatable."),
    ] = None,
    input_ids: Annotated[
        list[str] | None, typer.Option("--input-ids", help="Token ids: 1,2,3; repeatable.")
    ] = None,
    model: ModelOption = None,
    threshold: Annotated[
        float, typer.Option(help="Relative difference above which a place strays.")
    ] = 0.01,
    *,
    choice: Choice,
    as_json: JsonOption = False,
) -> None:
    """Find where the private evaluation of your own model differs from the plaintext one.

    Runs both on this machine and compares them layer by layer. Nothing is private here: it is for
    a model's owner who wants to know why an answer differs.
    """
    refuse_unsupported(model)
    from puma_actors.cli.commands.compare import run_compare
    from puma_actors.cli.settings import fixed_settings_of

    settings = fixed_settings_of(choice)
    run_compare(model, text or [], input_ids or [], settings, threshold, as_json=as_json)


@app.command()
@spread
def perplexity(
    file: Annotated[Path, typer.Option("--file", "-f", help="A text in UTF-8; - for stdin.")],
    model: ModelOption = None,
    window: Annotated[
        int | None,
        typer.Option(
            help="Tokens evaluated at once. Default: 512, or the model's positions if fewer.",
            show_default=False,
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(help="Tokens between windows. Default: the window.", show_default=False),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=2, help="Use only this many tokens.")
    ] = None,
    *,
    choice: RunChoice,
    codec: CodecOption = False,
    network: NetworkOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a text with a language model, in plaintext and privately: two perplexities."""
    refuse_unsupported(model)
    from puma_actors.cli.commands.perplexity import run_perplexity
    from puma_actors.cli.settings import settings_of

    settings = settings_of(choice)
    run_perplexity(
        model,
        file,
        settings,
        window=window,
        stride=stride,
        max_tokens=max_tokens,
        where=Where(codec=codec, network=network),
        as_json=as_json,
    )


@app.command()
@spread
def profile(
    model: ModelOption = None,
    tokens_in: Annotated[int, typer.Option(help="Length of the prompt.")] = 32,
    tokens_out: Annotated[
        int | None,
        typer.Option(help="New tokens. Default: 4, if the model generates.", show_default=False),
    ] = None,
    *,
    choice: RunChoice,
    drafting: generate_options.DraftChoice,
    network: NetworkOption = None,
    memory: MemoryOption = None,
    public_weights: PublicOption = False,
    trace: Annotated[
        Path | None, typer.Option(help="Also write trace events (.json), for ui.perfetto.dev.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Also write a report (.html).")] = None,
    compare: Annotated[
        Path | None,
        typer.Option(help="An older profile (.json), to set beside this one.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a request and show what it costs: by layer, by protocol, and what to improve."""
    refuse_unsupported(model)
    from puma_actors.cli.commands.profile import run
    from puma_actors.cli.settings import settings_of

    run(
        model,
        tokens_in,
        tokens_out,
        drafting.given(),
        {
            "settings": settings_of(choice),
            "memory": None if memory is None else parse_size(memory, "--memory"),
            "public_weights": public_weights,
        },
        network=network,
        trace=trace,
        html=html,
        compare=compare,
        as_json=as_json,
    )


app.command("what-if")(spread(what_if_options.what_if))

# The commands that people try first come first in the help.
text_commands.register(app)
labels.register(app)
for command in (
    convert.convert,
    hosts.party,
    hosts.upload,
    spread(prepare),
    hosts.ping,
    hosts.doctor,
):
    app.command()(command)
app.add_typer(models.app, name="models")
app.add_typer(certs.app, name="certs")

_UsageError: Any = typer.BadParameter.__bases__[0]  # click's, or the copy inside typer


def main() -> None:
    """Entry point: an error gives one clear line and its class's exit code; 1 for a bug."""
    prepare_streams()
    _show_warnings()
    try:
        code = app(standalone_mode=len(sys.argv) < 2)
    except _UsageError as error:
        _fail(f"error: {error.format_message()}{_given(error)}", EXIT_BAD_INPUT)
    except PumaError as error:
        kind = "busy" if isinstance(error, Busy) else "error"
        _fail(f"{kind}: {error}", error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:  # `| head`: the reader has what it wanted
        abandon_stdout()
        sys.exit(EXIT_FAILURE)
    except OSError as error:  # a full disk, a path that vanished: not our bug
        _fail(f"error: {_refused(error)}", EXIT_FAILURE)
    except Exception as error:
        _fail(
            f"unexpected {type(error).__name__}: run `puma --debug ...` for the traceback",
            EXIT_FAILURE,
        )
    else:
        if code == EXIT_INTERRUPTED:
            _fail("interrupted", EXIT_INTERRUPTED)
        if isinstance(code, int) and code:  # from `typer.Exit`
            sys.exit(code)


def _show_warnings() -> None:
    """Those of this program as one line, without a place in its sources."""
    usual = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if category.__module__.startswith(("protocols.", "models.")):
            print(f"warning: {message}", file=sys.stderr, flush=True)
        else:
            usual(message, category, filename, lineno, file, line)

    warnings.showwarning = show


def _refused(error: OSError) -> str:
    """The system's error, and the file."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or type(error).__name__}"


def _given(error: Any) -> str:
    """The value that a limit refuses: the library's message only names the limit."""
    if not isinstance(error.__cause__, ValidationError):
        return ""
    (found, *_) = error.__cause__.errors()
    value = repr(found["input"])
    return "" if value in error.format_message() else f", and {value} is not"


def _fail(line: str, code: int) -> None:
    from puma_actors.base.texts import printable, shown

    with suppress(OSError):  # standard error may have no reader
        if _state["debug"]:
            print(shown(traceback.format_exc()), file=sys.stderr)
        print(printable(" ".join(line.split())), file=sys.stderr, flush=True)
    sys.exit(code)
