"""A connection to a party's Dask scheduler and workers: the only module that imports Dask.

connection = await Connection.open(reach)       checks that the scheduler is this party's alone
await connection.workers()                      {address: bytes it may use}
actor = await connection.actor(address)         a fresh `HeldRows` at this worker
await actor.call("matmul", number, x)           one message to the worker, and its answer
await connection.aclose()
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
import numpy as np

from protocols.base.ring import Words
from protocols.errors import ConfigError, PumaError, WorkersError
from puma_actors.base.texts import TEXT_CHARS, printable
from puma_actors.hosts.workers.rows import HeldRows
from puma_actors.hosts.workers.settings import Reach

_CLAIM = ["puma-actors", "party"]
"""Where a scheduler keeps the name of the party that uses it."""
_GOOD = ("finished", "pending")
"""States of an actor that lives."""


def require_dask(address: str) -> Any:
    """The package `distributed`.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import distributed
    except ImportError as error:
        raise ConfigError(
            f"compute = {address!r} needs Dask, which is not installed ({error.name}): run "
            "`pip install 'puma-actors[dask]'`"
        ) from None
    return distributed


def reason_of(error: BaseException) -> str:
    """Why a call failed: our own messages, of all others the kind (they may quote arguments)."""
    text = str(error) if isinstance(error, PumaError) else type(error).__name__
    return printable(text[:TEXT_CHARS])


class WorkerActor:
    """A `HeldRows` at a worker, which forgets it when this is no longer used.

    Calls are the message of Dask's own `Actor`, whose proxy is not used: if a worker is lost, it
    waits for another one and calls that, which holds nothing.
    """

    def __init__(self, future: Any, worker: Any, packed: Callable[[object], object]) -> None:
        self._future = future
        self._worker = worker
        self._packed = packed

    @property
    def alive(self) -> bool:
        """Whether its worker is there, as far as the scheduler knows."""
        return self._future.status in _GOOD

    async def call(self, method: str, *args: object) -> object:
        """Call a method.

        Raises:
            OSError, KeyError: the worker is gone, or has forgotten it. PumaError: the method raised
            it.
        """
        packed = [self._packed(each) for each in args]
        answer = await self._worker.actor_execute(
            function=method, actor=self._future.key, args=packed, kwargs={}
        )
        if answer["status"] != "OK":
            raise answer["exception"]
        result: object = answer["result"]
        return result

    async def product(self, method: str, number: int, x: Words, shape: tuple[int, int]) -> Words:
        """The result of a product, which must have this shape. Raises as `call`."""
        result = await self.call(method, number, x)
        if not (isinstance(result, np.ndarray) and result.dtype == np.uint64):
            raise WorkersError("it answered with something that is no matrix of words")
        if result.shape != shape:
            raise WorkersError(f"it answered with {result.shape} words instead of {shape}")
        return result


class Connection:
    """See the module docstring."""

    def __init__(self, client: Any, reach: Reach) -> None:
        self._client = client
        self._reach = reach

    @classmethod
    async def open(cls, reach: Reach) -> "Connection":
        """Connect, and take the scheduler for this party.

        Raises:
            ConfigError: Dask is not installed; another party uses this scheduler.
            WorkersError: the scheduler cannot be reached.
        """
        distributed = require_dask(reach.address)
        _configure(reach.silence)
        client = distributed.Client(
            reach.address,
            security=_security(distributed, reach),
            timeout=reach.silence,
            asynchronous=True,
            direct_to_workers=True,
            set_as_default=False,
            name="puma",
        )
        connection = cls(client, reach)
        try:
            await client
            await connection.claim()
        except ConfigError:
            await connection.aclose()
            raise
        except Exception as error:  # of many kinds, which Dask does not name
            await connection.aclose()
            raise WorkersError(
                f"{reach.role} cannot reach its scheduler {reach.address} ({reason_of(error)}): "
                "start it with `dask scheduler`, with certificates of the authority in "
                "compute_tls, or correct `compute`"
            ) from None
        except BaseException:
            await connection.aclose()
            raise
        return connection

    async def claim(self) -> None:
        """Take the scheduler for this party.

        Raises:
            ConfigError: another party has it, and its workers would get everything that the two
            keep from each other.
        """
        mine = self._reach.party
        with anyio.fail_after(self._reach.silence):
            holder = await self._client.get_metadata(_CLAIM, default=None)
            if holder is None:
                await self._client.set_metadata(_CLAIM, mine)
                holder = await self._client.get_metadata(_CLAIM, default=None)
        if holder != mine:
            raise ConfigError(
                f"the scheduler {self._reach.address} is used by {printable(str(holder)[:80])}, "
                f"and this is {mine}: give each party a scheduler and workers of its own, or "
                "restart the scheduler if this party changed its name"
            )

    @property
    def alive(self) -> bool:
        """Whether the scheduler is connected, as far as is known."""
        return bool(self._client.status == "running")

    async def workers(self) -> dict[str, int]:
        """The workers' addresses, and the bytes that each may use (0: it did not say).

        Raises:
            WorkersError: the scheduler does not answer.
        """
        with suppress(OSError, TimeoutError), anyio.fail_after(self._reach.silence):
            found = await self._client.scheduler.identity(n_workers=-1)
            return {
                address: int(each.get("memory_limit") or 0)
                for address, each in sorted(found["workers"].items())
            }
        raise WorkersError(f"{self._reach.role} lost its scheduler {self._reach.address}")

    async def actor(self, address: str) -> WorkerActor:
        """A fresh actor at a worker.

        Raises:
            Exception: of any kind: what the worker raised, or Dask.
        """
        from distributed import wait
        from distributed.protocol import to_serialize

        future = self._client.submit(
            HeldRows, actor=True, pure=False, workers=[address], allow_other_workers=False
        )
        with self._client.as_current():
            await wait(future)
        if future.status != "finished":
            raise await future.exception()
        return WorkerActor(future, self._client.rpc(address), to_serialize)

    async def ping(self, address: str) -> None:
        """Return when a worker answers.

        Raises:
            OSError: it is gone. TimeoutError: it is silent.
        """
        with anyio.fail_after(self._reach.silence):
            await self._client.rpc(address).identity()

    async def aclose(self) -> None:
        """Disconnect."""
        with anyio.CancelScope(shield=True), suppress(Exception):
            await self._client.close(timeout=self._reach.silence)


def _configure(silence: float) -> None:
    """How long Dask, in this process, tries to reach a machine."""
    import dask

    dask.config.set({"distributed.comm.timeouts.connect": f"{silence:g}s"})


def _security(distributed: Any, reach: Reach) -> Any:
    if reach.tls is None:
        return distributed.Security(require_encryption=False)
    import ssl

    authority, certificate, key = map(str, reach.tls)
    return distributed.Security(
        require_encryption=True,
        tls_ca_file=authority,
        tls_client_cert=certificate,
        tls_client_key=key,
        tls_min_version=ssl.TLSVersion.TLSv1_3,
    )
