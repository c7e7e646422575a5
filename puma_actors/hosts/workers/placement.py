"""One model's factors at a party's workers.

Each worker holds a run of rows of every matrix. Rows are contiguous in the store's files and in the
streams of the masks, so that a worker can be given its part and nothing else. x @ W sends each
worker its columns of x and adds up what comes back; x @ W^T sends x to all and joins the answers.
Both are sums and products modulo 2^64: the result is that of one machine, to the bit.
"""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, NoReturn

import anyio
import numpy as np

from protocols.base.ring import Words
from protocols.base.shares import Role
from protocols.elsewhere import Elsewhere
from protocols.errors import WorkersError
from protocols.streamed import MaskedWords
from puma_actors.base.compute import Compute
from puma_actors.base.concurrency import gather
from puma_actors.base.logs import log
from puma_actors.hosts.workers.connection import Connection, WorkerActor, reason_of

PIECE = 1 << 21
"""Words of a message to a worker: 16 MB."""
BLOCK = 1 << 24
"""Words that a product sends to, or receives from, all workers at once: 128 MB."""
_LOOK = 0.5
"""Seconds between looks at whether all workers are there."""


def rows_of(rows: int, workers: int) -> list[slice]:
    """The rows of a matrix that each worker holds; some may be empty."""
    ends = [rows * each // workers for each in range(workers + 1)]
    return [slice(*ends[each : each + 2]) for each in range(workers)]


class Placement:
    """See the module docstring.

    Args:
        actors: a fresh actor at each worker, by address.

    Attributes:
        lost: why the workers cannot be used any more; empty while they can.
        nbytes: bytes that the fullest worker holds.
    """

    def __init__(
        self,
        role: Role,
        connection: Connection,
        actors: Mapping[str, WorkerActor],
        compute: Compute,
    ) -> None:
        self.role = role
        self.lost = ""
        self.nbytes = 0
        self.compute = compute
        self._connection = connection
        self._actors = dict(actors)
        self._broken = anyio.Event()

    @property
    def workers(self) -> list[str]:
        """Addresses."""
        return list(self._actors)

    async def put(
        self,
        number: int,
        shape: tuple[int, int],
        masked: MaskedWords | None,
        keys: Sequence[bytes],
    ) -> "Placed":
        """Give the workers the factor of tensor `number`.

        Args:
            masked: at an evaluator. keys: of the masks that this party knows.

        Raises:
            WorkersError: a worker was lost. StoreError: the words cannot be read.
        """
        self._check()
        parts = dict(zip(self._actors, rows_of(shape[0], len(self._actors)), strict=True))
        parts = {address: rows for address, rows in parts.items() if rows.stop > rows.start}
        self.nbytes += 8 * shape[1] * max(rows.stop - rows.start for rows in parts.values())
        await gather(
            [
                self._put_rows(address, number, rows, shape[1], masked, keys)
                for address, rows in parts.items()
            ]
        )
        return Placed(self, number, shape, parts)

    async def _put_rows(
        self,
        address: str,
        number: int,
        rows: slice,
        columns: int,
        masked: MaskedWords | None,
        keys: Sequence[bytes],
    ) -> None:
        first, size = rows.start * columns, (rows.stop - rows.start) * columns
        await self.call(address, "open", number, (rows.stop - rows.start, columns))
        for at in range(0, size, PIECE):
            words, count = None, min(PIECE, size - at)
            if masked is not None:
                words = np.empty(count, dtype=np.uint64)
                await self.compute.offload(masked.read, first + at, words)
            await self.call(address, "fill", number, at, count, words, list(keys), first + at)

    async def call(self, address: str, method: str, *args: object) -> object:
        """Call a method of a worker's `HeldRows`.

        Raises:
            WorkersError: it failed, or another worker did before.
        """
        self._check()
        try:
            return await self._actors[address].call(method, *args)
        except Exception as error:  # of many kinds, which Dask does not name
            self.fail(address, reason_of(error))
            self._check()
            raise

    async def product(
        self, address: str, method: str, number: int, x: Words, shape: tuple[int, int]
    ) -> Words:
        """A worker's part of a product, of this shape. Raises as `call`."""
        self._check()
        try:
            return await self._actors[address].product(method, number, x, shape)
        except Exception as error:
            self.fail(address, reason_of(error))
            self._check()
            raise

    def _check(self) -> None:
        if self.lost:
            raise WorkersError(self.lost)

    def fail(self, address: str, reason: str) -> None:
        """Note that a worker cannot be used any more, which ends all sessions on this placement."""
        if not self.lost:
            self._end(
                f"{self.role} lost its worker {address} ({reason}): open a new session, for which "
                "the workers that are left take over"
            )

    def drop(self) -> None:
        """Let the workers forget their parts."""
        self.lost = self.lost or f"{self.role} has not placed all weights: open a new session"
        self._actors.clear()
        self._broken.set()

    def _end(self, reason: str) -> None:
        log.warning("workers lost", role=str(self.role), reason=reason)
        self.lost = reason
        self.drop()

    async def check(self) -> None:
        """Ask all workers whether they are there; `lost` has the answer. For a placement that
        nothing has watched for a while.
        """
        async with anyio.create_task_group() as group:

            async def ask() -> None:
                await gather([self._ask(address) for address in self.workers])
                group.cancel_scope.cancel()

            group.start_soon(ask)
            await self._until_lost()
            group.cancel_scope.cancel()

    async def watch(self) -> NoReturn:
        """Raise WorkersError as soon as a worker or the scheduler is lost, or silent for
        `timeouts.silence`.
        """
        async with anyio.create_task_group() as group:
            for address in self.workers:
                group.start_soon(self._keep_asking, address)
            await self._until_lost()
            group.cancel_scope.cancel()
        raise WorkersError(self.lost)

    async def _until_lost(self) -> None:
        while not self.lost:
            self._look()
            with anyio.move_on_after(_LOOK):
                await self._broken.wait()

    def _look(self) -> None:
        """What the scheduler has said."""
        if not self._connection.alive and not self.lost:
            self._end(
                f"{self.role} lost its scheduler: start it again with `dask scheduler`, then its "
                "workers, and open a new session"
            )
        for address, actor in list(self._actors.items()):
            if not actor.alive:
                self.fail(address, "the scheduler lost it")

    async def _keep_asking(self, address: str) -> None:
        while not self.lost:
            await self._ask(address)
            await anyio.sleep(2 * _LOOK)

    async def _ask(self, address: str) -> None:
        """A worker that hangs, or whose machine is gone, closes no connection: only silence."""
        try:
            await self._connection.ping(address)
        except Exception as error:  # of many kinds, which Dask does not name
            self.fail(address, reason_of(error))


class Placed(Elsewhere):
    """A party's factor of one matrix, by rows at its workers. Methods raise WorkersError."""

    def __init__(
        self,
        placement: Placement,
        number: int,
        shape: tuple[int, int],
        parts: Mapping[str, slice],
    ) -> None:
        self._placement = placement
        self._number = number
        self._shape = shape
        self._parts = parts

    async def matmul(self, x: Words) -> Words:
        """As `Elsewhere`."""
        return await self._in_blocks(x, self._shape[1], self._sum)

    async def matmul_rows(self, x: Words) -> Words:
        """As `Elsewhere`."""
        return await self._in_blocks(x, self._shape[0], self._joined)

    async def _in_blocks(
        self, x: Words, columns: int, product: Callable[[Words], Coroutine[Any, Any, Words]]
    ) -> Words:
        """Multiply some rows of x at a time, so that what is sent and received at once is limited,
        however long a text is and however many workers there are.
        """
        step = max(1, BLOCK // (len(self._parts) * max(columns, x.shape[1])))
        if x.shape[0] <= step:
            return await product(x)
        out = np.empty((x.shape[0], columns), dtype=np.uint64)
        for start in range(0, x.shape[0], step):
            out[start : start + step] = await product(x[start : start + step])
        return out

    async def _sum(self, x: Words) -> Words:
        shape = (x.shape[0], self._shape[1])
        found = await self._all("matmul", [(x[:, rows], shape) for rows in self._parts.values()])
        return await self._placement.compute.run(len(found) * found[0].size, _total, found)

    async def _joined(self, x: Words) -> Words:
        sizes = [rows.stop - rows.start for rows in self._parts.values()]
        found = await self._all("matmul_rows", [(x, (x.shape[0], size)) for size in sizes])
        return np.concatenate(found, axis=1)

    async def _all(
        self, method: str, parts: Sequence[tuple[Words, tuple[int, int]]]
    ) -> list[Words]:
        """Every worker's product of what it gets, of this shape."""
        product, number = self._placement.product, self._number
        return await gather(
            [
                product(address, method, number, np.ascontiguousarray(x), shape)
                for address, (x, shape) in zip(self._parts, parts, strict=True)
            ]
        )


def _total(parts: Sequence[Words]) -> Words:
    """Their sum modulo 2^64, in memory of its own: what was received may be read-only."""
    total = parts[0].copy()
    for part in parts[1:]:
        total += part
    return total
