"""Command lines of this program in files and pages, read by the parser that runs them."""

import re
import shlex
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from puma_actors.cli.app import app

_END = {"&&", "||", "|", ";", "#", ">", "\\"}


def check(words: list[str]) -> None:
    """Raise click's usage error unless the program would take these words (without `puma`)."""
    command: Any = get_command(app)
    context, name, rest = None, "puma", words
    while True:
        context = command.make_context(name, list(rest), parent=context)
        if not hasattr(command, "resolve_command"):
            return
        rest = [*context._protected_args, *context.args]
        if not rest:
            return
        name, command, rest = command.resolve_command(context, rest)


def in_shell(text: str) -> Iterator[list[str]]:
    """The words of each command line with `puma` in a shell's text, without `puma` itself."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for at, word in enumerate(words[:-1]):
            if not (word == "puma" or word.endswith("/bin/puma")) or words[at - 1] == "-u":
                continue
            rest = words[at + 1 :]
            end = next((n for n, word in enumerate(rest) if word.rstrip(";") in _END), len(rest))
            yield [word.rstrip(";") for word in rest[:end]]


def blocks(page: str) -> list[str]:
    """The shell commands of a page in Markdown."""
    return re.findall(r"^```sh\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def mentioned(page: str) -> set[str]:
    """Command lines within sentences, which may leave arguments out."""
    return set(re.findall(r"`puma ([a-z][^`]*)`", re.sub(r"\s+", " ", page)))


def check_mention(line: str) -> None:
    """Raise ValueError unless command and options are there; what is left out may be required."""
    command: Any = get_command(app)
    words = line.split()
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        name = words.pop(0)
        if name not in command.commands:
            raise ValueError(f"no command {name!r}: puma {line}")
        command = command.commands[name]
    known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
    unknown = [word for word in words if word.startswith("-") and word not in known]
    if unknown:
        raise ValueError(f"no option {unknown}: puma {line}")
