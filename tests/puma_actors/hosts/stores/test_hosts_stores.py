"""Stored models at three parties: damage is found at every load; what some cannot do is told."""

import json
import sys
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
import pytest
from hosts import Hosts, addresses_for, hosts, list_models, write_config
from waiting import HANG, in_time

from protocols.base.shares import COMPUTING, Role
from protocols.errors import (
    ConfigError,
    ConnectError,
    ConnectionLostError,
    StoreError,
    TransportError,
)
from puma_actors.api.remote import RemoteCluster
from puma_actors.cli import main
from puma_actors.cli.output import stdout
from puma_actors.hosts import caller, visits
from puma_actors.hosts.admission import Answer, ModelEntry
from puma_actors.hosts.caller import Call, problem_of, remove_model, survey_models
from puma_actors.hosts.config import load_config
from puma_actors.hosts.stores.store import ModelStore
from puma_actors.transports.memory import memory_pair

IDS = [1, 3, 7]
HURT = Role.EVALUATOR_A
FILE = "00003.words"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list verifies all it holds, however slow the disk is."""
    monkeypatch.setattr(visits, "_INSPECTION", HANG)


def flip(path: Path) -> None:
    """One bit, in place."""
    with path.open("r+b") as file:
        file.seek(9)
        (byte,) = file.read(1)
        file.seek(9)
        file.write(bytes([byte ^ 1]))


def evict(cluster: Hosts, name: str) -> None:
    """As if another model had needed the room, at every party."""
    for server in cluster.servers.values():
        server.residents.drop(name)


# -- damage ----------------------------------------------------------------------------------------


async def test_a_model_that_is_loaded_again_is_verified_again(
    folder: Path, certificates: Path, model: Path
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        await cluster.upload(model, "other")
        async with await RemoteCluster.open(cluster.client, "tiny") as remote:
            good = await remote.forward(IDS)
        async with await RemoteCluster.open(cluster.client, "other") as running:
            before = await running.forward(IDS)
            evict(cluster, "tiny")
            flip(folder / f"{HURT}-store" / "tiny" / FILE)
            for _ in range(2):
                with pytest.raises(StoreError, match=rf"tiny at {HURT}: {FILE} is damaged"):
                    await RemoteCluster.open(cluster.client, "tiny")
            assert np.abs(await running.forward(IDS) - before).max() < 0.05
        held = (await list_models(cluster.client))["tiny"]
        assert f"{FILE} is damaged" in problem_of(held)
        assert [role for role, entry in held.items() if entry.problem] == [HURT]
        flip(folder / f"{HURT}-store" / "tiny" / FILE)  # repaired
        async with await RemoteCluster.open(cluster.client, "tiny") as remote:
            assert np.abs(await remote.forward(IDS) - good).max() < 0.05


async def test_a_file_that_changes_under_a_loaded_model(
    folder: Path, certificates: Path, model: Path
) -> None:
    """A party computes with the verified bytes, even if the files change."""
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        async with await RemoteCluster.open(cluster.client, "tiny") as remote:
            before = await remote.forward(IDS)
            for role in COMPUTING:
                for path in (folder / f"{role}-store" / "tiny").glob("*.words"):
                    flip(path)
                    path.write_bytes(b"")  # a mapping of it would end the process
            assert np.abs(await remote.forward(IDS) - before).max() < 0.05


async def test_the_list_says_what_is_damaged(folder: Path, certificates: Path, model: Path) -> None:
    """Also after a start, when nothing was loaded yet; and it reads files once."""
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        (held,) = (await list_models(cluster.client)).values()
        assert problem_of(held) == ""
        assert all(entry.verified for entry in held.values())
        flip(folder / f"{HURT}-store" / "tiny" / FILE)
        await cluster.kill(HURT)
        await cluster.start(HURT)
        (held,) = (await list_models(cluster.client)).values()
        assert f"{FILE} is damaged" in problem_of(held)


async def test_a_list_that_takes_too_long_says_so(
    folder: Path, certificates: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visits, "_INSPECTION", 0.0)
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        (held,) = (await list_models(cluster.client)).values()
        assert problem_of(held) == ""
        assert not any(entry.verified for entry in held.values())


async def test_lists_do_not_hold_up_a_session(
    folder: Path, certificates: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They read in a thread: the event loop goes on."""
    begun, go_on = anyio.Event(), anyio.Event()
    usual = ModelStore.inspect

    def slow(self: ModelStore, name: str, seconds: float = 0.0) -> Any:
        if seconds and self.role is Role.DEALER:
            anyio.from_thread.run_sync(begun.set)
            anyio.from_thread.run(go_on.wait)
        return usual(self, name, seconds)

    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        monkeypatch.setattr(ModelStore, "inspect", slow)
        async with anyio.create_task_group() as group:
            group.start_soon(list_models, cluster.client)
            await begun.wait()
            async with await RemoteCluster.open(cluster.client, "tiny") as remote:
                await remote.forward(IDS)
            go_on.set()


# -- parts of a cluster ----------------------------------------------------------------------------


async def test_removing_while_a_party_is_away(
    folder: Path, certificates: Path, model: Path
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        await cluster.kill(HURT)
        with anyio.fail_after(cluster.client.timeouts.retry):
            found = await remove_model(cluster.client, "tiny")
        assert {role: each.state for role, each in found.items()} == {
            Role.DEALER: "removed",
            Role.EVALUATOR_A: "unreachable",
            Role.EVALUATOR_B: "removed",
        }
        assert str(HURT) in found[HURT].problem
        await cluster.start(HURT)
        await cluster.linked()
        held = (await list_models(cluster.client))["tiny"]
        assert problem_of(held) == "missing at dealer, evaluator-b"
        found = await remove_model(cluster.client, "tiny")
        assert [each.state for each in found.values()] == ["none", "removed", "none"]
        assert all(each.done for each in found.values())
        with pytest.raises(ConfigError, match="no party has a model 'tiny'"):
            await remove_model(cluster.client, "tiny")


@pytest.mark.parametrize("lost", [True, False])
async def test_what_a_party_has_answered_holds_however_it_hangs_up(
    lost: bool, folder: Path, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang_up() -> None:
        if lost:
            raise ConnectionLostError("the connection was lost")
        await anyio.sleep_forever()

    async def answer(config: Any, role: Role, peer: Role, *args: Any, **options: Any) -> Call:
        channel, _ = memory_pair()
        monkeypatch.setattr(channel, "aclose", hang_up)
        removed = [ModelEntry(name="tiny")]
        return Call(channel, Answer(role=str(peer), name="", models=removed), [], b"")

    monkeypatch.setattr(caller, "call", answer)
    monkeypatch.setattr(caller, "_VISIT", -HANG)  # the time is over when the answer has come
    addresses = addresses_for("unix", folder)
    config = load_config(write_config(folder / "c.toml", addresses, certificates), environ={})
    with in_time():
        found = await remove_model(config, "tiny")
    assert [each.state for each in found.values()] == ["removed"] * 3


async def test_removing_from_a_disk_that_cannot_be_written_to(
    folder: Path, certificates: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if f"{HURT}-store" in str(self):
            raise OSError(30, "Read-only file system")
        return usual(self, target)

    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", rename)
            found = await remove_model(cluster.client, "tiny")
        assert [each.state for each in found.values()] == ["removed", "kept", "removed"]
        assert "evaluator-a cannot remove model tiny (Read-only file system)" in found[HURT].problem
        found = await remove_model(cluster.client, "tiny")
        assert all(each.done for each in found.values())


async def test_a_list_of_those_that_answer(folder: Path, certificates: Path, model: Path) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        await cluster.kill(HURT)
        listing = await survey_models(cluster.client)
        held = listing.models["tiny"]
        assert set(held) == {Role.DEALER, Role.EVALUATOR_B}
        assert problem_of(held, listing.silent) == "no answer from evaluator-a"
        assert list(listing.silent) == [HURT]
        with pytest.raises(TransportError, match=str(HURT)):
            await list_models(cluster.client)
        for role in (Role.DEALER, Role.EVALUATOR_B):
            await cluster.kill(role)
        with pytest.raises(ConnectError, match="nobody listens"):
            await survey_models(cluster.client)


async def test_commands(
    folder: Path,
    certificates: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def puma(*arguments: str, code: int = 0) -> tuple[str, str]:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["puma", "models", *arguments, "--cluster", str(config)])
        try:
            main()
        except SystemExit as stop:
            assert stop.code == code
        else:
            assert code == 0
        out, err = capfd.readouterr()
        return out, err

    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        monkeypatch.setattr(stdout, "_width", 200)  # no cell of the table is folded
        config = folder / "client.toml"

        async def run(*arguments: str, code: int = 0) -> tuple[str, str]:
            return await anyio.to_thread.run_sync(lambda: puma(*arguments, code=code))

        assert "ready" in (await run("list"))[0]
        flip(folder / f"{HURT}-store" / "tiny" / FILE)
        assert "damaged" in (await run("list"))[0]
        flip(folder / f"{HURT}-store" / "tiny" / FILE)
        await cluster.kill(HURT)
        out, err = await run("list")
        assert "no answer from evaluator-a" in " ".join(out.split())
        assert "no answer from evaluator-a: " in err
        listed = json.loads((await run("list", "--json"))[0])
        assert list(listed["no_answer"]) == ["evaluator-a"]
        assert set(listed["models"]["tiny"]["parties"]) == {"dealer", "evaluator-b"}
        out, err = await run("remove", "tiny", code=1)
        assert "tiny removed from dealer, evaluator-b" in out
        assert "asking the three parties" in err
        assert "evaluator-a (unreachable): " in err
        assert "run `puma models remove tiny` again later" in err
        again = json.loads((await run("remove", "tiny", "--json", code=1))[0])
        assert again["done"] is False
        assert [each["state"] for each in again["parties"].values()] == [
            "none",
            "unreachable",
            "none",
        ]
        await cluster.start(HURT)
        await cluster.linked()
        out, _ = await run("remove", "tiny")
        assert "tiny removed from evaluator-a" in out
        assert "dealer did not have it" in out


def test_a_store_on_a_read_only_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ModelStore(tmp_path / "store", HURT) as store:
        (store.folder / "tiny").mkdir()

        def rename(self: Path, target: Path) -> Path:
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr(Path, "rename", rename)
        with pytest.raises(StoreError, match=r"cannot remove model tiny .*check the rights"):
            store.remove("tiny")
        assert "tiny" in store
