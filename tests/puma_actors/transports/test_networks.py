"""Whole sessions over sockets, and who is turned away from them."""

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from actors import ALL, exchange, run_all, scripted
from networks import STREAMS
from reference import save_model

from protocols.base.shares import Role
from protocols.errors import LocalProtocolError, RemoteProtocolError, TransportError
from puma_actors.api.local import LocalCluster
from puma_actors.base.certs import issue
from puma_actors.base.identity import PeerIdentity
from puma_actors.roles.actor import Actor, ActorOptions, connect_all
from puma_actors.session.handshake import Identity, handshake
from puma_actors.transports import TlsTransport
from puma_actors.transports.tls import Credentials

SESSION = bytes(range(16))


@pytest.fixture
def addresses(certificates: Path) -> Iterator[dict[str, str]]:
    """Templates for `connect_all`."""
    with tempfile.TemporaryDirectory(prefix="puma-") as folder:
        yield {
            "tcp": "tcp://127.0.0.1:0?insecure_no_tls=1",
            "tls": f"tls://localhost:0?certs={certificates}&role={{role}}&name={{name}}",
            "unix": f"unix://{folder}/{{role}}",
        }


@pytest.mark.parametrize("scheme", STREAMS)
async def test_five_actors_compute_and_leave(scheme: str, addresses: dict[str, str]) -> None:
    actors = scripted(dict.fromkeys(ALL, exchange))
    await connect_all(actors, addresses[scheme])
    for actor in actors:
        for role, port in actor.scheduler.ports.items():
            proven = PeerIdentity(role, str(role)) if scheme == "tls" else None
            assert port.channel.peer_identity == proven
    assert await run_all(actors) == dict.fromkeys(ALL)
    for actor in actors:
        evaluator = actor.role in (Role.EVALUATOR_A, Role.EVALUATOR_B)
        assert actor.result == (list(range(6)) * 4 if evaluator else [])


@pytest.mark.parametrize("scheme", STREAMS)
async def test_a_failing_actor_tells_all_others(scheme: str, addresses: dict[str, str]) -> None:
    async def fail(actor: Actor) -> None:
        raise ValueError("a token, a share, a text")

    async def wait(actor: Actor) -> None:
        async with actor.scheduler.link(1) as link:
            await link.receive(Role.DEALER, (1,))

    actors = scripted({role: fail if role is Role.DEALER else wait for role in ALL})
    await connect_all(actors, addresses[scheme])
    errors = await run_all(actors)
    assert isinstance(errors.pop(Role.DEALER), ValueError)
    assert {str(error) for error in errors.values()} == {"dealer failed: ValueError"}


@pytest.mark.parametrize("scheme", STREAMS)
async def test_a_whole_cluster(scheme: str, addresses: dict[str, str], tmp_path: Path) -> None:
    folder = save_model(tmp_path, seed=3)
    before = asyncio.all_tasks()
    async with LocalCluster.from_pretrained(folder) as cluster:
        wanted = await cluster.forward([1, 3, 7])
    async with LocalCluster.from_pretrained(folder, address=addresses[scheme]) as cluster:
        got = await cluster.forward([1, 3, 7])
    assert np.abs(got - wanted).max() < 0.05
    assert asyncio.all_tasks() == before


# -- who is who ------------------------------------------------------------------------------------


async def meet(
    certificates: Path, caller: Credentials, claimed: Identity, allowed: set[Role]
) -> tuple[Any, Any]:
    """A handshake over TLS: what the listening dealer gets, and what the caller gets."""
    dealer = TlsTransport(Credentials(certificates, Role.DEALER))
    results: dict[str, Any] = {}

    async def side(key: str, channel: Any, me: Identity, expected: set[Role]) -> None:
        try:
            results[key] = await handshake(channel, me, expected)
        except (RemoteProtocolError, TransportError, LocalProtocolError) as error:
            results[key] = error

    async with await dealer.listen("tls://localhost:0") as listener:
        left = await TlsTransport(caller).connect(listener.address)
        right = await listener.accept()
        async with anyio.create_task_group() as group:
            me = Identity(Role.DEALER, "dealer", SESSION)
            group.start_soon(side, "listener", right, me, allowed)
            group.start_soon(side, "caller", left, claimed, {Role.DEALER})
        for channel in (left, right):
            await channel.aclose()
    return results["listener"], results["caller"]


async def test_a_hello_like_the_certificate_is_welcome(certificates: Path) -> None:
    client = Identity(Role.CLIENT, "client", SESSION)
    mine, theirs = await meet(
        certificates, Credentials(certificates, Role.CLIENT), client, {Role.CLIENT}
    )
    assert (mine.role, mine.name, theirs.role) == (Role.CLIENT, "client", Role.DEALER)
    assert mine.secret == theirs.secret


@pytest.mark.parametrize(
    ("role", "name"), [(Role.OWNER, "owner"), (Role.CLIENT, "somebody"), (Role.OWNER, "client")]
)
async def test_another_role_or_name_than_in_the_certificate(
    certificates: Path, role: Role, name: str
) -> None:
    claimed = Identity(role, name, SESSION)
    credentials = Credentials(certificates, Role.CLIENT)
    mine, theirs = await meet(certificates, credentials, claimed, set(ALL))
    reason = f"{role} {name!r} called with the certificate of client 'client'"
    assert isinstance(mine, RemoteProtocolError)
    assert reason in str(mine)
    assert isinstance(theirs, RemoteProtocolError)
    assert f"the other side refused the handshake: {reason}" in str(theirs)


async def test_an_actor_under_a_name_without_a_certificate(certificates: Path) -> None:
    actors = [Actor(Role.CLIENT), Actor(Role.OWNER, ActorOptions(name="olga"))]
    template = f"tls://localhost:0?certs={certificates}&role={{role}}"
    with pytest.raises(RemoteProtocolError, match="'olga' called with the certificate of owner"):
        await connect_all(actors, template)
    if not (certificates / "owner.olga.pem").exists():
        issue(certificates, PeerIdentity(Role.OWNER, "olga"), ["localhost"])
    actors = scripted(dict.fromkeys((Role.CLIENT, Role.OWNER), exchange))
    actors[1].name = "olga"
    await connect_all(actors, template + "&name={name}")
    assert set((await run_all(actors)).values()) == {None}
