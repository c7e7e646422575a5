"""A party over a real Dask cluster: processes of their own, over TLS."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from dask_cluster import DaskCluster, dask_cluster, settings
from hosts import Hosts, hosts

from protocols.base.shares import Role
from puma_actors.api.remote import RemoteCluster
from puma_actors.hosts.workers.placement import Placed

IDS = [1, 3, 7]
OWN = Role.EVALUATOR_A


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    with dask_cluster(tmp_path_factory.mktemp("dask"), OWN, "one", "two") as made:
        yield made


async def restart(cluster: Hosts, dask: DaskCluster) -> None:
    """The party that has workers, with them."""
    await cluster.kill(OWN)
    first, table = settings(dask.certificates, OWN, dask.address)
    await cluster.start(OWN, table, first)
    await cluster.linked()


async def test_answers(
    folder: Path, certificates: Path, model: Path, wanted: np.ndarray, dask: DaskCluster
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        await restart(cluster, dask)
        async with await RemoteCluster.open(cluster.client, "tiny") as remote:
            np.testing.assert_allclose(await remote.forward(IDS), wanted, atol=0.02)
            held = cluster.servers[OWN].residents._loaded["tiny"].parameters
            assert isinstance(held["layers.0.qkv"].factor, Placed)
        dask.kill("two")
        async with await RemoteCluster.open(cluster.client, "tiny") as remote:
            np.testing.assert_allclose(await remote.forward(IDS), wanted, atol=0.02)
