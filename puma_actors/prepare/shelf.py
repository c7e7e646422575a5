"""The units of one party, in its store's folder: each is used at most once, whatever crashes.

    shelf = Shelf(store / ".prepared", role, limit)
    shelf.open(uploads)                         removes what is unfinished, damaged or of no use
    writer = shelf.begin(label, keys, size)     StoreError if there is no room
    shelf.publish(writer)                       now it can be used
    unit = shelf.find(origin, shape)            the id of one that fits
    file = shelf.claim(unit)                    the name is gone from the disk when this returns

To claim a unit is to remove its name and flush the folder, before its keys are read from the file
that is still open: after a crash there is no such unit, or nobody has read it. The keys are then
overwritten, and what is left is freed when the file is closed.
"""

import os
import shutil
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from protocols.base.shares import Role
from protocols.errors import Busy, RemoteProtocolError, StoreError
from puma_actors.base.keyfiles import sync_folder
from puma_actors.base.logs import log
from puma_actors.prepare.file import WHOLE, UnitFile, UnitWriter
from puma_actors.prepare.unit import Label, Origin, Shape, program_version

FOLDER = ".prepared"
SPARE_BYTES = 1 << 30
"""Bytes that stay free on the disk."""


class _Held(NamedTuple):
    label: Label
    nbytes: int


def _nothing(unit: str) -> None:
    """Do nothing."""


class Shelf:
    """See the module docstring. Its methods may run in several threads.

    Args:
        folder: where the files are; made when it is needed.
        limit: bytes of all of them.
        claimed: called with the id of each unit that was claimed, before its keys are read.
    """

    def __init__(
        self, folder: Path, role: Role, limit: int, claimed: Callable[[str], None] = _nothing
    ) -> None:
        self._folder = folder
        self._role = role
        self._limit = limit
        self._claimed = claimed
        self._held: dict[str, _Held] = {}
        self._reserved = 0  # by units that are being written
        self._lock = threading.Lock()

    def open(self, uploads: Collection[str]) -> None:
        """Look at what is there, at the start of the party.

        Args:
            uploads: ids of the models in the store.
        """
        if not self._folder.is_dir():
            return
        for path in sorted(self._folder.iterdir()):
            if path.suffix == WHOLE and self._usable(path, uploads):
                continue
            log.info("prepared unit removed", unit=path.stem)
            with suppress(OSError):
                path.unlink()
        sync_folder(self._folder)

    def _usable(self, path: Path, uploads: Collection[str]) -> bool:
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            file = UnitFile(handle, path.stem)
        except (OSError, StoreError) as error:
            log.warning("prepared unit unusable", unit=path.stem, reason=str(error))
            return False
        file.close()
        label = file.label
        fits = (label.unit, label.role) == (path.stem, self._role)
        if not fits or label.origin.program != program_version():
            return False
        if label.origin.upload not in uploads:
            return False
        self._held[label.unit] = _Held(label, file.size)
        return True

    # -- making -----------------------------------------------------------------------------------

    @property
    def used(self) -> int:
        """Bytes of all units, and of those that are being written."""
        return self._reserved + sum(each.nbytes for each in self._held.values())

    def check_room(self, size: int) -> None:
        """Check that files of so many bytes fit.

        Raises:
            StoreError: they do not.
        """
        if self.used + size > self._limit:
            raise StoreError(
                f"{_mb(size)} of prepared units do not fit at {self._role}: {_mb(self.used)} of "
                f"{_mb(self._limit)} are in use; prepare fewer, or raise limits.prepared there"
            )
        free = shutil.disk_usage(_existing(self._folder)).free
        if size + SPARE_BYTES > free:
            raise StoreError(
                f"{_mb(size)} of prepared units do not fit on the disk of {self._role}, where "
                f"{_mb(free)} are free: prepare fewer, or free some"
            )

    def begin(self, label: Label, keys: Mapping[Role, bytes], size: int) -> UnitWriter:
        """Begin a unit of at most `size` bytes; `publish` or `abandon` it.

        Raises:
            StoreError: there is no room, or it cannot be written.
            RemoteProtocolError: there is one with this id.
        """
        with self._lock:
            self.check_room(size)
            if label.unit in self._held:
                raise RemoteProtocolError(f"there is a prepared unit {label.unit} already")
            try:
                self._folder.mkdir(mode=0o700, exist_ok=True)
                writer = UnitWriter(self._folder, label, keys, size)
            except FileExistsError:
                raise RemoteProtocolError(f"unit {label.unit} is being prepared") from None
            except OSError as error:
                raise StoreError(
                    f"{self._role} cannot write prepared units ({error.strerror}): check its disk "
                    "and the rights of its store"
                ) from None
            self._reserved += size
        return writer

    def publish(self, writer: UnitWriter) -> None:
        """Let a finished unit be used.

        Raises:
            StoreError: its name cannot be written.
        """
        with self._lock:
            writer.publish()
            self._held[writer.label.unit] = _Held(writer.label, writer.size)

    def abandon(self, writer: UnitWriter, size: int) -> None:
        """End the writing of a unit, published or not; `size` as given to `begin`."""
        with self._lock:
            self._reserved -= size
            writer.drop()

    # -- using ------------------------------------------------------------------------------------

    def find(self, origin: Origin, shape: Shape) -> str | None:
        """The unit that fits with the fewest steps left over; None if there is none."""
        with self._lock:
            fitting = [
                (each.label.shape.steps, unit)
                for unit, each in self._held.items()
                if each.label.origin == origin and each.label.shape.serves(shape)
            ]
        return min(fitting)[1] if fitting else None

    def claim(self, unit: str, origin: Origin, shape: Shape) -> UnitFile:
        """Take a unit for a request. Whatever happens, it cannot be taken again.

        Raises:
            StoreError: it is damaged. Busy: there is none that fits with this id.
        """
        with self._lock:
            held = self._held.get(unit)
            if held is None or held.label.origin != origin or not held.label.shape.serves(shape):
                raise Busy(f"{self._role} has no prepared unit {unit} for this request")
            del self._held[unit]
        path = self._folder / f"{unit}{WHOLE}"
        try:
            handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                os.unlink(path)  # noqa: PTH108 - the order of these calls is the point
                sync_folder(self._folder)
                self._claimed(unit)
            except BaseException:
                os.close(handle)
                raise
            file = UnitFile(handle, unit)
            if file.label != held.label:
                file.close()
                raise StoreError(f"prepared unit {unit} is damaged: it was replaced by another one")
            file.erase_keys()
        except OSError as error:
            raise StoreError(
                f"{self._role} cannot take prepared unit {unit} ({error.strerror}): check its disk"
            ) from None
        return file

    # -- what is there ----------------------------------------------------------------------------

    def stock(self, upload: str) -> dict[Shape, tuple[int, int]]:
        """The units of an upload, by shape: how many, and their bytes here."""
        found: dict[Shape, tuple[int, int]] = {}
        with self._lock:
            for label, nbytes in self._held.values():
                if label.origin.upload == upload:
                    count, total = found.get(label.shape, (0, 0))
                    found[label.shape] = count + 1, total + nbytes
        return found

    def units(self, origin: Origin) -> set[str]:
        """The ids of all units of an origin."""
        with self._lock:
            return {unit for unit, each in self._held.items() if each.label.origin == origin}

    def remove(self, units: Collection[str]) -> None:
        """Remove units, as far as they are here."""
        with self._lock:
            for unit in units:
                if self._held.pop(unit, None) is not None:
                    log.info("prepared unit removed", unit=unit)
                    with suppress(OSError):
                        (self._folder / f"{unit}{WHOLE}").unlink()

    def keep_only(self, uploads: Collection[str]) -> None:
        """Remove the units of models that are gone."""
        with self._lock:
            held = list(self._held.items())
        self.remove([unit for unit, each in held if each.label.origin.upload not in uploads])


def _mb(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.1f} MB"


def _existing(folder: Path) -> Path:
    """The folder, or the one above it that exists."""
    return folder if folder.is_dir() else folder.parent
