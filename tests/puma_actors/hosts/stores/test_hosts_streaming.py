"""Models larger than a party's memory: their matrices stay in its store."""

from pathlib import Path

import numpy as np
import pytest
from hosts import hosts, quiet
from reference import save_model, torch_logits, torch_model

from models.checkpoints.weights import open_checkpoint
from models.programs.plan import draft_plan
from models.programs.predict import share_bytes, streamed_bytes
from protocols.base.shares import EVALUATORS, Role
from protocols.errors import PeerFailed, StoreError
from protocols.streamed import Streamed
from puma_actors.api.remote import RemoteCluster
from puma_actors.hosts.residents import session_bytes

IDS = [1, 3, 7]
HURT = Role.EVALUATOR_B
FILE = "00003.words"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), seed=3, vocab_size=3000)


@pytest.fixture(scope="module")
def limits(model: Path) -> str:
    """Memory for a session on the model, but not with its matrices."""
    with open_checkpoint(model) as checkpoint:
        plan = draft_plan(checkpoint.config)
    whole, streamed = share_bytes(plan.config), streamed_bytes(plan.config)
    assert whole > streamed
    memory = session_bytes(plan, 2048) + (whole + streamed) // 2
    return f"[limits]\nmemory = {memory}\n"


@pytest.fixture(scope="module")
def expected(model: Path) -> np.ndarray:
    with open_checkpoint(model) as checkpoint:
        return torch_logits(torch_model(checkpoint), IDS)


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        first = file.read(1)[0]
        file.seek(0)
        file.write(bytes([first ^ 1]))


async def test_it_is_served_also_after_a_restart(
    folder: Path, certificates: Path, model: Path, limits: str, expected: np.ndarray
) -> None:
    async with hosts(folder, certificates, "unix", limits) as cluster:
        await cluster.upload(model)
        for role in (*EVALUATORS, Role.DEALER):
            async with await RemoteCluster.open(cluster.client, "tiny") as remote:
                np.testing.assert_allclose(await remote.forward(IDS), expected, atol=0.02)
            await quiet(cluster)
            held = cluster.servers[role].residents._loaded["tiny"].parameters
            assert isinstance(held["layers.0.qkv"].factor, Streamed)
            assert isinstance(held["table"].factor, Streamed)
            await cluster.kill(role)
            await cluster.start(role)
            await cluster.linked()
        async with await RemoteCluster.open(cluster.client, "tiny") as remote:
            np.testing.assert_allclose(await remote.forward(IDS), expected, atol=0.02)


async def test_a_flipped_byte_is_found_at_every_load(
    folder: Path, certificates: Path, model: Path, limits: str, expected: np.ndarray
) -> None:
    async with hosts(folder, certificates, "unix", limits) as cluster:
        await cluster.upload(model)
        file = folder / f"{HURT}-store" / "tiny" / FILE
        async with await RemoteCluster.open(cluster.client, "tiny") as remote:
            await remote.forward(IDS)
        await quiet(cluster)
        cluster.servers[HURT].residents.drop("tiny")
        flip(file)
        for _ in range(2):
            with pytest.raises(StoreError, match=rf"tiny at {HURT}: {FILE} is damaged"):
                await RemoteCluster.open(cluster.client, "tiny")
        flip(file)
        async with await RemoteCluster.open(cluster.client, "tiny") as remote:
            np.testing.assert_allclose(await remote.forward(IDS), expected, atol=0.02)


async def test_a_file_that_changes_while_it_is_used_ends_the_session(
    folder: Path, certificates: Path, model: Path, limits: str
) -> None:
    async with hosts(folder, certificates, "unix", limits) as cluster:
        await cluster.upload(model)
        with pytest.raises(PeerFailed, match=rf"{HURT}.*{FILE} was changed while the model is in"):
            async with await RemoteCluster.open(cluster.client, "tiny") as remote:
                await remote.forward(IDS)
                flip(folder / f"{HURT}-store" / "tiny" / FILE)
                await remote.forward(IDS)
        await quiet(cluster)


async def test_a_removed_model_can_be_used_to_the_end(
    folder: Path, certificates: Path, model: Path, limits: str, expected: np.ndarray
) -> None:
    async with hosts(folder, certificates, "unix", limits) as cluster:
        await cluster.upload(model)
        async with await RemoteCluster.open(cluster.client, "tiny") as remote:
            await remote.forward(IDS)
            for role in EVALUATORS:
                cluster.servers[role].store.remove("tiny")
            np.testing.assert_allclose(await remote.forward(IDS), expected, atol=0.02)
