"""Turns, and parties that are lost and come back."""

import anyio
import pytest
from conversation import PROMPT
from gateway import NAME, gateway
from hosts import hosts
from openai import APIStatusError
from waiting import in_time, settled, until

from protocols.base.shares import Role
from protocols.errors import Busy, ConfigError, PeerFailed
from puma_actors.api.remote import RemoteCluster
from puma_actors.api.usage import Usage
from puma_actors.serve import served as module
from puma_actors.serve.pace import Pace
from puma_actors.serve.served import Served


class Fake:
    """A cluster that fails when it is told to."""

    def __init__(self):
        self.failed = anyio.Event()

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        if self.failed.is_set():
            raise PeerFailed("dealer has gone")

    async def wait_failed(self):
        await self.failed.wait()


async def test_requests_take_turns_in_order():
    served = Served("m", None)
    served._set(Fake(), "")
    places = [served.queue() for _ in range(3)]
    assert [served.ahead_of(place) for place in places] == [0, 1, 2]
    order = []

    async def use(number):
        async with served.turn(places[number]):
            order.append(number)

    async with anyio.create_task_group() as group:
        for number in (2, 1, 0):
            group.start_soon(use, number)
    assert order == [0, 1, 2]
    assert served.waiting == 0


async def test_a_place_that_is_given_up_lets_the_next_one_in():
    served = Served("m", None)
    served._set(Fake(), "")
    first, second = served.queue(), served.queue()
    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            scope.cancel()
            async with served.turn(first):
                raise AssertionError
        async with served.turn(second) as cluster:
            assert cluster is not None
        group.cancel_scope.cancel()


async def test_a_full_queue_and_a_closed_one():
    served = Served("m", None)
    served._set(Fake(), "")
    for _ in range(module.MAX_WAITING + 1):
        served.queue()
    with pytest.raises(Busy, match="33 requests are waiting"):
        served.queue()
    served.close()
    assert not served.ready
    with pytest.raises(Busy, match="is ending"):
        served.cluster()


async def test_a_lost_cluster_is_opened_again(monkeypatch):
    monkeypatch.setattr(module, "_FIRST_PAUSE", 0.0)
    made = []

    async def opener():
        if len(made) == 1:  # the parties are not back yet
            made.append(None)
            raise ConfigError("not there")
        made.append(Fake())
        return made[-1]

    served = Served("m", opener)
    async with anyio.create_task_group() as group:
        await group.start(served.run)
        assert served.cluster() is made[0]
        made[0].failed.set()
        with in_time():
            await until(lambda: len(made) == 3 and served.ready)
        async with served.turn(served.queue()) as cluster:
            assert cluster is made[2]
        group.cancel_scope.cancel()
    with pytest.raises(Busy, match="not available yet"):
        served.cluster()


async def test_a_model_that_cannot_be_opened_ends_the_gateway():
    async def opener():
        raise ConfigError("no such model")

    with pytest.raises(ExceptionGroup) as errors:
        async with anyio.create_task_group() as group:
            await group.start(Served("m", opener).run)
    assert "no such model" in str(errors.value.exceptions[0])


def test_the_pace_of_answers():
    pace = Pace()
    assert pace.seconds(10, 5) is None
    pace.note(Usage(prompt_ids=[1] * 10, token_ids=[1] * 5, seconds={"prefill": 4, "decode": 2}))
    assert pace.seconds(10, 5) == 6.0
    assert pace.seconds(5, 1) == 4.0
    assert pace.seconds(20, 1) == 8.0


async def test_over_hosts_with_certificates_and_a_party_that_is_restarted(
    folder, certificates, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "_FIRST_PAUSE", 0.0)
    monkeypatch.setattr(module, "_LONGEST_PAUSE", 0.01)
    async with hosts(tmp_path, certificates) as cluster:
        await cluster.upload(folder, "chat")

        async def opener():
            return await RemoteCluster.open(cluster.client, "chat")

        async with gateway(remote={NAME: opener}) as served:
            client, model = served.client(), served.models[NAME]

            async def ask():
                got = await client.chat.completions.create(
                    model=NAME, messages=[{"role": "user", "content": PROMPT}], max_tokens=3
                )
                return got.choices[0].message.content

            before = await ask()
            facts = await client.get("/puma/session", cast_to=object)
            parties = facts["models"][0]["parties"]
            assert {len(party["certificate"]) for party in parties} == {64}
            assert len({party["certificate"] for party in parties}) == 3

            lost = model.cluster()
            await cluster.kill(Role.DEALER)
            with in_time():
                await until(lambda: not model.ready)
            with pytest.raises(APIStatusError) as refused:
                await ask()
            assert refused.value.status_code in (502, 503)
            await cluster.start(Role.DEALER)
            with in_time():
                await until(lambda: model.ready and model.cluster() is not lost)
            assert await ask() == before
            await settled()
