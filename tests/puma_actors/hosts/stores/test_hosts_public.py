"""Public weights at parties of their own: the evaluators keep the checkpoint's own bytes."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacks import serves
from family_variants import outputs
from gguf_files import tiny, write
from hosts import hosts, list_models, quiet
from tiny_models import class_of, save, tiny_model
from uniformity import check_uniform

from models.checkpoints.weights import open_checkpoint
from models.programs.opened import opened_bytes
from models.programs.plan import draft_plan
from models.programs.steps import RequestSettings
from protocols.base.prf import KeyRing
from protocols.base.shares import COMPUTING, EVALUATORS, Role
from protocols.errors import ConfigError
from protocols.public_weight import PublicTable, PublicWeight
from puma_actors.api.local import LocalCluster
from puma_actors.api.remote import RemoteCluster, upload_model
from puma_actors.hosts.caller import problem_of
from puma_actors.hosts.residents import session_bytes
from puma_actors.roles import public_sending
from puma_actors.session.inference import InferenceLink

IDS = [5, 9, 30, 2, 17]
D = Role.DEALER


def stored(folder: Path, model_type: str, dtype: torch.dtype) -> np.ndarray:
    """Save a small checkpoint; what transformers answers to `IDS` with the stored values."""
    folder.mkdir()
    save(tiny_model(model_type, "causal-lm").to(dtype), folder)
    model = class_of(model_type, "causal-lm").from_pretrained(folder, dtype=torch.float32).eval()
    return outputs(model, "causal-lm", IDS)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("public") / "model"
    stored(folder, "llama", torch.bfloat16)
    return folder


def is_mapped(data: Any) -> bool:
    """Whether an array is a view of a mapped file."""
    while isinstance(data, np.ndarray):
        data = data.base
    return isinstance(data, memoryview) or type(data).__name__ == "mmap"


async def test_it_is_served_over_tls_and_after_a_restart(folder: Path, certificates: Path) -> None:
    model = folder / "model"
    expected = stored(model, "llama", torch.bfloat16)
    async with hosts(folder, certificates) as cluster:
        await cluster.upload(model, public_weights=True)
        for role in (*EVALUATORS, D):
            async with await RemoteCluster.open(cluster.client, "tiny") as remote:
                assert remote.weights == "public"
                np.testing.assert_allclose(await remote.forward(IDS), expected, atol=0.02)
            await quiet(cluster)
            await cluster.kill(role)
            await cluster.start(role)
            await cluster.linked()
        async with await RemoteCluster.open(cluster.client, "tiny") as remote:
            np.testing.assert_allclose(await remote.forward(IDS), expected, atol=0.02)


async def test_what_a_party_keeps(folder: Path, certificates: Path, model: Path) -> None:
    """The evaluators the file's own bytes, mapped; the dealer nothing."""
    with open_checkpoint(model) as checkpoint:
        packed = checkpoint.packed("model.layers.0.self_attn.o_proj.weight")
        assert packed is not None
        own = packed.data.tobytes()
        config = checkpoint.config
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model, public_weights=True)
        async with await RemoteCluster.open(cluster.client, "tiny") as remote:
            await remote.forward(IDS)
        await quiet(cluster)
        for role in COMPUTING:
            server = cluster.servers[role]
            files = {path.name: path for path in (folder / f"{role}-store" / "tiny").iterdir()}
            matrices = {name: path for name, path in files.items() if name.endswith(".matrix")}
            assert files.keys() - matrices.keys() == {"manifest.json"}
            assert bool(matrices) is not role.is_dealer
            assert any(own in path.read_bytes() for path in matrices.values()) is bool(matrices)
            assert all(path.stat().st_mode & 0o077 == 0 for path in files.values())
            held = server.residents._loaded["tiny"]
            assert held.nbytes == opened_bytes(config) == server.residents.used
            for handle in held.parameters.values():
                weight = handle.weight if isinstance(handle, PublicTable) else handle
                if isinstance(weight, PublicWeight):
                    assert bool(weight.parts) is not role.is_dealer
                    assert all(is_mapped(part.data) for part in weight.parts)
        one, two = (cluster.servers[r].store.manifest("tiny") for r in EVALUATORS)
        assert one.files == two.files


async def test_a_model_larger_than_the_memory_of_a_party(
    folder: Path, certificates: Path, model: Path
) -> None:
    """Mapped bytes are not counted: what private weights would need on disk is too much here."""
    with open_checkpoint(model) as checkpoint:
        plan, config = draft_plan(checkpoint.config), checkpoint.config
    memory = session_bytes(plan, 2048) + opened_bytes(config)
    async with hosts(folder, certificates, "unix", f"[limits]\nmemory = {memory}\n") as cluster:
        await cluster.upload(model, public_weights=True)
        await serves(cluster)


async def test_a_party_with_workers_maps_them_itself(
    folder: Path, certificates: Path, model: Path
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model, public_weights=True)
        for server in cluster.servers.values():
            server.residents._workers = object()  # type: ignore[assignment]
        await serves(cluster)


# -- the same numbers as in one process ------------------------------------------------------------


@pytest.fixture
def same_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every session draws the same masks."""

    def init(self: KeyRing, own: str, secrets: Mapping[str, bytes]) -> None:
        self._secrets = {
            peer: hashlib.sha256(" ".join(sorted((own, peer))).encode()).digest()
            for peer in (own, *secrets)
        }
        self._opened = set()

    monkeypatch.setattr(KeyRing, "__init__", init)


async def both(folder: Path, certificates: Path, model: Path) -> None:
    """The same answer from hosts as from one process."""
    same = RequestSettings(tree="balanced", lanes=1)  # not each what is fastest there
    async with LocalCluster.from_pretrained(model, public_weights=True, settings=same) as local:
        wanted = [await local.forward(ids) for ids in (IDS, IDS[:1])]
    async with hosts(folder, certificates, "unix") as cluster:
        with open_checkpoint(model) as checkpoint:
            await upload_model(cluster.client, checkpoint, "tiny", public_weights=True)
        async with await RemoteCluster.open(cluster.client, "tiny", settings=same) as remote:
            for ids, answer in zip((IDS, IDS[:1]), wanted, strict=True):
                np.testing.assert_array_equal(await remote.forward(ids), answer)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen2"])
async def test_answers_to_the_bit(
    folder: Path,
    certificates: Path,
    same_keys: None,
    model_type: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if model_type == "gpt2":  # in many pieces, which end anywhere
        monkeypatch.setattr(public_sending, "PIECE_BYTES", 64 + 101)
    stored(folder / "model", model_type, torch.float16)
    await both(folder, certificates, folder / "model")


async def test_answers_of_a_gguf_to_the_bit(
    folder: Path, certificates: Path, same_keys: None
) -> None:
    write(folder / "model.gguf", tiny("llama"), "llama")
    await both(folder, certificates, folder / "model.gguf")


RUNS = 75
"""A bit that is always the same is found from 69 on."""


async def test_what_an_evaluator_hears_is_uniform(
    folder: Path, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save(tiny_model("llama", "causal-lm", num_hidden_layers=1), folder / "model")
    heard: dict[Role, dict[Any, bytes]] = {role: {} for role in Role}
    send = InferenceLink.send

    async def recorded(self: Any, to: Role, tag: Any, data: Sequence[Any], **how: Any) -> None:
        if to in EVALUATORS:
            parts = [bytes(memoryview(part).cast("B")) for part in data]
            # The last bits of a part may be there to fill a byte.
            heard[to][self.role, tag] = b"".join(part[:-1] for part in parts)
        await send(self, to, tag, data, **how)

    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model, public_weights=True)
        async with await RemoteCluster.open(cluster.client, "tiny") as remote:
            monkeypatch.setattr(InferenceLink, "send", recorded)
            rows: dict[Role, list[bytes]] = {role: [] for role in EVALUATORS}
            for _ in range(RUNS):
                await remote.forward([5])
                for role in EVALUATORS:
                    rows[role].append(b"".join(heard[role][tag] for tag in sorted(heard[role])))
                    heard[role].clear()
    for role, found in rows.items():
        views = np.stack([np.frombuffer(row, np.uint8) for row in found])
        assert views.shape[1] > 1000
        check_uniform(views, f"what {role} hears")


# -- what a client insists on ----------------------------------------------------------------------


async def test_a_client_may_insist_on_private_weights(
    folder: Path, certificates: Path, model: Path
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model, "open", public_weights=True)
        await cluster.upload(model, "own")
        held = await list_models(cluster.client, Role.CLIENT)
        for name, kind in (("open", "public"), ("own", "private")):
            assert {entry.weights for entry in held[name].values()} == {kind}
            assert problem_of(held[name]) == ""
            remote = await RemoteCluster.open(cluster.client, name)
            assert remote.weights == kind  # before it is entered
            await remote.aclose()
        with pytest.raises(ConfigError, match=r"model open has public weights.*nothing was sent"):
            await RemoteCluster.open(cluster.client, "open", require="private-weights")
        await quiet(cluster)
        with pytest.raises(ConfigError, match="require = 'public': use 'private-weights'"):
            await RemoteCluster.open(cluster.client, "own", require="public")  # type: ignore[arg-type]
        async with await RemoteCluster.open(
            cluster.client, "own", require="private-weights"
        ) as remote:
            assert (await remote.forward(IDS)).shape[0] == len(IDS)
