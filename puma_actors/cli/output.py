"""Common output of the commands: the two consoles, JSON, readable sizes, files to write.

All output goes through the consoles here (or `say`, or `Reporter.write`): a text is printed
unchanged. It is never read as markup, an emoji's name or a link; control characters, escape
sequences and characters that change the writing direction are shown as "?". The caller gives a
style to text that should be bold or red.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import (
    Console,
    ConsoleOptions,
    HighlighterType,
    JustifyMethod,
    OverflowMethod,
    RenderableType,
)
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from protocols.errors import ConfigError
from puma_actors.base.texts import shown
from puma_actors.cli.progress import progress

__all__ = [
    "Plain",
    "amount",
    "check_file",
    "figures",
    "print_json",
    "progress",
    "say",
    "stderr",
    "stdout",
    "tell",
]


class Plain(Console):
    """A console for texts from any source, see the module docstring."""

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        super().__init__(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)

    def on_broken_pipe(self) -> None:
        """Standard error without a reader is no reason to stop; standard output is."""
        self.quiet = True
        if not self.stderr:
            raise BrokenPipeError

    def render_str(
        self,
        text: str,
        *,
        style: str | Style = "",
        justify: JustifyMethod | None = None,
        overflow: OverflowMethod | None = None,
        emoji: bool | None = None,
        markup: bool | None = None,
        highlight: bool | None = None,
        highlighter: HighlighterType | None = None,
    ) -> Text:
        """Clean the text before it is measured, so that columns fit; nothing in it is special."""
        return super().render_str(
            shown(text),
            style=style,
            justify=justify,
            overflow=overflow,
            emoji=False,
            markup=False,
            highlight=False,
            highlighter=highlighter,
        )

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else shown(text), style, control)


stderr = Plain(stderr=True)
stdout = Plain()


def say(*parts: str | tuple[str, str], style: str = "") -> None:
    """Print a sentence on stdout; each part may have its own style. The terminal wraps it."""
    stdout.print(Text.assemble(*parts, style=style), soft_wrap=True)


def tell(text: str) -> None:
    """Print a sentence on stderr, like `say`."""
    stderr.print(text, soft_wrap=True)


def print_json(data: dict[str, Any]) -> None:
    """Print one JSON object on stdout, in ASCII, so that any text is read back unchanged."""
    print(json.dumps(data), flush=True)


def amount(nbytes: float) -> str:
    """A readable number of bytes: 1.5 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000 or unit == "GB":
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return ""


def figures(title: str, *columns: str) -> Table:
    """An empty table of figures, whose first column has names."""
    table = Table(
        title=title,
        title_justify="left",
        box=None,
        pad_edge=False,
        header_style="dim",
        title_style="",
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def check_file(option: str, file: Path, suffix: str) -> None:
    """Check before any work whether a file can be written.

    Raises:
        ConfigError: it cannot, or it has another suffix.
    """
    if file.suffix != suffix:
        raise ConfigError(f"{option}: {file} must end in {suffix}")
    existed = file.exists()
    with _blaming(option, file):
        file.open("ab").close()
    if not existed:
        file.unlink()


@contextmanager
def writing(option: str, file: Path) -> Iterator[None]:
    """A block that writes a result: on failure, no partial file is left behind.

    Raises:
        ConfigError: the disk is full, or a similar error.
    """
    with _blaming(option, file):
        try:
            yield
        except OSError:
            file.unlink(missing_ok=True)
            raise


@contextmanager
def _blaming(option: str, file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{option}: cannot write {file}: {error.strerror}") from None
