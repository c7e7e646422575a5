"""Logs: readable on a terminal, JSON elsewhere; contents and order of the fields."""

import io
import json
import sys
import tempfile
from pathlib import Path

import anyio
import pytest
import structlog
from hosts import addresses_for, hosts, quiet, write_config
from reference import leaves_nothing, usual_logs

from protocols.base.shares import COMPUTING, Role
from puma_actors.base.logs import log, show_logs
from puma_actors.hosts import peer_links as links
from puma_actors.hosts.config import load_config
from puma_actors.hosts.server import PartyServer


class Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize("terminal", [False, True])
def test_the_event_comes_first_and_keys_have_one_order(monkeypatch, terminal):
    stream = Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    with usual_logs():
        show_logs(1, as_json=True)
        with structlog.contextvars.bound_contextvars(session="5", caller="client"):
            log.info("link up", peer="dealer", name="dora")
            log.warning("link up", name="dora", peer="dealer")
        lines = stream.getvalue().splitlines()
        show_logs(0)
    order = ["event", "level", "timestamp", "caller", "name", "peer", "session"]
    for line in lines:
        if terminal:
            assert line.startswith('event="link up" level=')
            found = [word.split("=")[0] for word in line.split() if "=" in word]
        else:
            found = list(json.loads(line))
        assert found == order


async def test_a_party_says_for_whom_it_waits(certificates, monkeypatch):
    """The dealer, whom the others call; again and again, until they are there."""
    monkeypatch.setattr(links, "_FIRST_WORD", 0.0)
    monkeypatch.setattr(links, "_LATER_WORDS", 0.001)
    told: list[list[str]] = []
    enough = anyio.Event()

    def note(event: str, **fields: object) -> None:
        if event == "waiting for other parties":
            assert fields["role"] == "dealer"
            told.append(fields["missing"])
            if len(told) > 2:
                enough.set()

    monkeypatch.setattr(links.log, "warning", note, raising=False)
    with tempfile.TemporaryDirectory(prefix="puma-") as place:
        folder = Path(place)
        path = write_config(folder / "c.toml", addresses_for("unix", folder), certificates)
        server = PartyServer(load_config(path, environ={}), Role.DEALER)
        async with leaves_nothing(), anyio.create_task_group() as group:
            group.start_soon(server.run)
            await enough.wait()
            group.cancel_scope.cancel()
    assert told[:3] == [["evaluator-a", "evaluator-b"]] * 3


async def test_parties_that_have_found_each_other_wait_for_nobody(certificates, monkeypatch):
    with tempfile.TemporaryDirectory(prefix="puma-") as place:
        async with hosts(Path(place), certificates, "unix") as cluster:
            await quiet(cluster)
            missing = [
                [peer for peer in server.links.peers if not server.links._up(peer)]
                for server in cluster.servers.values()
            ]
            assert len(missing) == len(COMPUTING)
            assert missing == [[], [], []]
