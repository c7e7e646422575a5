"""Check the files of a store against the sizes and checksums in its manifest.

    found = Checksums()
    data = found.read(path, entry)          a whole file, checked while it is read
    found.check(path, entry)                the same without keeping the data
    file = found.open(path, entry)          a checked file that stays open, to be read in parts
    found.state(path, entry)                True, False, or None: unknown for the current file

A party computes with exactly the bytes that were compared. A file that is kept in memory is read
once, hashed while it is read into this process's own memory, and never mapped: later changes to it
have no effect here. A file that is too large for that stays open from the comparison on, and is
refused as soon as its inode, size or times change.

Results are remembered as long as a file's inode, size and times stay the same, so that they can be
reported without reading everything again.
"""

import hashlib
import mmap
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from protocols.errors import StoreError
from puma_actors.hosts.stores.manifest import FileEntry

_PART = 4 << 20
_Print: TypeAlias = tuple[int, int, int, int, int]


class Checksums:
    """See the module docstring. Methods may run in several threads.

    Raises (from `read`, `check`): StoreError that names the file; OSError of the file system.
    """

    def __init__(self) -> None:
        self._found: dict[Path, tuple[_Print, str]] = {}  # print and checksum of each file

    def state(self, path: Path, entry: FileEntry) -> bool | None:
        """Whether a file is known to be good or damaged."""
        seen = self._found.get(path)
        if seen is None or seen[0] != _print_of(path.stat()):
            return None
        return seen[1] == entry.sha256

    def forget(self, folder: Path) -> None:
        """Drop the results for a folder's files."""
        for path in [path for path in list(self._found) if path.parent == folder]:
            self._found.pop(path, None)

    def read(self, path: Path, entry: FileEntry) -> NDArray[np.uint8]:
        """The file's content, in its own memory."""
        with self._opened(path, entry) as handle:
            data = np.empty(entry.bytes, np.uint8)
            self._compare(path, handle, entry, memoryview(data.data), keep=True)
        data.flags.writeable = False
        return data

    def check(self, path: Path, entry: FileEntry) -> None:
        """Compare a file with its checksum."""
        with self._opened(path, entry) as handle:
            part = memoryview(bytearray(min(_PART, entry.bytes)))
            self._compare(path, handle, entry, part, keep=False)

    def open(self, path: Path, entry: FileEntry) -> "CheckedFile":
        """Compare a file with its checksum, unless that is known to be right, and keep it open."""
        with self._opened(path, entry) as handle:
            seen, now = self._found.get(path), _print_of(os.fstat(handle))
            if seen != (now, entry.sha256):
                part = memoryview(bytearray(min(_PART, entry.bytes)))
                self._compare(path, handle, entry, part, keep=False)
            return CheckedFile(path, os.dup(handle), now)

    def look(self, path: Path, entry: FileEntry) -> None:
        """Compare only its size and permissions."""
        with self._opened(path, entry):
            pass

    @contextmanager
    def _opened(self, path: Path, entry: FileEntry) -> Iterator[int]:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            status = os.fstat(handle)
            if status.st_size != entry.bytes:
                raise StoreError(f"{path.name} has {status.st_size} bytes instead of {entry.bytes}")
            if status.st_mode & 0o077:
                raise StoreError(f"{path.name} can be read by others, who may have copied it")
            yield handle
        finally:
            os.close(handle)

    def _compare(
        self, path: Path, handle: int, entry: FileEntry, room: memoryview, *, keep: bool
    ) -> None:
        """Read a file into `room`: the whole file, or each part over the previous one."""
        before, digest, at = _print_of(os.fstat(handle)), hashlib.sha256(), 0
        while at < entry.bytes:
            start = at if keep else 0
            size = os.readv(handle, [room[start : start + min(_PART, entry.bytes - at)]])
            if not size:
                raise StoreError(f"{path.name} became shorter while it was read")
            digest.update(room[start : start + size])
            at += size
        if _print_of(os.fstat(handle)) == before:
            self._found[path] = (before, digest.hexdigest())
        if digest.hexdigest() != entry.sha256:
            raise StoreError(f"{path.name} is damaged: its checksum is wrong")


class CheckedFile:
    """A file whose content was compared with its checksum. Its methods are safe in threads, and
    raise StoreError if it was changed since. It is closed when it is no longer used.
    """

    def __init__(self, path: Path, handle: int, seen: _Print) -> None:
        self._path = path
        self._handle = handle
        self._seen = seen
        weakref.finalize(self, os.close, handle)

    def mapped(self) -> NDArray[np.uint8]:
        """The file's content, which the system reads when it is used. `check` before each use."""
        size = self._seen[2]
        return np.frombuffer(mmap.mmap(self._handle, size, access=mmap.ACCESS_READ), np.uint8)

    def expect(self) -> None:
        """Check that the file is still the same, and let the system read it ahead."""
        self.check()
        with suppress(OSError):  # only advice
            os.posix_fadvise(self._handle, 0, 0, os.POSIX_FADV_WILLNEED)

    def check(self) -> None:
        """Check that the file is still the same."""
        status = os.fstat(self._handle)
        # To remove the file counts as a change of its status, not of its content.
        parts = slice(None) if status.st_nlink else slice(4)
        if _print_of(status)[parts] != self._seen[parts]:
            raise StoreError(
                f"{self._path.name} was changed while the model is in use: run `puma models remove "
                f"{self._path.parent.name}`, then `puma upload` again"
            )

    def read(self, at: int, view: memoryview) -> None:
        """Fill `view` with the bytes from `at` on."""
        while view.nbytes:
            done = os.preadv(self._handle, [view], at)
            if not done:
                raise StoreError(f"{self._path.name} became shorter while it was read")
            at, view = at + done, view[done:]


def _print_of(status: os.stat_result) -> _Print:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
