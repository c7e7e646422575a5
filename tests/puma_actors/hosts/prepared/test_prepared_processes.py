"""`puma prepare`, and parties that are killed while units are made and used."""

import json
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from hosts import addresses_for, write_config
from party_processes import Party, puma

from models.checkpoints.weights import open_checkpoint
from protocols.base.shares import COMPUTING, Role
from protocols.errors import PeerFailed, PumaError
from puma_actors.api.remote import PrepareOptions, RemoteCluster, prepare_units, upload_model
from puma_actors.hosts.config import ClusterConfig, load_config
from puma_actors.hosts.prepared.asking import Preparing
from puma_actors.hosts.stores.store import ModelStore
from puma_actors.prepare.shelf import FOLDER, Shelf

pytestmark = pytest.mark.slow

IDS = [1, 3, 7]
NEW = 3


class Parties:
    """Three processes, and what each role has logged over all its lives."""

    def __init__(self, folder: Path, certificates: Path) -> None:
        addresses = addresses_for("unix", folder)
        self.client = write_config(folder / "client.toml", addresses, certificates)
        self.configs = {
            role: write_config(folder / f"{role}.toml", addresses, certificates)
            for role in COMPUTING
        }
        self.running = {role: Party(role, path) for role, path in self.configs.items()}
        self.used: dict[Role, list[str]] = {role: [] for role in COMPUTING}
        self.linked()

    @property
    def config(self) -> ClusterConfig:
        return load_config(self.client, environ={})

    def linked(self) -> None:
        for party in self.running.values():
            party.wait_for("link up", 2)

    def note(self, role: Role) -> None:
        """Keep which units a party has said to use; a new life overwrites its log."""
        events = self.running[role].events()
        self.used[role] += [e["unit"] for e in events if e["event"] == "prepared unit in use"]

    def kill(self, role: Role) -> None:
        self.running[role].process.kill()
        self.running[role].process.wait()

    def restart(self, role: Role) -> None:
        self.note(role)
        self.running[role] = Party(role, self.configs[role])
        others = [party for other, party in self.running.items() if other is not role]
        self.running[role].wait_for("link up", 2)
        for party in others:
            party.wait_for("link lost")


@pytest.fixture
def parties(folder: Path, certificates: Path) -> Iterator[Parties]:
    made = Parties(folder, certificates)
    try:
        yield made
    finally:
        for party in made.running.values():
            party.process.kill()
            party.process.wait()


async def answer(parties: Parties, prepared: str, killed: Role | None = None) -> list[int | None]:
    """An answer; after its first token a party may be killed."""
    opened = await RemoteCluster.open(parties.config, "tiny", prepared=prepared)  # type: ignore[arg-type]
    tokens = []
    async with opened as remote:
        async for token in remote.generate(IDS, max_new_tokens=NEW, eos_token_id=None):
            tokens.append(token.id)
            if killed is not None:
                parties.kill(killed)
    return tokens


async def prepare_until(parties: Parties, killed: Role) -> None:
    """Kill a party in the middle of a unit, after a whole one."""

    def report(found: Preparing) -> None:
        if found.units and found.steps:
            parties.kill(killed)

    options = PrepareOptions(tokens_in=len(IDS), tokens_out=NEW, count=1000)
    with pytest.raises(PumaError):
        await prepare_units(parties.config, "tiny", options, report=report)


def test_killed_while_units_are_made_and_used(parties: Parties, model: Path) -> None:
    where = ("--cluster", parties.client)

    async def share() -> None:
        with open_checkpoint(model) as checkpoint:
            await upload_model(parties.config, checkpoint, "tiny")

    anyio.run(share)
    shape = ("-m", "tiny", "--tokens-in", len(IDS), "--tokens-out", NEW)
    made = json.loads(puma("prepare", *shape, "--count", 2, "--json", *where).stdout)
    assert (made["count"], made["shape"]["tokens"]) == (2, len(IDS))
    listed = puma("prepare", "--list", *where).stdout.split("\n")
    assert listed[1].split()[:4] == ["tiny", "2", str(len(IDS)), str(NEW)]

    plain = anyio.run(answer, parties, "never")
    with pytest.raises(PeerFailed):
        anyio.run(answer, parties, "require", Role.EVALUATOR_B)
    parties.restart(Role.EVALUATOR_B)
    assert anyio.run(answer, parties, "require") == plain
    anyio.run(prepare_until, parties, Role.DEALER)
    for role in COMPUTING:
        parties.note(role)
        parties.kill(role)
        used = parties.used[role]
        assert len(set(used)) == len(used) == 2
        store_folder = parties.configs[role].parent / f"{role}-store"
        with ModelStore(store_folder, role) as store:  # as the next process does
            shelf = Shelf(store_folder / FOLDER, role, 0)
            shelf.open(store.uploads())
            (upload,) = store.uploads()
        (count, _), *_ = shelf.stock(upload).values()
        names = {path.name for path in (store_folder / FOLDER).iterdir()}
        assert len(names) == count >= 1
        assert not {name.removesuffix(".unit") for name in names} & set(used)
