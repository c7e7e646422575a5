"""A model's masked words in one file, for parties of one process.

    with closing(Spool(folder)) as spool:
        Spooled(role, spool, common)   an upload's `Destination` at a party

Both evaluators know the same masked words, so they share the file. It has no name: when this
process ends, however it ends, its room is free again.
"""

import os
import shutil
import tempfile
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from models.programs.families import parameters_of
from models.programs.plan import Parameter, Plan, Weights
from models.programs.sharing import STREAMED, hold_parameter, stream_parameter
from protocols.base.ring import Words
from protocols.base.shares import Role
from protocols.errors import ConfigError, LocalProtocolError, RemoteProtocolError
from protocols.linear import Weight
from puma_actors.roles.common import Common

ASKED = "PUMA_SPOOL_DIR"
AHEAD = 2
"""Tensors that are read ahead of the one in use."""
_WORD = 8


def spool_folder() -> Path:
    """The folder for files of masked words: PUMA_SPOOL_DIR, or the system's temporary folder."""
    return Path(os.environ.get(ASKED) or tempfile.gettempdir())


def spool_bytes(sizes: Mapping[str, Parameter]) -> int:
    """Bytes of the file for these tensors."""
    return _WORD * sum(prod(parameter.shape) for parameter in sizes.values())


def check_room(folder: Path, need: int) -> None:
    """Raise ConfigError unless a folder's disk has room for a file of `need` bytes."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise ConfigError(f"{ASKED}={folder} cannot be used ({error.strerror})") from None
    if need > free:
        raise ConfigError(
            f"the masked weights take {need / 1e9:,.1f} GB on disk, and {folder} has "
            f"{free / 1e9:,.1f} GB free: free some, or set {ASKED} to a folder on a larger disk"
        )


class Spool:
    """See the module docstring. Its methods are safe in threads."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or spool_folder()
        self._handle = -1
        self._places: list[tuple[int, int]] = []  # first byte and size of each tensor
        self._written: set[tuple[int, int]] = set()
        self._lock = threading.Lock()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._asked = -1  # the tensor that was expected last

    def close(self) -> None:
        """Free the file's room."""
        self._reader.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            if self._handle >= 0:
                os.close(self._handle)
                self._handle = -1

    def reserve(self, sizes: Mapping[str, Parameter]) -> None:
        """Make the file for these tensors, once. Raises ConfigError if the disk has no room."""
        with self._lock:
            if self._handle >= 0:
                return
            need = spool_bytes(sizes)
            check_room(self._folder, need)
            with tempfile.TemporaryFile(dir=self._folder) as file:
                os.posix_fallocate(file.fileno(), 0, max(1, need))
                self._handle = os.dup(file.fileno())
            at = 0
            for parameter in sizes.values():
                size = _WORD * prod(parameter.shape)
                self._places.append((at, size))
                at += size

    def write(self, number: int, at: int, data: memoryview) -> None:
        """Keep words of a tensor from word `at` on, unless the other evaluator did before."""
        with self._lock:
            if (number, at) in self._written:
                return
            start, view = self._places[number][0] + _WORD * at, data.cast("B")
            while view.nbytes:
                done = os.pwrite(self._handle, view, start)
                start, view = start + done, view[done:]
            self._written.add((number, at))

    def words(self, number: int) -> "SpooledWords":
        """A tensor's masked words."""
        return SpooledWords(self, number)

    def read(self, number: int, start: int, out: Words) -> None:
        """Fill `out` with a tensor's words from `start` on."""
        at, view = self._places[number][0] + _WORD * start, out.data.cast("B")
        while view.nbytes:
            done = os.preadv(self._handle, [view], at)
            if not done:
                raise LocalProtocolError("the file of masked words became shorter")
            at, view = at + done, view[done:]

    def expect(self, number: int) -> None:
        """Read a tensor and those after it into the page cache, while others are computed with."""
        with self._lock:
            if self._handle < 0 or number == self._asked:
                return
            self._asked = number
            with suppress(RuntimeError):  # it is being closed
                self._reader.submit(self._advise, number)

    def _advise(self, number: int) -> None:
        count = len(self._places)
        for place in range(number, number + AHEAD + 1):
            at, size = self._places[place % count]
            with suppress(OSError):  # only advice
                os.posix_fadvise(self._handle, at, size, os.POSIX_FADV_WILLNEED)


@dataclass(frozen=True, slots=True)
class SpooledWords:
    """The `MaskedWords` of a tensor in a spool."""

    spool: Spool
    number: int

    def expect(self) -> None:
        """As `MaskedWords`."""
        self.spool.expect(self.number)

    def read(self, start: int, out: Words) -> None:
        """As `MaskedWords`."""
        self.spool.read(self.number, start, out)


class Spooled:
    """A party's `Kept` share of an upload whose matrices stay in a spool.

    Args:
        common: what the parties of this process have in common: the halves of tables.
    """

    weights: Weights = "private"

    def __init__(self, role: Role, spool: Spool, common: Common) -> None:
        self._role = role
        self._spool = spool
        self._common = common
        self._seeds: dict[int, bytes] = {}

    def check_size(self, plan: Plan) -> None:
        """As `Destination`."""
        if self._role.is_dealer:
            return
        try:
            self._spool.reserve(parameters_of(plan.config))
        except ConfigError as error:
            raise RemoteProtocolError(str(error)) from None

    def seed(self, which: int, seed: memoryview) -> None:
        """As `Destination`."""
        self._seeds[which] = bytes(seed)

    def words(self, number: int, at: int, size: int, data: memoryview) -> None:
        """As `Destination`."""
        self._spool.write(number, at, data)

    def hold(self, number: int, parameter: Parameter) -> Any:
        """As `Kept`."""
        masked = None if self._role.is_dealer else self._spool.words(number)
        if parameter.kind in STREAMED:
            held = stream_parameter(self._role, number, parameter, masked, self._seeds)
            if isinstance(held, Weight) or held.halves is None:
                return held
            return replace(held, halves=self._common.halves(self._role, number, held.halves))
        m = None
        if masked is not None:
            m = np.empty(parameter.shape, dtype=np.uint64)
            masked.read(0, m.reshape(-1))
        return hold_parameter(self._role, number, parameter, m, self._seeds)
