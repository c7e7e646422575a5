"""`puma what-if`: its options."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from puma_actors.cli.early import refuse_unsupported
from puma_actors.cli.options import Approximation, ApproximationOption, JsonOption


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a prediction needs to know; a profile knows it already."""

    tokens_in: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Length of the prompt, for a prediction. Default: 32, or as many as the model's "
            "positions allow.",
            show_default=False,
        ),
    ] = None
    lanes: Annotated[
        str | None,
        typer.Option(
            metavar="N,...",
            help="Numbers of lanes to compare, for a prediction, such as 1,4.",
            show_default=False,
        ),
    ] = None
    draft_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=64,
            help="Also steps that propose so many tokens, for a prediction.",
            show_default=False,
        ),
    ] = None
    approximation: ApproximationOption = Approximation.TIGHT
    computation: Annotated[
        str | None,
        typer.Option(
            metavar="FIRST,FURTHER",
            help="Time of computation until the first token and for a further one, for a "
            "prediction, such as 3s,600ms. Default: estimated, by a moment's measurement.",
            show_default=False,
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Networks:
    """The networks of the question."""

    network: Annotated[
        list[str] | None,
        typer.Option(
            help="A network, as for puma generate; repeatable. Default: lan, paper, wan, "
            "intercontinental.",
            show_default=False,
        ),
    ] = None
    round_trips: Annotated[
        str | None,
        typer.Option(metavar="TIME,...", help="Of the grid, such as 1ms,40ms.", show_default=False),
    ] = None
    bandwidths: Annotated[
        str | None,
        typer.Option(
            metavar="RATE,...", help="Of the grid, such as 50mbit,1gbit.", show_default=False
        ),
    ] = None


def what_if(
    *,
    source: Annotated[
        str | None,
        typer.Argument(
            help="A profile (the .json that puma profile --json printed), or a model, as for "
            "--model, whose cost is predicted. Default: the demo model.",
            show_default=False,
        ),
    ] = None,
    prediction: Prediction,
    accepted: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="How many of the tokens that a step proposes stay on average: the table after an "
            "answer says one more. A profile shows drafts if this is given. Default: 0.",
            show_default=False,
        ),
    ] = None,
    networks: Networks,
    compare: Annotated[
        Path | None,
        typer.Option(help="An older profile (.json), to set beside this one.", show_default=False),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Also write a page with plots (.html).", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show how long a request would take on other networks, and what would gain most."""
    recorded = source is not None and source.lower().endswith(".json")
    if not recorded:
        refuse_unsupported(source)
    from puma_actors.cli.commands.what_if.run import Asked, run

    asked = Asked(source, recorded, prediction, networks, accepted or 0.0)
    run(asked, compare=compare, html=html, as_json=as_json)
