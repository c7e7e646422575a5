"""`puma compare`: where the private evaluation of a model differs from the plaintext one."""

from rich.table import Table
from rich.text import Text

from models.checkpoints.checkpoint import StoredCheckpoint
from models.checkpoints.weights import open_checkpoint
from models.files.locate import demo_model_path
from models.owner.comparing import CRITERION, Compared, Comparison, compare_model
from models.programs.families import load_parameters
from models.tokens.tokenizer import Tokenizer
from protocols.base.lane import Settings
from protocols.errors import ConfigError
from protocols.kernels import warm_up
from puma_actors.api.requests import check_ids
from puma_actors.cli.commands.generate import parse_ids
from puma_actors.cli.commands.reading import Reader
from puma_actors.cli.output import amount, print_json, progress, say, stdout


def run_compare(
    model: str | None,
    texts: list[str],
    input_ids: list[str],
    settings: Settings,
    threshold: float,
    *,
    as_json: bool,
) -> None:
    """Compare on texts and on token ids, each as a separate sequence.

    Raises:
        ConfigError: there is no sequence, or one that the model cannot take.
    """
    if not texts and not input_ids:
        raise ConfigError("nothing to compare on: give --text or --input-ids")
    if not threshold > 0:
        raise ConfigError(f"--threshold {threshold:g}: give a number above 0, such as 0.01")
    reader = Reader()
    texts = [reader.text("--text", text) for text in texts]
    given = [parse_ids(text) for text in input_ids]
    path = demo_model_path() if model is None else model
    with progress(quiet=as_json) as report, open_checkpoint(path, progress=report) as opened:
        sequences = [*_encoded(opened, texts), *given]
        for ids in sequences:
            check_ids(opened.config, ids)
        warm_up(lambda line: report(line, 0.0))
        report("loading the model", 0.0)
        parameters = dict(load_parameters(opened))
        found = compare_model(
            opened.config,
            parameters,
            sequences,
            settings=settings,
            threshold=threshold,
            progress=report,
        )
    tokens = sum(map(len, sequences))
    if as_json:
        facts = {"model": str(opened.path), "tokens": tokens}
        print_json({**facts, "approximation": settings.approximation, **found.to_json()})
    else:
        _print(found, tokens, settings)


def _encoded(checkpoint: StoredCheckpoint, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    tokenizer = Tokenizer.load(checkpoint.path)
    return [tokenizer.encode(text) for text in texts]


def _print(found: Comparison, tokens: int, settings: Settings) -> None:
    table = Table(
        title=f"Private ({settings.approximation}) against plaintext (float64), {tokens} tokens",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("place", no_wrap=True)
    for name in ("largest", "max diff.", "mean diff.", "relative", "range used"):
        table.add_column(name, justify="right", no_wrap=True)
    for place in found.places:
        table.add_row(*_cells(place, found))
    stdout.print(table)
    stdout.print()
    for place in found.places:
        for note in place.notes:
            say((place.name, "yellow"), f": {note}")
    for line, style in _conclusion(found):
        say(line, style=style)


def _cells(place: Compared, found: Comparison) -> tuple[str | Text, ...]:
    relative: str | Text = f"{place.relative:.2g}"
    if place.strays(found.threshold):
        style = "bold red" if place is found.first_stray else "yellow"
        relative = Text(f"{place.relative:.2g}", style)
    return (
        place.name,
        f"{place.largest:.4g}",
        f"{place.most:.2g}",
        f"{place.mean:.2g}",
        relative,
        f"{100 * place.fill:.2g} %" if place.sizes else "",
    )


def _conclusion(found: Comparison) -> list[tuple[str, str]]:
    """Lines and their styles."""
    result, stray = found.result, found.first_stray
    kind = "hidden states" if found.agreement is None else "logits"
    error = (
        f"{kind} {result.shape}: largest error {result.most:.3g}, mean {result.mean:.3g}, "
        f"smallest cosine of a row {found.cosine:.6f}"
    )
    lines = [(error, "")]
    if found.agreement is not None:
        equal, rows = found.agreement
        lines.append((f"best entry equal in {equal} of {rows} rows", ""))
    if stray is None:
        lines.append((f"no place strays (threshold {found.threshold:g})", "green"))
    else:
        lines.append((f"the first place that strays: {stray.name}", "bold red"))
    cost = found.cost
    spent = f"{amount(cost.online)} online · {amount(cost.offline)} dealt ahead"
    return [*lines, (CRITERION, "dim"), (f"{cost.rounds:,} rounds · {spent}", "dim")]
