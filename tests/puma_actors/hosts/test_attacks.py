"""What hostile callers try against running parties. Each is refused, and the parties serve on."""

import shutil
import struct
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from attacks import IDS, A, B, D, connect, serves
from hosts import hosts, list_models, quiet, write_config
from networks import ALL
from ports import free_port
from waiting import in_time, until

import puma_actors.hosts.receiver
from protocols.base.shares import COMPUTING, Role
from protocols.errors import Busy, ConfigError, PumaError, RemoteProtocolError, TransportError
from puma_actors.api.remote import RemoteCluster
from puma_actors.base.certs import issue
from puma_actors.base.identity import PeerIdentity
from puma_actors.hosts.admission import Request, enter
from puma_actors.hosts.caller import call
from puma_actors.hosts.config import ClusterConfig, load_config
from puma_actors.hosts.server import PartyServer
from puma_actors.roles.messages import InferMessage
from puma_actors.session.handshake import Identity, handshake
from puma_actors.transports import Channel
from puma_actors.transports.frames import NO_SESSION, Frame, Kind

# -- as somebody else ------------------------------------------------------------------------------


async def test_every_certificate_is_good_for_its_own_role_alone(
    folder: Path, certificates: Path, model: Path
) -> None:
    """Also an evaluator that pretends to be the other one, at either of the two checks."""
    async with hosts(folder, certificates) as cluster:
        await cluster.upload(model)
        for role, purpose in ((Role.OWNER, "session"), (A, "session"), (B, "upload"), (A, "list")):
            with pytest.raises(ConfigError, match="may not ask for"):
                await call(cluster.client, role, D, purpose, model="tiny")  # type: ignore[arg-type]
        for real in ALL:
            for said in (A, B, Role.CLIENT, Role.OWNER):
                if real is said:
                    continue
                channel = await connect(cluster, real)
                request = Request(role=said, name=said, purpose="ping")
                with pytest.raises(ConfigError, match=f"with the certificate of {real}"):
                    await enter(channel, request)
                await channel.aclose()
        channel = await connect(cluster, A)
        await enter(channel, Request(role=A, name=A, purpose="link"))
        with pytest.raises(PumaError, match="the other side has finished"):
            await handshake(channel, Identity(B, B, NO_SESSION), {D})
        await serves(cluster)


async def test_a_second_evaluator_with_a_certificate(
    folder: Path, certificates: Path, model: Path, tmp_path: Path
) -> None:
    """Issued by the same authority: `allow.parties` keeps it out."""
    own = shutil.copytree(certificates, tmp_path / "certs")
    issue(own, PeerIdentity(A, "mallory"), ["127.0.0.1"])
    extra = '[allow]\nparties = ["dealer", "evaluator-a", "evaluator-b"]\n'
    async with hosts(folder, own, extra=extra) as cluster:
        await cluster.upload(model)
        mallory = cluster.client.model_copy(update={"name": "mallory"})
        with pytest.raises(ConfigError, match="'mallory' is not on the allow-list of dealer"):
            await call(mallory, A, D, "link")
        await serves(cluster)


async def test_clients_and_owners_that_are_not_listed(
    folder: Path, certificates: Path, model: Path
) -> None:
    async with hosts(folder, certificates) as cluster:
        await cluster.upload(model)
        for role in COMPUTING:
            await cluster.kill(role)
            await cluster.start(role, '[allow]\nclients = ["alice"]\nowners = []\n')
        await cluster.linked()
        for caller, purpose in (
            (Role.CLIENT, "session"),
            (Role.CLIENT, "ping"),
            (Role.OWNER, "remove"),
            (Role.OWNER, "upload"),
        ):
            for peer in COMPUTING:
                with pytest.raises(ConfigError, match="is not on the allow-list"):
                    await call(cluster.client, caller, peer, purpose, model="tiny")  # type: ignore[arg-type]
        assert "tiny" in cluster.servers[D].store


# -- before and beside a session -------------------------------------------------------------------


async def test_a_request_before_the_session_is_open(
    folder: Path, certificates: Path, model: Path
) -> None:
    infer = InferMessage(number=0, lengths=[3], steps=1).header()
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        raw = await connect(cluster)
        await raw.send(Frame(Kind.CONTROL, b"r" * 16, (), infer))
        assert (await raw.receive()).kind is Kind.ERROR
        await raw.aclose()

        admitted = await call(cluster.client, Role.CLIENT, D, "session", model="tiny")
        await admitted.channel.send(Frame(Kind.CONTROL, admitted.session, (), infer))
        with pytest.raises((RemoteProtocolError, TransportError)):
            while (await admitted.channel.receive()).kind is not Kind.ERROR:
                pass
            raise TransportError("told so")
        await admitted.channel.aclose()
        await serves(cluster)


async def test_a_session_id_replayed_while_it_is_used(
    folder: Path, certificates: Path, model: Path
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        async with await RemoteCluster.open(cluster.client, "tiny") as remote:
            used = bytes.fromhex(remote.session)
            for peer in COMPUTING:
                with pytest.raises(ConfigError, match="was used before"):
                    await call(
                        cluster.client, Role.CLIENT, peer, "session", session=used, model="tiny"
                    )
            with pytest.raises(ConfigError, match="was used before"):
                await call(
                    cluster.client, Role.CLIENT, D, "session", session=NO_SESSION, model="tiny"
                )
            assert (await remote.forward(IDS)).shape[0] == len(IDS)
        await serves(cluster)


async def test_a_thousand_sessions(folder: Path, certificates: Path, model: Path) -> None:
    admitted: list[Channel] = []
    turned_away: list[str] = []

    async def visit(config: ClusterConfig, turn: anyio.Semaphore) -> None:
        async with turn:
            try:
                found = await call(config, Role.CLIENT, D, "session", model="tiny")
            except Busy as error:
                turned_away.append(str(error))
            else:
                admitted.append(found.channel)

    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        config, turn = cluster.client, anyio.Semaphore(50)
        async with anyio.create_task_group() as group:
            for _ in range(1000):
                group.start_soon(visit, config, turn)
        assert len(admitted) == config.limits.sessions
        assert len(turned_away) == 1000 - len(admitted)
        assert {"is busy (4 sessions)" in text for text in turned_away} == {True}
        for channel in admitted:
            await channel.aclose()
        await serves(cluster)


async def test_callers_that_say_nothing(folder: Path, certificates: Path, model: Path) -> None:
    extra = "[limits]\nsessions = 2\n"
    async with hosts(folder, certificates, "unix", extra) as cluster:
        await cluster.upload(model)
        silent = [await connect(cluster) for _ in range(100)]
        await serves(cluster)
        for channel in silent:
            await channel.aclose()


async def test_names_of_models(folder: Path, certificates: Path) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        client, before = cluster.client, set(folder.rglob("*"))
        for name in ("../../x", "", ".draft-x", "a/b", "..", "x\0", "/etc", "é"):
            for role, purpose in (
                (Role.OWNER, "upload"),
                (Role.OWNER, "remove"),
                (Role.CLIENT, "session"),
            ):
                with pytest.raises(ConfigError, match="bad model name"):
                    await call(client, role, D, purpose, model=name)  # type: ignore[arg-type]
        assert await list_models(client) == {}
        assert set(folder.rglob("*")) == before


# -- sizes -----------------------------------------------------------------------------------------


def prelude(payload: int, head: int = 64, count: int = 1) -> bytes:
    """The first bytes of a frame that announces so much."""
    return struct.pack("<4sBBHIQ16s", b"PUMA", 1, Kind.CONTROL, count, head, payload, bytes(16))


HUGE = (
    prelude(1 << 30),
    prelude(32 << 10),
    prelude((1 << 64) - 1),
    prelude(0, (1 << 32) - 1),
    prelude(0, 64, 65535),
    b"GET / HTTP/1.1\r\nHost: party\r\n\r\n" + bytes(64),
)


async def test_huge_first_words(folder: Path, certificates: Path) -> None:
    """They are hung up on at once: nothing is set aside for a caller who was not admitted."""
    async with hosts(folder, certificates, "unix") as cluster:
        where = cluster.addresses[D].removeprefix("unix://")
        before = cluster.servers[D]._connections

        async def announce(words: bytes) -> None:
            async with await anyio.connect_unix(where) as raw:
                await raw.send(words)
                with suppress(anyio.EndOfStream, anyio.BrokenResourceError), in_time():
                    while await raw.receive():
                        pass

        async with anyio.create_task_group() as group:
            for words in HUGE:
                group.start_soon(announce, words)
        await until(lambda: cluster.servers[D]._connections <= before)
        assert await list_models(cluster.client) == {}


async def test_a_caller_may_send_more_once_it_was_admitted(
    folder: Path, certificates: Path, model: Path
) -> None:
    """The other side of it: 16 KiB before, 64 MiB afterwards, and no more than that."""
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        before = await connect(cluster)
        await before.send(Frame(Kind.CONTROL, b"s" * 16, (), {"do": "enter"}, [bytes(20_000)]))
        with pytest.raises(TransportError):
            while (await before.receive()).kind is not Kind.ERROR:
                pass
            raise TransportError("told so")
        await before.aclose()
        assert cluster.servers[D].sessions == 0  # it was never admitted
        await serves(cluster)


async def test_a_tokenizer_without_end(
    folder: Path, certificates: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        puma_actors.hosts.receiver, "PUBLIC_BYTES", 100
    )  # the owner believes in 48 MiB
    async with hosts(folder, certificates, "unix") as cluster:
        with pytest.raises(PumaError, match="published files have more than 100 bytes"):
            await cluster.upload(model)
        await quiet(cluster)
        assert await list_models(cluster.client) == {}
        for role in COMPUTING:
            assert [path.name for path in (folder / f"{role}-store").iterdir()] == [".lock"]


async def test_a_party_at_anothers_address(folder: Path, certificates: Path) -> None:
    """A configuration with two addresses swapped, by mistake or by the party that answers there."""
    async with hosts(folder, certificates) as cluster:
        swapped = {**cluster.addresses, A: cluster.addresses[B], B: cluster.addresses[A]}
        path = write_config(folder / "swapped.toml", swapped, certificates)
        config = load_config(path, environ={})
        with pytest.raises(ConfigError, match="evaluator-b answers at"):
            await call(config, Role.CLIENT, A, "list")
        fourth = config.model_copy(update={"listen": f"tls://127.0.0.1:{free_port()}"})
        async with anyio.create_task_group() as group:
            server = PartyServer(fourth.model_copy(update={"store": "fourth"}), B)
            calling, turned_away = server.links._call, anyio.Event()

            async def call_once(peer: Role) -> Channel:
                try:
                    return await calling(peer)
                except PumaError:
                    if peer is A:
                        turned_away.set()
                    raise

            server.links._call = call_once  # type: ignore[method-assign]
            group.start_soon(server.run)
            with in_time():
                await turned_away.wait()  # it called, and did not take what answered for A
            assert A not in server.links._links
            group.cancel_scope.cancel()
