"""What each way to keep a model's weights takes in one process, and how fast it is on this machine.

Measured in a few seconds, once a process: a file of 256 MB is written where weights on disk are
kept, and read again without the page cache; one matrix is multiplied by in each way.
"""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from models.checkpoints.checkpoint import Checkpoint
from models.configs.architecture import ModelConfig
from models.programs.families import parameters_of
from models.programs.sharing import STREAMED
from protocols.base.ring import Words
from protocols.base.shares import Role
from protocols.errors import ConfigError
from protocols.kernels.matmul import matmul_into
from protocols.kernels.stored.formats import FORMATS, FormatName
from protocols.public_weight import Part, PublicWeight
from protocols.streamed import Derived, Streamed, Sum
from puma_actors.api.keeping import in_memory_bytes, on_disk_bytes, public_bytes
from puma_actors.base.compute import available_cores
from puma_actors.roles.spool import ASKED, spool_bytes

Kept = Literal["memory", "disk", "public"]
"""Where one process has the weights: shares in memory or on disk, or as the checkpoint's file."""

_FILE_BYTES, _PART = 256 << 20, 4 << 20
_SIDE = 1024  # rows and columns of the matrix for the measurement
_WORD = 8  # bytes


@dataclass(frozen=True, slots=True)
class PassTime:
    """Seconds of one pass over a model's matrices, at least.

    Attributes:
        disk: to read masked words once. work: to expand masks and multiply, for all three parties,
            on all cores of this machine.
    """

    disk: float
    work: float

    @property
    def total(self) -> float:
        """Reading, expanding and multiplying overlap."""
        return max(self.disk, self.work)


@dataclass(frozen=True, slots=True)
class Choice:
    """A way to keep the weights.

    Attributes:
        memory, disk: bytes for all roles together, in addition to the checkpoint's own file.
        seconds: of one pass.
    """

    memory: int
    disk: int
    seconds: PassTime


def choices(checkpoint: Checkpoint, tokens: int, folder: Path) -> dict[Kept, Choice]:
    """Each way, for a pass of `tokens` rows, with masked words in `folder`. Raises ConfigError if a
    file cannot be written there.
    """
    config = checkpoint.config
    kind, disk = format_of(checkpoint), spool_bytes(parameters_of(config))
    memory: dict[Kept, int] = {
        "memory": in_memory_bytes(config),
        "disk": on_disk_bytes(config),
        "public": public_bytes(config),
    }
    return {
        kept: Choice(
            size, disk if kept == "disk" else 0, pass_time(config, tokens, folder, kept, kind)
        )
        for kept, size in memory.items()
    }


def format_of(checkpoint: Checkpoint) -> FormatName:
    """The format of most of a checkpoint's matrices; float32 if parties decode them beforehand."""
    sizes: dict[FormatName, int] = {"f32": 0}
    for name in checkpoint.names():
        packed = checkpoint.packed(name)
        if packed is not None:
            sizes[packed.kind] = sizes.get(packed.kind, 0) + packed.data.nbytes
    return max(sizes, key=sizes.__getitem__)


def pass_time(
    config: ModelConfig, tokens: int, folder: Path, kept: Kept = "disk", kind: FormatName = "bf16"
) -> PassTime:
    """The time of a pass of `tokens` rows. Raises ConfigError as `choices`.

    Args:
        kind: the format of public weights.
    """
    matrices = {
        name: parameter
        for name, parameter in parameters_of(config).items()
        if parameter.kind in STREAMED
    }
    size = spool_bytes(matrices)
    work = seconds_per_entry(kept, tokens, kind) * (size // _WORD) / available_cores()
    return PassTime(size / disk_rate(folder) if kept == "disk" else 0.0, work)


@cache
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


@cache
def seconds_per_entry(kept: Kept, tokens: int, kind: FormatName) -> float:
    """Seconds per entry of a matrix for all three parties, on one core."""
    x = np.ones((tokens, _SIDE), dtype=np.uint64)
    parts = _public(kind) if kept == "public" else _on_disk() if kept == "disk" else _in_memory()
    return sum(_fastest(part, x) for part in parts) / (_SIDE * _SIDE)


_Product = Callable[[Words], Any]


def _in_memory() -> list[_Product]:
    """The products of evaluator A, the dealer and evaluator B, see `roles.common`."""
    one, two = np.ones((2, _SIDE, _SIDE), dtype=np.uint64)
    derived = Derived((_SIDE, _SIDE), Sum(one, two))
    return [lambda x: _multiplied(x, one), lambda x: _multiplied(x, two), derived.matmul]


def _multiplied(x: Words, factor: Words) -> None:
    matmul_into(x, factor, np.empty((len(x), _SIDE), dtype=np.uint64), 0, _SIDE)


def _on_disk() -> list[_Product]:
    keys, shape = (bytes(16),), (_SIDE, _SIDE)
    evaluators = [
        Streamed(role, shape, keys, _Zeros()) for role in (Role.EVALUATOR_A, Role.EVALUATOR_B)
    ]
    dealer = Streamed(Role.DEALER, shape, 2 * keys, None)
    return [factor.matmul for factor in (*evaluators, dealer)]


def _public(kind: FormatName) -> list[_Product]:
    """Two evaluators; the dealer multiplies by nothing."""
    data = np.zeros((_SIDE, FORMATS[kind].row_bytes(_SIDE)), dtype=np.uint8)
    weight = PublicWeight.of(Role.EVALUATOR_A, [Part(data, kind)])

    def product(x: Words) -> None:
        weight.multiply(x, np.empty((len(x), _SIDE), dtype=np.uint64), 0, _SIDE)

    return [product, product]


def _fastest(product: _Product, x: Words) -> float:
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        product(x)
        taken.append(time.perf_counter() - started)
    return min(taken)
