"""Options of the commands that take text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

_PLACES = "Directory (config.json + safetensors), or name on the Hugging Face hub"
RequiredModelOption = Annotated[
    str,
    typer.Option("--model", "-m", help=f"{_PLACES}; its head must fit this command."),
]
EmbeddingModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help=f"{_PLACES}; of sentence-transformers, or any encoder. Default: all-MiniLM-L6-v2.",
        show_default=False,
    ),
]
FilesOption = Annotated[
    list[Path] | None,
    typer.Option(
        help="Read a text from a file (UTF-8), without the line break at its end. Repeatable.",
        show_default=False,
    ),
]
FileOption = Annotated[
    Path | None,
    typer.Option(
        help="A file (UTF-8) with one input per line, or JSON lines if its name ends in .jsonl; "
        "-: standard input.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class Texts:
    """The texts of a command, and what happens to those that are too long."""

    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            "-t",
            help="The text; - reads it from stdin. Repeatable. Arguments show in lists of "
            "processes.",
        ),
    ] = None
    text_file: FilesOption = None
    file: FileOption = None
    truncate: Annotated[
        bool | None,
        typer.Option(
            "--truncate/--no-truncate",
            help="Cut texts that are too long, or do not cut them. Default: cut to the limit that "
            "the model's own settings name; refuse if they name none.",
            show_default=False,
        ),
    ] = None
