"""Clusters in use: requests side by side, given up, after the end, and without an event loop."""

import asyncio
import gc
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import numpy as np
import pytest
from conversation import IDS, PROMPT, TOLERANCE, generated
from reference import (
    leaves_nothing,
    own_threads,
    torch_logits,
)
from waiting import HANG, until

from protocols.base.lane import Settings
from protocols.errors import ConfigError, ModelError
from puma_actors.api.blocking import PrivateModel
from puma_actors.api.local import LocalCluster
from puma_actors.roles.owner import Owner
from puma_actors.session.inference import InferenceLink

# -- requests in sequence, side by side, given up --------------------------------------------------


async def test_requests_at_the_same_time_wait_for_each_other(folder, reference, answer):
    async with leaves_nothing(), LocalCluster.from_pretrained(folder) as cluster:
        found: list[list[int]] = []
        logits = []

        async def ask() -> None:
            found.append([token.id async for token in cluster.generate(PROMPT, max_new_tokens=3)])

        async def look() -> None:
            logits.append(await cluster.forward(IDS))

        async with anyio.create_task_group() as group:
            for task in (ask, look, ask, look):
                group.start_soon(task)
        assert found == [answer[:3]] * 2
        for result in logits:
            np.testing.assert_allclose(result, torch_logits(reference, IDS), atol=TOLERANCE)


async def test_an_answer_given_up_early(folder, answer):
    """Closed by hand, left to the garbage collector, cancelled in the middle of a step."""
    async with leaves_nothing(), LocalCluster.from_pretrained(folder) as cluster:
        tokens = cluster.generate(PROMPT, max_new_tokens=20)
        assert (await anext(tokens)).id == answer[0]
        await tokens.aclose()
        assert await generated(cluster, max_new_tokens=2) == answer[:2]

        async for token in cluster.generate(PROMPT, max_new_tokens=20):
            assert token.id == answer[0]
            break
        gc.collect()
        assert await generated(cluster, max_new_tokens=2) == answer[:2]

        for turns in (0, 1, 5, 30, 120):
            async with anyio.create_task_group() as group:
                group.start_soon(generated, cluster, PROMPT)
                for _ in range(turns):
                    await asyncio.sleep(0)
                group.cancel_scope.cancel()
            assert await generated(cluster, max_new_tokens=2) == answer[:2]
        actors = (cluster.client, *cluster._parties)
        ports = [port for actor in actors for port in actor.scheduler.ports.values()]
        await until(lambda: not any(party._running_inferences for party in cluster._parties))
        await until(lambda: not any(port.mailboxes for port in ports))


async def test_leaving_in_the_middle_of_an_answer(folder):
    async with leaves_nothing():
        async with LocalCluster.from_pretrained(folder) as cluster:
            tokens = cluster.generate(PROMPT, max_new_tokens=20)
            await anext(tokens)
        await tokens.aclose()
        with pytest.raises(ConfigError, match="not running"):
            await generated(cluster)


# -- life ------------------------------------------------------------------------------------------


async def test_a_closed_cluster_leaves_nothing(folder):
    async with leaves_nothing():
        async with LocalCluster.from_pretrained(folder) as cluster:
            await cluster.forward(IDS)
        for use in (cluster.forward(IDS), generated(cluster)):
            with pytest.raises(ConfigError, match="not running"):
                await use
        with pytest.raises(ConfigError, match="runs once"):
            await cluster.__aenter__()


async def test_a_cluster_that_was_not_started(folder):
    cluster = LocalCluster.from_pretrained(folder)
    for use in (cluster.forward(IDS), generated(cluster)):
        with pytest.raises(ConfigError, match="not running"):
            await use
    with pytest.raises(ConfigError, match="not running"):
        cluster.predict(5)
    cluster.checkpoint.close()


async def test_the_users_own_error_comes_out_as_it_is(folder):
    async with leaves_nothing():
        with pytest.raises(KeyError, match="mine"):
            async with LocalCluster.from_pretrained(folder) as cluster:
                await cluster.forward(IDS)
                raise KeyError("mine")


async def test_two_clusters_at_once(folder, answer):
    async with (
        leaves_nothing(),
        LocalCluster.from_pretrained(folder) as one,
        LocalCluster.from_pretrained(folder) as two,
    ):
        results: list[list[int]] = []

        async def ask(cluster) -> None:
            results.append(await generated(cluster, max_new_tokens=3))

        async with anyio.create_task_group() as group:
            group.start_soon(ask, one)
            group.start_soon(ask, two)
        assert results == [answer[:3]] * 2


# -- without an event loop -------------------------------------------------------------------------


def test_private_model(folder, reference, answer):
    before = own_threads()
    with PrivateModel.from_pretrained(folder) as model:
        np.testing.assert_allclose(model.forward(IDS), torch_logits(reference, IDS), atol=TOLERANCE)
        assert len(model.forward(IDS, rows="last")) == 1
        text = model.generate(PROMPT, max_new_tokens=8)
        assert text == model.cluster.tokenizer.decode(answer)
        assert model.usage.token_ids == answer
        tokens = [token.id for token in model.stream(PROMPT, max_new_tokens=3)]
        assert tokens == answer[:3]
        for token in model.stream(PROMPT, max_new_tokens=20):  # given up
            assert token.id == answer[0]
            break
        gc.collect()
        assert model.generate(PROMPT, max_new_tokens=1)
        with pytest.raises(ConfigError, match="empty"):
            model.generate("")
    assert own_threads() == before
    for use in (
        lambda: model.forward(IDS),
        lambda: model.generate(PROMPT),
        lambda: next(model.stream(PROMPT)),
    ):
        with pytest.raises(ConfigError, match="closed"):
            use()
    model.close()


def test_private_model_closed_by_hand_and_from_threads(folder, answer):
    model = PrivateModel.from_pretrained(folder)
    results: list[list[int]] = []

    def ask() -> None:
        results.append([token.id for token in model.stream(PROMPT, max_new_tokens=2)])

    try:
        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANG)
        assert results == [answer[:2]] * 3
        stream = model.stream(PROMPT, max_new_tokens=20)
        assert next(stream).id == answer[0]
    finally:
        model.close()
    with pytest.raises(ConfigError, match="closed"):
        next(stream)


def test_private_model_says_why_it_did_not_start(folder, tmp_path):
    before = own_threads()
    with pytest.raises(ModelError, match="no such file"):
        PrivateModel.from_pretrained(tmp_path / "missing.gguf")
    with pytest.raises(ConfigError, match="lanes"):
        PrivateModel.from_pretrained(folder, settings=Settings(lanes=0))
    assert own_threads() == before


def interrupt() -> None:
    """The stop button of a notebook, or Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)


@contextmanager
def interrupted_midway(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In the middle of a request, by the messages that were sent."""
    usual, sent = InferenceLink.send, 0

    async def send(self, *args, **options) -> None:
        nonlocal sent
        sent += 1
        if sent == 50:
            interrupt()
        await usual(self, *args, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(InferenceLink, "send", send)
        yield


def test_an_interrupted_request_ends_and_the_next_is_answered(folder, answer, monkeypatch):
    before = own_threads()
    with PrivateModel.from_pretrained(folder) as model:
        model.generate(PROMPT, max_new_tokens=1)
        with interrupted_midway(monkeypatch):
            while True:
                model.generate(PROMPT, max_new_tokens=50)
        with interrupted_midway(monkeypatch):
            while True:
                model.forward(IDS)
        assert [token.id for token in model.stream(PROMPT, max_new_tokens=2)] == answer[:2]
    assert own_threads() == before


def test_an_interrupted_load_ends(folder, monkeypatch):
    before = own_threads()

    async def forever(self) -> None:
        interrupt()
        await anyio.sleep_forever()

    monkeypatch.setattr(Owner, "run", forever)
    with pytest.raises(KeyboardInterrupt):
        PrivateModel.from_pretrained(folder)
    assert own_threads() == before


async def test_a_private_model_beside_a_running_loop_as_in_a_notebook(folder, answer):
    with PrivateModel.from_pretrained(folder) as model:
        assert [token.id for token in model.stream(PROMPT, max_new_tokens=2)] == answer[:2]
