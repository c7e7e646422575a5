"""Uploads of public weights that are cut, and continued by the same call."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
import torch
from cut_uploads import IDS, Already, part
from hosts import Hosts, hosts, list_models, quiet
from tiny_models import save, tiny_model
from waiting import until

from protocols.base.shares import EVALUATORS, Role
from protocols.errors import PumaError
from puma_actors.api.local import LocalCluster
from puma_actors.api.remote import RemoteCluster
from puma_actors.hosts.stores.manifest import matrix_file
from puma_actors.roles import public_sending
from puma_actors.session.session import RoundScheduler

CUT = 5
"""The tensor in which uploads are cut."""
BEHIND = 96
"""Bytes of it that have arrived."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tiny_model("llama", "causal-lm").to(torch.bfloat16)
    return save(made, tmp_path_factory.mktemp("public"))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(public_sending, "PIECE_BYTES", 64 + 32)


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Role, int, int]]:
    """What was sent: to whom, of which tensor, from where on."""
    sent: list[tuple[Role, int, int]] = []
    send = RoundScheduler.send_control

    async def sending(
        self: RoundScheduler, to: Role, header: Any, buffers: Sequence[Any] = ()
    ) -> None:
        if header["do"] == "piece":
            sent.append((to, header["number"], header["start"]))
        await send(self, to, header, buffers)

    monkeypatch.setattr(RoundScheduler, "send_control", sending)
    return sent


async def cut(cluster: Hosts, model: Path) -> None:
    """The owner goes away in the middle of a tensor."""
    send = RoundScheduler.send_control
    files = [part(cluster.folder, role) / matrix_file(CUT) for role in EVALUATORS]

    async def sending(
        self: RoundScheduler, to: Role, header: Any, buffers: Sequence[Any] = ()
    ) -> None:
        if (header["do"], header.get("number"), header.get("start")) == ("piece", CUT, BEHIND):
            await until(lambda: all(f.exists() and f.stat().st_size > BEHIND for f in files))
            scope.cancel()
        await send(self, to, header, buffers)

    with anyio.CancelScope() as scope, pytest.MonkeyPatch.context() as patch:
        patch.setattr(RoundScheduler, "send_control", sending)
        await cluster.upload(model, public_weights=True)
    assert scope.cancelled_caught
    await quiet(cluster)
    assert await list_models(cluster.client) == {}


async def answers(cluster: Hosts, model: Path) -> None:
    async with LocalCluster.from_pretrained(model, public_weights=True) as local:
        wanted = await local.forward(IDS)
    async with await RemoteCluster.open(cluster.client, "tiny") as remote:
        np.testing.assert_allclose(await remote.forward(IDS), wanted, atol=0.02)
    await quiet(cluster)


async def test_an_owner_that_was_cut_sends_the_rest(
    folder: Path, certificates: Path, model: Path, pieces: list[tuple[Role, int, int]]
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cut(cluster, model)
        pieces.clear()
        already = Already()
        await cluster.upload(model, public_weights=True, already=already)
        ((held, whole),) = already.said
        assert 0 < held < whole
        assert {number for _, number, _ in pieces} == set(range(CUT, 11))
        assert min(start for _, number, start in pieces if number == CUT) > 0
        await answers(cluster, model)
        one, two = (cluster.servers[role].store.manifest("tiny") for role in EVALUATORS)
        assert one.files == two.files
        stored = (e.bytes for name, e in one.files.items() if name.endswith(".matrix"))
        assert 2 * sum(stored) == whole


async def test_a_damaged_part_is_sent_again(
    folder: Path, certificates: Path, model: Path, pieces: list[tuple[Role, int, int]]
) -> None:
    hurt = Role.EVALUATOR_B
    async with hosts(folder, certificates, "unix") as cluster:
        await cut(cluster, model)
        file = part(folder, hurt) / matrix_file(1)
        file.write_bytes(bytes(file.stat().st_size))
        await cluster.kill(hurt)
        await cluster.start(hurt)
        await cluster.linked()
        pieces.clear()
        await cluster.upload(model, public_weights=True)
        assert {to for to, number, _ in pieces if number == 1} == {hurt}
        await answers(cluster, model)


async def test_the_other_kind_is_another_upload(
    folder: Path, certificates: Path, model: Path, pieces: list[tuple[Role, int, int]]
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cut(cluster, model)
        already = Already()
        await cluster.upload(model, already=already)
        assert already.said[0][0] == 0
        async with await RemoteCluster.open(
            cluster.client, "tiny", require="private-weights"
        ) as remote:
            assert (await remote.forward(IDS)).shape[0] == len(IDS)


async def test_a_party_that_says_it_has_more_than_there_is(
    folder: Path, certificates: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = RoundScheduler.send_control

    async def sending(
        self: RoundScheduler, to: Role, header: Any, buffers: Sequence[Any] = ()
    ) -> None:
        if header["do"] == "held" and self.role is Role.EVALUATOR_A:
            header = {**header, "tensors": [10**6]}
        await send(self, to, header, buffers)

    monkeypatch.setattr(RoundScheduler, "send_control", sending)
    async with hosts(folder, certificates, "unix") as cluster:
        with pytest.raises(PumaError, match="evaluator-a has 1000000 bytes of table, more than"):
            await cluster.upload(model, public_weights=True)
        await quiet(cluster)
