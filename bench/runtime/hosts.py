"""Five roles as five processes over TLS on loopback, compared with all of them in one process.

Both answer the same prompt with the same command, one after the other, so that the machine's load
is similar; the tokens must be equal.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench.tools.harness import Benchmark, Options, Result, Spread
from models.files.locate import demo_model_path
from protocols.base.shares import COMPUTING, Role
from protocols.errors import PumaError
from puma_actors.base.certs import create_authority, issue
from puma_actors.base.identity import PeerIdentity

WANTED = 0.7
"""At least this fraction of the speed in one process."""
_NAME = "waiting.hosts"
_PROMPT = "Write one sentence about the sea."
_TOKENS = 7
_RUNS = 2
_HOST = "127.0.0.1"
_SECONDS = 300.0
PUMA = [sys.executable, "-c", "from puma_actors.cli import main; main()"]


def puma(*arguments: object) -> dict[str, Any]:
    """The JSON output of a command."""
    command = [*PUMA, *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode:
        raise PumaError(f"{arguments[0]} failed: {done.stderr.strip()[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def free_ports(count: int) -> list[int]:
    """Ports that nobody has at the moment."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((_HOST, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def write_cluster(folder: Path) -> Path:
    """Write certificates for all roles, and a cluster.toml."""
    create_authority(folder / "certs")
    for role in (*COMPUTING, Role.OWNER, Role.CLIENT):
        issue(folder / "certs", PeerIdentity(role, str(role)), [_HOST])
    ports = zip(COMPUTING, free_ports(len(COMPUTING)), strict=True)
    lines = [f'{role} = "tls://{_HOST}:{port}"' for role, port in ports]
    config = folder / "cluster.toml"
    config.write_text("\n".join(["[parties]", *lines, ""]))
    return config


def party_log(config: Path, role: Role, name: str = "") -> Path:
    """Where `start_party` writes what a party logs."""
    return config.parent / f"{role}{name}.log"


def start_party(
    role: Role, config: Path, log_name: str = "", **settings: object
) -> tuple[subprocess.Popen[bytes], Path]:
    """A `puma party` process, and its log."""
    log = party_log(config, role, log_name)
    environment: Mapping[str, str] = {
        **os.environ,
        "PUMA_CLUSTER__STORE": str(config.parent / f"store-{role}"),
        **{name: str(value) for name, value in settings.items()},
    }
    with log.open("w") as out:
        command = [*PUMA, "party", "--role", role, "--config", str(config)]
        return subprocess.Popen(command, stdout=out, stderr=out, env=environment), log


def wait_for_links(process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until a party has its links to the two others.

    Raises:
        PumaError: it has ended, or takes too long.
    """
    deadline = time.monotonic() + _SECONDS
    while log.read_text().count('"link up"') < len(COMPUTING) - 1:
        if process.poll() is not None or time.monotonic() > deadline:
            raise PumaError(f"a party did not start: {log.read_text()[-500:]}")
        time.sleep(0.1)


@contextmanager
def parties(config: Path, **settings: object) -> Iterator[dict[Role, int]]:
    """Three `puma party` processes with their links up, by process id; they end with the block.

    Args:
        settings: variables that override their cluster.toml.
    """
    running: list[tuple[subprocess.Popen[bytes], Path]] = []
    try:
        for role in COMPUTING:
            running.append(start_party(role, config, **settings))
        for process, log in running:
            wait_for_links(process, log)
        pids = [process.pid for process, _ in running]
        yield dict(zip(COMPUTING, pids, strict=True))
    finally:
        for process, _ in running:
            process.terminate()
        for process, _ in running:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _per_token(answer: Mapping[str, Any]) -> float:
    seconds: float = answer["seconds"]["decode"] / (len(answer["token_ids"]) - 1)
    return seconds


def compare(model: Path, tokens: int, runs: int) -> Iterator[Result]:
    """Seconds per decoded token, in one process and in five.

    Raises:
        PumaError: the tokens differ, or something failed.
    """
    ask = ("generate", "-p", _PROMPT, "-n", tokens)
    here: list[dict[str, Any]] = []
    there: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="puma-") as folder:
        config = write_cluster(Path(folder))
        with parties(config):
            puma("upload", model, "--name", "model", "--cluster", config)
            for _ in range(runs):
                here.append(puma(*ask, "-m", model))
                there.append(puma(*ask, "-m", "model", "--cluster", config))
    if any(answer["token_ids"] != here[0]["token_ids"] for answer in (*here, *there)):
        raise PumaError("five processes gave different tokens than one")
    one, five = ([_per_token(answer) for answer in answers] for answers in (here, there))
    ratio = sum(one) / sum(five)
    count = len(here[0]["token_ids"]) - 1
    yield Result(_NAME, "decode in one process", Spread.of(one), 1, "tokens")
    yield Result(
        _NAME,
        "decode in five processes over TLS",
        Spread.of(five),
        1,
        "tokens",
        note=f"the same {count + 1} tokens at {ratio:.2f} of the speed, {WANTED} wanted",
        details={"ratio": ratio, "wanted": WANTED, "token_ids": here[0]["token_ids"]},
    )


def hosts(options: Options) -> Iterator[Result]:
    tokens = 3 if options.quick else _TOKENS
    yield from compare(demo_model_path(), tokens, options.runs(_RUNS))


BENCHMARKS = [Benchmark(_NAME, "five processes over TLS against one", hosts, False)]
