"""A live gateway and OpenAI's own client."""

import asyncio
import base64
import threading
from functools import partial

import anyio
import httpx2 as httpx
import numpy as np
import openai
import pytest
from conversation import IDS, PROMPT
from gateway import KEY, NAME, gateway
from reference import save_model, save_tokenizer
from tiny_models import save, tiny_model
from tiny_texts import save_wordpiece
from waiting import HANG, in_time, until

from protocols.base.cost import Cost
from protocols.base.lane import Settings
from puma_actors.api.local import LocalCluster
from puma_actors.serve import completions, embeddings
from puma_actors.serve.answers import log_probabilities
from puma_actors.serve.app import application
from puma_actors.serve.facts import Models
from puma_actors.serve.pace import Pace
from puma_actors.serve.served import Served

CHAT = [{"role": "user", "content": PROMPT}]


def told(error: openai.APIStatusError) -> str:
    return str(error.body["message"])


async def test_whole_answers_and_streams_are_those_of_the_cluster(folder, answer):
    async with gateway(folder) as served:
        client, cluster = served.client(), served.models[NAME].cluster()
        text = cluster.tokenizer.decode(answer)
        whole = await client.chat.completions.create(model=NAME, messages=CHAT, max_tokens=8)
        assert whole.choices[0].message.content == text
        assert whole.choices[0].finish_reason == ("stop" if len(answer) < 8 else "length")
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (len(IDS), len(answer))
        assert whole.usage.puma["rounds"] > 0
        assert whole.system_fingerprint == f"puma-{cluster.plan.digest()[:16]}"

        parts = [{"type": "text", "text": PROMPT[:5]}, {"type": "text", "text": PROMPT[5:]}]
        stream = await client.chat.completions.create(
            model=NAME,
            messages=[{"role": "user", "content": parts}],
            max_completion_tokens=8,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        assert len({(c.id, c.created, c.model, c.object) for c in chunks}) == 1
        *spoken, last, usage = chunks
        assert spoken[0].choices[0].delta.role == "assistant"
        assert {chunk.choices[0].delta.role for chunk in spoken[1:]} <= {None}
        assert "".join(chunk.choices[0].delta.content for chunk in spoken) == text
        assert {chunk.choices[0].finish_reason for chunk in spoken} == {None}
        assert last.choices[0].finish_reason == whole.choices[0].finish_reason
        assert (usage.choices, usage.usage.completion_tokens) == ([], len(answer))


async def test_no_usage_chunk_unless_asked(folder):
    async with gateway(folder) as served:
        stream = await served.client().completions.create(
            model=NAME, prompt=PROMPT, max_tokens=2, stream=True
        )
        chunks = [chunk async for chunk in stream]
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


async def test_completions_take_text_and_ids_and_show_probabilities(folder):
    async with gateway(folder) as served:
        client, cluster = served.client(), served.models[NAME].cluster()
        ids = cluster.encode(PROMPT, raw=True)
        logits = await cluster.forward(ids, rows="last")
        chances = log_probabilities(logits[0])
        found = [
            await client.completions.create(
                model=NAME, prompt=prompt, max_tokens=1, logprobs=2, temperature=0
            )
            for prompt in (PROMPT, ids, [PROMPT])
        ]
        for each in found:
            shown = each.choices[0].logprobs
            assert shown.token_logprobs[0] == pytest.approx(chances.max(), abs=0.05)
            assert len(shown.top_logprobs[0]) == 2
            assert max(shown.top_logprobs[0].values()) == shown.token_logprobs[0]
        assert len({each.choices[0].text for each in found}) == 1


async def test_chat_probabilities(folder):
    async with gateway(folder) as served:
        client = served.client()
        for count in (None, 3):
            got = await client.chat.completions.create(
                model=NAME, messages=CHAT, max_tokens=3, logprobs=True, top_logprobs=count
            )
            entries = got.choices[0].logprobs.content
            assert len(entries) == got.usage.completion_tokens
            assert all(len(entry.top_logprobs) == (count or 0) for entry in entries)
            assert all(bytes(entry.bytes).decode() == entry.token for entry in entries)


async def test_options_change_the_answer(folder):
    async with gateway(folder) as served:
        client, cluster = served.client(), served.models[NAME].cluster()

        async def said(**options):
            got = await client.chat.completions.create(
                model=NAME, messages=CHAT, max_tokens=6, **options
            )
            return got.choices[0].message.content

        plain = await said()
        best = cluster.encode(plain, raw=True)[-1]
        assert await said(logit_bias={str(i): -100 for i in set(cluster.encode(plain))}) != plain
        assert best >= 0
        assert await said(temperature=1.5, seed=4) == await said(temperature=1.5, seed=4)
        stop = plain[1:3]
        assert (await said(stop=stop)) == plain[: plain.index(stop)]


REFUSED = {
    "model": ({"model": "other"}, openai.NotFoundError, "there is no model 'other'"),
    "n": ({"n": 2}, openai.BadRequestError, "n is not supported"),
    "tools": (
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        openai.BadRequestError,
        "tools is not supported",
    ),
    "format": (
        {"response_format": {"type": "json_object"}},
        openai.BadRequestError,
        "response_format is not supported",
    ),
    "image": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "http://x/y"}}],
                }
            ]
        },
        openai.BadRequestError,
        "reads text only",
    ),
    "temperature": ({"temperature": -1}, openai.BadRequestError, "temperature: "),
    "role": (
        {"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]},
        openai.BadRequestError,
        "messages.0.role: ",
    ),
    "context": (
        {"messages": [{"role": "user", "content": "cat " * 400}]},
        openai.BadRequestError,
        "tokens",
    ),
    "bias": ({"logit_bias": {"cat": 1}}, openai.BadRequestError, "token ids"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_refusals_reach_the_clients_own_classes(folder, case):
    changed, kind, text = REFUSED[case]
    async with gateway(folder) as served:
        request = {"model": NAME, "messages": CHAT, "max_tokens": 2, **changed}
        with pytest.raises(kind) as refused:
            await served.client().chat.completions.create(**request)
    assert text in told(refused.value)
    assert refused.value.response.headers["x-should-retry"] == "false"


async def test_a_wrong_key(folder):
    async with gateway(folder) as served:
        with pytest.raises(openai.AuthenticationError):
            await served.client("puma-another-key-altogether").models.list()


async def test_models_and_facts(folder):
    async with gateway(folder) as served:
        client = served.client()
        assert [model.id for model in (await client.models.list()).data] == [NAME]
        assert (await client.models.retrieve(NAME)).owned_by == "puma"
        facts = await client.get("/puma/session", cast_to=object)
        (model,) = facts["models"]
        assert model["plan"] == served.models[NAME].cluster().plan.digest()
        assert model["weights"] == "private"
        assert {party["role"] for party in model["parties"]} == {
            "dealer",
            "evaluator-a",
            "evaluator-b",
        }


async def test_secret_logits_refuse_probabilities(folder):
    async with gateway(folder, settings=Settings(reveal="argmax")) as served:
        create = served.client().chat.completions.create
        answer = await create(model=NAME, messages=CHAT, max_tokens=2, temperature=0)
        assert answer.usage.completion_tokens
        with pytest.raises(openai.BadRequestError, match="only the best token"):
            await create(model=NAME, messages=CHAT, max_tokens=2, temperature=0, logprobs=True)


async def test_closing_a_stream_stops_the_inference_at_every_party(folder):
    async with gateway(folder) as served:
        client, model = served.client(), served.models[NAME]
        cluster = model.cluster()
        stream = await client.chat.completions.create(
            model=NAME,
            messages=CHAT,
            max_tokens=40,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        with in_time():
            async for _ in stream:
                break
            await stream.close()
            await until(lambda: model.running == 0)
        assert cluster.client._inferences == {}
        assert len(cluster.usage.token_ids) < 40
        again = await client.chat.completions.create(model=NAME, messages=CHAT, max_tokens=2)
        assert again.usage.completion_tokens


async def test_a_client_that_does_not_wait_long_enough_is_told_before(folder):
    async with gateway(folder) as served:
        served.models[NAME].pace = Pace(prefill=(1, 90.0), step=5.0)
        create = partial(
            served.client().chat.completions.create,
            model=NAME,
            messages=CHAT,
            extra_headers={"x-stainless-read-timeout": "60"},
        )
        with pytest.raises(openai.BadRequestError, match=r"expected to take \d+ s.* waits 60 s"):
            await create(max_tokens=4)
        stream = await create(max_tokens=1, stream=True)
        assert [chunk async for chunk in stream]


async def test_what_the_first_request_takes_is_predicted(folder, monkeypatch):
    """Roughly, so that it is refused only where there is no doubt."""
    predicted = completions.predicted
    seconds = 100.0

    def slow(*given):
        first, later, rough = predicted(*given)
        assert rough > 0
        return first, later, seconds

    monkeypatch.setattr(completions, "predicted", slow)
    async with gateway(folder) as served:
        create = partial(
            served.client().chat.completions.with_raw_response.create,
            model=NAME,
            messages=CHAT,
            max_tokens=1,
            extra_headers={"x-stainless-read-timeout": "60"},
        )
        seconds = 130.0
        with pytest.raises(openai.BadRequestError, match=r"expected to take \d+ s.* waits 60 s"):
            await create()
        seconds = 100.0
        answer = await create()
        assert answer.headers["x-puma-predicted-seconds"] == "100.0"
        answer = await create()
        assert float(answer.headers["x-puma-predicted-seconds"]) < 60  # as the first one took


async def test_what_vectors_cost_is_known_before(sentence_model, monkeypatch):
    async with gateway(sentence_model) as served:
        create = served.client().embeddings.with_raw_response.create
        ask = partial(create, model=NAME, input=["the red cat", "I see"])
        answer = await ask(extra_headers={"x-stainless-read-timeout": "600"})
        assert int(answer.headers["x-puma-predicted-rounds"]) == answer.parse().usage.puma["rounds"]
        assert float(answer.headers["x-puma-predicted-seconds"]) >= 0
        monkeypatch.setattr(embeddings, "_predicted", lambda *_: (Cost(), 130.0))
        with pytest.raises(openai.BadRequestError, match=r"expected to take 65 s.* waits 60 s"):
            await ask(extra_headers={"x-stainless-read-timeout": "60"})


async def test_embeddings_in_both_encodings(sentence_model):
    async with gateway(sentence_model) as served:
        client = served.client()
        texts = ["the red cat", "I see"]
        plain = await client.embeddings.create(model=NAME, input=texts, encoding_format="float")
        coded = await client.embeddings.create(model=NAME, input=texts)
        cluster = served.models[NAME].cluster()
        size = cluster.config.hidden_size
        for a, b in zip(plain.data, coded.data, strict=True):
            assert len(a.embedding) == len(b.embedding) == size
            np.testing.assert_allclose(a.embedding, b.embedding, atol=0.01)
        raw = await client.post(
            "/embeddings",
            cast_to=object,
            body={"model": NAME, "input": "the red cat", "encoding_format": "base64"},
        )
        vector = np.frombuffer(base64.b64decode(raw["data"][0]["embedding"]), dtype="<f4")
        np.testing.assert_allclose(vector, plain.data[0].embedding, atol=0.01)
        for wrong, text in (
            ({"input": [[1, 2]]}, "check_embedding_ctx_length"),
            ({"input": ""}, "empty"),
            ({"input": "cat", "dimensions": size + 1}, f"have {size} entries"),
        ):
            with pytest.raises(openai.BadRequestError, match=text):
                await client.embeddings.create(model=NAME, **wrong)


@pytest.fixture
def sentence_model(tmp_path):
    return save_wordpiece(save(tiny_model("bert", "none"), tmp_path / "sentences"))


async def test_two_models_and_a_second_request_that_waits(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    save_model(other)
    save_tokenizer(other)
    async with gateway(folder, other) as served:
        client, model = served.client(), served.models[NAME]
        ahead = model.queue()
        stream = await client.chat.completions.create(
            model=NAME, messages=CHAT, max_tokens=1, stream=True
        )
        with in_time():
            await until(lambda: model.waiting == 1)
        elsewhere = await client.chat.completions.create(model="other", messages=CHAT, max_tokens=1)
        assert elsewhere.model == "other"
        model.leave(ahead)
        assert [chunk async for chunk in stream][-1].choices[0].finish_reason
        assert isinstance(model.cluster(), LocalCluster)


async def test_readiness_of_each_model(folder, tmp_path):
    async def opener():
        return LocalCluster.from_pretrained(folder)

    models = {name: Served(name, opener) for name in ("one", "two/three")}
    app = application(Models(models), ["here:1"], KEY)
    transport = httpx.ASGITransport(app=app)
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://here:1") as raw,
        anyio.create_task_group() as group,
    ):

        async def asked(path):
            found = await raw.get(path)
            return found.status_code, found.json().get("models")

        await group.start(models["one"].run)
        assert await asked("/ready") == (503, {"one": True, "two/three": False})
        assert await asked("/ready/one") == (200, {"one": True})
        assert await asked("/ready/two/three") == (503, {"two/three": False})
        assert (await asked("/ready/other"))[0] == 404
        assert (await asked("/health"))[0] == 200
        group.cancel_scope.cancel()


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
async def test_the_gateway_answers_others_while_a_long_text_is_read(folder, monkeypatch, path):
    async with gateway(folder) as served, httpx.AsyncClient(timeout=HANG) as other:
        cluster, reading, go = served.models[NAME].cluster(), anyio.Event(), threading.Event()
        encode, loop = cluster.encode, asyncio.get_running_loop()

        def slow(*prompt, **options):
            loop.call_soon_threadsafe(reading.set)
            assert go.wait(HANG)
            return encode(*prompt, **options)

        monkeypatch.setattr(cluster, "encode", slow)
        asked = {"messages": CHAT} if path.startswith("chat") else {"prompt": PROMPT}
        body = {"model": NAME, "max_tokens": 1, **asked}
        key = {"authorization": f"Bearer {KEY}"}
        found = []

        async def ask():
            found.append(await other.post(f"{served.base}/v1/{path}", json=body, headers=key))

        with in_time():
            async with anyio.create_task_group() as group:
                group.start_soon(ask)
                await reading.wait()
                async with httpx.AsyncClient(timeout=HANG) as http:
                    health = await http.get(f"{served.base}/health")
                go.set()
        assert (health.status_code, found[0].status_code) == (200, 200)
