"""Five roles over sockets: upload, sessions, limits, failures, restarts."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from hosts import hosts, quiet
from networks import make_certificates
from reference import leaves_nothing, save_model, save_tokenizer

import puma_actors.remote
import puma_actors.server
import puma_actors.serving
from models.plan import draft_plan
from models.weights import open_checkpoint
from protocols.errors import (
    Busy,
    ConfigError,
    PeerFailed,
    PumaError,
    RemoteProtocolError,
    StoreError,
    TransportError,
)
from protocols.shares import COMPUTING, EVALUATORS, Role
from puma_actors.calls import call, list_models, ping_all, problem_of, remove_model
from puma_actors.cluster import LocalCluster
from puma_actors.entry import Request, enter
from puma_actors.remote import RemoteCluster, upload_model
from puma_actors.residents import model_bytes, session_bytes
from puma_actors.server import PartyServer
from puma_actors.store import Draft
from puma_actors.wire import Frame, Kind

IDS = [1, 3, 7]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(save_model(tmp_path_factory.mktemp("model"), seed=3))


@pytest.fixture(scope="module")
def wanted(model: Path) -> np.ndarray:
    async def run() -> np.ndarray:
        async with LocalCluster.from_pretrained(model) as cluster:
            return await cluster.forward(IDS)

    return anyio.run(run)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for the paths of sockets."""
    with tempfile.TemporaryDirectory(prefix="puma-") as path:
        yield Path(path)


@pytest.mark.parametrize("scheme", ["tls", "unix"])
async def test_upload_then_two_clients_at_once(
    scheme: str, folder: Path, certificates: Path, model: Path, wanted: np.ndarray
) -> None:
    async with leaves_nothing(), hosts(folder, certificates, scheme) as cluster:
        await cluster.upload(model)
        results: dict[int, np.ndarray] = {}
        sessions = []

        async def ask(number: int) -> None:
            remote = await RemoteCluster.open(cluster.client, "tiny")
            sessions.append(remote.session)
            async with remote:
                results[number] = await remote.forward(IDS)

        async with anyio.create_task_group() as group:
            for number in range(2):
                group.start_soon(ask, number)
        assert len(set(sessions)) == 2
        for logits in results.values():
            assert np.abs(logits - wanted).max() < 0.05
        await quiet(cluster)


# -- what is asked ---------------------------------------------------------------------------------


async def test_text_with_the_published_tokenizer(
    folder: Path, certificates: Path, model: Path
) -> None:
    async with LocalCluster.from_pretrained(model) as local:
        expected = [token.id async for token in local.generate("I see", max_new_tokens=4)]
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        async with await RemoteCluster.open(cluster.client, "tiny") as remote:
            got = [token async for token in remote.generate("I see", max_new_tokens=4)]
            assert remote.plan.digest()
        assert [token.id for token in got] == expected
        assert remote.usage.total.rounds > 0
        with pytest.raises(ConfigError, match="not running"):
            await remote.forward(IDS)
        with pytest.raises(ConfigError, match="a session runs once"):
            await remote.__aenter__()


async def test_a_model_without_a_tokenizer(folder: Path, certificates: Path, model: Path) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        with open_checkpoint(model) as checkpoint:
            await upload_model(cluster.client, checkpoint, "bare")
        async with await RemoteCluster.open(cluster.client, "bare") as remote:
            with pytest.raises(ConfigError, match=r"none was published.*--tokenizer"):
                remote.encode("I see")
        async with await RemoteCluster.open(cluster.client, "bare", tokenizer=model) as remote:
            assert remote.encode("I see")


async def test_models_are_listed_and_removed(folder: Path, certificates: Path, model: Path) -> None:
    async with hosts(folder, certificates) as cluster:
        assert await list_models(cluster.client) == {}
        await cluster.upload(model)
        for role in (Role.OWNER, Role.CLIENT):
            (held,) = (await list_models(cluster.client, role)).values()
            assert set(held) == set(COMPUTING)
            assert problem_of(held) == ""
            assert held[Role.DEALER].architecture == "llama"
        with pytest.raises(ConfigError, match="has a model 'tiny' already"):
            await cluster.upload(model)
        assert await remove_model(cluster.client, "tiny") == list(COMPUTING)
        with pytest.raises(ConfigError, match="no party has a model 'tiny'"):
            await remove_model(cluster.client, "tiny")
        with pytest.raises(ConfigError, match="has no model 'tiny'"):
            await RemoteCluster.open(cluster.client, "tiny")
        await cluster.upload(model)


async def test_ping(folder: Path, certificates: Path) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.kill(Role.EVALUATOR_B)
        here = await ping_all(cluster.client, Role.CLIENT)
    for pinged in here[:2]:
        assert pinged.problem == ""
        assert pinged.round_trip is not None
        assert pinged.answer is not None
        links = {link.peer: link.problem for link in pinged.answer.links}
        assert len(links) == 2
        assert "no connection to evaluator-b" in links.pop("evaluator-b")
        assert list(links.values()) == [""]
    assert "nobody listens" in here[2].problem


# -- who is turned away ----------------------------------------------------------------------------


async def test_allow_lists_and_roles(folder: Path, certificates: Path, model: Path) -> None:
    extra = '[allow]\nclients = ["alice"]\n'
    async with hosts(folder, certificates, extra=extra) as cluster:
        await cluster.upload(model)
        with pytest.raises(ConfigError, match="client 'client' is not on the allow-list"):
            await RemoteCluster.open(cluster.client, "tiny")
        for role, purpose in (
            (Role.CLIENT, "upload"),
            (Role.CLIENT, "remove"),
            (Role.OWNER, "link"),
        ):
            with pytest.raises(ConfigError, match=r"not on the allow-list|may not ask for"):
                await call(cluster.client, role, Role.DEALER, purpose, model="tiny")  # type: ignore[arg-type]
        assert list(await list_models(cluster.client)) == ["tiny"]


async def test_another_role_than_in_the_certificate(folder: Path, certificates: Path) -> None:
    async with hosts(folder, certificates) as cluster:
        address = cluster.addresses[Role.DEALER]
        channel = await cluster.client.transport(address, Role.CLIENT).connect(address)
        request = Request(role="owner", name="owner", purpose="list")
        with pytest.raises(ConfigError, match="called with the certificate of client 'client'"):
            await enter(channel, request)
        await channel.aclose()


async def test_a_certificate_of_another_authority(
    folder: Path, certificates: Path, tmp_path: Path
) -> None:
    others = make_certificates(tmp_path / "others")
    async with hosts(folder, certificates) as cluster:
        config = cluster.client.model_copy(update={"certificates": str(others)})
        with pytest.raises(TransportError, match="certificate"):
            await list_models(config)


@pytest.mark.parametrize(
    "first",
    [
        Frame(Kind.HELLO),
        Frame(Kind.CONTROL, header={"do": "infer"}),
        Frame(Kind.CONTROL, header={"do": "enter", "version": 99}),
        Frame(Kind.CONTROL, header={"do": "enter", "version": 1, "role": 3}),
    ],
)
async def test_other_first_words(folder: Path, certificates: Path, first: Frame) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        address = cluster.addresses[Role.DEALER]
        channel = await cluster.client.transport(address, Role.CLIENT).connect(address)
        await channel.send(first)
        assert (await channel.receive()).kind is Kind.ERROR
        await channel.aclose()
        assert await list_models(cluster.client) == {}


async def test_a_session_id_is_good_once(folder: Path, certificates: Path, model: Path) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        used = b"u" * 16
        for _ in range(2):
            visit = call(
                cluster.client, Role.CLIENT, Role.DEALER, "session", session=used, model="tiny"
            )
            if _ == 0:
                await (await visit).channel.aclose()
                await quiet(cluster)
            else:
                with pytest.raises(ConfigError, match="was used before"):
                    await visit


# -- limits ----------------------------------------------------------------------------------------


async def test_busy_and_later_not(
    folder: Path, certificates: Path, model: Path, wanted: np.ndarray
) -> None:
    extra = "[limits]\nsessions = 1\ninference_tokens = 5\n"
    async with hosts(folder, certificates, "unix", extra) as cluster:
        await cluster.upload(model)
        await quiet(cluster)
        async with await RemoteCluster.open(cluster.client, "tiny") as remote:
            with pytest.raises(Busy, match=r"is busy \(1 sessions\): try again in \d+ s"):
                await RemoteCluster.open(cluster.client, "tiny")
            with pytest.raises(ConfigError, match=r"6 tokens .* the parties allow 5"):
                await remote.forward([1] * 6)
            assert np.abs(await remote.forward(IDS) - wanted).max() < 0.05
        await quiet(cluster)
        async with await RemoteCluster.open(cluster.client, "tiny"):
            pass


async def test_memory_is_set_aside(folder: Path, certificates: Path, model: Path) -> None:
    extra = "[limits]\nmemory = 300_000_000\n"
    async with hosts(folder, certificates, "unix", extra) as cluster:
        await cluster.upload(model)
        async with await RemoteCluster.open(cluster.client, "tiny"):
            with pytest.raises(Busy, match="no memory for another session"):
                await RemoteCluster.open(cluster.client, "tiny")
        await quiet(cluster)
        used = [server.residents.used for server in cluster.servers.values()]
        assert all(0 < size < 2_000_000 for size in used)  # the models stay


async def test_an_unused_model_makes_way(folder: Path, certificates: Path, model: Path) -> None:
    with open_checkpoint(model) as checkpoint:
        plan = draft_plan(checkpoint.config)
    memory = session_bytes(plan, 2048) + model_bytes(plan, Role.EVALUATOR_A) * 3 // 2
    async with hosts(folder, certificates, "unix", f"[limits]\nmemory = {memory}\n") as cluster:
        for name in ("one", "two"):
            await cluster.upload(model, name)
            await quiet(cluster)
            async with await RemoteCluster.open(cluster.client, name) as remote:
                await remote.forward(IDS)
            await quiet(cluster)
        for role in EVALUATORS:
            residents = cluster.servers[role].residents
            assert [residents.loaded(name) for name in ("one", "two")] == [False, True]
        async with await RemoteCluster.open(cluster.client, "one") as remote:
            await remote.forward(IDS)


async def test_parties_at_swapped_addresses_and_unwanted_ones(
    folder: Path, certificates: Path
) -> None:
    async with hosts(folder, certificates) as cluster:
        allow = cluster.client.allow.model_copy(update={"parties": ["dealer", "evaluator-a"]})
        with pytest.raises(RemoteProtocolError, match=r"not in allow\.parties"):
            await list_models(cluster.client.model_copy(update={"allow": allow}))
        first, second = cluster.addresses[Role.DEALER], cluster.addresses[Role.EVALUATOR_A]
        cluster.addresses |= {Role.DEALER: second, Role.EVALUATOR_A: first}
        with pytest.raises(RemoteProtocolError, match=r"answers at .*, the address of"):
            await list_models(cluster.client)


async def test_a_model_that_never_fits(folder: Path, certificates: Path, model: Path) -> None:
    async with hosts(folder, certificates, "unix", "[limits]\nmemory = 2_000_000\n") as cluster:
        await cluster.upload(model)
        with pytest.raises(ConfigError, match=r"raise limits\.memory"):
            await RemoteCluster.open(cluster.client, "tiny")


# -- failures --------------------------------------------------------------------------------------


async def test_a_restarted_party_still_has_the_model(
    folder: Path, certificates: Path, model: Path, wanted: np.ndarray
) -> None:
    async with hosts(folder, certificates) as cluster:
        await cluster.upload(model)
        for role in COMPUTING:
            await cluster.kill(role)
            await cluster.start(role)
        await cluster.linked()
        async with await RemoteCluster.open(cluster.client, "tiny") as remote:
            assert np.abs(await remote.forward(IDS) - wanted).max() < 0.05


@pytest.mark.parametrize("dead", COMPUTING)
async def test_a_party_that_dies_ends_its_sessions_and_can_come_back(
    folder: Path, certificates: Path, model: Path, dead: Role
) -> None:
    async with leaves_nothing(), hosts(folder, certificates) as cluster:
        await cluster.upload(model)
        remote = await RemoteCluster.open(cluster.client, "tiny")
        with anyio.fail_after(20), pytest.raises(PumaError, match=str(dead)):
            async with remote:
                await cluster.kill(dead)
                await remote.forward(IDS)
        others = [role for role in COMPUTING if role is not dead]
        with anyio.fail_after(10):
            while any(cluster.servers[role].sessions for role in others):
                await anyio.sleep(0.01)
        with pytest.raises(Busy, match=f"no connection to {dead}"):
            await call(cluster.client, Role.CLIENT, others[0], "session", model="tiny", retry=0.0)
        await cluster.start(dead)
        await cluster.linked()
        async with await RemoteCluster.open(cluster.client, "tiny") as again:
            assert again.session != remote.session
            await again.forward(IDS)


async def test_a_client_that_dies_disturbs_nobody(
    folder: Path, certificates: Path, model: Path, wanted: np.ndarray
) -> None:
    async with hosts(folder, certificates) as cluster:
        await cluster.upload(model)
        async with await RemoteCluster.open(cluster.client, "tiny") as healthy:
            sick = await RemoteCluster.open(cluster.client, "tiny")
            with pytest.raises(PumaError):
                async with sick:
                    for each in sick._calls.values():
                        each.channel.abort()  # type: ignore[attr-defined]
                    await sick.forward(IDS)
            assert np.abs(await healthy.forward(IDS) - wanted).max() < 0.05
            await quiet(cluster, 1)


async def test_a_client_that_never_goes_on_or_leaves_without_a_word(
    folder: Path, certificates: Path, model: Path
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        remote = await RemoteCluster.open(cluster.client, "tiny")
        assert {server.sessions for server in cluster.servers.values()} == {1}
        await remote.aclose()
        await quiet(cluster)
        silent = await RemoteCluster.open(cluster.client, "tiny")
        silent.client.close = anyio.lowlevel.checkpoint  # type: ignore[method-assign]
        async with silent:
            pass
        await quiet(cluster)


async def test_an_idle_session_is_ended(
    folder: Path, certificates: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = puma_actors.serving.ServingLimits
    monkeypatch.setattr(puma_actors.server, "ServingLimits", lambda tokens, _: limits(tokens, 0.2))
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        with pytest.raises(PumaError, match=r"idle for 0\.2 s"):
            async with await RemoteCluster.open(cluster.client, "tiny") as remote:
                await remote.forward(IDS)
                await quiet(cluster)
                await remote.forward(IDS)


async def test_one_upload_of_a_name_at_a_time(
    folder: Path, certificates: Path, model: Path
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        first = await call(cluster.client, Role.OWNER, Role.DEALER, "upload", model="tiny")
        with pytest.raises(ConfigError, match="is being uploaded to dealer already"):
            await cluster.upload(model)
        await first.channel.aclose()
        await quiet(cluster)
        await cluster.upload(model)


# -- stores that do not fit ------------------------------------------------------------------------


async def test_a_damaged_share(folder: Path, certificates: Path, model: Path) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        path = folder / "evaluator-a-store" / "tiny" / "00003.words"
        data = bytearray(path.read_bytes())
        data[9] ^= 1
        path.write_bytes(data)
        with pytest.raises(ConfigError, match=r"00003.words is damaged.*puma models remove tiny"):
            await RemoteCluster.open(cluster.client, "tiny")
        await quiet(cluster)
        await remove_model(cluster.client, "tiny")
        await cluster.upload(model)
        async with await RemoteCluster.open(cluster.client, "tiny") as remote:
            await remote.forward(IDS)


async def test_shares_of_different_uploads(
    folder: Path, certificates: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        kept = folder / "evaluator-a-store" / "tiny"
        shutil.copytree(kept, folder / "old")
        await remove_model(cluster.client, "tiny")
        await cluster.upload(model)
        shutil.rmtree(kept)
        shutil.copytree(folder / "old", kept)
        (held,) = (await list_models(cluster.client)).values()
        assert problem_of(held) == "the parties hold different uploads"
        with pytest.raises(ConfigError, match="hold different uploads"):
            await RemoteCluster.open(cluster.client, "tiny")
        dealer = {}

        def trusting(calls: Any) -> Any:
            dealer[Role.DEALER] = calls[Role.DEALER]
            return agreed(dealer)

        agreed = puma_actors.remote._agreed
        monkeypatch.setattr(puma_actors.remote, "_agreed", trusting)
        with pytest.raises(PumaError, match="hold different uploads"):
            async with await RemoteCluster.open(cluster.client, "tiny"):
                await anyio.sleep(5)


@pytest.mark.parametrize("bad", [Role.DEALER, Role.EVALUATOR_B])
async def test_a_full_disk_leaves_no_model_anywhere(
    folder: Path, certificates: Path, model: Path, bad: Role, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Draft.write

    def write(self: Draft, file: str, data: Any) -> None:
        if self.store.role is bad and file in ("seed-2", "00004.words"):
            raise StoreError(f"{bad} cannot store model {self.name} (its disk is full: ...)")
        written(self, file, data)

    monkeypatch.setattr(Draft, "write", write)
    async with hosts(folder, certificates, "unix") as cluster:
        with pytest.raises(PeerFailed, match=f"{bad} failed: StoreError: .*its disk is full"):
            await cluster.upload(model)
        await quiet(cluster)
        assert await list_models(cluster.client) == {}
        for role in COMPUTING:
            assert [path.name for path in (folder / f"{role}-store").iterdir()] == [".lock"]
        monkeypatch.undo()
        await cluster.upload(model)


async def test_a_failure_at_the_last_step_leaves_no_model_anywhere(
    folder: Path, certificates: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = Draft.publish

    def fail(self: Draft) -> None:
        if self.store.role is Role.EVALUATOR_B:
            raise StoreError("the folder cannot be renamed")
        publish(self)

    monkeypatch.setattr(Draft, "publish", fail)
    async with hosts(folder, certificates, "unix") as cluster:
        with pytest.raises(PeerFailed, match="cannot be renamed"):
            await cluster.upload(model)
        assert await list_models(cluster.client) == {}


async def test_an_owner_that_goes_away(folder: Path, certificates: Path, model: Path) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        with anyio.CancelScope() as scope:

            def progress(what: str, fraction: float) -> None:
                if what == "sharing the weights" and fraction > 0.5:
                    scope.cancel()

            await cluster.upload(model, progress=progress)
        assert scope.cancelled_caught
        await quiet(cluster)
        for role in COMPUTING:
            assert [path.name for path in (folder / f"{role}-store").iterdir()] == [".lock"]


# -- the end ---------------------------------------------------------------------------------------


async def test_draining(folder: Path, certificates: Path, model: Path, wanted: np.ndarray) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        await quiet(cluster)
        leaving = cluster.servers[Role.EVALUATOR_A]
        async with await RemoteCluster.open(cluster.client, "tiny") as remote:
            leaving.drain()
            with pytest.raises(Busy, match="evaluator-a is shutting down"):
                await RemoteCluster.open(cluster.client, "tiny")
            assert np.abs(await remote.forward(IDS) - wanted).max() < 0.05
            assert not leaving.ended.is_set()  # type: ignore[attr-defined]
        with anyio.fail_after(5):
            await leaving.ended.wait()  # type: ignore[attr-defined]


async def test_draining_gives_up_after_the_grace_time(
    folder: Path, certificates: Path, model: Path
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        await quiet(cluster)
        config = cluster.config("dealer", "").model_copy()
        object.__setattr__(config, "timeouts", config.timeouts.model_copy(update={"grace": 0.05}))
        await cluster.kill(Role.DEALER)
        server = PartyServer(config, Role.DEALER)
        cluster.group.start_soon(server.run)
        await server.listening.wait()
        cluster.servers[Role.DEALER] = server
        await cluster.linked()
        with pytest.raises(PumaError), anyio.fail_after(10):
            async with await RemoteCluster.open(cluster.client, "tiny") as remote:
                server.drain()
                while server.sessions:
                    await anyio.sleep(0.01)
                await remote.forward(IDS)


async def test_a_store_in_use_and_an_address_that_is_taken(
    folder: Path, certificates: Path
) -> None:
    async with hosts(folder, certificates) as cluster:
        config = cluster.config("dealer")
        with pytest.raises(TransportError, match="cannot listen"):
            await PartyServer(config.model_copy(update={"store": "elsewhere"}), Role.DEALER).run()
        with pytest.raises(ConfigError, match="in use by another party"):
            await PartyServer(config, Role.DEALER).run()
