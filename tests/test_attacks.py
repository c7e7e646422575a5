"""What hostile callers try against running parties. Each is refused, and the parties serve on."""

import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from hosts import Hosts, free_port, hosts, quiet, write_config
from networks import ALL
from reference import save_model, save_tokenizer

import puma_actors.serving
from models.plan import Plan
from protocols.errors import Busy, ConfigError, PumaError, RemoteProtocolError, TransportError
from protocols.shares import COMPUTING, Role
from puma_actors.calls import call, list_models
from puma_actors.certs import issue
from puma_actors.client import Client
from puma_actors.config import load_config
from puma_actors.entry import Request, enter
from puma_actors.identity import PeerIdentity
from puma_actors.messages import InferMessage
from puma_actors.owner import Owner
from puma_actors.remote import RemoteCluster
from puma_actors.rounds import RoundScheduler
from puma_actors.server import PartyServer
from puma_actors.session import Identity, handshake
from puma_actors.transports import Channel
from puma_actors.wire import NO_SESSION, Frame, Kind

IDS = [1, 3, 7]
A, B, D = Role.EVALUATOR_A, Role.EVALUATOR_B, Role.DEALER
Change = Callable[[Role, dict[str, Any], Sequence[Any]], Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(save_model(tmp_path_factory.mktemp("model"), seed=3))


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for the paths of sockets."""
    with tempfile.TemporaryDirectory(prefix="puma-") as path:
        yield Path(path)


@pytest.fixture
def lying(monkeypatch: pytest.MonkeyPatch) -> Callable[[Role, Change], None]:
    """Lets a role change its requests on their way out: (header, buffers) or None for the same."""
    send = RoundScheduler.send_control

    def lie(liar: Role, change: Change) -> None:
        async def sending(
            self: RoundScheduler, to: Role, header: Any, buffers: Sequence[Any] = ()
        ) -> None:
            if self.role is liar:
                header, buffers = change(to, dict(header), buffers) or (header, buffers)
            await send(self, to, header, buffers)

        monkeypatch.setattr(RoundScheduler, "send_control", sending)

    return lie


async def serves(cluster: Hosts, name: str = "tiny") -> None:
    """Nothing of the attack is left, and an honest client gets its answer."""
    await quiet(cluster)
    with anyio.fail_after(20):
        async with await RemoteCluster.open(cluster.client, name) as remote:
            assert (await remote.forward(IDS)).shape[0] == len(IDS)
    await quiet(cluster)


async def connect(cluster: Hosts, role: Role = Role.CLIENT, peer: Role = D) -> Channel:
    address = cluster.addresses[peer]
    return await cluster.client.transport(address, role).connect(address)


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


async def test_a_request_before_the_parties_agree(
    folder: Path,
    certificates: Path,
    model: Path,
    lying: Callable[[Role, Change], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client that does not wait, while a party keeps its word back."""
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)

        async def at_once(self: Client) -> None:
            infer = InferMessage(number=0, lengths=[3], steps=1).header()
            await self.scheduler.send_control(D, infer)
            await waiting(self)

        waiting = Client.wait_ready
        other = {"do": "agree", "digest": "0" * 64, "upload": "0" * 32}
        with monkeypatch.context() as patch:
            patch.setattr(Client, "wait_ready", at_once)
            lying(A, lambda to, header, _: (other, ()) if header["do"] == "agree" else None)
            with (
                anyio.fail_after(20),
                pytest.raises(PumaError, match=r"before the parties agreed|different uploads"),
            ):
                async with await RemoteCluster.open(cluster.client, "tiny"):
                    pass
        lying(A, lambda *_: None)
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

    async def visit(cluster: Hosts, turn: anyio.Semaphore) -> None:
        async with turn:
            try:
                found = await call(cluster.client, Role.CLIENT, D, "session", model="tiny")
            except Busy as error:
                turned_away.append(str(error))
            else:
                admitted.append(found.channel)

    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        turn = anyio.Semaphore(50)
        async with anyio.create_task_group() as group:
            for _ in range(1000):
                group.start_soon(visit, cluster, turn)
        assert len(admitted) == cluster.client.limits.sessions
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
                with suppress(anyio.EndOfStream, anyio.BrokenResourceError), anyio.fail_after(10):
                    while await raw.receive():
                        pass

        async with anyio.create_task_group() as group:
            for words in HUGE:
                group.start_soon(announce, words)
        with anyio.fail_after(5):
            while cluster.servers[D]._connections > before:
                await anyio.sleep(0.01)
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
        assert cluster.servers[D].sessions == 0
        await serves(cluster)


async def test_a_tokenizer_without_end(
    folder: Path, certificates: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(puma_actors.serving, "PUBLIC_BYTES", 100)  # the owner believes in 48 MiB
    async with hosts(folder, certificates, "unix") as cluster:
        with pytest.raises(PumaError, match="published files have more than 100 bytes"):
            await cluster.upload(model)
        await quiet(cluster)
        assert await list_models(cluster.client) == {}
        for role in COMPUTING:
            assert [path.name for path in (folder / f"{role}-store").iterdir()] == [".lock"]


# -- uploads ---------------------------------------------------------------------------------------


def plan_with(**changes: Any) -> Change:
    """An owner whose plan says something else than its tensors."""

    def change(to: Role, header: dict[str, Any], buffers: Sequence[Any]) -> Any:
        if header["do"] != "plan":
            return None
        public = {**header["plan"], "config": {**header["plan"]["config"], **changes}}
        digest = header["digest"]
        if not any(isinstance(value, str) for value in changes.values()):
            digest = Plan.from_public(public).digest()
        return {**header, "plan": public, "digest": digest}, buffers

    return change


def tensor_with(**changes: Any) -> Change:
    def change(to: Role, header: dict[str, Any], buffers: Sequence[Any]) -> Any:
        if header["do"] != "tensor":
            return None
        return {**header, **changes}, buffers

    return change


def seed_for_another(to: Role, header: dict[str, Any], buffers: Sequence[Any]) -> Any:
    return ({**header, "which": 3 - header["which"]}, buffers) if header["do"] == "seed" else None


def renamed(to: Role, header: dict[str, Any], buffers: Sequence[Any]) -> Any:
    name = "../manifest.json"
    return ({**header, "name": name}, buffers) if header["do"] == "file" else None


def commit_at_once(to: Role, header: dict[str, Any], buffers: Sequence[Any]) -> Any:
    return ({"do": "commit"}, ()) if header["do"] == "plan" else None


def uploaded_at_once(to: Role, header: dict[str, Any], buffers: Sequence[Any]) -> Any:
    return ({"do": "uploaded"}, ()) if header["do"] == "seed" else None


UPLOADS = (
    (plan_with(intermediate_size=64), r"has \d+ bytes for \d+ rows"),
    (plan_with(vocab_size=400), r"has \d+ bytes for \d+ rows"),
    (uploaded_at_once, "is missing"),
    (plan_with(vocab_size=1 << 22, hidden_size=1 << 16), "raise limits.memory"),
    (plan_with(vocab_size="many"), "plan is unusable"),
    (tensor_with(rows=10**6), "came out of order or twice"),
    (tensor_with(start=5), "came out of order or twice"),
    (tensor_with(number=999), "tensor 999 is not expected"),
    (tensor_with(number=1 << 40), "malformed request"),
    (seed_for_another, "is not for evaluator"),
    (renamed, "malformed request"),
    (commit_at_once, "before a plan"),
)


async def test_uploads_that_do_not_fit_together(
    folder: Path,
    certificates: Path,
    model: Path,
    lying: Callable[[Role, Change], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Owner, "_check_ready", lambda *_: None)  # it knows better
    async with hosts(folder, certificates, "unix") as cluster:
        for change, reason in UPLOADS:
            lying(Role.OWNER, change)
            with anyio.fail_after(20), pytest.raises(PumaError, match=reason):
                await cluster.upload(model)
            await quiet(cluster)
            for role in COMPUTING:
                assert [p.name for p in (folder / f"{role}-store").iterdir()] == [".lock"]
        lying(Role.OWNER, lambda *_: None)
        await cluster.upload(model)
        await serves(cluster)


# -- requests --------------------------------------------------------------------------------------


def infer_with(to: Role | None = None, **changes: Any) -> Change:
    """A client that asks all parties, or one, for something else than it should."""

    def change(receiver: Role, header: dict[str, Any], buffers: Sequence[Any]) -> Any:
        if header["do"] != "infer" or to not in (None, receiver):
            return None
        return {**header, **changes}, buffers

    return change


REQUESTS = (
    (infer_with(types=[5, 5, 5]), "token types go up to"),
    (infer_with(types=[1 << 20] * 3), "malformed request, infer.types"),
    (infer_with(types=[0]), "unusable batch"),
    (infer_with(rows="mean"), "request is unusable"),
    (infer_with(rows="everything"), "malformed request, infer.rows"),
    (infer_with(lengths=[]), "malformed request, infer.lengths"),
    (infer_with(lengths=[1 << 40]), "malformed request, infer.lengths"),
    (infer_with(lengths=[1 << 20]), "more than 2048 tokens"),
    (infer_with(lengths=[1] * 4096), "more than 2048 tokens"),
    (infer_with(lengths=[65]), "more than 64 positions"),
    (infer_with(steps=1 << 20), "more than 2048 tokens"),
    (infer_with(number=-1), "malformed request, infer.number"),
    (infer_with(number=1 << 63), "malformed request, infer.number"),
    (infer_with(lanes=1 << 20), "malformed request, infer.lanes"),
)


async def test_requests_out_of_range(
    folder: Path, certificates: Path, model: Path, lying: Callable[[Role, Change], None]
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        for change, reason in REQUESTS:
            lying(Role.CLIENT, change)
            with anyio.fail_after(10), pytest.raises(PumaError, match=reason):
                async with await RemoteCluster.open(cluster.client, "tiny") as remote:
                    await remote.forward(IDS)
        lying(Role.CLIENT, lambda *_: None)
        await serves(cluster)


async def test_a_client_that_tells_the_parties_different_things(
    folder: Path, certificates: Path, model: Path, lying: Callable[[Role, Change], None]
) -> None:
    """An error, silence that ends with its own leaving, or noise: never logits of the model. That
    the masks are bound to the request shows where no shape betrays the lie (`steps`).
    """
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        async with await RemoteCluster.open(cluster.client, "tiny") as remote:
            wanted = await remote.forward(IDS)
        results = []
        for to in COMPUTING:
            for changes in ({"lengths": [4]}, {"reveal": "argmax"}, {"number": 9}, {"steps": 2}):
                lying(Role.CLIENT, infer_with(to, **changes))
                with suppress(PumaError, TimeoutError), anyio.fail_after(1):
                    async with await RemoteCluster.open(cluster.client, "tiny") as remote:
                        results.append((await remote.forward(IDS), "steps" in changes))
        assert sum(silent for _, silent in results) == len(COMPUTING)
        assert all(np.abs(result - wanted).max() > 1e3 for result, _ in results)
        lying(Role.CLIENT, lambda *_: None)
        await serves(cluster)


async def test_an_inference_number_twice(
    folder: Path, certificates: Path, model: Path, lying: Callable[[Role, Change], None]
) -> None:
    """Masks would repeat."""
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        async with await RemoteCluster.open(cluster.client, "tiny") as remote:
            await remote.forward(IDS)
        with pytest.raises(PumaError, match="inference 0 is not new"), anyio.fail_after(10):
            async with await RemoteCluster.open(cluster.client, "tiny") as remote:
                await remote.forward(IDS)
                lying(Role.CLIENT, infer_with(number=0))
                await remote.forward(IDS)
        lying(Role.CLIENT, lambda *_: None)
        await serves(cluster)


async def test_more_inferences_at_once_than_was_set_aside_for(
    folder: Path, certificates: Path, model: Path
) -> None:
    extra = "[limits]\ninference_tokens = 50\n"
    async with hosts(folder, certificates, "unix", extra) as cluster:
        await cluster.upload(model)
        with pytest.raises(PumaError, match="more than 50 tokens at once"), anyio.fail_after(10):
            async with await RemoteCluster.open(cluster.client, "tiny") as remote:
                for number in range(6):
                    infer = InferMessage(number=number, lengths=[10], steps=1).header()
                    await remote.client.scheduler.send_control(D, infer)
                await remote.forward(IDS)
        await serves(cluster)


STRANGE: tuple[dict[str, Any], ...] = (
    {"do": "plan", "plan": {}, "digest": "0" * 64},
    {"do": "seed", "which": 1},
    {"do": "commit"},
    {"do": "agree", "digest": "0" * 64, "upload": "0" * 32},
    {"do": "end", "number": 5},
    {"do": "rm -rf"},
    {},
)


async def test_requests_that_are_not_a_clients(
    folder: Path, certificates: Path, model: Path
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        for header in STRANGE:
            wrong = r"may not send|malformed|not running"
            with anyio.fail_after(10), pytest.raises(PumaError, match=wrong):
                async with await RemoteCluster.open(cluster.client, "tiny") as remote:
                    await remote.client.scheduler.send_control(A, header)
                    await remote.forward(IDS)
        await serves(cluster)


async def test_a_party_at_anothers_address(folder: Path, certificates: Path) -> None:
    """A configuration with two addresses swapped, by mistake or by whoever answers there."""
    async with hosts(folder, certificates) as cluster:
        swapped = {**cluster.addresses, A: cluster.addresses[B], B: cluster.addresses[A]}
        path = write_config(folder / "swapped.toml", swapped, certificates)
        config = load_config(path, environ={})
        with pytest.raises(RemoteProtocolError, match="evaluator-b answers at"):
            await call(config, Role.CLIENT, A, "list")
        fourth = config.model_copy(update={"listen": f"tls://127.0.0.1:{free_port()}"})
        async with anyio.create_task_group() as group:
            server = PartyServer(fourth.model_copy(update={"store": "fourth"}), B)
            group.start_soon(server.run)
            await server.listening.wait()
            await anyio.sleep(0.2)
            assert A not in server.links._links
            group.cancel_scope.cancel()
