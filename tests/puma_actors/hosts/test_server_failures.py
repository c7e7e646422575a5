"""Five roles over sockets: failures, stores that do not fit, restarts, the end."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from hosts import hosts, list_models, quiet
from reference import leaves_nothing
from waiting import in_time, settled, until

import puma_actors.api.remote
import puma_actors.hosts.server
import puma_actors.hosts.serving
from models.programs.program import Batch
from protocols.base.shares import COMPUTING, Role
from protocols.errors import (
    Busy,
    ConfigError,
    ConnectError,
    PeerFailed,
    PumaError,
    StoreError,
)
from puma_actors.api.remote import RemoteCluster
from puma_actors.hosts.caller import call, problem_of, remove_model
from puma_actors.hosts.server import PartyServer
from puma_actors.hosts.stores.draft import Draft
from puma_actors.session.inference import InferenceLink

IDS = [1, 3, 7]


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
        with in_time(), pytest.raises(PumaError, match=str(dead)):
            async with remote:
                await cluster.kill(dead)
                await remote.forward(IDS)
        others = [role for role in COMPUTING if role is not dead]
        await until(lambda: not any(cluster.servers[role].sessions for role in others))
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
                    for port in sick.client.scheduler.ports.values():
                        port.channel.abort()  # type: ignore[attr-defined]
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
    limits = puma_actors.hosts.serving.ServingLimits
    quick = lambda tokens, _, *rest: limits(tokens, 0.2, *rest)  # noqa: E731
    monkeypatch.setattr(puma_actors.hosts.server, "ServingLimits", quick)
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        with pytest.raises(PumaError, match=r"idle for 0\.2 s"):
            async with await RemoteCluster.open(cluster.client, "tiny") as remote:
                await remote.forward(IDS)
                await quiet(cluster)
                await remote.forward(IDS)


class Looks:
    """Idle times pass when the test says so, at all parties at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._over, self.begun = anyio.Event(), 0
        patched = {**vars(anyio), "sleep": self._sleep}
        monkeypatch.setattr(puma_actors.hosts.serving, "anyio", SimpleNamespace(**patched))

    async def _sleep(self, seconds: float) -> None:
        self.begun += 1
        await self._over.wait()

    def pass_by(self) -> int:
        """Every party will look, and wait again: the number of waits by then."""
        over, self._over = self._over, anyio.Event()
        over.set()
        return self.begun + len(COMPUTING)


async def test_a_step_may_take_longer_than_the_idle_time(
    folder: Path,
    certificates: Path,
    model: Path,
    wanted: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks, usual, sent = Looks(monkeypatch), InferenceLink.send, 0
    turn = anyio.Lock()  # lanes send side by side

    async def send(self: InferenceLink, *args: Any, **options: Any) -> None:
        nonlocal sent
        await usual(self, *args, **options)
        if self.role is Role.EVALUATOR_A:
            sent += 1
            if sent % 25 == 0:
                async with turn:
                    number = looks.pass_by()
                    await until(lambda: looks.begun >= number)

    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        monkeypatch.setattr(InferenceLink, "send", send)
        async with await RemoteCluster.open(cluster.client, "tiny") as remote:
            assert np.abs(await remote.forward(IDS) - wanted).max() < 0.05
    assert sent > 50


async def test_a_client_that_goes_to_sleep_in_a_step_is_idle(
    folder: Path, certificates: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = Looks(monkeypatch)
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        with pytest.raises(PumaError, match="the session was idle"):
            async with await RemoteCluster.open(cluster.client, "tiny") as remote:
                await remote.client.begin(Batch((3,), "last"))
                while True:
                    await settled()  # as far as they come without the client's ids
                    remote.client.scheduler.check()
                    looks.pass_by()


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
        with pytest.raises(StoreError, match=r"00003.words is damaged.*puma models remove tiny"):
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

        agreed = puma_actors.api.remote.agreed_plan
        monkeypatch.setattr(puma_actors.api.remote, "agreed_plan", trusting)
        with pytest.raises(PumaError, match="hold different uploads"):
            async with await RemoteCluster.open(cluster.client, "tiny"):
                pytest.fail("the parties agreed")


@pytest.mark.parametrize("bad", [Role.DEALER, Role.EVALUATOR_B])
async def test_a_full_disk_leaves_no_model_anywhere(
    folder: Path, certificates: Path, model: Path, bad: Role, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Draft.write

    def write(self: Draft, file: str, data: Any) -> None:
        if self.store.role is bad and file == ("seed-2" if bad is Role.DEALER else "00004.words"):
            raise StoreError(f"{bad} cannot store model {self.name} (its disk is full: ...)")
        written(self, file, data)

    monkeypatch.setattr(Draft, "write", write)
    async with hosts(folder, certificates, "unix") as cluster:
        with pytest.raises(PeerFailed, match=f"{bad} failed: StoreError: .*its disk is full"):
            await cluster.upload(model)
        await quiet(cluster)
        assert await list_models(cluster.client) == {}
        kept = [".lock"] if bad is Role.DEALER else [".incoming", ".lock"]
        assert sorted(path.name for path in (folder / f"{bad}-store").iterdir()) == kept
        monkeypatch.undo()
        await cluster.upload(model)


@pytest.mark.parametrize("step", ["publish", "keep"])
async def test_a_failure_at_the_last_steps_leaves_no_model_anywhere(
    folder: Path, certificates: Path, model: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = getattr(Draft, step)

    def fail(self: Draft) -> None:
        if self.store.role is Role.EVALUATOR_B:
            raise StoreError("the folder cannot be renamed")
        usual(self)

    monkeypatch.setattr(Draft, step, fail)
    async with hosts(folder, certificates, "unix") as cluster:
        with pytest.raises(PeerFailed, match="cannot be renamed"):
            await cluster.upload(model)
        await quiet(cluster)
        assert await list_models(cluster.client) == {}


@pytest.mark.parametrize("step", ["publish", "keep"])
async def test_a_party_that_is_gone_at_the_last_steps_has_no_model_when_it_is_back(
    folder: Path, certificates: Path, model: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if it were killed: none of its clean-up happens."""
    usual, gone = getattr(Draft, step), Role.EVALUATOR_B

    def die(self: Draft) -> None:
        if self.store.role is gone:
            if step == "publish":
                usual(self)
            self.store.withdraw = lambda *_: None  # type: ignore[method-assign]
            self.suspend = self.discard = lambda *_: None  # type: ignore[method-assign]
            raise StoreError("killed")
        usual(self)

    monkeypatch.setattr(Draft, step, die)
    async with hosts(folder, certificates, "unix") as cluster:
        with pytest.raises(PeerFailed, match="killed"):
            await cluster.upload(model)
        await cluster.kill(gone)
        assert (folder / f"{gone}-store" / "tiny").is_dir()
        monkeypatch.undo()
        await cluster.start(gone)
        await cluster.linked()
        await quiet(cluster)
        assert await list_models(cluster.client) == {}
        await cluster.upload(model)


async def test_an_owner_that_goes_away(folder: Path, certificates: Path, model: Path) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        with anyio.CancelScope() as scope:

            def progress(what: str, fraction: float) -> None:
                if what.startswith("sharing the weights") and fraction > 0.5:
                    scope.cancel()

            await cluster.upload(model, progress=progress)
        assert scope.cancelled_caught
        await quiet(cluster)
        assert await list_models(cluster.client) == {}
        for role in COMPUTING:
            kept = [".lock"] if role is Role.DEALER else [".incoming", ".lock"]
            assert sorted(path.name for path in (folder / f"{role}-store").iterdir()) == kept


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
        with in_time():
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
        with pytest.raises(PumaError), in_time():
            async with await RemoteCluster.open(cluster.client, "tiny") as remote:
                server.drain()
                await until(lambda: not server.sessions)
                await remote.forward(IDS)


async def test_a_store_in_use_and_an_address_that_is_taken(
    folder: Path, certificates: Path
) -> None:
    async with hosts(folder, certificates) as cluster:
        config = cluster.config("dealer")
        with pytest.raises(ConnectError, match="cannot listen"):
            await PartyServer(config.model_copy(update={"store": "elsewhere"}), Role.DEALER).run()
        with pytest.raises(ConfigError, match="in use by another party"):
            await PartyServer(config, Role.DEALER).run()
