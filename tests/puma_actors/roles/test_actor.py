"""Actors: wiring, lifetimes, failures."""

import asyncio
import itertools
import threading

import anyio
import pytest
from actors import ALL, exchange, run_all, scripted
from waiting import HANG, until

from protocols.base.shares import Role
from protocols.errors import (
    ConfigError,
    LocalProtocolError,
    PeerFailed,
    RemoteProtocolError,
    TransportError,
)
from puma_actors.base.compute import Compute
from puma_actors.roles import actor as wiring
from puma_actors.roles.actor import MEMORY, Actor, ActorOptions, connect_all
from puma_actors.session.handshake import Identity, handshake
from puma_actors.session.mailbox import Flow
from puma_actors.transports import Channel, Listener, connect, listen
from puma_actors.transports.frames import Frame, Kind


@pytest.mark.parametrize("address", [MEMORY, MEMORY + "?codec=1"])
async def test_five_actors_compute_and_leave(address: str) -> None:
    actors = scripted(dict.fromkeys(ALL, exchange))
    await connect_all(actors, address)
    errors = await run_all(actors)
    assert errors == dict.fromkeys(ALL)
    for actor in actors:
        evaluator = actor.role in (Role.EVALUATOR_A, Role.EVALUATOR_B)
        assert actor.result == (list(range(6)) * 4 if evaluator else [])
        for port in actor.scheduler.ports.values():
            with pytest.raises(TransportError, match="closed"):
                port.channel.try_send(Frame(Kind.GOODBYE))
        for use in (actor.scheduler.control, actor.scheduler.wait_alone):
            with pytest.raises(LocalProtocolError, match="has ended"):
                await use()


async def test_every_two_actors_share_one_secret() -> None:
    actors = scripted(dict.fromkeys(ALL, exchange))
    await connect_all(actors)
    drawn: dict[frozenset[Role], list[bytes]] = {}
    for actor in actors:
        for other in ALL:
            if other is not actor.role:
                word = actor.scheduler.keys.stream(other, (0,)).fill(16).tobytes()
                drawn.setdefault(frozenset((actor.role, other)), []).append(word)
    assert len(drawn) == 10
    assert all(len(words) == 2 and words[0] == words[1] for words in drawn.values())
    assert len({words[0] for words in drawn.values()}) == 10
    assert (await run_all(actors)) == dict.fromkeys(ALL)


async def test_the_default_main_stays_until_the_others_have_left() -> None:
    order: list[str] = []

    async def brief(actor: Actor) -> None:
        await until(lambda: waiter.scheduler._state == "running")
        order.append("brief")

    actors = scripted({Role.CLIENT: brief, Role.OWNER: brief})
    waiter = Actor(Role.DEALER, ActorOptions(name="dora"))
    await connect_all([*actors, waiter])

    async def wait() -> None:
        await waiter.run()
        order.append("waiter")

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        for actor in actors:
            group.start_soon(actor.run)
    assert order == ["brief", "brief", "waiter"]


async def test_requests_between_roles_and_an_actor_driven_from_outside() -> None:
    async def serve(actor: Actor) -> int:
        served = 0
        while True:
            role, header, buffers = await actor.scheduler.control()
            if header["do"] == "end":
                return served
            double = [bytes(buffer) * 2 for buffer in buffers]
            await actor.scheduler.send_control(role, {"answer": header["n"]}, double)
            served += 1

    servers = scripted({Role.EVALUATOR_A: serve, Role.EVALUATOR_B: serve})
    client = Actor(Role.CLIENT)
    await connect_all([client, *servers])
    async with anyio.create_task_group() as group:
        for server in servers:
            group.start_soon(server.run)
        async with client:
            for n in range(3):
                for server in servers:
                    await client.scheduler.send_control(server.role, {"do": "x", "n": n}, [b"ab"])
                    role, header, buffers = await client.scheduler.control()
                    assert (role, header) == (server.role, {"answer": n})
                    assert [bytes(buffer) for buffer in buffers] == [b"abab"]
            for server in servers:
                await client.scheduler.send_control(server.role, {"do": "end"})
    assert [server.result for server in servers] == [3, 3]


@pytest.mark.parametrize("victim", ALL)
async def test_a_failing_actor_tells_all_others(victim: Role) -> None:
    async def fail(actor: Actor) -> None:
        await anyio.sleep(0)
        raise ValueError("a token, a share, a text")

    async def wait(actor: Actor) -> None:
        async with actor.scheduler.link(1) as link:
            await link.receive(victim, (1,))

    actors = scripted({role: fail if role is victim else wait for role in ALL})
    await connect_all(actors)
    errors = await run_all(actors)
    assert isinstance(errors.pop(victim), ValueError)
    assert {str(error) for error in errors.values()} == {f"{victim} failed: ValueError"}
    assert all(isinstance(error, PeerFailed) for error in errors.values())


async def test_cancellation_leaves_nothing_behind() -> None:
    released = threading.Event()
    entered = threading.Event()

    def long_computation() -> None:
        entered.set()
        released.wait(HANG)

    async def compute(actor: Actor) -> None:
        async with actor.scheduler.link(1) as link:
            await link.defer(anyio.sleep_forever())
            await link.run(10**9, long_computation)

    async def wait(actor: Actor) -> None:
        async with actor.scheduler.link(1) as link:
            tasks = [link.receive(Role.DEALER, (n, n, 1)) for n in range(3)]
            await link.gather(tasks)

    async def forever(actor: Actor) -> None:
        await anyio.sleep_forever()

    before = asyncio.all_tasks()
    roles = {Role.DEALER: compute, Role.EVALUATOR_A: wait, Role.CLIENT: forever}
    actors = scripted(roles, compute=Compute(threads=1))
    await connect_all(actors)
    async with anyio.create_task_group() as group:
        for actor in actors:
            group.start_soon(actor.run)
        await until(entered.is_set)
        group.cancel_scope.cancel()
        released.set()
    assert asyncio.all_tasks() == before
    for actor in actors:
        for port in actor.scheduler.ports.values():
            assert not port.mailboxes and not port.windows and port.closed


async def test_misuse_is_explained() -> None:
    with pytest.raises(LocalProtocolError, match="client is not connected"):
        await Actor(Role.CLIENT).run()
    with pytest.raises(LocalProtocolError, match="same role"):
        await connect_all([Actor(Role.CLIENT), Actor(Role.CLIENT)])
    with pytest.raises(ConfigError, match="no transport for 'carrier://x'"):
        await connect_all([Actor(Role.CLIENT), Actor(Role.OWNER)], "carrier://x")
    actors = scripted({Role.CLIENT: exchange, Role.OWNER: exchange})
    await connect_all(actors)
    await run_all(actors)
    with pytest.raises(LocalProtocolError, match="runs once"):
        await actors[0].run()


async def test_a_stranger_at_the_door_stops_the_wiring(monkeypatch: pytest.MonkeyPatch) -> None:
    actors = [Actor(Role.CLIENT), Actor(Role.OWNER)]
    before = asyncio.all_tasks()
    arrived = anyio.Event()
    stranger: list[Channel] = []

    async def besieged(address: str) -> Listener:
        """The stranger is at the door before anybody who is expected."""
        listener = await listen(address)
        if not stranger:
            stranger.append(await connect(address))
            arrived.set()
        return listener

    async def intrude() -> None:
        await arrived.wait()
        me = Identity(Role.DEALER, "mallory", bytes(16))
        with pytest.raises((RemoteProtocolError, TransportError)):
            await handshake(stranger[0], me, {Role.CLIENT})

    monkeypatch.setattr(wiring, "listen", besieged)
    async with anyio.create_task_group() as group:
        group.start_soon(intrude)
        with pytest.raises(RemoteProtocolError, match="dealer connected where owner was expected"):
            await connect_all(actors, session=bytes(16))
    assert asyncio.all_tasks() == before


async def test_connecting_in_different_orders() -> None:
    for roles in itertools.permutations(ALL[:3]):
        actors = scripted(dict.fromkeys(roles, exchange), flow=Flow(grace=0.1))
        await connect_all(actors)
        assert (await run_all(actors)) == dict.fromkeys(roles)
