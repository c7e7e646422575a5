"""How fast this machine reads a model's weights from disk and multiplies by them.

Measured in a second or two: a file of 256 MB is written where models are kept, and read again
without the page cache; one panel is multiplied by at an evaluator and at the dealer.
"""

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.configs.architecture import ModelConfig
from models.programs.families import parameters_of
from models.programs.sharing import STREAMED
from protocols.base.ring import Words
from protocols.base.shares import Role
from protocols.errors import ConfigError
from protocols.streamed import Streamed
from puma_actors.base.compute import available_cores
from puma_actors.roles.spool import ASKED, spool_bytes

_FILE_BYTES, _PART = 256 << 20, 4 << 20
_SIDE = 1024  # rows and columns of the matrix for the measurement


@dataclass(frozen=True, slots=True)
class PassTime:
    """Seconds of one pass over a model whose weights are on disk, at least.

    Attributes:
        disk: to read the masked words once. work: to expand the masks and multiply, for all three
            parties, on all cores of this machine.
    """

    disk: float
    work: float

    @property
    def total(self) -> float:
        """Reading, expanding and multiplying overlap."""
        return max(self.disk, self.work)


def pass_time(config: ModelConfig, tokens: int, folder: Path) -> PassTime:
    """The time of a pass of `tokens` rows, with the model in `folder`. Raises ConfigError if a file
    cannot be written there.
    """
    matrices = {
        name: parameter
        for name, parameter in parameters_of(config).items()
        if parameter.kind in STREAMED
    }
    size = spool_bytes(matrices)
    work = (2 * _product(Role.EVALUATOR_A, tokens) + _product(Role.DEALER, tokens)) * size
    return PassTime(size / disk_rate(folder), work / available_cores())


def disk_rate(folder: Path) -> float:
    """Bytes per second that a large file in `folder` is read with."""
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            part = memoryview(os.urandom(_PART))
            for _ in range(_FILE_BYTES // _PART):
                file.write(part)
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            room, at, started = memoryview(bytearray(_PART)), 0, time.perf_counter()
            while at < _FILE_BYTES:
                at += os.preadv(file.fileno(), [room], at)
            return _FILE_BYTES / (time.perf_counter() - started)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot hold a file of 256 MB ({error.strerror}): set {ASKED} to another "
            "folder"
        ) from None


class _Zeros:
    """Masked words that take no time to read."""

    def expect(self) -> None:
        """As `MaskedWords`."""

    def read(self, start: int, out: Words) -> None:
        """As `MaskedWords`."""
        out[:] = 0


def _product(role: Role, tokens: int) -> float:
    """Seconds per byte of a weight at one party, on one core."""
    keys = (bytes(16),) * (2 if role.is_dealer else 1)
    factor = Streamed(role, (_SIDE, _SIDE), keys, None if role.is_dealer else _Zeros())
    x = np.ones((tokens, _SIDE), dtype=np.uint64)
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        factor.matmul(x)
        taken.append(time.perf_counter() - started)
    return min(taken) / (8 * _SIDE * _SIDE)
