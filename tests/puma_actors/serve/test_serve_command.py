"""`puma serve` as a process: what it prints, and how it ends."""

import json
import signal
import socket
import subprocess
from pathlib import Path

import httpx2 as httpx
import pytest
from hosts import write_config
from party_processes import COMMAND, environment, puma
from waiting import HANG

from protocols.base.shares import COMPUTING
from protocols.errors import ConfigError
from puma_actors.cli.commands import serve
from puma_actors.cli.where import Where
from puma_actors.serve.server import listen_at

pytestmark = pytest.mark.slow


class Process:
    """A gateway on any free port, or at a socket."""

    def __init__(self, folder: Path, state: Path, at: Path | None = None) -> None:
        place = ["--port", "0"] if at is None else ["--socket", str(at)]
        self._process = subprocess.Popen(
            [*COMMAND, "serve", "--model", str(folder), *place, "--json"],
            stdout=subprocess.PIPE,
            text=True,
            env={**environment(), "XDG_STATE_HOME": str(state)},
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()  # says that all is ready
        assert line, f"the gateway ended: {self._process.wait(HANG)}"
        self.told = json.loads(line)
        key = Path(self.told["key_file"]).read_text().strip()
        self.client = httpx.Client(
            base_url=self.told["base_url"].removesuffix("/v1"),
            headers={"authorization": f"Bearer {key}"},
            timeout=HANG,
            transport=None if at is None else httpx.HTTPTransport(uds=str(at)),
        )

    def end(self, number: int) -> int:
        self.client.close()
        self._process.send_signal(number)
        assert self._process.stdout is not None
        self._process.stdout.close()
        return self._process.wait(HANG)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(HANG)


@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_a_gateway_from_start_to_end(folder, tmp_path, number):
    process = Process(folder, tmp_path)
    try:
        (name,) = process.told["models"]
        assert process.client.get("/ready").json() == {"ready": True, "models": {name: True}}
        answer = process.client.post(
            "/v1/completions", json={"model": name, "prompt": "I see", "max_tokens": 2}
        )
        assert answer.json()["usage"]["completion_tokens"] >= 1
        assert int(answer.headers["x-puma-predicted-rounds"]) > 0
        with process.client.stream(
            "POST",
            "/v1/completions",
            json={
                "model": name,
                "prompt": "I see",
                "max_tokens": 12,
                "ignore_eos": True,
                "stream": True,
            },
        ) as stream:
            lines = stream.iter_lines()
            while not next(lines).startswith("data: "):
                pass
            process._process.send_signal(number)  # a running answer is not cut off
            assert "data: [DONE]" in list(lines)
        assert process.end(number) == 0
    finally:
        process.kill()


def test_a_gateway_at_a_socket(folder, tmp_path):
    at = tmp_path / "own" / "gateway"
    process = Process(folder, tmp_path, at)
    try:
        assert process.told["socket"] == str(at)
        assert at.parent.stat().st_mode & 0o777 == 0o700
        assert at.stat().st_mode & 0o077 == 0
        (model,) = process.client.get("/v1/models").json()["data"]
        assert process.client.get("/health", headers={"host": "rebound.example"}).status_code == 421
        refused = process.client.get("/v1/models", headers={"authorization": "Bearer no"})
        assert refused.status_code == 401
        answer = process.client.post(
            "/v1/completions", json={"model": model["id"], "prompt": "I see", "max_tokens": 2}
        )
        assert answer.json()["usage"]["completion_tokens"] >= 1
        assert process.end(signal.SIGTERM) == 0
        assert not at.exists()
    finally:
        process.kill()


def test_a_socket_in_a_folder_that_others_can_enter_is_refused(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    with pytest.raises(ConfigError, match="others have access"), listen_at(shared / "gateway"):
        pass
    mine = tmp_path / "mine"
    mine.mkdir(mode=0o700)
    (mine / "file").write_text("kept")
    with pytest.raises(ConfigError, match="cannot be used"), listen_at(mine / "file"):
        pass
    assert (mine / "file").read_text() == "kept"
    with listen_at(mine / "gateway") as one:
        one.listen()
        with pytest.raises(ConfigError, match="cannot be used"), listen_at(mine / "gateway"):
            pass


def test_what_is_refused_before_anything_is_read(folder, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = puma("serve", "--model", folder, "--port", port, "--api-key", "k" * 20, code=2)
        assert f"--port {port} cannot be used" in found.stderr
    assert "16 to 200 characters" in puma("serve", "--api-key", "short", code=2).stderr
    found = puma("serve", "-m", folder, "--port", 1, "--socket", tmp_path / "s", code=2)
    assert "give one of them" in found.stderr
    found = puma("serve", "-m", folder, "-m", f"{folder}/", "--api-key", "k" * 20, code=2)
    assert "two are called" in found.stderr
    missing = puma("serve", "-m", tmp_path / "none", "--api-key", "k" * 20, code=2)
    assert "none" in missing.stderr


def test_one_process_computes_one_request_at_a_time():
    assert serve._at_once(None, 1, Where()) == serve._at_once(1, 2, Where()) == 1
    with pytest.raises(ConfigError, match=r"--at-once 2: .* use --cluster"):
        serve._at_once(2, 1, Where())


@pytest.mark.parametrize(
    ("asked", "models", "most"), [(None, 1, 4), (None, 2, 4), (3, 1, 3), (9, 1, 5), (9, 7, 1)]
)
def test_sessions_are_never_more_than_the_cluster_allows(tmp_path, asked, models, most):
    addresses = {role: f"tls://127.0.0.1:{port}" for port, role in enumerate(COMPUTING, 7101)}
    config = write_config(
        tmp_path / "cluster.toml", addresses, tmp_path, extra="[limits]\nsessions = 5\n"
    )
    assert serve._at_once(asked, models, Where(cluster=config)) == most
