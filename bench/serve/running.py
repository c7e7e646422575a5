"""A gateway over three parties, all processes of their own with TLS between them."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import httpx2 as httpx

from bench.runtime.hosts import (
    PUMA,
    parties,
    party_log,
    puma,
    start_party,
    wait_for_links,
    write_cluster,
)
from bench.serve.states import State
from protocols.base.shares import Role
from protocols.errors import PumaError
from puma_actors.hosts.caller import visit_all
from puma_actors.hosts.config import ClusterConfig, load_config

MODEL = "model"
"""Its name at the parties."""
SECONDS = 600.0
"""How long a client waits at most."""
_LINE, _SHOWN = "puma_{name}(?:{{[^}}]*}})? (\\S+)$", 500


@dataclass(frozen=True, slots=True)
class Address:
    """Where a gateway is."""

    base: str
    key: str

    def client(self) -> httpx.AsyncClient:
        """A client of it, with a connection of its own."""
        headers = {"authorization": f"Bearer {self.key}"}
        return httpx.AsyncClient(base_url=self.base, headers=headers, timeout=SECONDS)

    async def numbers(self, *names: str) -> list[int]:
        """Numbers from `/metrics`, by their names without `puma_`; 0 for one that is missing."""
        async with self.client() as http:
            text = (await http.get("/metrics")).text
        found = (re.search("^" + _LINE.format(name=name), text, re.MULTILINE) for name in names)
        return [int(float(each[1])) if each else 0 for each in found]


class Running:
    """What is running.

    Attributes:
        pids: of the parties and of the gateway, by name.
    """

    def __init__(
        self, config: Path, address: Address, pids: dict[str, int], settings: dict[str, str]
    ) -> None:
        self.address = address
        self.pids = pids
        self._path = config
        self._config: ClusterConfig = load_config(config)
        self._settings = settings
        self._again = ExitStack()  # ends parties that were started again

    def log(self, role: Role) -> Path:
        """What a party has logged since it was first started."""
        return party_log(self._path, role)

    async def states(self) -> dict[str, State]:
        """What each process holds. A party that is not there is left out."""
        visited = await visit_all(self._config, Role.CLIENT, "ping")
        tasks = {str(role): each.answer.tasks for role, each in visited.items() if each.answer}
        (tasks["gateway"],) = await self.address.numbers("tasks")
        return {name: State.of(self.pids[name], count) for name, count in tasks.items()}

    async def quiet(self, within: float) -> None:
        """Wait until no request runs or waits, and further sessions have been closed.

        Raises:
            PumaError: that takes longer than `within` seconds.
        """
        names = ("num_requests_running", "num_requests_waiting", "sessions")
        with anyio.move_on_after(within):
            while await self.address.numbers(*names) != [0, 0, 1]:
                await anyio.sleep(1.0)
            return
        raise PumaError(f"requests or sessions are left {within:g} s after the last client went")

    async def restart(self, role: Role) -> None:
        """Kill a party, and start it again."""
        os.kill(self.pids[str(role)], signal.SIGKILL)
        process, log = start_party(role, self._path, "-again", **self._settings)
        self.pids[str(role)] = process.pid
        self._again.callback(_end, process)
        await anyio.to_thread.run_sync(wait_for_links, process, log)

    def close(self) -> None:
        """End what `restart` has started."""
        self._again.close()


@contextmanager
def running(
    folder: Path, model: Path, at_once: int = 4, settings: dict[str, str] | None = None
) -> Iterator[Running]:
    """Start everything in a folder, and upload the model.

    Args:
        settings: variables that override cluster.toml, such as an emulated network.

    Raises:
        PumaError: something did not start.
    """
    told = settings or {}
    config = write_cluster(folder)
    with parties(config, **told) as pids:
        puma("upload", model, "--name", MODEL, "--cluster", config)
        with _gateway(config, at_once, {**os.environ, **told}) as (address, pid):
            by_name = {str(role): each for role, each in pids.items()}
            found = Running(config, address, {**by_name, "gateway": pid}, told)
            try:
                yield found
            finally:
                found.close()


@contextmanager
def _gateway(
    config: Path, at_once: int, environment: dict[str, str]
) -> Iterator[tuple[Address, int]]:
    """A `puma serve` process on a free port: its address and process id."""
    state = config.parent / "state"
    options = ["--cluster", str(config), "--model", MODEL, "--at-once", str(at_once)]
    with (config.parent / "gateway.log").open("w") as log:
        process = subprocess.Popen(
            [*PUMA, "serve", *options, "--port", "0", "--json"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**environment, "XDG_STATE_HOME": str(state)},
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            text = Path(log.name).read_text()[-_SHOWN:]
            raise PumaError(f"the gateway did not start: {text}")
        told = json.loads(line)
        key = Path(told["key_file"]).read_text("ascii").strip()
        yield Address(told["base_url"].removesuffix("/v1"), key), process.pid
    finally:
        _end(process)
        process.stdout.close()


def _end(process: "subprocess.Popen[bytes] | subprocess.Popen[str]") -> None:
    process.terminate()
    process.wait(SECONDS)
