"""A real Dask cluster over TLS: a scheduler and workers, each a process of its own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ports import free_ports
from waiting import HANG, until_now

from protocols.base.shares import Role
from puma_actors.base.certs import create_authority, issue
from puma_actors.base.identity import PeerIdentity

ROOT = Path(__file__).parents[4]
HOST = "127.0.0.1"


def worker_certificates(folder: Path, role: Role) -> Path:
    """An authority for one party's machines, and certificates for all kinds of them."""
    create_authority(folder)
    for name in ("scheduler", "worker", "party"):
        issue(folder, PeerIdentity(role, name), [HOST])
    return folder


def settings(folder: Path, role: Role, address: str) -> tuple[str, str]:
    """The line and the table of a cluster.toml."""
    return f'compute = "{address}"\n', (
        f'[compute_tls]\nauthority = "{folder}/ca.pem"\ncertificate = "{folder}/{role}.party.pem"\n'
        f'key = "{folder}/{role}.party.key"\n'
    )


@dataclass
class DaskCluster:
    """A running scheduler; workers come and go."""

    role: Role
    certificates: Path
    folder: Path
    address: str
    scheduler: "subprocess.Popen[bytes]" = field(init=False)
    workers: "dict[str, subprocess.Popen[bytes]]" = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.begin_scheduler()

    def begin_scheduler(self) -> None:
        """Start a scheduler, and wait until it listens."""
        port = self.address.rpartition(":")[2]
        self.scheduler = self._start(
            "scheduler", "--host", HOST, "--port", port, "--protocol", "tls"
        )
        self._wait(self.scheduler, "scheduler", "Scheduler at")

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def _start(self, kind: str, *arguments: str, name: str = "") -> "subprocess.Popen[bytes]":
        holder = f"{self.certificates}/{self.role}.{kind}"
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *arguments]
        command += ["--dashboard-address", f"{HOST}:0", "--no-dashboard"]
        command += ["--tls-ca-file", f"{self.certificates}/ca.pem"]
        command += ["--tls-cert", f"{holder}.pem", "--tls-key", f"{holder}.key"]
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "True",
        }
        with (self.folder / f"{name or kind}.log").open("wb") as out:
            return subprocess.Popen(command, stdout=out, stderr=out, env=environment)

    def _wait(self, process: "subprocess.Popen[bytes]", name: str, text: str) -> None:
        def there() -> bool:
            assert process.poll() is None, self.log(name)
            return text in self.log(name)

        until_now(there, lambda: self.log(name))

    def begin_worker(self, name: str) -> None:
        """Start a worker's process."""
        self.workers[name] = self._start(
            "worker", self.address, "--name", name, "--no-nanny", "--nthreads", "1",
            "--host", HOST, "--local-directory", str(self.folder), name=name,
        )  # fmt: skip

    def add(self, *names: str) -> None:
        """Start workers, and wait until the scheduler has them."""
        for name in names:
            self.begin_worker(name)
        for name in names:
            self._wait(self.workers[name], name, "Registered to:")

    def kill(self, name: str) -> None:
        """SIGKILL."""
        process = self.workers.pop(name)
        process.kill()
        process.wait(HANG)

    def kill_scheduler(self) -> None:
        self.scheduler.kill()
        self.scheduler.wait(HANG)

    def end(self) -> None:
        for process in (*self.workers.values(), self.scheduler):
            process.kill()
            process.wait(HANG)


@contextmanager
def dask_cluster(folder: Path, role: Role, *workers: str) -> Iterator[DaskCluster]:
    """A cluster of one party, with workers of these names."""
    made = worker_certificates(folder / "workers", role)
    address = f"tls://{HOST}:{free_ports(1)[0]}"
    with ExitStack() as stack:
        cluster = DaskCluster(role, made, folder, address)
        stack.callback(cluster.end)
        cluster.add(*workers)
        yield cluster
