"""A certificate and its key put in place of older ones.

    with alone(folder):                              no other command changes the folder meanwhile
        place(folder, identity, certificate, key)    a pair
        replace(path, data, 0o644)                   one file

`place` first proves the pair with `load_context`, in a folder of its own. Then the old key gets a
second name, the new key takes its place, and last the new certificate takes its own: at every
moment, and after a crash at any moment, the certificate in place has its key under one of the two
names, and `load_context` takes the one that fits. The second name is removed once the new pair has
been loaded from its place.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from protocols.errors import ConfigError
from puma_actors.base.certs import AUTHORITY, load_context, stem
from puma_actors.base.identity import PeerIdentity
from puma_actors.base.keyfiles import (
    encode,
    former_key,
    load_certificate,
    load_key,
    pair_of,
    reading,
    sync_folder,
    write_new,
    write_pair,
)

_DRAFT = ".draft-"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other command changes the folder's certificates, and keep others waiting."""
    with reading(folder):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def draft_folder(folder: Path) -> Iterator[Path]:
    """A private folder on the same disk, removed afterwards; also one that a crash left behind."""
    with reading(folder):
        for left in folder.glob(f"{_DRAFT}*"):
            shutil.rmtree(left)
        made = tempfile.mkdtemp(dir=folder, prefix=_DRAFT)
    try:
        yield Path(made)
    finally:
        shutil.rmtree(made)


def place(
    folder: Path,
    identity: PeerIdentity,
    certificate: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
) -> Path:
    """Put a party's certificate and key in place; return the certificate's path.

    Raises:
        ConfigError: a party could not use them; nothing has changed.
    """
    path, private = pair_of(folder, stem(identity))
    with draft_folder(folder) as draft:
        authority = pair_of(folder, AUTHORITY)[0]
        write_new(draft / authority.name, encode(load_certificate(authority)), 0o644)
        new_path, new_private = pair_of(draft, stem(identity))
        write_pair(new_path, new_private, certificate, key)
        load_context(draft, identity, server=True)
        if fits(path, private):
            spare = draft / "former"
            spare.hardlink_to(private)
            move(spare, former_key(private))
        move(new_private, private)
        move(new_path, path)
    load_context(folder, identity, server=True)
    former_key(private).unlink(missing_ok=True)
    return path


def replace(path: Path, data: bytes, mode: int) -> None:
    """Create a file or replace it as a whole: a reader finds the old content or the new one."""
    with draft_folder(path.parent) as draft:
        write_new(draft / path.name, data, mode)
        move(draft / path.name, path)


def move(source: Path, target: Path) -> None:
    """Rename a file within a disk, for good: it stays renamed if the power fails."""
    with reading(target):
        source.replace(target)
        sync_folder(target.parent)


def fits(path: Path, private: Path) -> bool:
    """Whether a certificate and a key are there and belong together."""
    try:
        return load_certificate(path).public_key() == load_key(private).public_key()
    except ConfigError:
        return False
