"""Files with certificates and keys: complete or absent, private, never overwritten, and not
writable by other users.
"""

import grp
import os
import pwd
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protocols.errors import ConfigError


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn file system errors about `path` into ConfigError."""
    try:
        yield
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist: create an authority with `puma certs init`, then certificates "
            "with `puma certs issue`"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be used ({error.strerror}): see its permissions"
        ) from None


def refuse_to_overwrite(*paths: Path) -> None:
    """Raise ConfigError if one of the paths exists."""
    for path in paths:
        if path.exists():
            raise ConfigError(
                f"{path} exists and is not overwritten: to rotate, remove "
                f"{path.with_suffix('.pem').name} and {path.with_suffix('.key').name} first"
            )


def check_private(path: Path) -> None:
    """Raise ConfigError if users other than its owner can read a file."""
    with reading(path):
        mode = path.stat().st_mode
    if mode & 0o077:
        raise ConfigError(f"{path} can be read by others: run `chmod 600 {path}`")


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_guarded(*paths: Path) -> None:
    """Raise ConfigError if users other than this one and root can change one of the files, or the
    contents of a folder. Anyone may read them.

    In a folder with the sticky bit only a file's owner can replace it. A group that contains only
    this user, as many systems create for each user, is allowed.
    """
    for path in paths:
        with reading(path):
            status = path.stat()
        sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
        open_to = status.st_mode & (0o002 if _is_own_group(status.st_gid) else 0o022)
        if open_to and not sticky:
            raise ConfigError(f"{path} can be changed by others: run `chmod go-w {path}`")
        if status.st_uid not in (0, os.geteuid()):
            raise ConfigError(
                f"{path} belongs to another user ({status.st_uid}), who can change it: run `chown "
                f"{os.geteuid()} {path}`"
            )


def _is_own_group(number: int) -> bool:
    """Whether a group contains only this user."""
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(number)
    except KeyError:
        return False
    own = user.pw_gid == number and group.gr_name == user.pw_name
    return own and set(group.gr_mem) <= {user.pw_name}


def write_new(path: Path, data: bytes, mode: int) -> None:
    """Create a file with its full content, or not at all."""
    with reading(path.parent):
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".new-")  # mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                os.fchmod(file.fileno(), mode)
                file.flush()
                os.fsync(file.fileno())
            path.hardlink_to(draft)  # fails if another process was faster
        except FileExistsError:
            refuse_to_overwrite(path)
            raise
        finally:
            Path(draft).unlink()
