"""OpenAI's own client, and a gateway over three parties: five processes with TLS between them."""

import base64
import io
import json
import re
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import anyio
import httpx2 as httpx
import numpy as np
import openai
import pytest
from conversation import IDS, PROMPT
from hosts import addresses_for, write_config
from party_processes import COMMAND, environment, three_parties
from tiny_models import save, tiny_model
from tiny_texts import save_wordpiece
from waiting import HANG, until_now

from models.checkpoints.weights import open_checkpoint
from models.tokens.tokenizer import Tokenizer
from protocols.base.shares import EVALUATORS, Role
from puma_actors.api.remote import upload_model
from puma_actors.hosts.config import load_config

pytestmark = pytest.mark.slow

CHAT = [{"role": "user", "content": PROMPT}]
MOST = 40


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sentences") / "model"
    return save_wordpiece(save(tiny_model("bert", "none"), folder))


@contextmanager
def gateway(config, state, *models):
    """A `puma serve` process: its base address and key."""
    options = [word for model in models for word in ("--model", model)]
    process = subprocess.Popen(
        [*COMMAND, "serve", "--cluster", config, *options, "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        text=True,
        env={**environment(), "XDG_STATE_HOME": str(state)},
    )
    try:
        told = json.loads(process.stdout.readline())
        assert told["models"] == [*models]
        yield told["base_url"], Path(told["key_file"]).read_text().strip()
    finally:
        process.terminate()
        process.stdout.close()
        process.wait(HANG)


async def upload(config, **models):
    for name, folder in models.items():
        with open_checkpoint(folder) as checkpoint:
            tokenizer = Tokenizer.load(folder)
            await upload_model(load_config(config), checkpoint, name, tokenizer=tokenizer)


def test_openai_python_against_five_processes(
    folder, sentences, certificates, tmp_path, answer, puma, monkeypatch
):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    addresses = addresses_for("tls", tmp_path)
    config = write_config(tmp_path / "client.toml", addresses, certificates)
    with three_parties(tmp_path, addresses, certificates):
        anyio.run(lambda: upload(config, chat=folder, sentences=sentences))
        text = Tokenizer.load(folder).decode(answer)
        _talks(puma, config, text, monkeypatch)
        with (
            gateway(config, tmp_path / "state", "chat", "sentences") as (base, key),
            openai.OpenAI(base_url=base, api_key=key, max_retries=0, timeout=HANG) as client,
        ):
            _chats(client, text, len(answer))
            _completes(client, text)
            _embeds(client)
            _refuses(client, base)


def _talks(puma, config, text, monkeypatch):
    """`puma chat` without a terminal, at the same parties."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{PROMPT}\n".encode())))
    code, out, err = puma("chat", "--cluster", config, "-m", "chat", "-n", 8, "--temperature", 0)
    assert (code, out) == (0, f"{text}\n")
    assert "note: private weights: no party knows" in err


def _chats(client, text, count):
    ask = {"model": "chat", "messages": CHAT, "max_tokens": 8, "temperature": 0}
    whole = client.chat.completions.create(**ask)
    assert whole.choices[0].message.content == text
    assert whole.usage.completion_tokens == count
    streamed = client.chat.completions.create(**ask, stream=True)
    assert "".join(each.choices[0].delta.content or "" for each in streamed) == text


def _completes(client, text):
    done = client.completions.create(model="chat", prompt=IDS, max_tokens=8, temperature=0)
    assert done.choices[0].text == text


def _embeds(client):
    texts = ["the red cat", "I see"]
    plain = client.embeddings.create(model="sentences", input=texts, encoding_format="float")
    coded = client.embeddings.create(model="sentences", input=texts)  # asks for base64
    raw = client.embeddings.with_raw_response.create(
        model="sentences", input=texts[0], encoding_format="base64"
    )
    vector = raw.http_response.json()["data"][0]["embedding"]
    found = [np.frombuffer(base64.b64decode(vector), dtype="<f4")]
    found += [np.asarray(each.data[0].embedding) for each in (plain, coded)]
    for each in found:
        np.testing.assert_allclose(each, found[0], atol=0.01)


def _refuses(client, base):
    create = client.chat.completions.create
    for changed, kind in (
        ({"model": "other"}, openai.NotFoundError),
        ({"n": 2}, openai.BadRequestError),
        ({"messages": [{"role": "user", "content": "cat " * 400}]}, openai.BadRequestError),
    ):
        with pytest.raises(kind):
            create(**{"model": "chat", "messages": CHAT, "max_tokens": 1, **changed})
    with (
        openai.OpenAI(base_url=base, api_key="puma-not-the-right-key", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


SLOW = "40ms"
"""Between all: a step takes more than a second, so a stream is closed in the middle of one."""


def test_closing_a_stream_stops_its_work_at_every_party(
    folder, certificates, tmp_path, monkeypatch
):
    """While the prompt is read, and between two tokens. Each party logs how far it came."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    addresses = addresses_for("tls", tmp_path)
    config = write_config(tmp_path / "client.toml", addresses, certificates, network=SLOW)
    with three_parties(tmp_path, addresses, certificates, SLOW) as parties:
        anyio.run(lambda: upload(config, chat=folder))
        with (
            gateway(config, tmp_path / "state", "chat") as (base, key),
            openai.OpenAI(base_url=base, api_key=key, max_retries=0, timeout=HANG) as client,
        ):
            _whole(client)
            _stops_reading(client, lambda: _computing(base, key), parties)
            _stops_answering(client, parties)
            before = {role: Counter(_steps(party)) for role, party in parties.items()}
            _whole(client)  # what was given up is not gone on with
            for role in EVALUATORS:
                parties[role].wait_for("request ended", 4)
                taken = Counter(_steps(parties[role])) - before[role]
                assert taken == {"step done": 2, "joint step done": 1}


def _ask(client, tokens, **options):
    return client.completions.create(
        model="chat", prompt=IDS, max_tokens=tokens, extra_body={"ignore_eos": True}, **options
    )


def _whole(client):
    assert _ask(client, 2).usage.completion_tokens == 2


def _computing(base, key):
    page = f"{base.removesuffix('/v1')}/metrics"
    text = httpx.get(page, headers={"authorization": f"Bearer {key}"}).text
    (count,) = re.findall(r'num_requests_running{model_name="chat"} (\S+)', text)
    return float(count) > 0


def _steps(party):
    return [each["event"] for each in party.events() if "step" in each["event"]]


def _rounds(party, event):
    return [each["rounds"] for each in party.events() if each["event"] == event]


def _stops_reading(client, computing, parties):
    stream = _ask(client, MOST, stream=True)
    until_now(computing)
    stream.close()
    for role, party in parties.items():
        party.wait_for("request ended", 2)
        if role in EVALUATORS:
            whole, *_, cut = _rounds(party, "step done")
            assert cut < whole


def _stops_answering(client, parties):
    stream = _ask(client, MOST, stream=True, logprobs=0)  # so that every token makes a chunk
    next(stream)
    # It has dealt for the next step and heard that it has begun: the evaluators are in it.
    parties[Role.DEALER].wait_for("joint step done", 2)
    stream.close()
    for role, party in parties.items():
        party.wait_for("request ended", 3)
        party.wait_for("joint step dropped")  # the dealer: the step after this one
        if role in EVALUATORS:
            whole, *_ = _rounds(party, "joint step done")
            *_, cut = _rounds(party, "joint step dropped")
            assert cut < whole
