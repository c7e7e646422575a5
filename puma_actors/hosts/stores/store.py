"""A party's shares of models, on its own disk.

    with ModelStore(folder, role) as store:              one process at a time
        draft = store.draft("llama", upload)             a folder that is not a model yet
        draft.write("00000.words", buffer)               in pieces, in order
        draft.finish(plan)                               flush everything, and write a manifest
        draft.publish()                                  one rename: now the model exists
        draft.keep()                                     the others have it too: make it permanent
        stored = store.read("llama", verify=True)        plan, seeds, tensors
        store.remove("llama")

    STORE/NAME/manifest.json      see `puma_actors.hosts.stores.manifest`
    STORE/NAME/00000.words ...    at an evaluator: the masked tensors, little-endian uint64
    STORE/NAME/seed-1, seed-2     the seeds that the party knows
    STORE/NAME/tokenizer.json     published by the owner
    STORE/NAME/pending            present until every party is known to have the model

Folders have mode 0700, files 0600. A model that was not made permanent, because the owner or this
process went away, is removed when noticed or at the next start: the owner uploads again. Every
problem with a model is a StoreError that names the model and the remedy.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from models.programs.plan import Plan
from protocols.base.shares import Role
from protocols.errors import (
    ConfigError,
    ModelError,
    StoreError,
    StoreNameError,
)
from puma_actors.hosts.stores.checksums import Checksums
from puma_actors.hosts.stores.manifest import (
    MANIFEST,
    FileEntry,
    Manifest,
    check_name,
    is_name,
)
from puma_actors.hosts.stores.stored import Stored, check_complete

_DRAFT = ".draft-"
_GONE = ".gone-"
_LOCK = ".lock"
_PENDING = "pending"


def _remedy(name: str) -> str:
    return f"run `puma models remove {name}`, then `puma upload` again"


class ModelStore:
    """See the module docstring.

    Raises (from `with`): ConfigError if the folder cannot be used, or is used by another party.
    """

    def __init__(self, folder: Path, role: Role) -> None:
        self.folder = folder
        self.role = role
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
        left = [p for p in self.folder.iterdir() if p.name.startswith((_DRAFT, _GONE))]
        models = [self.folder / name for name in self.names()]
        for path in left + [path for path in models if (path / _PENDING).exists()]:
            shutil.rmtree(path, ignore_errors=True)
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
            _sync_folder(self.folder)
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

    def draft(self, name: str, upload: str) -> "Draft":
        """Start storing a model.

        Raises:
            StoreError: there is already a model of this name, or it cannot be written to disk.
        """
        if name in self:
            raise StoreNameError(
                f"{self.role} has a model {name!r} already: use another name, or run "
                f"`puma models remove {name}` first"
            )
        return Draft(self, name, upload)


# -- writing ---------------------------------------------------------------------------------------


class Draft:
    """A model being written to disk. `withdraw` it unless it was kept."""

    def __init__(self, store: ModelStore, name: str, upload: str) -> None:
        self.store = store
        self.name = name
        self.upload = upload
        self.digest = ""
        self._open: tuple[str, Any, Any] | None = None  # name, file and hash of the growing file
        self._entries: dict[str, FileEntry] = {}
        self._published = False
        with self._writing():
            self.folder = Path(tempfile.mkdtemp(dir=store.folder, prefix=_DRAFT))  # mode 0700

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            what = "its disk is full: free some space" if full else f"{error.strerror}"
            raise StoreError(
                f"{self.store.role} cannot store model {self.name} ({what}); nothing of it was "
                "kept, upload it again"
            ) from None

    def write(self, file: str, data: Any) -> None:
        """Append to a file. Only one file grows at a time: a new one completes the previous one."""
        with self._writing():
            if self._open is None or self._open[0] != file:
                self._complete()
                handle = os.open(self.folder / file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                self._open = (file, os.fdopen(handle, "wb", buffering=0), hashlib.sha256())
            _, out, digest = self._open
            view = memoryview(data).cast("B")
            digest.update(view)
            while view.nbytes:
                view = view[out.write(view) :]

    def _complete(self) -> None:
        """Flush the growing file to disk."""
        if self._open is None:
            return
        file, out, digest = self._open
        os.fsync(out.fileno())
        self._entries[file] = FileEntry(bytes=out.tell(), sha256=digest.hexdigest())
        self._open = None
        out.close()

    def finish(self, plan: Plan) -> None:
        """Flush everything to disk, and write the manifest."""
        with self._writing():
            self._complete()
            self.digest = plan.digest()
            manifest = Manifest(
                name=self.name,
                role=str(self.store.role),
                upload=self.upload,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                plan=plan.to_public(),
                digest=self.digest,
                files=dict(self._entries),
            )
            check_complete(manifest, plan, self.store.role)
            self.write(MANIFEST, manifest.to_json())
            self._complete()
            (self.folder / _PENDING).touch(0o600)
            _sync_folder(self.folder)

    def publish(self) -> None:
        """Make the draft a model of the store.

        Raises:
            StoreError: another upload of this name was faster.
        """
        if self.name in self.store:
            raise StoreNameError(f"{self.store.role} has a model {self.name!r} already")
        with self._writing():
            self.folder.rename(self.store.folder / self.name)
            self._published = True
            _sync_folder(self.store.folder)

    def keep(self) -> None:
        """Make it permanent, since all parties have published it: it now survives this process.

        Raises:
            StoreError: it was removed meanwhile.
        """
        with self._writing():
            folder = self.store.folder / self.name
            (folder / _PENDING).unlink()
            _sync_folder(folder)

    def withdraw(self) -> None:
        """Remove it even if it was published, because another party does not have it."""
        self.discard()
        with suppress(StoreError):  # it is gone, or another model has its name
            if self._published and self.store.manifest(self.name).upload == self.upload:
                self.store.remove(self.name)

    def discard(self) -> None:
        """Remove it, unless it was published."""
        if self._open is not None:
            self._open[1].close()
            self._open = None
        if not self._published:
            shutil.rmtree(self.folder, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
