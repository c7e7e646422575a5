"""The owner's record of an upload, so that it can be continued after it was cut.

    with Record.of(config, name) as record:            nobody else continues it meanwhile
        plan = record.known(parameters, ...)           None: a new upload begins
        record.upload                                  its id
        record.begin(plan, parameters)                 on disk before the first share leaves
        record.seeds()                                 of the masks
        record.see(name, matrix)                       each time that a matrix is used
        record.done()                                  all parties have it: forget it

A masked word is a weight plus the words of two streams. Under the same streams another weight would
show an evaluator the difference of the two, so an upload's streams may mask one model only. Three
things hold that:

- The seeds are derived from a secret that was drawn for this upload, and from a digest of all that
  decides what is masked and who gets it: the values of every tensor, the plan, the program and the
  parties' addresses. Another model has other seeds, even with this record.
- The record is on disk before anything is sent, and is continued only if all of this is the same.
- A tensor's values are compared once more with their digest just before they are masked.
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, ValidationError

from models.programs.folding import row_major
from models.programs.plan import Plan
from models.programs.sharing import SEED_BYTES
from protocols.base.ring import Floats
from protocols.base.shares import COMPUTING, EVALUATORS
from protocols.errors import ConfigError, ModelError
from puma_actors.base.build import program_digest
from puma_actors.base.logs import log
from puma_actors.base.strict import Strict
from puma_actors.hosts.config import ClusterConfig
from puma_actors.hosts.stores.incoming import MOST_SECONDS
from puma_actors.hosts.stores.manifest import Digest, is_name

FOLDER = "uploads"
"""The folder of records, beside cluster.toml."""
_ID_BYTES = 16
_BLOCK = 1 << 20


class _Content(Strict):
    """A record on disk. `secret` is what the seeds are derived from."""

    format: Literal[1] = 1
    program: str
    parties: list[str]
    upload: str = Field(pattern=r"^[0-9a-f]{32}$")
    secret: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    plan: dict[str, Any]
    tensors: dict[Annotated[str, Field(max_length=256)], Digest]
    checksum: Digest

    def digest(self) -> str:
        """Of everything but the secret and the checksum."""
        told = self.model_dump(exclude={"secret", "checksum"})
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def seed(self, which: int) -> bytes:
        """Seed 1 or 2."""
        return hashlib.blake2b(
            f"{which} {self.digest()}".encode(),
            key=bytes.fromhex(self.secret),
            digest_size=SEED_BYTES,
            person=b"puma upload seed",
        ).digest()


class Record:
    """See the module docstring.

    Attributes:
        upload: the id of the upload, 32 hexadecimal digits.
    """

    def __init__(self, path: Path, parties: list[str], handle: int) -> None:
        self._path = path
        self._parties = parties
        self._handle = handle
        self._content: _Content | None = None
        self._digests: dict[str, str] = {}
        self.upload = os.urandom(_ID_BYTES).hex()

    @classmethod
    def of(cls, config: ClusterConfig, name: str) -> Self:
        """The record of an upload under a model's name. If its folder cannot be written to, the
        upload cannot be continued, and the log says so.

        Raises:
            ConfigError: another process uploads it.
        """
        path = config.folder / FOLDER / f"{name}.json"
        parties = [config.parties[role] for role in COMPUTING]
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            return cls(path, parties, _locked(path))
        except BlockingIOError:
            raise ConfigError(
                f"another process uploads {name!r} with this cluster.toml: wait until it is done"
            ) from None
        except OSError as error:
            reason = f"{path}: {error.strerror}"
            log.warning("if this upload is cut, it starts over", reason=reason)
            return cls(path, parties, -1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._handle >= 0:
            if not os.fstat(self._handle).st_size:
                self.done()  # it never began
            os.close(self._handle)
            self._handle = -1

    # -- an upload that was cut -------------------------------------------------------------------

    def known(
        self,
        parameters: Mapping[str, Floats],
        fits: Callable[[Plan], bool],
        progress: Callable[[str, float], None],
    ) -> Plan | None:
        """The plan of the upload that is to be continued; None if a new one begins: there is no
        record, it is too old, or anything that decides the seeds has changed.

        Args:
            fits: whether a plan is for what is to be uploaded, apart from the weights.
        """
        content = self._read()
        if content is None or list(content.tensors) != list(parameters):
            return None
        try:
            plan = Plan.from_public(content.plan)
        except ModelError:
            return None
        if not fits(plan):
            return None
        for number, name in enumerate(parameters):
            progress("comparing the model with the upload that was cut", number / len(parameters))
            if _digest(parameters[name]) != content.tensors[name]:
                return None
        self._content, self._digests, self.upload = content, dict(content.tensors), content.upload
        return plan

    def _read(self) -> _Content | None:
        if self._handle < 0:
            return None
        status = os.fstat(self._handle)
        if status.st_mode & 0o077 or time.time() - status.st_mtime > MOST_SECONDS:
            return None  # others may have copied the secret; or the parties have nothing any more
        try:
            data = os.pread(self._handle, status.st_size, 0)
            content = _Content.model_validate(json.loads(data))
        except (ValueError, ValidationError, RecursionError, OSError):
            return None
        same = (content.program, content.parties) == (program_digest(), self._parties)
        return content if same and content.checksum == content.digest() else None

    # -- a new one --------------------------------------------------------------------------------

    def see(self, name: str, matrix: Floats) -> None:
        """Note a matrix's digest, or compare it once the upload has begun.

        Raises:
            ModelError: it is not the matrix that was seen before.
        """
        if self._content is None and name in self._digests:
            return
        digest = _digest(matrix)
        if self._digests.setdefault(name, digest) != digest:
            raise ModelError(
                f"{name} has changed while it was uploaded: run the same command again, which "
                "starts a new upload"
            )

    def begin(self, plan: Plan, parameters: Mapping[str, Floats]) -> None:
        """Put the record on disk, unless it is there. Nothing may be sent before.

        Args:
            parameters: looked up if they have not been seen.
        """
        if self._content is not None:
            return
        for name in parameters:
            if name not in self._digests:
                self.see(name, parameters[name])
        content = _Content(
            program=program_digest(),
            parties=self._parties,
            upload=self.upload,
            secret=os.urandom(32).hex(),
            plan=plan.to_public(),
            tensors={name: self._digests[name] for name in parameters},
            checksum="0" * 64,
        )
        content = content.model_copy(update={"checksum": content.digest()})
        if self._handle >= 0:
            data = content.model_dump_json().encode()
            os.fchmod(self._handle, 0o600)
            os.ftruncate(self._handle, 0)
            while data:
                data = data[os.pwrite(self._handle, data, os.fstat(self._handle).st_size) :]
            os.fsync(self._handle)
        self._content = content

    def seeds(self) -> list[bytes]:
        """Both seeds, once the upload has begun."""
        assert self._content is not None
        return [self._content.seed(which) for which in range(1, 1 + len(EVALUATORS))]

    def done(self) -> None:
        """Forget the upload."""
        if self._handle >= 0:
            self._path.unlink(missing_ok=True)


def forget(config: ClusterConfig, name: str) -> None:
    """Remove the record of an upload that will not be continued, if there is one.

    Raises:
        ConfigError: another process uploads it.
    """
    if is_name(name) and (config.folder / FOLDER / f"{name}.json").exists():
        with Record.of(config, name) as record:
            record.done()


def _locked(path: Path) -> int:
    """A handle of the file, locked; it may have been removed by whom the lock was waited for."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _digest(matrix: Floats) -> str:
    """SHA-256 of a matrix's shape and values."""
    turned = matrix.T if matrix.flags.f_contiguous and not matrix.flags.c_contiguous else matrix
    order = "C" if turned is matrix else "F"
    digest = hashlib.sha256(f"{matrix.shape} {matrix.dtype.str} {order} ".encode())
    step = max(1, _BLOCK // max(1, turned[0].size)) if turned.ndim else 1
    for start in range(0, len(turned), step):
        digest.update(np.ascontiguousarray(row_major(turned[start : start + step])).data)
    return digest.hexdigest()
