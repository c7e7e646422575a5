"""A model that is being written to a store.

draft = store.draft("llama", upload)             a folder that is not a model yet
held = draft.begin(digest)                       what an earlier attempt has left, compared
draft.write("00000.words", buffer)               in pieces, in order; from the held bytes on
draft.finish(plan)                               flush everything, and write a manifest
draft.publish()                                  one rename: now the model exists
draft.keep()                                     the others have it too: make it permanent
draft.suspend() / draft.discard()                cut: it may be continued / it is no good
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.programs.plan import Plan
from protocols.errors import StoreError, StoreNameError
from puma_actors.base.keyfiles import sync_folder
from puma_actors.base.logs import log
from puma_actors.hosts.stores.journal import JOURNAL, Journal, Mark, Start, upload_in
from puma_actors.hosts.stores.manifest import MANIFEST, PUBLIC_FILES, FileEntry, Manifest, seed_file
from puma_actors.hosts.stores.stored import check_complete

if TYPE_CHECKING:
    from puma_actors.hosts.stores.store import ModelStore

PENDING = "pending"
MARK_BYTES = 64 << 20
"""Bytes of a file after which they are flushed and noted, so that they need not be sent again."""
_PART = 4 << 20
_SEEDS = (seed_file(1), seed_file(2))
_SMALL = {*_SEEDS, *PUBLIC_FILES, MANIFEST}


@dataclass(slots=True)
class _Growing:
    """A file that is being written. `marked`: its bytes that are in the journal."""

    name: str
    handle: int
    digest: Any
    size: int = 0
    marked: int = 0

    def append(self, view: memoryview) -> None:
        self.digest.update(view)
        while view.nbytes:
            done = os.write(self.handle, view)
            self.size, view = self.size + done, view[done:]

    def close(self) -> None:
        os.close(self.handle)


class Draft:
    """See the module docstring. `suspend` or `discard` it unless it was kept."""

    def __init__(self, store: "ModelStore", name: str, upload: str) -> None:
        self.store = store
        self.name = name
        self.upload = upload
        self.digest = ""
        self._open: _Growing | None = None
        self._entries: dict[str, FileEntry] = {}
        self._parts: dict[str, _Growing] = {}  # begun by an earlier attempt
        self._journal: Journal | None = None
        self._begun = self._published = self._over = False
        with self._writing():
            self.folder = store.incoming.enter(name, upload)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            what = "its disk is full: free some space" if full else f"{error.strerror}"
            raise StoreError(
                f"{self.store.role} cannot store model {self.name} ({what}); then run the same "
                "`puma upload` again, which continues"
            ) from None

    # -- what is there ----------------------------------------------------------------------------

    def begin(self, digest: str) -> Mapping[str, int]:
        """Look at what an earlier attempt of this upload has left, and compare it with the
        checksums in its journal. Damaged files are dropped.

        Args:
            digest: of the plan.

        Returns:
            The bytes at hand, by file; the next byte of each is expected.
        """
        self.digest = digest
        with self._writing():
            self._complete()
            start = Start(upload=self.upload, digest=digest)
            self._journal, marks = Journal.open(self.folder, start)
            for file, mark in marks.items():
                if file not in PUBLIC_FILES:  # they have come before the plan, again
                    self._continue(file, mark)
        self._begun = True
        whole = {file: self._entries[file].bytes for file in marks if file in self._entries}
        return {**whole, **{file: part.size for file, part in self._parts.items()}}

    def _continue(self, file: str, mark: Mark) -> None:
        """Take over a file up to its last mark, if that part is as it was."""
        digest = _hashed(self.folder / file, mark.bytes)
        if digest is None or digest.hexdigest() != mark.sha256:
            log.warning("part of an upload is damaged, and is sent again", model=self.name)
            return
        os.truncate(self.folder / file, mark.bytes)  # what is behind was not noted
        if mark.whole:
            self._entries[file] = FileEntry(bytes=mark.bytes, sha256=mark.sha256)
        else:
            self._parts[file] = _Growing(file, -1, digest, mark.bytes, mark.bytes)

    def room(self) -> int:
        """Bytes that all files of the draft can have."""
        free = shutil.disk_usage(self.folder).free
        return free + self.store.incoming.nbytes(self.name)

    # -- writing ----------------------------------------------------------------------------------

    def write(self, file: str, data: Any) -> None:
        """Append to a file. Only one file grows at a time: a new one completes the previous one.

        Raises:
            StoreError: it cannot be written; or it is a seed, and was another one before.
        """
        view = memoryview(data).cast("B")
        with self._writing():
            if self._open is None or self._open.name != file:
                self._complete()
                if file in _SEEDS and file in self._entries:
                    self._same(file, view)
                    return
                self._open = self._grow(file)
            self._open.append(view)
            if self._open.size - self._open.marked >= MARK_BYTES:
                self._mark(whole=False)

    def _same(self, file: str, view: memoryview) -> None:
        if hashlib.sha256(view).hexdigest() != self._entries[file].sha256:
            raise StoreError(
                f"{self.store.role} has another {file} of this upload: run `puma models remove "
                f"{self.name}`, then `puma upload` again"
            )

    def _grow(self, file: str) -> _Growing:
        path, part = self.folder / file, self._parts.pop(file, None)
        if part is None:
            part = _Growing(file, -1, hashlib.sha256())
        part.handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(part.handle, part.size)
        os.lseek(part.handle, part.size, os.SEEK_SET)
        return part

    def _mark(self, *, whole: bool) -> None:
        """Flush the growing file to disk, and then note that."""
        part = self._open
        assert part is not None
        os.fsync(part.handle)
        if self._journal is not None and part.name != MANIFEST:
            sha256 = part.digest.hexdigest()
            self._journal.add(Mark(file=part.name, bytes=part.size, sha256=sha256, whole=whole))
        part.marked = part.size

    def _complete(self) -> None:
        """Flush the growing file to disk: it has no more bytes."""
        if self._open is None:
            return
        part = self._open
        self._mark(whole=True)
        self._entries[part.name] = FileEntry(bytes=part.size, sha256=part.digest.hexdigest())
        self._open = None
        part.close()

    def finish(self, plan: Plan) -> None:
        """Flush everything to disk, and write the manifest."""
        with self._writing():
            self._complete()
            for file in list(self._parts):  # it was cut behind the last byte
                self._open = self._grow(file)
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
            (self.folder / PENDING).touch(0o600)
            sync_folder(self.folder)

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
            sync_folder(self.store.folder)
        self.store.incoming.leave(self.name)

    def keep(self) -> None:
        """Make it permanent, since all parties have published it: it now survives this process.

        Raises:
            StoreError: it was removed meanwhile.
        """
        with self._writing():
            folder = self.store.folder / self.name
            (folder / PENDING).unlink()
            sync_folder(folder)
            self._leave()
            (folder / JOURNAL).unlink(missing_ok=True)

    # -- the end ----------------------------------------------------------------------------------

    def suspend(self) -> None:
        """Keep what has come, so that the owner can continue; take it back if it was published."""
        if self._over:
            return
        try:
            with self._writing():
                if self._open is not None:
                    self._mark(whole=False)
                    self._parts[self._open.name] = self._open
                if self._published:
                    self.store.withdraw(self.name, self.upload)
            if not self._worth():
                shutil.rmtree(self.folder, ignore_errors=True)
        except StoreError as error:  # then what was noted before may be continued
            log.warning("the last bytes of an upload are lost", reason=str(error))
        finally:
            self._leave()

    def _worth(self) -> bool:
        """Whether there is something to continue: of this attempt, or of an earlier one if this
        ended before it looked at that.
        """
        if not self._begun:
            return upload_in(self.folder) == self.upload
        return bool({*self._entries, *self._parts} - _SMALL)

    def discard(self) -> None:
        """Remove it, also if it was published."""
        if self._over:
            return
        try:
            if self._published:
                self.store.withdraw(self.name, self.upload)
            shutil.rmtree(self.folder, ignore_errors=True)
        finally:
            self._leave()

    def _leave(self) -> None:
        if self._over:
            return
        self._over = True
        if self._open is not None:
            self._open.close()
            self._open = None
        if self._journal is not None:
            self._journal.close()
        self.store.incoming.leave(self.name)


def _hashed(path: Path, size: int) -> Any:
    """The hash of a file's first bytes; None if it has not so many."""
    digest, room = hashlib.sha256(), memoryview(bytearray(min(_PART, size)))
    try:
        with path.open("rb", buffering=0) as file:
            while size:
                count = file.readinto(room[: min(_PART, size)])
                if not count:
                    return None
                digest.update(room[:count])
                size -= count
    except FileNotFoundError:
        return None
    return digest
