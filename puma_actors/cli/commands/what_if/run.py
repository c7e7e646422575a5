"""`puma what-if`: read or predict, then print."""

from dataclasses import dataclass
from pathlib import Path

from models.checkpoints.weights import demo_model_path, open_checkpoint
from protocols.base.lane import APPROXIMATIONS, Settings
from protocols.errors import ConfigError
from puma_actors.cli.commands.reports import USUAL_PROMPT
from puma_actors.cli.commands.what_if.options import Networks, Prediction
from puma_actors.cli.commands.what_if.show import show
from puma_actors.cli.output import check_file, print_json, progress, say, writing
from puma_actors.profiling.whatif import page
from puma_actors.profiling.whatif.answer import Grid, grid_of, seconds_of, to_public
from puma_actors.profiling.whatif.predicted import Computing, predicted
from puma_actors.profiling.whatif.recorded import read_profile
from puma_actors.profiling.whatif.variants import Draft, Request

_MOST_LANES = 1024


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line says. `recorded`: the source is a profile."""

    source: str | None
    recorded: bool
    prediction: Prediction
    networks: Networks
    accepted: float

    def grid(self) -> Grid:
        """The networks. Raises ConfigError."""
        given = self.networks
        return grid_of(given.network or (), _pieces(given.round_trips), _pieces(given.bandwidths))


def run(asked: Asked, *, compare: Path | None, html: Path | None, as_json: bool) -> None:
    """Answer, and print or write the answer.

    Raises:
        ConfigError: something given is unusable; nothing has been printed.
        ModelError: the model cannot be read.
    """
    if html is not None:
        check_file("--html", html, ".html")
    grid = asked.grid()
    old = None if compare is None else read_profile(compare)
    request = _recorded(asked) if asked.recorded else _predicted(asked, quiet=as_json)
    found = to_public(request, grid, old)
    if html is not None:
        with writing("--html", html):
            html.write_text(page.render(found), "utf-8")
    if as_json:
        print_json(found)
        return
    show(found)
    if html is not None:
        say(f"written: {html}", style="dim")


def _recorded(asked: Asked) -> Request:
    given = {
        "--tokens-in": asked.prediction.tokens_in,
        "--lanes": asked.prediction.lanes,
        "--draft-tokens": asked.prediction.draft_tokens,
        "--computation": asked.prediction.computation,
    }
    for option, value in given.items():
        if value is not None:
            raise ConfigError(f"{option} is for a prediction: give a model instead of a profile")
    assert asked.source is not None
    return read_profile(Path(asked.source), asked.accepted)


def _predicted(asked: Asked, *, quiet: bool) -> Request:
    given = asked.prediction
    lanes, computing = _lanes(given.lanes), _computing(given.computation)
    draft = Draft(given.draft_tokens or 0, asked.accepted)
    settings = Settings(next(each for each in APPROXIMATIONS if each == given.approximation))
    source = demo_model_path() if asked.source is None else asked.source
    with progress(quiet=quiet) as report, open_checkpoint(source, progress=report) as checkpoint:
        tokens = given.tokens_in
        if tokens is None:
            tokens = max(1, min(USUAL_PROMPT, checkpoint.config.max_positions - 1))
        report("predicting", 0.0)
        return predicted(checkpoint, tokens, settings, lanes, computing, draft)


def _pieces(text: str | None) -> list[str]:
    """The figures between commas. Raises ConfigError if one is missing."""
    if text is None:
        return []
    pieces = [piece.strip() for piece in text.split(",")]
    if not all(pieces):
        raise ConfigError(f"{text!r}: give figures separated by single commas")
    return pieces


def _lanes(text: str | None) -> list[int]:
    found = _pieces(text) or ["1"]
    for piece in found:
        if not (piece.isascii() and piece.isdecimal() and 1 <= int(piece[:5]) <= _MOST_LANES):
            raise ConfigError(f"--lanes {piece!r}: give whole numbers from 1 to {_MOST_LANES}")
    return sorted({int(piece) for piece in found})


def _computing(text: str | None) -> Computing | None:
    if text is None:
        return None
    pieces = _pieces(text)
    if len(pieces) != 2:
        raise ConfigError(f"--computation {text!r}: give two times, like 3s,600ms")
    return Computing(*(seconds_of("--computation", piece) for piece in pieces))
