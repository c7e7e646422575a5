"""`puma party`, `upload`, `models`, `generate --cluster`, `ping`, `doctor` as processes."""

import json
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from hosts import addresses_for, write_config
from party_processes import ROOT, Party, puma, three_parties
from reference import save_model, save_tokenizer
from waiting import HANG

from protocols.base.shares import COMPUTING, Role
from protocols.errors import Busy
from puma_actors.api.local import LocalCluster
from puma_actors.api.remote import RemoteCluster
from puma_actors.hosts.config import load_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """The folder of `parties`, with a client's configuration."""
    with tempfile.TemporaryDirectory(prefix="puma-") as path:
        yield Path(path)


@pytest.fixture(scope="module")
def parties(place: Path, certificates: Path) -> Iterator[dict[Role, Party]]:
    """For two tests, of which the second ends them."""
    addresses = addresses_for("tls", place)
    write_config(place / "client.toml", addresses, certificates)
    with three_parties(place, addresses, certificates) as started:
        yield started


def test_a_client_is_told_which_kind_of_model_it_is(
    place: Path, parties: dict[Role, Party], tmp_path: Path
) -> None:
    model = save_tokenizer(save_model(tmp_path / "model", seed=3))
    where = ("--cluster", place / "client.toml")
    ask = ("-p", "I see the cat", "-n", "2")
    insist = ("--require", "private-weights")

    uploaded = puma("upload", model, "--name", "open", "--public-weights", *where).stdout
    assert "open is at all three parties, with public weights" in uploaded
    listed = json.loads(puma("models", "list", "--json", *where).stdout)["models"]["open"]
    assert {entry["weights"] for entry in listed["parties"].values()} == {"public"}
    assert ", public" in puma("models", "list", *where).stdout
    asked = puma("generate", *where, "-m", "open", *ask)
    assert "note: public weights: the parties know the model, not the prompt" in asked.stderr
    assert "the weights are public" in " ".join(asked.stderr.split())
    refused = puma("generate", *ask, *where, "-m", "open", *insist, code=2).stderr
    assert "model open has public weights, and private-weights is required" in refused

    told = json.loads(puma("upload", model, "--name", "own", "--json", *where).stdout)
    assert told["weights"] == "private"
    asked = puma("generate", *where, "-m", "own", "--json", *ask, *insist)
    assert "note: private weights: no party knows the model" in asked.stderr
    assert json.loads(asked.stdout)["weights"] == "private"
    assert "open (public weights) removed from" in puma("models", "remove", "open", *where).stdout


def test_five_roles_in_processes_of_their_own(
    place: Path, parties: dict[Role, Party], tmp_path: Path
) -> None:
    model = save_tokenizer(save_model(tmp_path / "model", seed=3))
    config = place / "client.toml"
    where = ("--cluster", config)
    before = {role: len(party.events()) for role, party in parties.items()}

    assert "all three parties" in puma("upload", model, "--name", "tiny", *where).stdout
    listed = json.loads(puma("models", "list", "--json", *where).stdout)["models"]
    assert listed["tiny"]["problem"] == ""
    assert set(listed["tiny"]["parties"]) == set(COMPUTING)

    prompt = ("-p", "I see the cat", "-n", "3", "--json")
    answer = json.loads(puma("generate", *where, "-m", "tiny", *prompt).stdout)
    assert set(answer["seconds"]) == {"load", "connect", "prefill", "decode"}

    async def locally() -> list[int | None]:
        async with LocalCluster.from_pretrained(model) as cluster:
            return [t.id async for t in cluster.generate("I see the cat", max_new_tokens=3)]

    assert answer["token_ids"] == anyio.run(locally)
    assert "has no model 'other'" in puma("generate", *where, "-m", "other", *prompt, code=2).stderr

    ways = json.loads(puma("ping", "--json", *where).stdout)["ways"]
    assert len(ways) == 9
    assert all(way["throughput"] > 0 and not way["problem"] for way in ways)

    anyio.run(drain, config, parties[Role.EVALUATOR_A])
    ways = json.loads(puma("ping", "--json", *where, code=1).stdout)["ways"]
    assert {way["to"] for way in ways if way["problem"]} == {"evaluator-a"}
    for role in (Role.DEALER, Role.EVALUATOR_B):
        parties[role].process.send_signal(signal.SIGTERM)
        assert parties[role].process.wait(HANG) == 0
    for role, party in parties.items():
        events = party.events()[before[role] :]
        assert events[-1]["event"] == "stopped"
        sessions = {e["session"] for e in events if e["event"] == "session begins"}
        assert len(sessions) == 2
        assert "I see" not in party.log.read_text()


async def drain(config: Path, party: Party) -> None:
    """SIGTERM while a session runs: it may finish, others are refused. The grace time is no limit
    here: it runs on while other processes start, which may take long.
    """
    cluster = load_config(config, environ={})
    async with await RemoteCluster.open(cluster, "tiny") as remote:
        party.process.send_signal(signal.SIGTERM)
        await anyio.to_thread.run_sync(party.wait_for, "draining")
        with pytest.raises(Busy, match="evaluator-a is shutting down"):
            await RemoteCluster.open(cluster, "tiny")
        command = ("generate", "--cluster", config, "-m", "tiny", "-p", "I")
        refused = await anyio.to_thread.run_sync(lambda: puma(*command, code=3))
        assert "busy: evaluator-a" in refused.stderr
        assert (await remote.forward([1, 3, 7])).shape[0] == 3
    assert await anyio.to_thread.run_sync(party.process.wait, HANG) == 0


def test_a_party_that_cannot_start(folder: Path, certificates: Path) -> None:
    config = write_config(folder / "x.toml", addresses_for("tls", folder), certificates)
    text = config.read_text()
    config.write_text(text.replace(str(certificates), str(folder)))
    last = puma("party", "--role", "dealer", "--config", config, code=2).stderr.splitlines()[-1]
    assert "does not exist: create an authority" in last
    assert "--role is missing" in puma("party", "--config", config, code=2).stderr
    assert (
        "unknown key"
        in puma("party", "--role", "dealer", "--config", _with(config, "x = 1\n"), code=2).stderr
    )


def _with(config: Path, line: str) -> Path:
    config.write_text(line + config.read_text())
    return config


def test_the_example_is_printed() -> None:
    assert puma("party", "--example").stdout == (ROOT / "docs" / "cluster.toml").read_text()


def test_doctor(folder: Path, certificates: Path) -> None:
    config = write_config(folder / "d.toml", addresses_for("tls", folder), certificates)
    found = json.loads(puma("doctor", "--json", "--config", config, "--role", "dealer").stdout)
    states = {check["name"]: check["state"] for check in found["checks"]}
    assert states["certificate of dealer 'dealer'"] == "ok"
    assert states["store"] == states["address of dealer"] == "ok"
    text = config.read_text()
    config.write_text(text.replace(str(certificates), str(folder)))
    shown = puma("doctor", "--config", config, "--role", "dealer", code=1).stdout
    assert "problem" in shown
