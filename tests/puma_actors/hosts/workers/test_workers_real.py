"""Parties over real Dask clusters: processes of their own, over TLS."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dask_cluster import DaskCluster, dask_cluster, settings
from hosts import Hosts, hosts, quiet

from protocols.base import prf
from protocols.base.shares import COMPUTING, Role
from protocols.errors import Busy, PeerFailed
from puma_actors.api.remote import RemoteCluster
from puma_actors.hosts.workers.placement import Placed, Placement
from puma_actors.session import handshake
from puma_actors.session.inference import InferenceLink

pytestmark = pytest.mark.slow

IDS = [1, 3, 7]
OWN = Role.EVALUATOR_A


async def restart(cluster: Hosts, dask: DaskCluster) -> None:
    """Start the party of these workers anew, with them."""
    await cluster.kill(dask.role)
    first, table = settings(dask.certificates, dask.role, dask.address)
    await cluster.start(dask.role, table, first)
    await cluster.linked()


async def ask(cluster: Hosts) -> np.ndarray:
    async with await RemoteCluster.open(cluster.client, "tiny") as remote:
        answer = await remote.forward(IDS)
    await quiet(cluster)
    return answer


@contextmanager
def same_keys(sent: dict[Any, bytes]) -> Iterator[None]:
    """Each session draws the same; a digest of every message is noted."""
    send = InferenceLink.send

    def transcript(mine: Any, theirs: Any) -> bytes:
        return hashlib.sha256("".join(sorted((mine.role, theirs.role))).encode()).digest()

    async def noting(link: Any, to: Role, tag: Any, data: Any, *, online: bool) -> int:
        words = b"".join(bytes(memoryview(part).cast("B")) for part in data)
        sent[link.role, to, tag] = hashlib.sha256(words).digest()
        return await send(link, to, tag, data, online=online)

    class Rings(prf.KeyRing):
        def __init__(self, own: str, secrets: Any) -> None:
            super().__init__(own, {own: hashlib.sha256(own.encode()).digest(), **secrets})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handshake, "_transcript", transcript)
        patch.setattr(handshake, "_derive", lambda _, __, script: (script, script))
        patch.setattr("puma_actors.session.session.KeyRing", Rings)
        patch.setattr(InferenceLink, "send", noting)
        yield


async def test_answers_and_messages_are_the_same_to_the_bit(
    folder: Path, certificates: Path, model: Path, dask: DaskCluster, tmp_path: Path
) -> None:
    """With the same keys: no party computes with anything else, or says anything else."""
    sent: list[dict[Any, bytes]] = [{}, {}]
    with dask_cluster(tmp_path, Role.DEALER, "only") as of_dealer:
        async with hosts(folder, certificates, "unix") as cluster:
            await cluster.upload(model)
            with same_keys(sent[0]):
                alone = await ask(cluster)
            for each in (dask, of_dealer):
                await restart(cluster, each)
            with same_keys(sent[1]):
                spread = await ask(cluster)
            for role in COMPUTING:
                held = cluster.servers[role].residents._loaded["tiny"].parameters
                away = isinstance(held["layers.0.qkv"].factor, Placed)
                assert away is (role is not Role.EVALUATOR_B)
    np.testing.assert_array_equal(alone, spread)
    assert len(sent[0]) > 100
    assert sent[0] == sent[1]


async def test_a_killed_worker_ends_the_session_and_the_rest_take_over(
    folder: Path, certificates: Path, model: Path, wanted: np.ndarray, dask: DaskCluster
) -> None:
    dask.add(*{"one", "two"} - dask.workers.keys())
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        await restart(cluster, dask)
        stored = {each.name for each in (folder / f"{OWN}-store" / "tiny").iterdir()}
        with pytest.raises(PeerFailed, match=rf"{OWN} lost its worker tls://.*workers that are"):
            async with await RemoteCluster.open(cluster.client, "tiny") as remote:
                await remote.forward(IDS)
                dask.kill("two")  # the session is idle, and ends all the same, at every party
                await quiet(cluster)
        np.testing.assert_allclose(await ask(cluster), wanted, atol=0.02)
        dask.kill("one")
        with pytest.raises(Busy, match=rf"{OWN} has a scheduler at .*, but no workers: start some"):
            await ask(cluster)
        await quiet(cluster)
        dask.add("three")
        np.testing.assert_allclose(await ask(cluster), wanted, atol=0.02)
        assert {each.name for each in (folder / f"{OWN}-store" / "tiny").iterdir()} == stored


async def test_a_worker_killed_between_sessions_is_not_used(
    folder: Path, certificates: Path, model: Path, wanted: np.ndarray, dask: DaskCluster
) -> None:
    dask.add(*{"one", "two"} - dask.workers.keys())
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        await restart(cluster, dask)
        await ask(cluster)
        dask.kill("one")
        np.testing.assert_allclose(await ask(cluster), wanted, atol=0.02)


async def test_a_worker_killed_while_weights_are_placed_is_named(
    folder: Path,
    certificates: Path,
    model: Path,
    wanted: np.ndarray,
    dask: DaskCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dask.add(*{"one", "two"} - dask.workers.keys())
    put = Placement.put

    async def killing(self: Placement, number: int, *args: Any) -> Placed:
        if number == 3 and "two" in dask.workers:
            dask.kill("two")
        return await put(self, number, *args)

    monkeypatch.setattr(Placement, "put", killing)
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        await restart(cluster, dask)
        with pytest.raises(Busy, match=rf"{OWN} lost its worker tls://"):
            await ask(cluster)
        await quiet(cluster)
        np.testing.assert_allclose(await ask(cluster), wanted, atol=0.02)
