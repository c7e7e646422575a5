"""What commands share: progress, sizes in words."""

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from protocols.errors import ConfigError
from puma_actors.owner import Progress as Report

stderr = Console(stderr=True)
stdout = Console()


def print_json(data: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    print(json.dumps(data, ensure_ascii=False), flush=True)


def amount(nbytes: float) -> str:
    """Bytes for people: 1.5 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000 or unit == "GB":
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return ""


def check_file(option: str, file: Path, suffix: str) -> None:
    """Find out before any work whether a file can be written.

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
    """While a result is written: what cannot be written whole is not left there in part.

    Raises:
        ConfigError: the disk is full, or the like.
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


@contextmanager
def progress(*, quiet: bool) -> Iterator[Report]:
    """A progress line on stderr while something long goes on; without a terminal a line a phase."""
    if quiet:
        yield lambda what, fraction: None
        return
    if not stderr.is_terminal:
        seen: set[str] = set()
        lock = threading.Lock()

        def tell(what: str, fraction: float) -> None:
            phase = what.split(" ")[0]
            with lock:
                if phase not in seen:
                    seen.add(phase)
                    print(f"{what} ...", file=sys.stderr, flush=True)

        yield tell
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=stderr, transient=True) as bar:
        task = bar.add_task("starting", total=1.0)
        yield lambda what, fraction: bar.update(task, description=what, completed=fraction)
