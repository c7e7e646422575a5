"""Commands and parties as processes of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hosts import write_config
from waiting import HANG, until_now

from protocols.base.shares import COMPUTING, Role

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from puma_actors.cli import main; main()"]


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PUMA_CL")}
    return {**kept, "PYTHONPATH": str(ROOT)}


def puma(*args: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command; check its exit code."""
    process = subprocess.run(
        [*COMMAND, *map(str, args)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=HANG,
        check=False,
    )
    assert process.returncode == code, process.stdout + process.stderr
    return process


class Party:
    """A `puma party` process. What it logs goes to a file."""

    def __init__(self, role: Role, config: Path, *, first: str = "pass", **changes: str) -> None:
        """`first`: Python that the process runs first. `changes`: to its environment."""
        self.log = config.with_suffix(".log")
        code = f"{first}; {COMMAND[-1]}"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*COMMAND[:-1], code, "party", "--role", role, "--config", config],
                stdout=log,
                stderr=log,
                env={**environment(), **changes},
            )

    def events(self) -> list[dict[str, str]]:
        """Of whole lines: the last one may just be being written."""
        whole, _, _ = self.log.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def wait_for(self, event: str, count: int = 1, saying: str = "") -> None:
        """`saying`: what its reason has in it."""

        def happened() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            found = [e for e in self.events() if e["event"] == event]
            return sum(saying in e.get("reason", "") for e in found) >= count

        until_now(happened, self.log.read_text)


@contextmanager
def three_parties(
    folder: Path, addresses: dict[Role, str], certificates: Path, network: str = ""
) -> Iterator[dict[Role, Party]]:
    """The three parties with links to each other, each with a configuration in the folder. They are
    killed at the end.

    Args:
        network: emulated between them.
    """
    configs = {
        role: write_config(folder / f"{role}.toml", addresses, certificates, network=network)
        for role in COMPUTING
    }
    started = {role: Party(role, config) for role, config in configs.items()}
    try:
        for party in started.values():
            party.wait_for("link up", 2)
        yield started
    finally:
        for party in started.values():
            party.process.kill()
            party.process.wait()
