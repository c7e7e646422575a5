"""Memory goes back to the system when a cluster ends, and when a party's session or upload does."""

import ctypes
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import anyio
import pytest
from hosts import hosts, list_models, quiet
from reference import save_model
from waiting import in_time

from protocols.base.shares import COMPUTING, Role
from puma_actors.api.remote import RemoteCluster
from puma_actors.hosts import server

SCRIPT = """
import json, sys
import anyio
from puma_actors.api.local import LocalCluster

def resident():
    with open("/proc/self/statm") as file:
        return 4096 * int(file.read().split()[1])

async def once(path):
    async with LocalCluster.from_pretrained(path) as cluster:
        await cluster.forward([1, 2, 3])
        most = resident()
    return most, resident()

async def main(small, large):
    _, before = await once(small)  # kernels and imports, which stay
    most, after = await once(large)
    print(json.dumps([before, most, after]))

anyio.run(main, *sys.argv[1:])
"""


def has_trim() -> bool:
    try:
        return bool(ctypes.CDLL(None).malloc_trim)
    except (AttributeError, OSError):
        return False


@pytest.mark.skipif(not has_trim(), reason="the C library keeps what it likes")
def test_a_cluster_that_has_ended_keeps_little(folder, tmp_path):
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 12}
    large = save_model(tmp_path / "large", **sizes, initializer_range=0.04, vocab_size=8192)
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(large)],
        capture_output=True,
        text=True,
        check=True,
    )
    before, most, after = json.loads(found.stdout)
    assert most - before > 300e6
    assert after - before < 0.15 * (most - before), (before, most, after)


async def test_parties_give_it_back_after_sessions_and_uploads(folder, certificates, monkeypatch):
    given = anyio.Semaphore(0)

    async def noted() -> None:
        given.release()

    monkeypatch.setattr(server, "give_back", noted)
    with tempfile.TemporaryDirectory(prefix="puma-") as place:
        async with hosts(Path(place), certificates, "unix") as cluster:
            await cluster.upload(folder)
            with in_time():
                for _ in COMPUTING:
                    await given.acquire()
            assert given.value == 0
            await list_models(cluster.client, Role.CLIENT)
            async with await RemoteCluster.open(cluster.client, "tiny") as remote:
                await remote.forward([1, 2])
                assert given.value == 0
            with in_time():
                for _ in COMPUTING:
                    await given.acquire()
            await quiet(cluster)
            assert given.value == 0
