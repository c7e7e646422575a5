"""The process that SPU runs in: it answers, fails, is given up and stands still."""

import json
import sys

import psutil
import pytest
from waiting import in_time, until

from bench.spu.__main__ import main
from bench.spu.install import SPU
from bench.spu.talk import Peer, PeerError

FAKE = """
import json, os, sys
print(json.dumps({"python": "3.11.0", "spu": "0.9.5"}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    name = request.get("prepare", "run")
    if name == "comparison":
        os.kill(os.getpid(), 9)
    if name == "gelu":
        os._exit(3)
    if name == "softmax":
        print("not JSON", flush=True)
    elif name == "norm":
        print(json.dumps({"failed": "ValueError: no | such norm"}), flush=True)
    elif name == "embedding":
        continue
    else:
        answer = {"seconds": 8.0, "megabytes": 3.0, "sends": 7, "error": 0.5, "exact": [1.0]}
        print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def fake(tmp_path):
    """The command of a stand-in for SPU's side."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    return [sys.executable, str(script)]


async def test_a_process_answers_and_tells_its_versions(tmp_path, fake):
    with in_time():
        async with Peer(fake, tmp_path / "log") as peer:
            assert peer.versions == {}
            assert (await peer.ask({"run": True}))["sends"] == 7
            assert peer.versions["spu"] == "0.9.5"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("comparison", r"ended, killed by signal 9 \(out of memory\?\); see .*log"),
        ("gelu", r"ended, exit code 3; see"),
        ("softmax", "JSONDecodeError"),
        ("norm", r"no \| such norm"),
    ],
)
async def test_after_a_failure_the_next_request_is_answered(tmp_path, fake, name, why):
    with in_time():
        async with Peer(fake, tmp_path / "log") as peer:
            with pytest.raises(PeerError, match=why):
                await peer.ask({"prepare": name})
            assert (await peer.ask({"run": True}))["sends"] == 7


async def test_a_process_that_does_not_answer_is_given_up(tmp_path, fake):
    with in_time():
        async with Peer(fake, tmp_path / "log", limit=0.0) as peer:
            with pytest.raises(PeerError, match="no answer within 0 s"):
                await peer.ask({"prepare": "embedding"})


async def test_a_program_that_cannot_start_is_told(tmp_path):
    with in_time():
        async with Peer([str(tmp_path / "nothing")], tmp_path / "log") as peer:
            with pytest.raises(PeerError, match="FileNotFoundError"):
                await peer.ask({"run": True})


async def test_a_process_stands_still_while_the_other_system_is_measured(tmp_path, fake):
    def status() -> str:
        children = psutil.Process().children()
        (child,) = (each for each in children if fake[1] in each.cmdline())
        return str(child.status())

    with in_time():
        async with Peer(fake, tmp_path / "log") as peer:
            with peer.still():  # it has not started
                pass
            await peer.ask({"run": True})
            with peer.still():
                await until(lambda: status() == psutil.STATUS_STOPPED)
            await until(lambda: status() != psutil.STATUS_STOPPED)
            assert (await peer.ask({"run": True}))["sends"] == 7


def test_one_run_end_to_end(tmp_path, fake, capsys):
    """A workload that runs on both sides, and one that kills SPU's side."""
    folder = tmp_path / "venv"
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {fake[0]} {fake[1]} "$@"\n')
    python.chmod(0o755)
    (folder / f".{SPU}").touch()
    file = tmp_path / "new" / "spu.json"
    names = ["product", "comparison", "--quick", "--pairs", "2"]
    assert main([*names, "--environment", str(folder), "--json", str(file)]) == 1
    document = json.loads(file.read_text())
    assert document["conditions"]["spu_versions"]["spu"] == "0.9.5"
    product, exact, _ = document["rows"]
    assert product["theirs"]["seconds"] == [8.0, 8.0] and len(product["ours"]["seconds"]) == 2
    assert product["time_ratio"] > 1 and product["traffic_ratio"] == pytest.approx(3 / 0.575)
    assert exact["theirs"]["seconds"] == [] and "signal 9" in exact["theirs"]["failed"]
    assert len(exact["ours"]["seconds"]) == 2 and exact["time_ratio"] is None
    assert "| x < 0, 10^6 elements, 64 bits |" in capsys.readouterr().out
    assert (tmp_path / "new" / "spu-seconds.svg").is_file()
