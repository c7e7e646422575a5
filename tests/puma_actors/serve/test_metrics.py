"""`/metrics`: what is counted, for whom, and what never stands there."""

import sys

import httpx2 as httpx
import openai
import pytest
from conversation import IDS, PROMPT
from gateway import KEY, NAME, gateway
from prometheus_client.parser import text_string_to_metric_families
from waiting import in_time, until

from protocols.base.shares import COMPUTING

CHAT = [{"role": "user", "content": PROMPT}]


async def page(served, key=KEY):
    async with httpx.AsyncClient() as raw:
        return await raw.get(f"{served.base}/metrics", headers={"authorization": f"Bearer {key}"})


async def numbers(served):
    """By name of the sample, and the values of its labels."""
    found = await page(served)
    assert found.status_code == 200
    assert found.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(found.text)
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


async def test_an_answer_is_counted_and_only_at_its_own_gateway(folder, answer):
    async with gateway(folder) as served, gateway(folder) as other:
        before = await numbers(served)
        assert before["puma_num_requests_running", NAME] == 0
        assert before["puma_prompt_tokens_total", NAME] == 0
        got = await served.client().chat.completions.create(
            model=NAME, messages=CHAT, max_tokens=8, temperature=0
        )
        after, elsewhere = await numbers(served), await numbers(other)
    assert after["puma_prompt_tokens_total", NAME] == len(IDS)
    assert after["puma_generation_tokens_total", NAME] == len(answer)
    reason = got.choices[0].finish_reason
    assert after["puma_request_success_total", reason, NAME] == 1
    for name, count in (
        ("time_to_first_token", 1),
        ("inter_token_latency", len(answer) - 1),
        ("e2e_request_latency", 1),
        ("request_queue_time", 1),
    ):
        assert after[f"puma_{name}_seconds_count", NAME] == count
    first, between, whole = (
        after[f"puma_{name}_seconds_sum", NAME]
        for name in ("time_to_first_token", "inter_token_latency", "e2e_request_latency")
    )
    assert 0 < first + between <= whole
    assert after["puma_rounds_total", NAME] == got.usage.puma["rounds"]
    assert after["puma_bytes_total", NAME, "online"] == got.usage.puma["online_bytes"]
    assert after["puma_bytes_total", NAME, "dealt"] == got.usage.puma["offline_bytes"]
    peers = [str(role) for role in COMPUTING]
    online, dealt = (after["puma_bytes_total", NAME, phase] for phase in ("online", "dealt"))
    for peer in peers:
        to, back = (after["puma_peer_bytes_total", way, NAME, peer] for way in ("sent", "received"))
        assert 0 < to + back < online + dealt
        assert 0 <= after["puma_peer_wait_seconds_total", NAME, peer] < first + between
    assert sum(after["puma_peer_wait_seconds_total", NAME, peer] for peer in peers) > 0
    labels = {name[2:] for name in after if name[0] == "puma_peer_bytes_total"}
    assert labels == {(NAME, peer) for peer in peers}  # none that a request could add to
    assert after["puma_ready", NAME] == after["puma_sessions", NAME] == 1
    assert after["puma_tasks",] > 0
    assert elsewhere["puma_prompt_tokens_total", NAME] == 0


async def test_what_is_refused_and_what_is_given_up_is_counted(folder):
    async with gateway(folder) as served:
        client, model = served.client(), served.models[NAME]
        create = client.chat.completions.create
        with pytest.raises(openai.NotFoundError):
            await create(model="other", messages=CHAT)
        with pytest.raises(openai.BadRequestError):
            await create(model=NAME, messages=CHAT, n=2)
        assert (await page(served, "puma-not-the-key")).status_code == 401
        stream = await create(
            model=NAME, messages=CHAT, max_tokens=40, stream=True, extra_body={"ignore_eos": True}
        )
        with in_time():
            async for _ in stream:
                break
            assert (await numbers(served))["puma_num_requests_running", NAME] == 1
            await stream.close()
            await until(lambda: model.running == 0)
        found = await numbers(served)
    assert found["puma_requests_cancelled_total", NAME] == 1
    assert found["puma_requests_refused_total", "model_not_found"] == 1
    assert found["puma_requests_refused_total", "http_400"] == 1
    assert found["puma_requests_refused_total", "invalid_api_key"] == 1
    assert 0 < found["puma_generation_tokens_total", NAME] < 40
    assert found["puma_rounds_total", NAME] > 0
    assert ("puma_e2e_request_latency_seconds_count", NAME) not in found


async def test_without_the_extra_there_are_none(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "puma_actors.serve.counting.prometheus", None)
    async with gateway(folder) as served:
        found = await page(served)
        assert found.status_code == 404
        assert "pip install 'puma-actors[metrics]'" in found.json()["error"]["message"]
        answer = await served.client().chat.completions.create(
            model=NAME, messages=CHAT, max_tokens=1
        )
    assert answer.usage.completion_tokens == 1
