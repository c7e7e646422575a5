"""Standard output and error as one screen: text, and a status line below it.

    with Screen() as screen:
        screen.status("reading the prompt")     replaces the one before; only on terminals
        screen.write("Par")                     to standard output, above the status line
        print("note: ...", file=sys.stderr)     also goes above it

Text is written as it comes, and the terminal wraps and scrolls it. The status is at most one row,
drawn below the text by relative cursor moves, and removed when the block ends.
"""

import os
import sys
import threading
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from rich.cells import cell_len, set_cell_size

_TAB = 8
_BELOW = "\x1bD\x1b[A\x1b7\x1b[B\r"
"""Make room for a row below (scrolls at the bottom), go back up, save the position, go down."""
_BACK = "\x1b8"
_CLEAR_ROW, _CLEAR_BELOW = "\r\x1b[K", "\x1b[J"


class Screen:
    """See the module docstring. Thread-safe."""

    def __init__(self) -> None:
        self._err: Any = sys.stderr
        self.live = _is_terminal(self._err)
        self._shared = self.live and _is_terminal(sys.stdout)
        self._mixed = not self.live and _one_file(sys.stdout, self._err)
        self._lock = threading.RLock()
        self._row = ""  # text in the cursor's row
        self._ours = False  # whether that row belongs to the text
        self._drawn = False

    def __enter__(self) -> Self:
        if self.live:
            sys.stderr = _Above(self, self._err)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._erase()
            if self.live:
                sys.stderr = self._err
            self.live = False

    def write(self, text: str) -> None:
        """Write to standard output at once.

        Raises:
            OSError: it accepts no more (a full disk, a reader that has left).
        """
        with self._lock:
            if self._shared or self._mixed:
                self._erase()
                self._advance(text)
                self._ours = True
            sys.stdout.write(text)
            sys.stdout.flush()

    def status(self, text: str) -> None:
        """Show a status, cut to one row; no-op if it cannot be shown."""
        with self._lock:
            if not self.live:
                return
            width = _width(self._err)
            self._erase()
            column = _column(self._row, width)
            # After an exactly full row, the cursor is neither in that row nor in the next.
            if width < 2 or column >= width:
                return
            if cell_len(text) >= width:
                text = set_cell_size(text, width - 1)
            text = f"\x1b[2m{text}\x1b[0m"
            self._tell(f"{_BELOW}{text}{_BACK}" if column else f"\r{text}")
            self._drawn = True

    def line(self, text: str) -> None:
        """Write a line on standard error; left out if both go to one file and the line would
        interrupt the text.
        """
        with self._lock:
            if self._mixed and self._row and self._ours:
                return
            self._erase()
            self._tell(f"{text}\n")

    def above(self, text: str) -> int:
        """Write text from other code to standard error, above the status."""
        with self._lock:
            self._erase()
            if self._row and self._ours:
                self._tell("\n")  # do not interrupt the text
                self._row = ""
            self._ours = False
            self._advance(text)
            self._tell(text)
        return len(text)

    def _erase(self) -> None:
        if self._drawn:
            column = _column(self._row, _width(self._err))
            self._tell(_CLEAR_BELOW if column else _CLEAR_ROW)
            self._drawn = False

    def _advance(self, text: str) -> None:
        _, newline, after = text.rpartition("\n")
        self._row = after if newline else self._row + text

    def _tell(self, text: str) -> None:
        """Write to standard error; ignore it if closed or gone."""
        with suppress(OSError, ValueError, AttributeError):
            self._err.write(text)
            self._err.flush()


class _Above:
    """Standard error, while a screen is live."""

    def __init__(self, screen: Screen, stream: Any) -> None:
        self._screen = screen
        self._stream = stream

    def write(self, text: str) -> int:
        return self._screen.above(text)

    def writelines(self, lines: Any) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _is_terminal(stream: Any) -> bool:
    with suppress(OSError, ValueError, AttributeError):
        return bool(stream.isatty()) and os.environ.get("TERM", "") not in ("", "dumb")
    return False


def _one_file(one: Any, two: Any) -> bool:
    with suppress(OSError, ValueError, AttributeError):
        return os.path.sameopenfile(one.fileno(), two.fileno())
    return False


def _width(stream: Any) -> int:
    with suppress(OSError, ValueError, AttributeError):
        return os.get_terminal_size(stream.fileno()).columns
    return 80


def _column(row: str, width: int) -> int:
    """The cursor's column after a row of text wrapped by a terminal; `width`: past the last."""
    column = 0
    for character in row:
        if character == "\t":
            column = min((column // _TAB + 1) * _TAB, width - 1)
            continue
        size = cell_len(character)
        column = size if column + size > width else column + size
    return column
