"""An emulated network on the connections of parties on separate hosts."""

from pathlib import Path

import numpy as np
import pytest
from clock import Clock, standing
from hosts import Hosts, hosts
from networks import transport_of
from reference import leaves_nothing, save_model

from protocols.base.lane import Settings
from protocols.base.shares import COMPUTING, Role
from protocols.errors import ConfigError
from puma_actors.api.local import LocalCluster
from puma_actors.api.remote import RemoteCluster
from puma_actors.hosts.admission import LinkEntry
from puma_actors.hosts.caller import ping_all
from puma_actors.hosts.config import load_config
from puma_actors.hosts.peer_links import Links
from puma_actors.transports.delay.network import parse_network

IDS = [1, 3, 7]
TRIP = 0.02
FAR_DEALER = """
round_trip = "20ms"
[[links]]
between = ["dealer", "*"]
round_trip = "60ms"
"""


async def forward(cluster: Hosts, clock: Clock) -> tuple[np.ndarray, int, float]:
    """Logits, rounds, and the seconds of the request alone."""
    async with await RemoteCluster.open(cluster.client, "tiny") as remote:
        started = clock.now
        logits = await remote.forward(IDS)
        return logits, remote.usage.total.rounds, clock.now - started


async def test_every_round_between_hosts_takes_its_time(
    folder: Path, certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = standing(monkeypatch)
    model = save_model(tmp_path / "model", seed=3)
    async with LocalCluster.from_pretrained(model) as local:
        wanted = await local.forward(IDS)
    async with leaves_nothing(), hosts(folder, certificates, "unix", network="20ms") as cluster:
        await cluster.upload(model)
        logits, rounds, seconds = await forward(cluster, clock)
        assert np.abs(logits - wanted).max() < 0.05
        # Each round one way, and there and back between the client and the parties.
        assert seconds > rounds * TRIP / 2 + TRIP
        for found in await ping_all(cluster.client, Role.CLIENT):
            assert found.round_trip is not None and found.answer is not None
            trips = [found.round_trip, *(link.round_trip for link in found.answer.links)]
            assert trips == [pytest.approx(TRIP)] * 3


async def test_links_between_hosts_can_differ(
    folder: Path, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    standing(monkeypatch)
    (folder / "far.toml").write_text(FAR_DEALER)
    async with hosts(folder, certificates, "unix", network="far.toml") as cluster:
        trips = {}
        for found in await ping_all(cluster.client, Role.CLIENT):
            assert found.round_trip is not None and found.answer is not None
            trips[Role.CLIENT, found.peer] = found.round_trip
            for link in found.answer.links:
                assert link.round_trip is not None
                trips[found.peer, Role(link.peer)] = link.round_trip
    assert len(trips) == 3 + 6
    for ends, trip in trips.items():
        asked = 3 * TRIP if Role.DEALER in ends else TRIP
        assert trip == pytest.approx(asked), f"{ends}: {trip}"


async def test_who_the_other_side_is_stays_known(certificates: Path) -> None:
    """The handshake compares it with what the other side says: it must not get lost."""
    dealer = transport_of("tls-delayed", certificates)
    caller = transport_of("tls-delayed", certificates, role=Role.CLIENT)
    async with (
        await dealer.listen("tls://127.0.0.1:0") as listener,
        await caller.connect(listener.address) as left,
        await listener.accept() as right,
    ):
        assert left.peer_identity is not None and left.peer_identity.role is Role.DEALER
        assert right.peer_identity is not None and right.peer_identity.role is Role.CLIENT


def test_a_network_in_the_file_or_on_the_command_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "cluster.toml"
    parties = "".join(f'{role} = "unix:///run/{role}"\n' for role in COMPUTING)

    def load(line: str = "", network: str | None = None):  # type: ignore[no-untyped-def]
        path.write_text(f"{line}\n[parties]\n{parties}")
        return load_config(path, network=network, environ={}).between

    assert load() is None
    assert load('network = "WAN"') == parse_network("wan")
    assert load('network = "wan"', "lan") == parse_network("lan")
    with pytest.raises(ConfigError, match="'wlan' is not known: use lan, paper"):
        load('network = "wlan"')
    (folder / "far.toml").write_text(FAR_DEALER)
    assert load('network = "far.toml"') == parse_network(folder / "far.toml")
    (folder / "here").mkdir()
    monkeypatch.chdir(folder / "here")
    with pytest.raises(ConfigError, match=r"cannot read .*here/far\.toml"):
        load(network="far.toml")
    assert load(network="../far.toml") == parse_network(folder / "far.toml")


async def test_a_session_tells_how_far_apart_the_parties_are(
    folder: Path, certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each connection is measured once, by the party that made it, and not for every session. By
    the real clock: no message is faster than asked.
    """
    (folder / "far.toml").write_text(FAR_DEALER)
    model = save_model(tmp_path / "model", seed=3)
    measured: list[tuple[Role, Role]] = []
    once = Links._measure_one

    async def counted(links: Links, peer: Role, nbytes: int) -> LinkEntry:
        measured.append((links.role, peer))
        return await once(links, peer, nbytes)

    monkeypatch.setattr(Links, "_measure_one", counted)
    async with hosts(folder, certificates, "unix", network="far.toml") as cluster:
        await cluster.upload(model)
        for _ in range(2):
            remote = await RemoteCluster.open(cluster.client, "tiny")
            assert remote.route is not None
            for one in COMPUTING:
                for two in set(COMPUTING) - {one}:
                    asked = 3 * TRIP if Role.DEALER in (one, two) else TRIP
                    assert remote.route.route(one, two).round_trip >= asked
            await remote.aclose()
        named = await RemoteCluster.open(cluster.client, "tiny", settings=Settings())
        assert named.route is not None  # nothing is left to choose, so nothing was asked
        await named.aclose()
    assert sorted(measured) == [
        (Role.EVALUATOR_A, Role.DEALER),
        (Role.EVALUATOR_B, Role.DEALER),
        (Role.EVALUATOR_B, Role.EVALUATOR_A),
    ]
