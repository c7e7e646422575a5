"""Many clients at once, some of whom leave, while a party is restarted."""

import asyncio

import httpx2 as httpx
from conversation import IDS
from gateway import KEY, NAME, gateway
from hosts import hosts, quiet
from waiting import in_time, until

from bench.serve.clients import Ask, Spread, Summary, load
from models.tokens.tokenizer import Tokenizer
from protocols.base.shares import Role
from puma_actors.api.remote import RemoteCluster
from puma_actors.serve import served as module

CLIENTS, TOKENS, PLACES = 16, 2, 3


async def test_sixteen_clients_are_served_or_clearly_refused(
    folder, certificates, tmp_path, monkeypatch, answer
):
    monkeypatch.setattr(module, "_FIRST_PAUSE", 0.0)
    monkeypatch.setattr(module, "_FULL_PAUSE", 0.1)
    tokenizer = Tokenizer.load(folder)
    asks = [Ask(IDS, n, tokenizer.decode(answer[:n])) for n in range(1, TOKENS + 1)]
    limits = f"[limits]\nsessions = {PLACES}\n"
    async with hosts(tmp_path, certificates, extra=limits) as cluster:
        await cluster.upload(folder, "chat")
        tasks = len(asyncio.all_tasks())
        open_at_once = []

        async def opener():
            return await RemoteCluster.open(cluster.client, "chat")

        async with gateway(remote={NAME: opener}, at_once=PLACES + 1) as served:
            model = served.models[NAME]

            def connect():
                headers = {"authorization": f"Bearer {KEY}"}
                return httpx.AsyncClient(base_url=served.base, headers=headers, timeout=None)

            async def restart():
                open_at_once.append(model.sessions)
                await cluster.kill(Role.EVALUATOR_A)
                await cluster.start(Role.EVALUATOR_A)

            with in_time():
                rough, spent = await load(
                    connect,
                    NAME,
                    asks,
                    CLIENTS,
                    lambda count: count < 1,
                    leaving=0.2,
                    halfway=restart,
                )
                await until(lambda: model.ready)
                calm, _ = await load(connect, NAME, asks, 2, lambda count: count < 1)
            assert model.running == model.waiting == 0
        await quiet(cluster)
        await until(lambda: len(asyncio.all_tasks()) <= tasks)
    assert 1 < open_at_once[0] <= PLACES  # a fourth one was refused, and its request waited
    summary = Summary.of(CLIENTS, rough, spent)
    assert {*summary.outcomes} <= {"right", "left", "refused"}
    assert summary.outcomes["right"] >= CLIENTS // 4
    assert summary.outcomes["left"] > 0
    assert {each.reason for each in rough if each.outcome == "refused"} <= {"busy", "party_lost"}
    assert [each.outcome for each in calm] == ["right"] * 2
    assert summary.ttft.median > 0 and summary.e2el.p99 >= summary.e2el.median


def test_spreads():
    assert Spread.of([]) == Spread(0.0, 0.0, 0.0)
    found = Spread.of([float(each) for each in range(1, 101)])
    assert (found.mean, found.median, found.p99) == (50.5, 50.5, 100.0)
