"""A party's workers, for all its models.

    async with Workers(reach, compute) as workers:       connected, or the party does not start
        spread = await workers.hold(stored)              loaded from the party's store
        spread.parameters, spread.placement

The party reads its store and sends each worker its rows: workers need no disk and no access to the
store. After a loss everything is placed anew, on the workers that are there.
"""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from types import TracebackType
from typing import Any, Self

import anyio

from models.programs.families import parameters_of
from models.programs.plan import Parameter, Plan
from models.programs.sharing import STREAMED, hold_parameter, keys_of, matrix_parameter
from protocols.base.shares import Role
from protocols.errors import ConfigError, WorkersError
from puma_actors.base.build import program_digest
from puma_actors.base.compute import Compute
from puma_actors.base.concurrency import gather, unwrap
from puma_actors.base.logs import log
from puma_actors.hosts.config import ClusterConfig
from puma_actors.hosts.stores.stored import Stored
from puma_actors.hosts.workers.connection import Connection, WorkerActor, reason_of, require_dask
from puma_actors.hosts.workers.placement import Placement
from puma_actors.hosts.workers.settings import Reach, reach_of

_MB = 1_000_000
_TOLD = 5.0
"""Seconds between lines in the log about a model that is being placed."""


@dataclass(frozen=True)
class Spread:
    """A model whose matrices are at the workers. `parameters`: as a party computes with."""

    parameters: Mapping[str, Any] = field(repr=False)
    placement: Placement


def workers_of(config: ClusterConfig, role: Role, compute: Compute) -> "Workers | None":
    """The workers that `compute` in cluster.toml names; None if the party computes by itself.

    Raises:
        ConfigError: a setting is unusable, or Dask is not installed.
    """
    reach = reach_of(config, role)
    return None if reach is None else Workers(reach, compute)


async def count_workers(config: ClusterConfig, role: Role) -> int:
    """How many workers a party's scheduler has.

    Raises:
        ConfigError, WorkersError: as `workers_of`, and as entering `Workers`.
    """
    reach = reach_of(config, role)
    if reach is None:
        return 0
    connection = await Connection.open(reach)
    try:
        return len(await connection.workers())
    finally:
        await connection.aclose()


class Workers:
    """See the module docstring.

    Attributes:
        placed: what the workers hold.

    Raises:
        ConfigError: Dask is not installed.
    """

    def __init__(self, reach: Reach, compute: Compute) -> None:
        require_dask(reach.address)
        self._reach = reach
        self._compute = compute
        self._connection: Connection | None = None
        self.placed: weakref.WeakSet[Placement] = weakref.WeakSet()

    async def __aenter__(self) -> Self:
        connection = await self._connected()
        found = await connection.workers()
        log.info("scheduler connected", address=self._reach.address, workers=len(found))
        if not found:
            log.warning("the scheduler has no workers yet", remedy=self._start_workers)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._connection is not None:
            await self._connection.aclose()

    @property
    def _start_workers(self) -> str:
        return f"start some with `dask worker {self._reach.address}`"

    async def _connected(self) -> Connection:
        """The connection; a new one if the scheduler was lost."""
        if self._connection is not None and not self._connection.alive:
            await self._connection.aclose()
            self._connection = None
        if self._connection is None:
            self._connection = await Connection.open(self._reach)
        return self._connection

    async def hold(self, stored: Stored) -> Spread:
        """Give the workers the factors of a model's matrices.

        Raises:
            WorkersError: there are no workers, they have no room now, or one was lost.
            ConfigError: the model never fits; a worker runs another program; the weights are
            public. StoreError: the model is damaged.
        """
        check_kind(stored.plan)
        connection = await self._connected()
        found = await connection.workers()
        if not found:
            raise WorkersError(
                f"{self._reach.role} has a scheduler at {self._reach.address}, but no workers: "
                f"{self._start_workers}"
            )
        self.check_room(stored.plan, found)
        actors = dict(
            zip(found, await gather([self._actor(connection, each) for each in found]), strict=True)
        )
        placement = Placement(self._reach.role, connection, actors, self._compute)
        self.placed.add(placement)
        del actors  # the placement alone keeps them
        try:
            return Spread(await self._guarded(placement, stored), placement)
        except BaseException:
            placement.drop()
            raise

    def check_room(self, plan: Plan, found: Mapping[str, int]) -> None:
        """Compare what each worker is to hold with what the smallest of them may use.

        Args:
            found: bytes that each worker may use, by address; 0: it did not say.

        Raises:
            ConfigError: it never fits. WorkersError: it does not fit now.
        """
        need = sum(
            8 * -(-parameter.shape[0] // len(found)) * prod(parameter.shape[1:])
            for parameter in parameters_of(plan.config).values()
            if parameter.kind in STREAMED
        )
        used = sum(each.nbytes for each in self.placed if not each.lost)
        limit = min((limit for limit in found.values() if limit), default=0)
        if not limit or need + used <= limit:
            return
        text = (
            f"the model needs {need // _MB:,} MB at each of {self._reach.role}'s {len(found)} "
            f"workers, of which one may use {limit // _MB:,} MB"
        )
        if need > limit:
            raise ConfigError(f"{text}: start more workers, or give them more (--memory-limit)")
        raise WorkersError(f"{text} and holds {used // _MB:,} MB of other models: try again later")

    async def _actor(self, connection: Connection, address: str) -> WorkerActor:
        """A fresh actor, of the same program as this party."""
        role = self._reach.role
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(_answering, connection, address)
                actor = await connection.actor(address)
                program = await actor.call("program")  # it may compile kernels
                group.cancel_scope.cancel()
        except Exception as errors:  # of many kinds, which Dask does not name
            error = unwrap(errors) if isinstance(errors, ExceptionGroup) else errors
            raise WorkersError(
                f"{role} cannot use its worker {address} ({reason_of(error)}): install the same "
                "version of puma-actors[dask] there, and read its log"
            ) from None
        if program != program_digest():
            raise ConfigError(
                f"{role}'s worker {address} runs another program: install the same version of "
                "puma-actors everywhere"
            )
        return actor

    async def _guarded(self, placement: Placement, stored: Stored) -> dict[str, Any]:
        """Place all tensors, and notice meanwhile if a worker goes away or hangs."""
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(placement.watch)
                parameters = await self._place(placement, stored)
                group.cancel_scope.cancel()
        except BaseExceptionGroup as errors:
            root = unwrap(errors)
            raise root from root.__cause__
        return parameters

    async def _place(self, placement: Placement, stored: Stored) -> dict[str, Any]:
        seeds = await self._compute.offload(stored.seeds)
        tensors = parameters_of(stored.plan.config)
        whole, done, begun = sum(prod(each.shape) for each in tensors.values()), 0, _now()
        told, parameters = begun, {}
        for number, (name, parameter) in enumerate(tensors.items()):
            held = await self._tensor(placement, stored, number, parameter, seeds)
            parameters[name], done = held, done + prod(parameter.shape)
            if _now() > told + _TOLD:
                told = _now()
                left = (told - begun) * (whole - done) / done
                log.info("placing weights", done=f"{done / whole:.0%}", seconds_left=round(left))
        log.info(
            "weights placed",
            workers=len(placement.workers),
            megabytes_each=placement.nbytes // _MB,
            seconds=round(_now() - begun, 1),
        )
        return parameters

    async def _tensor(
        self,
        placement: Placement,
        stored: Stored,
        number: int,
        parameter: Parameter,
        seeds: Mapping[int, bytes],
    ) -> Any:
        """The form in which the party computes with one tensor."""
        role, offload = Role(stored.manifest.role), self._compute.offload
        if parameter.kind not in STREAMED:
            m = None if role.is_dealer else await offload(stored.tensor, number, parameter)
            return await offload(hold_parameter, role, number, parameter, m, seeds)
        masked = None if role.is_dealer else await offload(stored.words, number)
        keys, (rows, columns) = keys_of(role, number, seeds), parameter.shape
        factor = await placement.put(number, (rows, columns), masked, keys)
        return await offload(matrix_parameter, role, parameter, factor, keys, masked)


async def _answering(connection: Connection, address: str) -> None:
    """Raise OSError or TimeoutError when a worker answers no more: Dask would wait for it."""
    while True:
        await connection.ping(address)
        await anyio.sleep(1.0)


def check_kind(plan: Plan) -> None:
    """Raise ConfigError unless workers can hold the weights of a model."""
    if plan.weights != "private":
        raise ConfigError(
            f"workers hold private weights only, and this model's weights are {plan.weights}: "
            "start the party without `compute`"
        )


def _now() -> float:
    return anyio.current_time()
