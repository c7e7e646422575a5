"""A model on a party's disk."""

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.programs.families import parameters_of
from models.programs.plan import Parameter, Plan
from models.programs.sharing import SEED_BYTES, seeds_of
from protocols.base.ring import Words
from protocols.base.shares import Role
from protocols.errors import StoreError
from puma_actors.hosts.stores.checksums import CheckedFile, Checksums
from puma_actors.hosts.stores.manifest import (
    PUBLIC_FILES,
    Manifest,
    matrix_file,
    seed_file,
    words_file,
)

_WORD = 8


@dataclass(frozen=True)
class Stored:
    """A model on disk. Reading checks the data: StoreError if it differs from what was stored."""

    folder: Path
    manifest: Manifest
    plan: Plan
    checksums: Checksums
    reading: Callable[[], AbstractContextManager[None]]
    """Adds the model's name and the remedy to errors raised inside."""

    def _content(self, file: str) -> NDArray[np.uint8]:
        with self.reading():
            return self.checksums.read(self.folder / file, self.manifest.files[file])

    def seeds(self) -> dict[int, bytes]:
        """The seeds that this party knows."""
        role = Role(self.manifest.role)
        return {which: self._content(seed_file(which)).tobytes() for which in seeds_of(role)}

    def tensor(self, number: int, parameter: Parameter) -> Words:
        """A masked tensor in its own memory: later changes to the file do not affect it."""
        words: Words = self._content(words_file(number)).view("<u8").reshape(parameter.shape)
        return words

    def words(self, number: int) -> "StoredWords":
        """A masked tensor that stays on disk."""
        file = words_file(number)
        with self.reading():
            opened = self.checksums.open(self.folder / file, self.manifest.files[file])
        return StoredWords(opened)

    def matrix(self, number: int) -> CheckedFile:
        """A tensor of public weights, which stays on disk."""
        file = matrix_file(number)
        with self.reading():
            return self.checksums.open(self.folder / file, self.manifest.files[file])

    def public_files(self) -> dict[str, bytes]:
        """The files that the owner published."""
        there = [name for name in PUBLIC_FILES if name in self.manifest.files]
        return {name: self._content(name).tobytes() for name in there}


@dataclass(frozen=True, slots=True)
class StoredWords:
    """The `MaskedWords` of a tensor in a store. Raises StoreError if its file was changed."""

    file: CheckedFile

    def expect(self) -> None:
        """As `MaskedWords`."""
        self.file.expect()

    def read(self, start: int, out: Words) -> None:
        """As `MaskedWords`."""
        self.file.read(_WORD * start, out.data.cast("B"))


def check_complete(manifest: Manifest, plan: Plan, role: Role) -> None:
    """Raise StoreError unless a manifest lists exactly the files of a party for its plan."""
    if plan.weights == "public":
        _check_matrices(manifest, plan, role)
        return
    wanted = {seed_file(which): SEED_BYTES for which in seeds_of(role)}
    if not role.is_dealer:
        for number, parameter in enumerate(parameters_of(plan.config).values()):
            wanted[words_file(number)] = 8 * int(np.prod(parameter.shape))
    found = {
        name: entry.bytes for name, entry in manifest.files.items() if name not in PUBLIC_FILES
    }
    if found != wanted:
        raise StoreError("its files are not those of its plan")


def _check_matrices(manifest: Manifest, plan: Plan, role: Role) -> None:
    """The same for public weights; a file's size is in its head."""
    count = 0 if role.is_dealer else len(parameters_of(plan.config))
    if _matrices(manifest) != {matrix_file(number) for number in range(count)}:
        raise StoreError("its files are not those of its plan")


def _matrices(manifest: Manifest) -> set[str]:
    return manifest.files.keys() - set(PUBLIC_FILES)


def content_digest(manifest: Manifest, plan: Plan) -> str:
    """SHA-256 over the checksums of all files of public weights, in hex: it is the same at both
    evaluators. Empty for private weights, and at the dealer.
    """
    if plan.weights == "private" or manifest.role == Role.DEALER:
        return ""
    lines = (f"{name} {manifest.files[name].sha256}\n" for name in sorted(_matrices(manifest)))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
