"""A real scheduler and workers, and all that may go wrong with them."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import numpy as np
import pytest
from dask_cluster import DaskCluster, dask_cluster, settings, worker_certificates
from hosts import addresses_for, write_config
from ports import free_port
from waiting import in_time, settled, until

from protocols.base.shares import Role
from protocols.errors import ConfigError, WorkersError
from puma_actors.base.compute import Compute
from puma_actors.base.concurrency import gather
from puma_actors.hosts.config import load_config
from puma_actors.hosts.doctor import examine
from puma_actors.hosts.server import PartyServer
from puma_actors.hosts.workers import cluster as clusters
from puma_actors.hosts.workers.cluster import Workers
from puma_actors.hosts.workers.connection import Connection
from puma_actors.hosts.workers.placement import Placed, Placement
from puma_actors.hosts.workers.settings import Reach

pytestmark = pytest.mark.slow

OWN = Role.DEALER
KEYS = [bytes(range(16)), bytes(range(16, 32))]
SHAPE = (6, 4)


def reach_of(
    dask: DaskCluster,
    silence: float = 1.0,
    role: Role = Role.EVALUATOR_A,
    certificates: Path | None = None,
) -> Reach:
    folder = certificates or dask.certificates
    name = f"{dask.role}.party"
    tls = (folder / "ca.pem", folder / f"{name}.pem", folder / f"{name}.key")
    return Reach(dask.address, role, f"{role} {str(role)!r}", tls, silence)


@asynccontextmanager
async def placed(reach: Reach) -> AsyncIterator[tuple[Placement, Placed]]:
    """A dealer's factor, at all workers there are."""
    connection = await Connection.open(reach)
    try:
        actors = {each: await connection.actor(each) for each in await connection.workers()}
        placement = Placement(reach.role, connection, actors, Compute(1))
        del actors
        yield placement, await placement.put(0, SHAPE, None, KEYS)
    finally:
        await connection.aclose()


async def test_a_call_on_a_killed_worker_fails_by_name(dask: DaskCluster) -> None:
    dask.add(*{"one", "two"} - dask.workers.keys())
    async with placed(reach_of(dask, 600.0)) as (_, held):
        dask.workers["one"].send_signal(signal.SIGSTOP)  # so that it cannot answer before

        async def kill() -> None:
            await settled()  # the call is on its way
            dask.kill("one")

        x = np.ones((1, SHAPE[0]), dtype=np.uint64)
        with pytest.raises(WorkersError, match=r"evaluator-a lost its worker tls://.*open a new"):
            await gather([held.matmul(x), kill()])
    dask.add("one")


async def test_a_worker_that_hangs_is_lost_after_the_silence(dask: DaskCluster) -> None:
    async with placed(reach_of(dask)) as (placement, _):
        dask.workers["two"].send_signal(signal.SIGSTOP)
        with in_time(), pytest.raises(WorkersError, match=r"lost its worker .* \(TimeoutError\)"):
            await placement.watch()
    dask.kill("two")
    dask.add("two")


async def test_rows_of_a_model_that_is_not_used_are_freed(dask: DaskCluster) -> None:
    connection = await Connection.open(reach_of(dask))
    address = next(iter(await connection.workers()))
    actor = await connection.actor(address)
    key = actor._future.key
    assert await actor.call("program")
    worker = connection._client.rpc(address)
    del actor

    async def gone() -> bool:
        answer = await worker.actor_execute(function="program", actor=key, args=[], kwargs={})
        return answer["status"] != "OK"

    with in_time(), pytest.raises(KeyError):  # the worker knows no such actor any more
        while not await gone():
            await anyio.sleep(0)
    await connection.aclose()


async def test_another_party_is_refused(dask: DaskCluster) -> None:
    connection = await Connection.open(reach_of(dask))
    await connection.aclose()
    with pytest.raises(
        ConfigError, match="is used by evaluator-a 'evaluator-a', and this is dealer"
    ):
        await Connection.open(reach_of(dask, role=Role.DEALER))


async def test_who_has_no_certificate_of_the_authority_gets_nowhere(
    dask: DaskCluster, tmp_path: Path
) -> None:
    other = worker_certificates(tmp_path / "other", dask.role)
    with pytest.raises(WorkersError, match="evaluator-a cannot reach its scheduler tls://"):
        await Connection.open(reach_of(dask, certificates=other))
    with pytest.raises(WorkersError, match="cannot reach its scheduler tcp://"):
        plain = reach_of(dask).address.replace("tls", "tcp")
        await Connection.open(replace(reach_of(dask), tls=None, address=plain))


async def test_a_worker_with_another_program_is_refused(
    dask: DaskCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "program_digest", lambda: "other")
    async with Workers(reach_of(dask, 600.0), Compute(1)) as workers:
        connection = await workers._connected()
        address = next(iter(await connection.workers()))
        with pytest.raises(ConfigError, match=r"worker tls://.* runs another program: install the"):
            await workers._actor(connection, address)


async def test_a_lost_scheduler(tmp_path: Path) -> None:
    """It ends what runs, refuses what comes, and is connected to again when it is back."""
    with dask_cluster(tmp_path, Role.EVALUATOR_A, "only") as dask:
        reach = reach_of(dask)
        async with Workers(reach, Compute(1)) as workers:
            connection = await workers._connected()
            actors = {each: await connection.actor(each) for each in await connection.workers()}
            placement = Placement(reach.role, connection, actors, Compute(1))
            dask.kill_scheduler()
            with in_time(), pytest.raises(WorkersError, match="evaluator-a lost its"):
                await placement.watch()
            await until(lambda: not connection.alive)
            with pytest.raises(WorkersError, match="cannot reach its scheduler"):
                await workers._connected()
            dask.begin_scheduler()
            assert await (await workers._connected()).workers() == {}


async def test_a_party_does_not_start_without_its_scheduler(
    folder: Path, certificates: Path, tmp_path: Path
) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    first = f'compute = "{address}"\ninsecure_compute_no_tls = true\n'
    path = write_config(folder / "x.toml", addresses_for("unix", folder), certificates, first=first)
    config = load_config(path, environ={})
    times = config.timeouts.model_copy(update={"silence": 0.2})
    server = PartyServer(config.model_copy(update={"timeouts": times}), OWN)
    with pytest.raises(
        WorkersError, match=f"dealer cannot reach its scheduler {address}.*start it"
    ):
        await server.run()
    assert not server.listening.is_set()


async def test_a_worker_that_goes_while_it_is_prepared_is_named(dask: DaskCluster) -> None:
    async with Workers(reach_of(dask), Compute(1)) as workers:
        connection = await workers._connected()
        with in_time(), pytest.raises(WorkersError, match=r"cannot use its worker tls://127.* \("):
            await workers._actor(connection, f"tls://127.0.0.1:{free_port()}")


def test_doctor_counts_the_workers(
    folder: Path, certificates: Path, dask: DaskCluster, tmp_path: Path
) -> None:
    first, table = settings(dask.certificates, dask.role, dask.address)
    path = folder / "cluster.toml"
    write_config(path, addresses_for("unix", folder), certificates, table, first=first)
    found = {each.name: each for each in examine(load_config(path, environ={}), dask.role)}
    assert (found["workers"].state, found["workers"].text) == ("ok", f"{dask.address}, 2 workers")
    path.write_text(path.read_text().replace("ca.pem", "none.pem"))
    found = {each.name: each for each in examine(load_config(path, environ={}), dask.role)}
    assert found["workers"].state == "problem"
    assert "compute_tls.authority" in found["workers"].text
