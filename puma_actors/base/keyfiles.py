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

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

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
                f"{path} exists and is not overwritten: `puma certs renew` replaces a certificate "
                f"before it expires; for another one, remove {path.with_suffix('.pem').name} and "
                f"{path.with_suffix('.key').name} first"
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


# -- their contents --------------------------------------------------------------------------------


def pair_of(folder: Path, name: str) -> tuple[Path, Path]:
    """The paths of a certificate and its key."""
    return folder / f"{name}.pem", folder / f"{name}.key"


def former_key(private: Path) -> Path:
    """Where a key is while it is being replaced. As long as the new certificate is not in place,
    the old one and this key are the valid pair.
    """
    return private.with_name(f"{private.name}.old")


def write_pair(
    certificate: Path, private: Path, made: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> None:
    """Create the files of a certificate and its key, or neither."""
    write_new(private, encode_key(key), 0o600)
    try:
        write_new(certificate, encode(made), 0o644)
    except BaseException:
        private.unlink()
        raise


def encode(certificate: x509.Certificate) -> bytes:
    """A certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def encode_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as PEM, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def load_certificate(path: Path) -> x509.Certificate:
    """The certificate in a PEM file."""
    with reading(path):
        data = path.read_bytes()
    try:
        return x509.load_pem_x509_certificate(data)
    except ValueError:
        raise ConfigError(f"{path} does not contain a certificate: issue a new one") from None


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The private key in a PEM file that nobody else can read."""
    check_private(path)
    with reading(path):
        data = path.read_bytes()
    try:
        key = serialization.load_pem_private_key(data, None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} does not contain a key made by this program: issue a new one")
    return key
