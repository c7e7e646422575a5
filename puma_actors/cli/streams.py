"""Prepare the standard streams: each may be closed, limited to ASCII, or without a reader."""

import io
import os
import sys
from contextlib import suppress


def prepare_streams() -> None:
    """Make a closed stream discard its output, and reserve its number (`print` would write to
    standard output instead of a closed standard error). A character missing from the encoding is
    escaped instead of an error: an answer may have taken minutes.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def abandon_stdout() -> None:
    """Its reader has left: the rest of its buffer must not fail again when the program ends."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
