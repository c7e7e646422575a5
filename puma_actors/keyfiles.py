"""Files with certificates and keys: whole or absent, private, never overwritten."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protocols.errors import ConfigError


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the file system says about `path` into ConfigError."""
    try:
        yield
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist: make an authority with `puma certs init`, then certificates "
            "with `puma certs issue`"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be used ({error.strerror}): check its rights") from None


def refuse_to_overwrite(*paths: Path) -> None:
    """Raise ConfigError if one of the paths exists."""
    for path in paths:
        if path.exists():
            raise ConfigError(
                f"{path} exists and is not overwritten: to rotate, remove "
                f"{path.with_suffix('.pem').name} and {path.with_suffix('.key').name} first"
            )


def check_private(path: Path) -> None:
    """Raise ConfigError if others than its owner can read a file."""
    with reading(path):
        mode = path.stat().st_mode
    if mode & 0o077:
        raise ConfigError(f"{path} can be read by others: run `chmod 600 {path}`")


def write_new(path: Path, data: bytes, mode: int) -> None:
    """Create a file with all of its content at once, or not at all."""
    with reading(path.parent):
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".new-")  # mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                os.fchmod(file.fileno(), mode)
                file.flush()
                os.fsync(file.fileno())
            path.hardlink_to(draft)  # fails if somebody was faster
        except FileExistsError:
            refuse_to_overwrite(path)
            raise
        finally:
            Path(draft).unlink()
