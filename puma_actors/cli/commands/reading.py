"""Texts for a request: from the command line, from files, or from standard input.

Other users of a machine may see a command's arguments in lists of processes, but not what it reads.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from models.tokens.chat_template import ChatOptions
from protocols.errors import ConfigError
from puma_actors.cli.options import ChatChoice
from puma_actors.cli.output import amount, tell

STDIN = "-"
"""The value of an option, or the name of a file, that stands for standard input."""
MOST = 16 << 20
"""Maximum bytes of a text."""


class Reader:
    """Reads the texts of one command. Standard input can be read once."""

    def __init__(self) -> None:
        self._reading = ""

    def one(self, option: str, text: str | None, file_option: str, file: Path | None) -> str:
        """A text that is given by one of two options.

        Raises:
            ConfigError: none or both are given, or as `text` and `file`.
        """
        if text is not None and file is not None:
            raise ConfigError(f"{option} and {file_option} are both given: give one of them")
        if file is not None:
            return self.file(file_option, file)
        if text is None:
            raise ConfigError(f"there is no text: give {option} TEXT, {option} -, or {file_option}")
        return self.text(option, text)

    def text(self, option: str, value: str) -> str:
        """The value of an option, or what standard input holds.

        Raises:
            ConfigError: it is empty, or unusable as for `file`.
        """
        if value == STDIN:
            return self.file(option, Path(STDIN))
        if not value.strip():
            raise ConfigError(f"{option}: the text is empty: give some")
        return value

    def file(self, option: str, file: Path) -> str:
        """The text of a file, or of standard input, without the line break at its end.

        Raises:
            ConfigError: it is empty, too large or not UTF-8, or cannot be read.
        """
        text = self.whole(option, file)
        text = text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text
        if not text.strip():
            raise ConfigError(f"{option}: {name_of(file)} is empty: give some text")
        return text

    def texts(self, option: str, values: Sequence[str], files: Sequence[Path] = ()) -> list[str]:
        """The texts of an option that is given several times, then those of files. Raises as `text`
        and `file`.
        """
        given = [self.text(option, value) for value in values]
        return given + [self.file(f"{option}-file", file) for file in files]

    def whole(self, option: str, file: Path) -> str:
        """The text of a file, or of standard input, as it is except for a byte order mark.

        Raises:
            ConfigError: it is too large or not UTF-8, or cannot be read.
        """
        where = name_of(file)
        try:
            if str(file) == STDIN:
                data = self._stdin(option)
            else:
                with file.expanduser().open("rb") as opened:
                    data = _some(opened)
        except IsADirectoryError:
            raise ConfigError(f"{option}: {where} is a directory: give a file") from None
        except OSError as error:
            raise ConfigError(f"{option}: cannot read {where}: {error.strerror}") from None
        except ValueError:  # a name with a NUL character
            raise ConfigError(f"{option}: {where!r} is no name of a file") from None
        if len(data) > MOST:
            raise ConfigError(f"{option}: {where} has more than {amount(MOST)}: shorten it")
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"{option}: {where} is not UTF-8 text (byte {error.start + 1}): convert it first"
            ) from None

    def _stdin(self, option: str) -> bytes:
        if self._reading:
            both = "twice" if option == self._reading else f"by {self._reading} and {option}"
            raise ConfigError(f"standard input is read {both}: give one of the texts in a file")
        self._reading = option
        if sys.stdin.isatty():
            tell(f"reading {option} from the terminal; Ctrl-D on a line of its own ends it")
        return _some(sys.stdin.buffer)


def _some(opened: BinaryIO) -> bytes:
    """As much as is needed to see that it is too much; a device may never end."""
    return opened.read(MOST + 1)


def name_of(file: Path) -> str:
    """A file's name for messages."""
    return "standard input" if str(file) == STDIN else os.fspath(file)


def chat_options(choice: ChatChoice, reader: Reader) -> ChatOptions:
    """The options of the chat template that were given.

    Raises:
        ConfigError: a template variable without a name, one given twice, or an unreadable file.
    """
    found: ChatOptions = {}
    if choice.system is not None:
        found["system"] = reader.text("--system", choice.system)
    if choice.template_arg:
        found["template_args"] = template_args(choice.template_arg)
    if choice.chat_template is not None:
        found["chat_template"] = choice.chat_template
    return found


def template_args(given: Sequence[str]) -> dict[str, Any]:
    """Variables from NAME=VALUE; a value that is JSON stands for what it says, else for itself.

    Raises:
        ConfigError: one has no name, or is given twice.
    """
    found: dict[str, Any] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(
                f"--template-arg {each[:40]!r}: write NAME=VALUE, such as enable_thinking=false"
            )
        if name in found:
            raise ConfigError(f"--template-arg {name}: given twice")
        try:
            found[name] = json.loads(value, parse_constant=_no_json)
        except (ValueError, RecursionError):
            found[name] = value
    return found


def _no_json(name: str) -> NoReturn:
    """NaN and Infinity, which Python reads although JSON has no such numbers."""
    raise ValueError(name)


def template_of(templates: Sequence[str], wanted: str | None, reader: Reader) -> str | None:
    """The value of `--chat-template`: the name of one of the templates, or a file's contents.

    Raises:
        ConfigError: there is neither.
    """
    if wanted is None or wanted in templates:
        return wanted
    if not Path(wanted).expanduser().exists():
        has = ", ".join(templates) or "none"
        raise ConfigError(
            f"--chat-template {wanted}: neither a file nor one of the model's templates ({has})"
        )
    return reader.whole("--chat-template", Path(wanted))
