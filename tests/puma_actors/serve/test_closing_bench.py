"""The benchmark of closed streams, once, with a small model and all roles in this process."""

import logging
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from gateway import KEY, gateway
from hosts import hosts, quiet
from waiting import in_time

from bench.serve import closing
from bench.serve.running import MODEL, Address
from bench.serve.small import save_small
from protocols.base.shares import COMPUTING
from puma_actors.api.remote import RemoteCluster
from puma_actors.base import logs

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def test_a_party_has_stopped_when_it_last_ended_something() -> None:
    events = [(at(-1), "step done"), (at(0.2), "step done"), (at(0.3), "request ended")]
    used = [(at(0.1), 5.0), (at(0.35), 6.0), (at(3.0), 6.25)]
    found = closing._stopped(NOW, events, used)
    assert found.seconds == pytest.approx(0.3)
    assert found.busy == pytest.approx(0.25)
    assert found.events == ["step done", "request ended"]
    assert closing._stopped(NOW, events[:1], used[:1]).seconds == 0.0


async def test_streams_that_are_closed(
    certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closing, "_LOOK", 0.1)
    monkeypatch.setattr(logs, "_json", True)
    logger, kept = logging.getLogger(logs.NAME), tmp_path / "log"
    handler = logging.FileHandler(kept)
    logger.addHandler(handler)
    monkeypatch.setattr(logger, "level", logging.INFO)
    model = tmp_path / "model"
    model.mkdir()
    async with hosts(tmp_path, certificates) as cluster:
        await cluster.upload(save_small(model), MODEL)

        async def opener() -> RemoteCluster:
            return await RemoteCluster.open(cluster.client, MODEL)

        async with gateway(remote={MODEL: opener}) as served:
            live = SimpleNamespace(
                address=Address(served.base, KEY),
                pids={str(role): os.getpid() for role in COMPUTING},
                log=lambda role: kept,
            )
            with in_time():
                found = await closing.measure(live, 8, 1)  # type: ignore[arg-type]
        await quiet(cluster)
    logger.removeHandler(handler)
    handler.close()
    results = list(closing._results("", found, 8))
    assert [each.case for each in results] == ["closed in the prompt", "closed in a step"]
    for each in results:
        assert each.seconds is not None and each.seconds.median > 0
        assert "processor after it" in each.note
        (stop,) = each.details["stops"]
        assert set(stop) == {str(role) for role in COMPUTING}
        assert all("request ended" in party["events"] for party in stop.values())
