"""A party's shares of models, on its own disk.

    with ModelStore(folder, role) as store:              one process at a time
        draft = store.draft("llama", upload)             see `puma_actors.hosts.stores.draft`
        stored = store.read("llama", verify=True)        plan, seeds, tensors
        store.remove("llama")

    STORE/NAME/manifest.json      see `puma_actors.hosts.stores.manifest`
    STORE/NAME/00000.words ...    at an evaluator: the masked tensors, little-endian uint64
    STORE/NAME/seed-1, seed-2     the seeds that the party knows
    STORE/NAME/tokenizer.json     published by the owner
    STORE/NAME/pending            present until every party is known to have the model
    STORE/.incoming               uploads that are not complete, see `incoming`

Folders have mode 0700, files 0600. A model that was not made permanent, because the owner or this
process went away, becomes an upload that was cut, when noticed or at the next start: its owner can
continue it. Every problem with a model is a StoreError that names the model and the remedy.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from models.programs.plan import Plan
from protocols.base.shares import Role
from protocols.errors import (
    ConfigError,
    ModelError,
    StoreError,
    StoreNameError,
)
from puma_actors.base.keyfiles import sync_folder
from puma_actors.hosts.stores.checksums import Checksums
from puma_actors.hosts.stores.draft import PENDING, Draft
from puma_actors.hosts.stores.incoming import MOST_BYTES, Incoming
from puma_actors.hosts.stores.journal import Journal, Mark, Start
from puma_actors.hosts.stores.manifest import MANIFEST, Manifest, check_name, is_name
from puma_actors.hosts.stores.stored import Stored, check_complete

_GONE = ".gone-"
_LOCK = ".lock"


def _remedy(name: str) -> str:
    return f"run `puma models remove {name}`, then `puma upload` again"


class ModelStore:
    """See the module docstring.

    Raises (from `with`): ConfigError if the folder cannot be used, or is used by another party.

    Args:
        unfinished: bytes of all uploads that were cut and are kept.
    """

    def __init__(self, folder: Path, role: Role, unfinished: int = MOST_BYTES) -> None:
        self.folder = folder
        self.role = role
        self.incoming = Incoming(folder, role, unfinished)
        self.checksums = Checksums()
        self._lock = -1

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise ConfigError(
                f"the store {self.folder} is in use by another party: give each its own `store`"
            ) from None
        except OSError as error:
            self.close()
            raise ConfigError(
                f"the store {self.folder} cannot be used ({error.strerror}): check its mode, or "
                "set another `store`"
            ) from None
        if self.folder.stat().st_mode & 0o077:
            self.close()
            raise ConfigError(
                f"the store {self.folder} is open to others: run `chmod 700 {self.folder}`"
            )
        for path in [p for p in self.folder.iterdir() if p.name.startswith(_GONE)]:
            shutil.rmtree(path, ignore_errors=True)
        for path in [self.folder / name for name in self.names()]:
            if (path / PENDING).exists():
                self.incoming.take_back(path)
        self.incoming.tidy()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the folder."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # -- reading ----------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """All models, including damaged ones; other folders, like lost+found, are ignored."""
        return sorted(p.name for p in self.folder.iterdir() if is_name(p.name) and p.is_dir())

    def uploads(self) -> set[str]:
        """The ids of the uploads of all models that are not damaged."""
        found = set()
        for name in self.names():
            with suppress(StoreError):
                found.add(self.manifest(name).upload)
        return found

    def __contains__(self, name: str) -> bool:
        return (self.folder / check_name(name)).is_dir()

    def manifest(self, name: str) -> Manifest:
        """The manifest in a model's folder.

        Raises:
            StoreError: there is no such model, it is damaged, or it belongs to another party.
        """
        if name not in self:
            raise StoreNameError(
                f"{self.role} has no model {name!r}: `puma models list` shows the stored ones"
            )
        with self.reading(name):
            manifest = Manifest.from_json((self.folder / name / MANIFEST).read_bytes())
            if manifest.role != self.role:
                raise StoreError(f"it holds the shares of {manifest.role}, this is {self.role}")
            if manifest.name != name:
                raise StoreError(f"it was stored as {manifest.name!r}")
        return manifest

    @contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Add the model's name and the remedy to any error."""
        try:
            yield
        except FileNotFoundError as error:
            missing = Path(str(error.filename)).name
            raise StoreError(
                f"model {name} at {self.role}: {missing} is missing; {_remedy(name)}"
            ) from None
        except OSError as error:
            raise StoreError(
                f"model {name} at {self.role} cannot be read ({error.strerror}): check the disk"
            ) from None
        except (StoreError, ModelError) as error:
            raise StoreError(f"model {name} at {self.role}: {error}; {_remedy(name)}") from None

    def read(self, name: str, *, verify: bool = True) -> Stored:
        """Open a model. Files read from it later are compared with their checksums then.

        Args:
            verify: compare every file with its checksum, which reads them all.

        Raises:
            StoreError: it is missing, or anything in it has changed since it was stored.
        """
        manifest = self.manifest(name)
        folder = self.folder / name
        with self.reading(name):
            plan = Plan.from_public(manifest.plan)
            if plan.digest() != manifest.digest:
                raise StoreError("its plan does not have the digest in its manifest")
            check_complete(manifest, plan, self.role)
            for file, entry in manifest.files.items():
                (self.checksums.check if verify else self.checksums.look)(folder / file, entry)
        return Stored(folder, manifest, plan, self.checksums, partial(self.reading, name))

    def inspect(self, name: str, seconds: float = 0.0) -> tuple[Stored, bool]:
        """Open a model, and tell whether all its files are known to be good: their checksums were
        right when they were last read, and they have not changed since.

        Args:
            seconds: time limit for reading files whose state is unknown; once begun, a file is read
                to its end.

        Raises:
            StoreError: as `read`, or a file is known or found to be damaged.
        """
        stored = self.read(name, verify=False)
        until, whole = time.monotonic() + seconds, True
        with self.reading(name):
            for file, entry in stored.manifest.files.items():
                path = self.folder / name / file
                if (
                    known := self.checksums.state(path, entry)
                ) is None and time.monotonic() < until:
                    self.checksums.check(path, entry)
                    known = True
                if known is False:
                    raise StoreError(f"{file} is damaged: its checksum is wrong")
                whole = whole and known is True
        return stored, whole

    def remove(self, name: str) -> bool:
        """Remove a model; False if there was none. Sessions that have it loaded can continue.

        Raises:
            StoreError: it could not be removed; or it is no longer served, but its files remain.
        """
        if name not in self:
            return False
        gone = self.folder / f"{_GONE}{os.urandom(8).hex()}"
        try:
            (self.folder / name).rename(gone)  # atomic for all readers
            sync_folder(self.folder)
        except OSError as error:
            raise StoreError(
                f"{self.role} cannot remove model {name} ({error.strerror}): check the rights of "
                "its store"
            ) from None
        self.checksums.forget(self.folder / name)
        shutil.rmtree(gone, ignore_errors=True)
        if gone.exists():
            raise StoreError(
                f"{self.role} serves model {name} no more, but could not delete {gone}: check its "
                "rights, and delete it"
            )
        return True

    def draft(self, name: str, upload: str) -> Draft:
        """Start storing a model, or continue an upload that was cut. A model of the same upload is
        taken back: its owner does not know yet that all parties have it.

        Raises:
            StoreError: there is another model of this name, or it cannot be written to disk.
        """
        if name in self and not self._take_back(name, upload):
            raise StoreNameError(
                f"{self.role} has a model {name!r} already: use another name, or run "
                f"`puma models remove {name}` first"
            )
        return Draft(self, name, upload)

    def _take_back(self, name: str, upload: str) -> bool:
        """Make a model an upload that was cut, if it is of this upload."""
        try:
            manifest = self.manifest(name)
        except StoreError:  # damaged: its owner has to remove it
            return False
        if manifest.upload != upload:
            return False
        start = Start(upload=upload, digest=manifest.digest)
        with self.reading(name):
            journal, marks = Journal.open(self.folder / name, start)
            for file, entry in manifest.files.items():
                if file not in marks or not marks[file].whole:
                    mark = Mark(file=file, bytes=entry.bytes, sha256=entry.sha256, whole=True)
                    journal.add(mark)
            journal.close()
            self.incoming.take_back(self.folder / name)
        self.checksums.forget(self.folder / name)
        return True

    def withdraw(self, name: str, upload: str) -> bool:
        """Make a model an upload that was cut, since another party does not have it; False if there
        is none of this upload.

        Raises:
            StoreError: it could not be moved.
        """
        return name in self and self._take_back(name, upload)
