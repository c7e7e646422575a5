"""Choose the folder that keeps compiled kernels between runs.

The first of these that is writable is used: PUMA_CACHE_DIR, NUMBA_CACHE_DIR, the folder of the
sources, the user's cache folder, a temporary folder that is removed at the end. Numba runs the code
that it finds there, so PUMA_CACHE_DIR and the user's cache folder get a subfolder that other users
cannot write to.
"""

import atexit
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from stat import S_ISDIR
from typing import Any, Literal

from protocols.errors import ConfigError

ASKED = "PUMA_CACHE_DIR"
_NUMBA = "NUMBA_CACHE_DIR"
_SOURCES = Path(__file__).parent


class CacheWarning(RuntimeWarning):
    """Kernels have to be compiled again in every run."""


@dataclass(frozen=True, slots=True)
class Place:
    """A folder for kernels; `folder` is None for a temporary one, which is created when needed."""

    kind: Literal["asked", "beside", "user", "temporary"]
    folder: Path | None


@cache
def place() -> Place:
    """The place for this process.

    Raises:
        ConfigError: PUMA_CACHE_DIR cannot be used.
    """
    if named := os.environ.get(ASKED):
        folder = Path(named).expanduser().absolute() / f"kernels-{os.geteuid()}"
        if (problem := _unusable(folder) or _shared(folder)) is not None:
            raise ConfigError(f"{ASKED}={named}: {problem}")
        return Place("asked", folder)
    if (named := os.environ.get(_NUMBA)) and _unusable(Path(named)) is None:
        return Place("asked", Path(named).absolute())
    if _unusable(_SOURCES / "__pycache__") is None:
        return Place("beside", _SOURCES)
    user = _user_folder()
    if user is not None and (_unusable(user) or _shared(user)) is None:
        return Place("user", user)
    return Place("temporary", None)


@contextmanager
def caching() -> Iterator[bool]:
    """Set Numba's cache folder while it creates a function. Yields whether it can be cached."""
    import numba

    chosen = place()
    folder = chosen.folder if chosen.kind != "temporary" else _temporary()
    if chosen.kind == "beside" or folder is None:
        yield folder is not None
        return
    config: Any = numba.config  # it sets its attributes by name
    before = config.CACHE_DIR
    config.CACHE_DIR = str(folder)
    try:
        yield True
    finally:
        config.CACHE_DIR = before


def _unusable(folder: Path) -> str | None:
    """The reason why a folder is not writable, or None. A missing folder is created."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # As Numba does: permissions alone do not tell what a file system allows.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return f"{folder} cannot be written to ({error.strerror}); name a folder that can"
    return None


def _shared(folder: Path) -> str | None:
    """The reason why other users could write code that would be run here, or None."""
    status = folder.lstat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022 or not S_ISDIR(status.st_mode):
        return f"{folder} is not this user's alone, and what lies there is run; remove it"
    return None


def _user_folder() -> Path | None:
    base = os.environ.get("XDG_CACHE_HOME")
    if base and Path(base).is_absolute():
        return Path(base) / "puma-actors"
    try:
        return Path.home() / ".cache" / "puma-actors"
    except RuntimeError:  # a user without a home, as in some containers
        return None


@cache
def _temporary() -> Path | None:
    """A private folder that is removed when the process ends; None if it cannot be created."""
    owner = os.getpid()
    why = f"no folder for compiled kernels can be written to: set {ASKED} to one; until then"
    try:
        folder = Path(tempfile.mkdtemp(prefix="puma-kernels-"))
    except OSError:
        warnings.warn(f"{why} every start compiles them, and keeps none", CacheWarning, 2)
        return None

    def remove() -> None:
        if os.getpid() == owner:  # not in a fork
            with suppress(OSError):
                shutil.rmtree(folder)

    atexit.register(remove)
    warnings.warn(f"{why} every start compiles them, about 20 s", CacheWarning, 2)
    return folder
