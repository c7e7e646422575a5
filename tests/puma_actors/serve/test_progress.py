"""How far the parties are with a prompt, as their client and a client of the gateway see it."""

import re

import httpx2 as httpx
from conversation import IDS, generated
from gateway import KEY, NAME, gateway
from hosts import hosts, quiet
from waiting import HANG, in_time

from protocols.base.shares import Role
from puma_actors.api.remote import RemoteCluster
from puma_actors.roles.client import Client
from puma_actors.roles.messages import ProgressMessage
from puma_actors.roles.serving import progress
from puma_actors.serve import streams


async def test_parties_elsewhere_tell_how_far_they_are(folder, certificates, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    told, take = [], Client._take

    def noted(this, role, message):
        take(this, role, message)
        if isinstance(message, ProgressMessage):
            assert role is Role.EVALUATOR_A
            told.append((message.rounds, remote.rounds_done()))

    monkeypatch.setattr(Client, "_take", noted)
    async with hosts(tmp_path, certificates) as cluster:
        await cluster.upload(folder, "chat")
        async with await RemoteCluster.open(cluster.client, "chat") as remote:
            assert remote.rounds_done() is None  # nothing runs
            await generated(remote, IDS, max_new_tokens=3)
            rounds = remote.usage.steps[0].rounds
        await quiet(cluster)
    said = [each for each, _ in told]
    assert said == sorted({*said})
    assert said[0] > 0 and said[-1] <= rounds
    assert all(seen == each for each, seen in told)


async def test_a_stream_tells_layers_while_parties_elsewhere_read_the_prompt(
    folder, certificates, tmp_path, monkeypatch
):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    monkeypatch.setattr(streams, "KEEP_ALIVE", 0.0)
    async with hosts(tmp_path, certificates) as cluster:
        await cluster.upload(folder, "chat")

        async def opener():
            return await RemoteCluster.open(cluster.client, "chat")

        async with gateway(remote={NAME: opener}) as served:
            body = {"model": NAME, "prompt": IDS, "max_tokens": 1, "stream": True}
            headers = {"authorization": f"Bearer {KEY}"}
            async with httpx.AsyncClient(base_url=served.base, timeout=HANG) as http:
                ask = http.stream("POST", "/v1/completions", json=body, headers=headers)
                with in_time():
                    async with ask as answer:
                        lines = [line async for line in answer.aiter_lines()]
            layers = served.models[NAME].cluster().config.num_layers
        await quiet(cluster)
    form = re.compile(r": keep-alive prefill (\d+)/(\d+) layer (\d+)/(\d+)")
    found = [tuple(map(int, each.groups())) for line in lines if (each := form.fullmatch(line))]
    assert len({rounds for _, rounds, _, _ in found}) == 1
    assert len({done for done, _, _, _ in found}) > 2  # it moves
    assert {layer for _, _, layer, _ in found} == {*range(1, layers + 1)}
    assert found == sorted(found)
