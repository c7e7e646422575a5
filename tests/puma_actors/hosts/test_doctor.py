"""What is found about a machine, and what would stop a run on it."""

import socket
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from drafts import put
from hosts import addresses_for, hosts, write_config
from networks import make_certificates
from waiting import HANG

from protocols.base.shares import Role
from puma_actors.base.certs import issue
from puma_actors.base.identity import PeerIdentity
from puma_actors.hosts import doctor
from puma_actors.hosts.config import ClusterConfig, load_config
from puma_actors.hosts.doctor import examine
from puma_actors.hosts.stores.store import ModelStore


@pytest.fixture
def config(tmp_path: Path, certificates: Path) -> ClusterConfig:
    path = write_config(tmp_path / "c.toml", addresses_for("tls", tmp_path), certificates)
    return load_config(path, environ={})


def states(config: ClusterConfig | None, role: Role | None = Role.DEALER) -> dict[str, Any]:
    return {check.name: check for check in examine(config, role)}


def test_a_machine_without_a_cluster() -> None:
    found = states(None, None)
    assert {"system", "cores", "memory"} <= set(found)
    assert not any(check.state == "problem" for check in found.values())
    assert not any("certificate" in name for name in found)


def test_a_party_that_can_start(config: ClusterConfig) -> None:
    found = states(config)
    assert not any(check.state == "problem" for check in found.values()), found
    assert "good for" in found["certificate of dealer 'dealer'"].text
    assert "free" in found["address of dealer"].text


def test_a_bound_port(config: ClusterConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_ANSWER", 0.05)  # there will be none
    port = int(config.parties[Role.DEALER].rpartition(":")[2])
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        check = states(config)["address of dealer"]
        assert check.state == "problem"
        assert "no one there answers as this party" in check.text
        assert states(config, Role.CLIENT)["address of dealer"].state == "ok"


@pytest.mark.parametrize("scheme", ["tls", "unix"])
async def test_an_address_held_by_this_party(
    folder: Path, certificates: Path, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_ANSWER", HANG)
    async with hosts(folder, certificates, scheme) as cluster:
        config = cluster.config("dealer")
        check = (await anyio.to_thread.run_sync(states, config))["address of dealer"]
        assert (check.state, "held by dealer 'dealer', which runs" in check.text) == ("ok", True)
        # The same address in another role belongs to another party.
        swapped = {**cluster.addresses, Role.EVALUATOR_A: cluster.addresses[Role.DEALER]}
        swapped[Role.DEALER] = cluster.addresses[Role.EVALUATOR_A]
        if scheme == "tls":
            path = write_config(folder / "other.toml", swapped, certificates)
            other = load_config(path, environ={})
            check = (await anyio.to_thread.run_sync(states, other))["address of dealer"]
            assert check.state == "problem"


def test_stored_models_are_verified(config: ClusterConfig) -> None:
    with ModelStore(config.path(config.store), Role.DEALER) as store:
        for name in ("good", "hurt", "seen"):
            put(store, name)
        found = states(config)  # while a party has the store
        assert "3 files" in found["model good"].text
        assert "all checksums are right" in found["model good"].text
        path = store.folder / "hurt" / "seed-2"
        path.write_bytes(bytes(path.stat().st_size))
        (store.folder / "seen" / "seed-1").chmod(0o644)
        found = states(config)
        assert {name: check.state for name, check in found.items() if "model" in name} == {
            "model good": "ok",
            "model hurt": "problem",
            "model seen": "problem",
        }
        assert "seed-2 is damaged: its checksum is wrong" in found["model hurt"].text
        assert "seed-1 can be read by others" in found["model seen"].text
        quick = {check.name: check for check in examine(config, Role.DEALER, quick=True)}
        assert "--quick" in quick["model hurt"].text


def test_certificates_that_miss_or_soon_expire(config: ClusterConfig, tmp_path: Path) -> None:
    folder = make_certificates(tmp_path / "certs")
    issue(folder, PeerIdentity(Role.DEALER, "dora"), ["localhost"], days=3)
    changed = config.model_copy(update={"certificates": str(folder), "name": "dora"})
    assert states(changed)["certificate of dealer 'dora'"].state == "warning"
    missing = states(changed, Role.CLIENT)["certificate of client 'dora'"]
    assert missing.state == "problem"
    assert "puma certs issue" in missing.text


def test_an_open_store_and_too_little_memory(
    config: ClusterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.path(config.store).mkdir(mode=0o755)
    monkeypatch.setattr(doctor, "available_memory", lambda: 1 << 30)
    found = states(config)
    assert found["store"].state == "problem"
    assert "chmod 700" in found["store"].text
    assert found["memory"].state in ("warning", "problem")
    assert "limits.memory" in found["memory"].text


def test_sockets_and_unknown_hosts(config: ClusterConfig, folder: Path, certificates: Path) -> None:
    path = write_config(folder / "c.toml", addresses_for("unix", folder), certificates)
    found = states(load_config(path, environ={}))
    assert found["address of dealer"].state == "ok"
    assert found["address of evaluator-a"].state == "warning"
    assert "no address is tls://" in found["certificates"].text
    gone = addresses_for("unix", folder / "gone")
    path = write_config(folder / "d.toml", gone, certificates)
    assert states(load_config(path, environ={}))["address of dealer"].state == "problem"
    bad = {**addresses_for("tls", folder), Role.DEALER: "tls://no.such.host.invalid:1"}
    path = write_config(folder / "e.toml", bad, certificates)
    assert states(load_config(path, environ={}))["address of dealer"].state == "problem"
