"""The three standard streams, so that any of them may be closed, narrow or left by its reader."""

import io
import os
import sys
from contextlib import suppress


def prepare_streams() -> None:
    """A stream that was closed takes nothing, and its number belongs to nobody else (`print` would
    write to standard output instead of a closed standard error). A character that an encoding
    lacks is escaped, and no error: an answer may have taken minutes.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def abandon_stdout() -> None:
    """Its reader has left: what its buffer still holds must not fail again at the program's end."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
