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

pytestmark = pytest.mark.slow


class Process:
    """A gateway on any free port."""

    def __init__(self, folder: Path, state: Path, *options: str) -> None:
        self._process = subprocess.Popen(
            [*COMMAND, "serve", "--model", str(folder), "--port", "0", "--json", *options],
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


def test_what_is_refused_before_anything_is_read(folder, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = puma("serve", "--model", folder, "--port", port, "--api-key", "k" * 20, code=2)
        assert f"--port {port} cannot be used" in found.stderr
    assert "16 to 200 characters" in puma("serve", "--api-key", "short", code=2).stderr
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
