"""Nothing secret is printed, logged, told to peers as an error, or shown by a `repr`."""

import re
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest
from pydantic import ValidationError
from reference import leaves_nothing, save_model, save_tokenizer, usual_logs

from models.tokens.tokenizer import Tokenizer
from protocols.base.prf import KeyRing, Stream, derive
from protocols.base.shares import Role, SecretBits, SecretTensor
from protocols.errors import PeerFailed, PumaError
from puma_actors.api.local import LocalCluster
from puma_actors.base.logs import log, show_logs
from puma_actors.cli import main
from puma_actors.hosts.admission import Answer
from puma_actors.roles import party
from puma_actors.roles.serving import alone
from puma_actors.session import handshake as session
from puma_actors.session import session as rounds
from puma_actors.transports.frames import Frame, Kind

PROMPT = "two red cats like my old river house"
SECRET = bytes(range(64, 96))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tokenizer(save_model(tmp_path_factory.mktemp("model"), seed=3))


@dataclass
class Seen:
    """Secrets of a run: words and keys as bytes."""

    words: set[bytes] = field(default_factory=set)
    keys: set[bytes] = field(default_factory=set)

    def forms(self):
        """How each could show up in a text."""
        for key in self.keys:
            yield key.hex()
            yield str(key)[2:-1]
            yield str(int.from_bytes(key, "little"))
        for word in self.words:
            value = int.from_bytes(word, "little")
            if value >= 1 << 40:  # a smaller number may well stand there for another reason
                yield str(value)
                yield str(value - (1 << 64))
                yield f"{value:x}"
                yield word.hex()


@pytest.fixture
def seen(monkeypatch):
    """Notes every pair secret, every upload seed, and words of every message."""
    found = Seen()
    ring, send, handle = KeyRing.__init__, rounds.InferenceLink.send, party.Upload.seed

    def init(self, own, secrets):
        found.keys.update(secrets.values())
        ring(self, own, secrets)

    async def sending(self, to, tag, data, *, online):
        whole = b"".join(bytes(memoryview(part).cast("B")) for part in data)
        found.words.update(whole[i : i + 8] for i in range(0, min(len(whole) - 8, 800), 8))
        await send(self, to, tag, data, online=online)

    def seeding(self, which, buffers):
        found.keys.add(bytes(buffers[0]))
        handle(self, which, buffers)

    monkeypatch.setattr(KeyRing, "__init__", init)
    monkeypatch.setattr(rounds.InferenceLink, "send", sending)
    monkeypatch.setattr(party.Upload, "seed", seeding)
    return found


def clean(text: str, seen: Seen, tokens: list[int]) -> None:
    """Assert that a text holds none of the secrets."""
    for word in PROMPT.split():
        assert not re.search(rf"\b{word}\b", text), word
    for sequence in (tokens, tokens[:3], tokens[-3:]):
        assert ", ".join(map(str, sequence)) not in text
        assert " ".join(map(str, sequence)) not in text
    for form in seen.forms():
        assert form not in text


async def test_logs_of_a_run(folder, seen, logs, capfd):
    async with LocalCluster.from_pretrained(folder) as cluster:
        tokens = [token async for token in cluster.generate(PROMPT, max_new_tokens=4)]
        usage = cluster.usage
        logits = await cluster.forward(usage.prompt_ids)
    out, err = capfd.readouterr()
    text = logs.getvalue() + out + err
    assert len(seen.keys) >= 10 + 2
    assert len(seen.words) > 1000
    assert "model ready" in text
    assert text.count("step done") == 3 * 5
    assert "online_bytes" in text
    clean(text, seen, usage.prompt_ids)
    clean(text, seen, usage.token_ids)
    for token in tokens:
        assert not token.text.strip().isalpha() or token.text.strip() not in text.split()
    shown = [str(float(value)) for value in np.abs(logits).reshape(-1)]
    assert not any(value in text for value in shown if len(value) > 9)


def test_the_check_finds_what_it_looks_for(seen):
    """The negative control."""
    seen.keys.add(SECRET)
    seen.words.add((0xFEDCBA9876543210).to_bytes(8, "little"))
    tokens = [17, 4, 25]
    clean("step done number=17 rounds=4, 25", seen, tokens)
    for leak in (
        "prompt: two cats",
        "ids=[17, 4, 25]",
        "[17 4 25]",
        SECRET.hex(),
        repr(SECRET),
        repr(bytearray(SECRET)),
        str(np.array([0xFEDCBA9876543210], np.uint64)),
        "fedcba9876543210",
        "-81985529216486896",
    ):
        with pytest.raises(AssertionError):
            clean(f"INFO {leak} done", seen, tokens)


async def test_errors_of_a_run(folder, seen, logs, monkeypatch):
    """What the others are told of a failure is its kind alone, though its text holds secrets."""
    told: list[str] = []
    emit = rounds.RoundScheduler._fail

    def failing(self, failure: PumaError) -> None:
        told.append(str(failure))
        emit(self, failure)

    async def program(lane, plan, parameters, batch, cache, *rest) -> None:
        held = parameters["table"]
        raise ValueError(f"{PROMPT} {held.a if hasattr(held, 'a') else held}")

    monkeypatch.setattr(rounds.RoundScheduler, "_fail", failing)
    monkeypatch.setattr(alone, "evaluate", program)
    tokens = Tokenizer.load(folder).chat(PROMPT)
    async with leaves_nothing():
        with pytest.raises(ValueError, match=PROMPT):  # shown in full to the operator of that party
            async with LocalCluster.from_pretrained(folder) as cluster:
                with pytest.raises(PeerFailed) as caught:
                    await cluster.forward(tokens)
    text = "\n".join([*told, str(caught.value), logs.getvalue()])
    assert "failed: ValueError" in text
    clean(text, seen, tokens)


def test_the_command_line_at_its_most_talkative(folder, seen, monkeypatch, capsys):
    command = ["puma", "-vvv", "generate", "-m", str(folder), "-p", PROMPT, "-n", "3"]
    monkeypatch.setattr(sys, "argv", command)
    with usual_logs():
        main()
    out, err = capsys.readouterr()
    assert "step done" in err
    tokens = Tokenizer.load(folder).chat(PROMPT)
    clean(err, seen, tokens)
    assert out.count("\n") == 1  # the answer


def test_usual_logs_are_quiet(capsys):
    with usual_logs():
        log.info("unseen")
        show_logs(0)
        log.info("unseen")
        log.warning("seen")
    out, err = capsys.readouterr()
    assert "unseen" not in out + err
    assert err.count("seen") == 1


def test_logs_are_single_lines_without_escape_sequences(capsys):
    reason = 'x\n2026 [info] forged \x1b[2J \r "'
    with usual_logs():
        for as_json in (False, True):
            show_logs(0, as_json=as_json)
            log.warning("refused", reason=reason)
    out, err = capsys.readouterr()
    lines = (out + err).splitlines()
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("field", ["software", "role", "name"])
def test_answers_with_escape_sequences_are_refused(field):
    good = {"role": "dealer", "name": "dora", "software": "1"}
    assert Answer.model_validate(good)
    for bad in ("a\x1b[31m", "a\nb", "a\n"):
        with pytest.raises(ValidationError):
            Answer.model_validate({**good, field: bad})


# -- reprs -----------------------------------------------------------------------------------------


def shown(value: object) -> str:
    return f"{value!r} {value!s} {value}"


def test_keys_and_streams_show_nothing():
    peer = session.Peer(Role.DEALER, "dora", bytes(16), object(), SECRET)
    ring = KeyRing(Role.CLIENT, {Role.DEALER: SECRET})
    stream = Stream(derive(SECRET, b"x", (1,)))
    drawn = int(stream.words((1,))[0])
    seen = Seen(keys={SECRET, derive(SECRET, b"x", (1,))})
    for value in (peer, ring, stream, ring.stream(Role.DEALER, (1,))):
        text = shown(value)
        assert str(drawn) not in text
        assert not any(form in text for form in seen.forms())
    assert "dora" in repr(peer)


def test_shares_show_nothing():
    words = np.array([0x0123456789ABCDEF, 0xFEDCBA9876543210], np.uint64)
    tensor = SecretTensor(Role.EVALUATOR_A, words, words, 64, 18)
    bits = SecretBits(Role.EVALUATOR_A, np.ones(77, np.uint8), np.ones(77, np.uint8))
    assert str(words[0]) not in shown(tensor)
    assert "1, 1, 1" not in shown(bits)
    assert "1 1 1" not in shown(bits)


def test_frames_show_sizes_alone():
    frame = Frame(Kind.CONTROL, bytes(16), (3, 1), {"do": "seed"}, [memoryview(SECRET)])
    text = shown(frame)
    assert not any(form in text for form in Seen(keys={SECRET}).forms())


async def test_handles_and_inferences_show_nothing(folder, seen):
    async with LocalCluster.from_pretrained(folder) as cluster:
        tokens = cluster.generate(PROMPT, max_new_tokens=3)
        first = await anext(tokens)
        (inference,) = cluster.client._inferences.values()
        ids = cluster.usage.prompt_ids
        for value in (inference, cluster, *cluster._parties, cluster.client, cluster._owner):
            clean(shown(value), seen, ids)
        for actor in cluster._parties:
            clean(shown(actor.scheduler), seen, ids)
            clean(shown(actor.scheduler.keys), seen, ids)
            for handle in actor._parameters.values():
                text = shown(handle)
                assert len(text) < 600
                assert not re.search(r"\d{12}", text)
        await tokens.aclose()
        assert first.id is not None
