"""Uploads that are not complete: where they are in a store, and how long they are kept.

    STORE/.incoming/NAME/        as a model's folder, with a journal and perhaps without a manifest

An upload that was cut stays, so that its owner can continue it, until it is the oldest of too many,
all of them take too much room, or it is too old. Those under way are never removed for that.
"""

import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path

from protocols.base.shares import Role
from protocols.errors import StoreNameError
from puma_actors.base.logs import log
from puma_actors.hosts.stores.journal import JOURNAL, upload_in
from puma_actors.hosts.stores.manifest import is_name

FOLDER = ".incoming"
MOST = 4
"""Uploads that were cut and are kept."""
MOST_BYTES = 200_000_000_000
MOST_SECONDS = 7 * 86400.0
"""Their age, from the last byte that came."""


class Incoming:
    """See the module docstring. Its methods may run in several threads.

    Args:
        store: the folder of the store. role: whose store it is.
        most_bytes: of all cut uploads together.
    """

    def __init__(self, store: Path, role: Role, most_bytes: int = MOST_BYTES) -> None:
        self._folder = store / FOLDER
        self._role = role
        self._most_bytes = most_bytes
        self._active: set[str] = set()
        self._lock = threading.Lock()

    def enter(self, name: str, upload: str) -> Path:
        """The folder of an upload that begins or goes on; what another upload of this name has left
        is removed.

        Raises:
            StoreError: one of this name is under way.
        """
        with self._lock:
            if name in self._active:
                raise StoreNameError(f"{name!r} is being uploaded to {self._role} already")
            self._folder.mkdir(mode=0o700, exist_ok=True)
            folder = self._folder / name
            if folder.exists() and upload_in(folder) != upload:
                shutil.rmtree(folder)
            folder.mkdir(mode=0o700, exist_ok=True)
            self._active.add(name)
        self.tidy()
        return folder

    def leave(self, name: str) -> None:
        """An upload ended, or was cut."""
        with self._lock:
            self._active.discard(name)
        self.tidy()

    def take_back(self, model: Path) -> None:
        """Make a model of the store an upload that was cut; it must have a journal."""
        with self._lock:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            folder = self._folder / model.name
            shutil.rmtree(folder, ignore_errors=True)
            model.rename(folder)

    def names(self) -> list[str]:
        """Of the uploads that were cut, from the oldest to the newest."""
        return [path.name for path in self._cut()]

    def nbytes(self, name: str) -> int:
        """Bytes on disk of an upload."""
        size = 0
        for path in (self._folder / name).glob("*"):
            with suppress(OSError):  # it is being removed
                size += path.stat().st_size
        return size

    def remove(self, name: str) -> bool:
        """Remove a cut upload; False if there is none, or it goes on."""
        with self._lock:
            folder = self._folder / name
            if name in self._active or not folder.is_dir():
                return False
            shutil.rmtree(folder, ignore_errors=True)
            return True

    def tidy(self) -> None:
        """Remove what is unreadable, too old or too much."""
        left, room = MOST, self._most_bytes
        for path in reversed(self._cut()):
            size = self.nbytes(path.name)
            fresh = time.time() - _changed(path) < MOST_SECONDS
            if fresh and upload_in(path) and left and size <= room:
                left, room = left - 1, room - size
            elif self.remove(path.name):
                log.info("unfinished upload removed", model=path.name, megabytes=size // 1_000_000)
        with self._lock, suppress(OSError):  # it is not empty, or not there
            self._folder.rmdir()

    def _cut(self) -> list[Path]:
        with self._lock:
            if not self._folder.is_dir():
                return []
            found = [path for path in self._folder.iterdir() if path.name not in self._active]
        return sorted((path for path in found if is_name(path.name)), key=_changed)


def _changed(folder: Path) -> float:
    try:
        return (folder / JOURNAL).stat().st_mtime
    except OSError:
        return 0.0
