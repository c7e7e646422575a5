"""Five processes, killed at any moment, and a model larger than what a party may use of memory."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from math import prod
from pathlib import Path

import anyio
import numpy as np
import pytest
from hosts import addresses_for, write_config
from large_llama import save_llama
from party_processes import Party, environment, puma
from waiting import HANG

from models.checkpoints.weights import open_checkpoint
from models.owner.calibrate import plain_run
from models.programs.families import load_parameters, parameters_of
from protocols.base.shares import COMPUTING, EVALUATORS, Role
from protocols.errors import EXIT_FAILURE, PumaError, StoreError
from puma_actors.api.remote import RemoteCluster
from puma_actors.hosts.config import load_config
from puma_actors.hosts.stores.incoming import FOLDER

IDS = [1, 3, 7]
MEMORY = 300_000_000
ROOM = 200_000_000
"""Bytes that a party may allocate when it has started, as the system counts them."""
HURT = Role.EVALUATOR_A
KILL = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
OWNER = f"""
import puma_actors.roles.sending as sending
def tell(self):
    if self._done > 0.3 * sum(self._sizes):
        {KILL}
sending.Pace._tell = tell
"""
"""An owner that is killed when it has sent a third."""
DEAD = f"""exec('''
from puma_actors.hosts.stores.draft import Draft
write = Draft.write
def killed(self, file, data):
    if file == "00030.words":
        {KILL}
    write(self, file, data)
Draft.write = killed
''')"""
"""A party that is killed when it gets a certain tensor."""


class Cluster:
    """Three parties as processes, each with a limit of memory."""

    def __init__(self, folder: Path, certificates: Path) -> None:
        self.folder = folder
        addresses = addresses_for("tls", folder)
        extra = f"[limits]\nmemory = {MEMORY}\n"
        self.files = {
            who: write_config(folder / f"{who}.toml", addresses, certificates, extra)
            for who in (*COMPUTING, "client")
        }
        self.parties: dict[Role, Party] = {}

    def start(self, *roles: Role, first: str = "pass") -> None:
        for role in roles:
            self.parties[role] = Party(role, self.files[role], first=first)

    def linked(self) -> None:
        """Wait for all links; from then on a party gets no more memory than it may use."""
        for party in self.parties.values():
            party.wait_for("link up", 2)
            process, used = party.process.pid, status(party, "VmData")
            soft, hard = resource.prlimit(process, resource.RLIMIT_DATA)
            if soft == resource.RLIM_INFINITY:
                resource.prlimit(process, resource.RLIMIT_DATA, (used + ROOM, hard))

    def kill(self, *roles: Role) -> None:
        for role in roles:
            self.parties[role].process.kill()
            self.parties[role].process.wait(HANG)

    def upload(self, model: Path, *more: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        where = ("--cluster", self.files["client"])
        return puma("upload", model, "--name", "big", "--no-tokenizer", *where, *more, code=code)

    def answer(self) -> np.ndarray:
        async def ask() -> np.ndarray:
            config = load_config(self.files["client"], environ={})
            async with await RemoteCluster.open(config, "big") as remote:
                return await remote.forward(IDS)

        return anyio.run(ask)

    def words(self, role: Role, folder: str = "big") -> dict[str, int]:
        found = (self.folder / f"{role}-store" / folder).glob("*.words")
        return {path.name: path.stat().st_size for path in found}


def status(party: Party, key: str) -> int:
    """Bytes, as the system counts them."""
    lines = Path(f"/proc/{party.process.pid}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])


@pytest.fixture
def cluster(folder: Path, certificates: Path) -> Iterator[Cluster]:
    made = Cluster(folder, certificates)
    try:
        yield made
    finally:
        made.kill(*made.parties)


def killed_owner(cluster: Cluster, model: Path) -> None:
    code = f"{OWNER}\nfrom puma_actors.cli import main; main()"
    where = ("--cluster", cluster.files["client"], "--no-tokenizer")
    done = subprocess.run(
        [sys.executable, "-c", code, "upload", model, "--name", "big", *where],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=HANG,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        (byte,) = os.pread(file.fileno(), 1, file.tell())
        file.write(bytes([byte ^ 1]))


@pytest.mark.slow
def test_killed_at_any_moment_and_served_from_disk(cluster: Cluster, tmp_path: Path) -> None:
    model = save_llama(tmp_path / "model", layers=12, dtype=np.float16)
    with open_checkpoint(model) as checkpoint:
        whole = 8 * sum(prod(each.shape) for each in parameters_of(checkpoint.config).values())
        wanted = plain_run(checkpoint.config, dict(load_parameters(checkpoint)), [IDS])
    assert whole > MEMORY

    # The owner is killed, then a party, and the third command sends the rest.
    cluster.start(Role.DEALER, Role.EVALUATOR_A)
    cluster.start(Role.EVALUATOR_B, first=DEAD)
    cluster.linked()
    killed_owner(cluster, model)
    assert "evaluator-b" in cluster.upload(model, code=EXIT_FAILURE).stderr
    cluster.parties[Role.EVALUATOR_B].process.wait(HANG)
    here = cluster.words(Role.EVALUATOR_B, f"{FOLDER}/big")
    assert len(here) == 30
    cluster.start(Role.EVALUATOR_B)
    cluster.linked()
    said = json.loads(cluster.upload(model, "--json").stdout)
    assert 0.5 * whole < said["already"] < 2 * whole
    assert sum(cluster.words(HURT).values()) == whole
    assert not any((cluster.folder / f"{role}-store" / FOLDER).exists() for role in COMPUTING)

    # It is served, also after all parties were killed.
    assert np.abs(cluster.answer() - wanted).max() < 0.05
    for role in EVALUATORS:
        assert status(cluster.parties[role], "RssAnon") < whole
    cluster.kill(*COMPUTING)
    cluster.start(*COMPUTING)
    cluster.linked()
    assert np.abs(cluster.answer() - wanted).max() < 0.05

    # A flipped byte is found at every load, by the process that had it loaded and by the next one.
    file = sorted(cluster.words(HURT))[20]
    flip(cluster.folder / f"{HURT}-store" / "big" / file)
    with pytest.raises(PumaError, match=rf"{file} was changed while the model is in use"):
        cluster.answer()
    cluster.kill(HURT)
    cluster.start(HURT)
    cluster.linked()
    for _ in range(2):
        with pytest.raises(StoreError, match=rf"big at {HURT}: {file} is damaged"):
            cluster.answer()
