"""Five roles over sockets: upload, sessions, limits, failures, restarts."""

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import anyio
import numpy as np
import pytest
from hosts import hosts
from reference import leaves_nothing, save_model, save_tokenizer

from puma_actors.cluster import LocalCluster
from puma_actors.remote import RemoteCluster

IDS = [1, 3, 7]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(save_model(tmp_path_factory.mktemp("model"), seed=3))


@pytest.fixture(scope="module")
def wanted(model: Path) -> np.ndarray:
    async def run() -> np.ndarray:
        async with LocalCluster.from_pretrained(model) as cluster:
            return await cluster.forward(IDS)

    return anyio.run(run)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for the paths of sockets."""
    with tempfile.TemporaryDirectory(prefix="puma-") as path:
        yield Path(path)


@pytest.mark.parametrize("scheme", ["tls", "unix"])
async def test_upload_then_two_clients_at_once(
    scheme: str, folder: Path, certificates: Path, model: Path, wanted: np.ndarray
) -> None:
    async with leaves_nothing(), hosts(folder, certificates, scheme) as cluster:
        await cluster.upload(model)
        results: dict[int, np.ndarray] = {}
        sessions = []

        async def ask(number: int) -> None:
            remote = await RemoteCluster.open(cluster.client, "tiny")
            sessions.append(remote.session)
            async with remote:
                results[number] = await remote.forward(IDS)

        async with anyio.create_task_group() as group:
            for number in range(2):
                group.start_soon(ask, number)
        assert len(set(sessions)) == 2
        for logits in results.values():
            assert np.abs(logits - wanted).max() < 0.05
        await asyncio.sleep(0.05)
        assert [s.sessions for s in cluster.servers.values()] == [0, 0, 0]
