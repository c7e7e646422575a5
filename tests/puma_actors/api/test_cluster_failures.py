"""Failing, cancelled and misbehaving actors: the user gets a clear error at once, nothing hangs,
nothing is left, and a new cluster works.
"""

import asyncio
import contextlib

import anyio
import numpy as np
import pytest
import safetensors.numpy
from reference import leaves_nothing, own_threads, save_model, save_tokenizer
from waiting import Stuck, in_time, unless_stuck

from models.programs import inference
from models.programs.plan import Parameter
from protocols.base.fields import Field
from protocols.base.shares import COMPUTING, EVALUATORS, Role
from protocols.drivers import secure
from protocols.errors import (
    ConfigError,
    ModelError,
    PeerFailed,
    PumaError,
    RangeError,
    RemoteProtocolError,
)
from puma_actors.api import local as cluster
from puma_actors.api.blocking import PrivateModel
from puma_actors.api.local import LocalCluster
from puma_actors.base.compute import Compute
from puma_actors.roles import party
from puma_actors.roles.common import InCommon
from puma_actors.roles.messages import EndedMessage, ReadyMessage
from puma_actors.roles.serving import alone
from puma_actors.session import session as rounds

IDS = [1, 3, 7, 14, 16, 19, 2]
COMPUTING_AND_CLIENT = (*COMPUTING, Role.CLIENT)


class Trouble(Exception):
    """An error that is not ours; its text is a secret."""


async def works(folder) -> None:
    """A new cluster answers."""
    async with leaves_nothing(), LocalCluster.from_pretrained(folder) as running:
        assert np.isfinite(await running.forward(IDS)).all()


async def answer(running: LocalCluster) -> list[int | None]:
    return [token.id async for token in running.generate(IDS, max_new_tokens=20)]


# -- in the middle of an inference -----------------------------------------------------------------


@pytest.mark.parametrize("role", COMPUTING)
@pytest.mark.parametrize("request_of", [answer, lambda running: running.forward(IDS)])
async def test_a_protocol_that_raises_in_one_party(folder, monkeypatch, role, request_of):
    usual = secure.Secure.attention
    calls = 0

    async def broken(self, *args, **options):
        nonlocal calls
        calls += self.lane.role is role
        if calls > 1:
            raise Trouble("a secret")
        return await usual(self, *args, **options)

    async with leaves_nothing():
        with pytest.raises(Trouble):  # the cause, not the news of it
            async with LocalCluster.from_pretrained(folder) as running:
                monkeypatch.setattr(secure.Secure, "attention", broken)
                with pytest.raises(PeerFailed) as told:
                    await request_of(running)
                assert str(told.value) == f"{role} failed: Trouble"
                monkeypatch.setattr(secure.Secure, "attention", usual)
                for _ in range(2):
                    with pytest.raises(PeerFailed, match=f"{role} failed"):
                        await request_of(running)
                with pytest.raises(PeerFailed, match=f"{role} failed"):
                    await running.forward(IDS)
    assert calls == 2
    await works(folder)


@pytest.mark.parametrize("role", COMPUTING)
async def test_a_party_that_is_cancelled(folder, monkeypatch, role):
    scopes: dict[Role, anyio.CancelScope] = {}
    main = party.Party.main

    async def scoped(self) -> None:
        with anyio.CancelScope() as scopes[self.role]:
            await main(self)

    monkeypatch.setattr(party.Party, "main", scoped)
    async with leaves_nothing():
        with pytest.raises(PeerFailed, match=str(role)):
            async with LocalCluster.from_pretrained(folder) as running:
                tokens = running.generate(IDS, max_new_tokens=20)
                await anext(tokens)
                scopes[role].cancel()
                async for _ in tokens:
                    pass


@pytest.mark.parametrize("role", [*COMPUTING, Role.OWNER, Role.CLIENT])
async def test_a_connection_that_breaks(folder, role):
    """Every channel of one party closes in the middle of an answer."""
    async with leaves_nothing():
        with pytest.raises(PumaError) as told:
            async with LocalCluster.from_pretrained(folder) as running:
                tokens = running.generate(IDS, max_new_tokens=20)
                await anext(tokens)
                actors = (running._owner, running.client, *running._parties)
                (victim,) = (actor for actor in actors if actor.role is role)
                for port in victim.scheduler.ports.values():
                    await port.channel.aclose()
                async for _ in tokens:
                    pass
                with in_time():  # the owner is missed a little later
                    while True:
                        await running.forward(IDS)
    assert str(role) in str(told.value) or "closed" in str(told.value)
    await works(folder)


@pytest.mark.parametrize("role", EVALUATORS)
@pytest.mark.parametrize("change", ["cut", "grown", "empty"])
async def test_a_message_of_another_size(folder, monkeypatch, role, change):
    usual = rounds.InferenceLink.send
    count = 0

    async def send(self, to, tag, data, *, online):
        nonlocal count
        if self.role is role and to in EVALUATORS and online:
            count += 1
            if count == 30:
                whole = b"".join(bytes(memoryview(part).cast("B")) for part in data)
                data = [{"cut": whole[:-1], "grown": whole + b"x", "empty": b""}[change]]
        await usual(self, to, tag, data, online=online)

    monkeypatch.setattr(rounds.InferenceLink, "send", send)
    async with leaves_nothing():
        with pytest.raises(RemoteProtocolError, match=r"message of \d+ bytes, expected \d+"):
            async with LocalCluster.from_pretrained(folder) as running:
                with pytest.raises(PeerFailed, match="failed: RemoteProtocolError: message of"):
                    await answer(running)
    monkeypatch.setattr(rounds.InferenceLink, "send", usual)
    await works(folder)


async def test_a_client_that_sends_too_little(folder, monkeypatch):
    async def request(lane, ids, size) -> None:
        await request_rows(lane, ids[:-1], size)

    request_rows = inference.request_rows
    monkeypatch.setattr(inference, "request_rows", request)
    async with leaves_nothing():
        with pytest.raises(RemoteProtocolError, match="bytes, expected"):
            async with LocalCluster.from_pretrained(folder) as running:
                with pytest.raises(PeerFailed, match="RemoteProtocolError"):
                    await running.forward(IDS)


async def test_a_party_that_runs_another_program(folder, monkeypatch):
    """One evaluator swaps once too often: without a message the others would wait forever."""
    usual = alone.evaluate

    async def program(lane, *args) -> None:
        if lane.role is Role.EVALUATOR_B:
            lane.path = (9,)
            await lane.swap([Field((1,))], [np.zeros(1, np.uint64)])
        await usual(lane, *args)

    monkeypatch.setattr(alone, "evaluate", program)
    async with leaves_nothing(), LocalCluster.from_pretrained(folder) as running:
        with pytest.raises(Stuck):
            await unless_stuck(running.forward(IDS))
        monkeypatch.setattr(alone, "evaluate", usual)
        assert len(await running.forward(IDS)) == len(IDS)  # and the session lives on


@pytest.mark.parametrize("role", [Role.DEALER, Role.EVALUATOR_A])
async def test_a_malformed_report_reaches_the_user(folder, role):
    async with leaves_nothing():
        with pytest.raises(RemoteProtocolError, match="not requested"):
            async with LocalCluster.from_pretrained(folder) as running:
                (sender,) = (p for p in running._parties if p.role is role)
                report = EndedMessage(number=99).header()
                await sender.scheduler.send_control(Role.CLIENT, report)
                with pytest.raises(PumaError), in_time():
                    while True:
                        await running.forward(IDS)


# -- cancellation by the user ----------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0, 10**9], ids=["threads", "inline"])
async def test_deadlines_of_the_user(folder, threshold):
    """anyio's and asyncio's, at many points of a step; the cluster goes on."""
    compute = Compute(threads=2, threshold=threshold)
    async with leaves_nothing(), LocalCluster.from_pretrained(folder, compute=compute) as running:
        expected = await running.forward(IDS)
        for milliseconds in (0, 1, 2, 5, 10, 20, 40):
            with anyio.move_on_after(milliseconds / 1000):
                await answer(running)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(running.forward(IDS), milliseconds / 1000)
        np.testing.assert_allclose(await running.forward(IDS), expected, atol=0.02)


async def test_cancelling_the_whole_cluster(folder):
    """At many points while it starts, and later."""
    async with leaves_nothing():
        for turns in (*range(0, 60, 3), 100, 200, 400, 800):
            async with anyio.create_task_group() as group:

                async def use() -> None:
                    async with LocalCluster.from_pretrained(folder) as running:
                        await answer(running)
                        await anyio.sleep_forever()

                group.start_soon(use)
                for _ in range(turns):
                    await asyncio.sleep(0)
                group.cancel_scope.cancel()
    await works(folder)


async def test_asyncio_cancellation_of_the_whole_cluster(folder):
    async def use() -> None:
        async with LocalCluster.from_pretrained(folder) as running:
            await answer(running)
            await anyio.sleep_forever()

    async with leaves_nothing():
        for turns in (*range(1, 60, 3), 100, 1000):
            task = asyncio.create_task(use())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


# -- while it starts -------------------------------------------------------------------------------


def spoiled(folder, tmp_path, name: str, value: float):
    """A copy with one weight changed."""
    save_tokenizer(save_model(tmp_path, seed=3))
    file = tmp_path / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    tensors[name].reshape(-1)[3] = value
    safetensors.numpy.save_file(tensors, file, metadata={"format": "pt"})
    return tmp_path


QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("name", "value", "kind", "says"),
    [
        (QUERY, np.nan, ModelError, f"{QUERY} contains NaN"),
        ("model.norm.weight", np.inf, ModelError, r"model\.norm\.weight contains NaN or inf"),
        (QUERY, 1e12, RangeError, r"layers\.1: a query or key can reach"),
        ("model.layers.0.mlp.up_proj.weight", 1e15, RangeError, None),
        ("model.embed_tokens.weight", 1e18, RangeError, None),
        ("lm_head.weight", 1e15, RangeError, None),
    ],
)
async def test_an_owner_that_fails(folder, tmp_path, name, value, kind, says):
    spoiled(folder, tmp_path, name, value)
    async with leaves_nothing():
        with pytest.raises(kind, match=says) as caught:
            async with LocalCluster.from_pretrained(tmp_path):
                pytest.fail("a broken model was served")
    assert "\n" not in str(caught.value)
    before = own_threads()
    with pytest.raises(kind, match=says):
        await anyio.to_thread.run_sync(PrivateModel.from_pretrained, tmp_path)
    assert own_threads() == before
    await works(folder)


async def test_progress_that_raises(folder):
    def progress(what: str, fraction: float) -> None:
        if what.startswith("sharing"):
            raise Trouble(what)

    async with leaves_nothing():
        with pytest.raises(Trouble, match="sharing the weights"):
            async with LocalCluster.from_pretrained(folder, progress=progress):
                pytest.fail("it was ignored")


@pytest.mark.parametrize("role", COMPUTING)
async def test_a_party_that_fails_while_it_takes_the_model(folder, monkeypatch, role):
    usual = InCommon.hold

    def hold(self, number: int, parameter: Parameter):
        if self._role is role and number == 3:
            raise MemoryError
        return usual(self, number, parameter)

    monkeypatch.setattr(InCommon, "hold", hold)
    async with leaves_nothing():
        with pytest.raises(MemoryError):
            async with LocalCluster.from_pretrained(folder):
                pytest.fail("it was ignored")


async def test_a_party_that_is_ready_for_another_model(folder, monkeypatch):
    """Seen by the owner alone, who is the last to be heard when a cluster starts."""
    usual = rounds.RoundScheduler.send_control

    async def send_control(self, to, header, buffers=()):
        if header.get("do") == "ready" and to is Role.OWNER and self.role is Role.DEALER:
            header = ReadyMessage(digest="0" * 64).header()
        await usual(self, to, header, buffers)

    monkeypatch.setattr(rounds.RoundScheduler, "send_control", send_control)
    async with leaves_nothing():
        with pytest.raises(RemoteProtocolError, match="dealer did not accept the model"):
            async with LocalCluster.from_pretrained(folder):
                pytest.fail("it was ignored")


async def test_a_handshake_that_fails(folder, monkeypatch):
    async def no_connection(*args, **options) -> None:
        raise PeerFailed("no way")

    monkeypatch.setattr(cluster, "connect_all", no_connection)
    async with leaves_nothing():
        running = LocalCluster.from_pretrained(folder)
        with pytest.raises(PeerFailed, match="no way"):
            await running.__aenter__()
        with pytest.raises(ValueError, match="closed"):  # the files too
            running.checkpoint.tensor("model.norm.weight")


# -- without an event loop -------------------------------------------------------------------------


def test_a_private_model_whose_party_fails(folder, monkeypatch):
    before = own_threads()

    async def program(*args) -> None:
        raise Trouble("a secret")

    with pytest.raises(Trouble), PrivateModel.from_pretrained(folder) as model:
        monkeypatch.setattr(alone, "evaluate", program)
        for use in (lambda: model.forward(IDS), lambda: model.generate(IDS)):
            with pytest.raises(PeerFailed, match="failed: Trouble"):
                use()
    assert own_threads() == before
    with pytest.raises(ConfigError, match="closed"):
        model.forward(IDS)
