"""What is on disk for certain of an upload that is under way, line by line.

    journal, marks = Journal.open(folder, start)      marks of an earlier attempt at this upload
    journal.add(Mark(file=..., bytes=..., sha256=..., whole=...))

A line is added after the bytes that it speaks of were flushed to disk. So a file is good up to its
last mark, whatever else is in it; a torn last line is as good as none.
"""

import json
import os
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from puma_actors.base.strict import Strict
from puma_actors.hosts.stores.manifest import Digest, FileName

JOURNAL = "journal"


class Start(Strict):
    """The first line: which upload it is, and the digest of its plan."""

    format: Literal[1] = 1
    upload: str = Field(pattern=r"^[0-9a-f]{32}$")
    digest: Digest


class Mark(Strict):
    """The first `bytes` of a file, and their SHA-256. `whole`: it has no more."""

    file: FileName
    bytes: int = Field(ge=0)
    sha256: Digest
    whole: bool


class Journal:
    """See the module docstring. Raises OSError of the file system."""

    def __init__(self, path: Path, keep: int) -> None:
        """`keep`: bytes of the present file that stay."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._handle = os.open(path, flags, 0o600)
        os.ftruncate(self._handle, keep)

    @classmethod
    def open(cls, folder: Path, start: Start) -> tuple["Journal", dict[str, Mark]]:
        """The journal of an upload, and the last mark of each file if it was begun before."""
        path = folder / JOURNAL
        found, marks, good = _read(path)
        if found == start:
            return cls(path, good), marks
        journal = cls(path, 0)
        journal.add(start)
        return journal, {}

    def add(self, entry: Start | Mark) -> None:
        """Add a line, such as what was flushed to disk."""
        view = memoryview(f"{entry.model_dump_json()}\n".encode())
        while view.nbytes:
            view = view[os.write(self._handle, view) :]

    def close(self) -> None:
        """Flush it."""
        os.fsync(self._handle)
        os.close(self._handle)


def upload_in(folder: Path) -> str:
    """The id of the upload in a folder; empty if its journal is unreadable."""
    start, _, _ = _read(folder / JOURNAL)
    return "" if start is None else start.upload


def _read(path: Path) -> tuple[Start | None, dict[str, Mark], int]:
    """The first line, the last mark of each file, and the length of all good lines."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError:
        return None, {}, 0
    start: Start | None = None
    marks: dict[str, Mark] = {}
    good = 0
    for line in lines:
        try:
            if not line.endswith(b"\n"):
                break
            content = json.loads(line)
            if start is None:
                start = Start.model_validate(content)
            else:
                mark = Mark.model_validate(content)
                marks[mark.file] = mark
        except (ValueError, ValidationError, RecursionError):
            break
        good += len(line)
    return start, marks, good
