"""Three party servers over TLS: no secret in their logs, errors and tracebacks, nor in a store
where it does not belong. Every kind of secret is also planted once, and must be found.
"""

import io
import re
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from hosts import Hosts, hosts, quiet

from models.checkpoints.weights import open_checkpoint
from models.programs.families import load_parameters, parameters_of
from models.programs.sharing import FRACTIONS
from protocols.base.prf import KeyRing, Stream
from protocols.base.ring import encode
from protocols.base.shares import COMPUTING, Role
from protocols.errors import ConfigError, PumaError
from protocols.linear import weight_mask
from puma_actors.api.remote import RemoteCluster
from puma_actors.hosts import server
from puma_actors.hosts.server import PartyServer
from puma_actors.hosts.stores.manifest import PUBLIC_FILES
from puma_actors.roles import party
from puma_actors.roles.serving import alone
from puma_actors.session.inference import InferenceLink
from puma_actors.session.session import RoundScheduler

PROMPT = "two red cats like my old river house"
OWN = {Role.DEALER: {1, 2}, Role.EVALUATOR_A: {1}, Role.EVALUATOR_B: {2}}
_WINDOW = 16
_SAMPLE = 24


def windows(data: bytes) -> Iterator[bytes]:
    """Pieces of some data, by which it would be found again."""
    step = max(8, len(data) // _SAMPLE & -8)
    for start in range(0, len(data) - _WINDOW + 1, step):
        piece = data[start : start + _WINDOW]
        if len(set(piece)) > 6:  # zeros and the like stand everywhere
            yield piece


def _written(key: bytes) -> tuple[str, str]:
    """Bytes as Python shows them, and as it shows a bytearray: there each quote is escaped."""
    return repr(key)[2:-1], repr(bytearray(key))[len("bytearray(b'") : -len("')")]


@dataclass
class Seen:
    """Secrets of a run. `told`: what errors said, to whomever."""

    pair_keys: set[bytes] = field(default_factory=set)
    seeds: dict[int, bytes] = field(default_factory=dict)
    words: set[bytes] = field(default_factory=set)  # of masks, and of messages
    weights: set[bytes] = field(default_factory=set)  # windows: floats and ring words
    weight_masks: set[bytes] = field(default_factory=set)
    floats: set[str] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)
    tokens: list[list[int]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def learn_weights(self, model: Path) -> None:
        with open_checkpoint(model) as checkpoint:
            kinds = parameters_of(checkpoint.config)
            for number, (name, matrix) in enumerate(load_parameters(checkpoint)):
                ring = encode(matrix, FRACTIONS[kinds[name].kind])
                for form in (matrix, matrix.astype(np.float32), ring):
                    self.weights.update(windows(np.ascontiguousarray(form).tobytes()))
                for seed in self.seeds.values():
                    mask = weight_mask(seed, number, matrix.shape)
                    self.weight_masks.update(windows(mask.tobytes()))
                shown = (str(float(value)) for value in matrix.reshape(-1)[:_SAMPLE])
                self.floats.update(text for text in shown if len(text) > 9)
            for name in checkpoint.names():
                self.weights.update(windows(checkpoint.tensor(name).tobytes()))

    def check_text(self, text: str, together: int = 1) -> None:
        """Assert that a text (a log, an error, a traceback) holds none of it; of the prompt so many
        words that follow one another.
        """
        words = PROMPT.split()
        for start in range(len(words) - together + 1):
            piece = " ".join(words[start : start + together])
            assert not re.search(rf"\b{piece}\b", text), "words of the prompt"
        for said in self.texts:
            assert said not in text, "an answer"
        spaced = " ".join(text.split())  # NumPy pads numbers
        for ids in self.tokens:
            for part in (ids, ids[:3], ids[-3:]):
                assert ", ".join(map(str, part)) not in spaced, "token ids"
                assert " ".join(map(str, part)) not in spaced, "token ids"
        for key in (*self.pair_keys, *self.seeds.values()):
            for form in (key.hex(), *_written(key), str(int.from_bytes(key, "little"))):
                assert form not in text, "a key"
        numbers = set(re.findall(r"\d{12,}", text))
        found = [w for w in self.words if str(int.from_bytes(w, "little")) in numbers]
        assert not found, "a ring word"
        hexadecimal = set(re.findall(r"[0-9a-f]{16}", text))
        assert not any(word.hex() in hexadecimal for word in self.words), "a ring word"
        assert not any(value in text for value in self.floats), "a weight"

    def check_file(self, role: Role, name: str, data: bytes) -> None:
        """Assert that a file in a party's store holds nothing but what that party may have."""
        foreign = [seed for which, seed in self.seeds.items() if which not in OWN[role]]
        for key in (*self.pair_keys, *foreign):
            assert key not in data, "a key"
            assert key.hex().encode() not in data, "a key"
        assert not any(piece in data for piece in self.weights), "weights in the clear"
        assert not any(piece in data for piece in self.weight_masks), "masks of weights"
        assert PROMPT.encode() not in data, "the prompt"
        for ids in self.tokens:
            for form in (np.array(ids, np.int64), np.array(ids, np.int32)):
                assert form.tobytes() not in data, "token ids"
        if name not in PUBLIC_FILES:
            # Among so many uniform bytes a short word stands by chance: two do once in 10^9 runs.
            self.check_text(data.decode("latin-1"), together=2)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    found = Seen()
    ring, fill, send = KeyRing.__init__, Stream.fill, InferenceLink.send
    seeding, failing, refusing = party.Upload.seed, RoundScheduler._fail, server.refuse

    def init(self: KeyRing, own: str, secrets: Any) -> None:
        found.pair_keys.update(secrets.values())
        ring(self, own, secrets)

    def filling(self: Stream, count: int) -> Any:
        drawn = fill(self, count)
        if count >= 8 and len(found.words) < 40_000:
            found.words.add(drawn[:8].tobytes())
        return drawn

    async def sending(self: Any, to: Role, tag: Any, data: Sequence[Any], **how: Any) -> None:
        whole = b"".join(bytes(memoryview(part).cast("B")) for part in data)
        found.words.update(whole[i : i + 8] for i in range(0, min(len(whole) - 8, 64), 8))
        await send(self, to, tag, data, **how)

    def seed(self: Any, which: int, buffers: Sequence[memoryview]) -> None:
        found.seeds[which] = bytes(buffers[0])
        seeding(self, which, buffers)

    def fail(self: Any, failure: PumaError) -> None:
        found.told.append(str(failure))
        failing(self, failure)

    async def refuse(channel: Any, session: bytes, error: PumaError) -> None:
        found.told.append(str(error))
        await refusing(channel, session, error)

    monkeypatch.setattr(KeyRing, "__init__", init)
    monkeypatch.setattr(Stream, "fill", filling)
    monkeypatch.setattr(InferenceLink, "send", sending)
    monkeypatch.setattr(party.Upload, "seed", seed)
    monkeypatch.setattr(RoundScheduler, "_fail", fail)
    monkeypatch.setattr(server, "refuse", refuse)
    return found


async def generate(cluster: Hosts, seen: Seen) -> None:
    async with await RemoteCluster.open(cluster.client, "tiny") as remote:
        tokens = [token async for token in remote.generate(PROMPT, max_new_tokens=5)]
        seen.tokens += [remote.usage.prompt_ids, remote.usage.token_ids]
        seen.texts.add("".join(token.text for token in tokens).strip())


async def fail(cluster: Hosts, seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluator meets a bug whose text is full of secrets; a client asks for too much."""
    ids = seen.tokens[0]

    async def evaluate(lane: Any, plan: Any, parameters: Any, *rest: Any) -> None:
        if lane.role is Role.EVALUATOR_A:
            drawn = lane.private((4,))
            raise ValueError(f"{PROMPT} {ids} {drawn} {seen.seeds} {parameters}")
        await anyio.sleep_forever()

    with monkeypatch.context() as patch:
        patch.setattr(alone, "evaluate", evaluate)
        with pytest.raises(PumaError) as caught:
            async with await RemoteCluster.open(cluster.client, "tiny") as remote:
                await remote.forward(ids)
    seen.told += traceback.format_exception(caught.value)
    with pytest.raises(ConfigError) as refused:
        await RemoteCluster.open(cluster.client, "../tiny")
    seen.told += traceback.format_exception(refused.value)
    await quiet(cluster)


def stored(folder: Path, role: Role) -> Iterable[Path]:
    return (path for path in (folder / f"{role}-store").rglob("*") if path.is_file())


async def test_a_whole_run(
    tmp_path: Path,
    certificates: Path,
    model: Path,
    seen: Seen,
    logs: io.StringIO,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with hosts(tmp_path, certificates) as cluster:
        await cluster.upload(model)
        await generate(cluster, seen)
        await generate(cluster, seen)
        await fail(cluster, seen, monkeypatch)
        for running in cluster.servers.values():
            assert isinstance(running, PartyServer)
            seen.told.append(f"{running!r} {running.residents!r} {running.links!r}")
    seen.learn_weights(model)
    assert set(seen.seeds) == {1, 2}
    # Of the upload; of three sessions between four, each with a joint one between three.
    assert len(seen.pair_keys) == 3 + 3 * (6 + 3)
    assert len(seen.words) > 5000
    assert len(seen.weights) > 300
    assert len(seen.weight_masks) > 300
    out, err = capfd.readouterr()
    text = logs.getvalue() + out + err
    assert text.count("step done") >= 3 * 10
    assert "session failed" in text
    assert any("evaluator-a failed: ValueError" in line for line in seen.told)
    seen.check_text("\n".join([text, *seen.told]))
    checked = 0
    for role in COMPUTING:
        for path in stored(tmp_path, role):
            seen.check_file(role, path.name, path.read_bytes())
            assert path.stat().st_mode & 0o077 == 0
            checked += 1
    assert checked > 30
    own = (tmp_path / "evaluator-a-store" / "tiny" / "seed-1").read_bytes()
    assert own == seen.seeds[1]  # the look-out knows what it looks for
    _plant(seen, text, tmp_path)


def _plant(seen: Seen, text: str, folder: Path) -> None:
    """The negative control, with the secrets of the same run."""
    key = min(seen.pair_keys)
    number, word = max((int.from_bytes(word, "little"), word) for word in seen.words)
    for leak in (
        PROMPT,
        *seen.texts,
        str(seen.tokens[0]),
        str(np.array(seen.tokens[1])),
        key.hex(),
        repr(key),
        repr(bytearray(seen.seeds[2])),
        str(np.array([number], np.uint64)),
        word.hex(),
        f"array([{min(seen.floats)}])",
    ):
        with pytest.raises(AssertionError):
            seen.check_text(f"{text}\n{leak}\n")
    path = folder / "evaluator-a-store" / "tiny" / "00001.words"
    data = path.read_bytes()
    seen.check_file(Role.EVALUATOR_A, path.name, data)
    for leak in (
        seen.seeds[2],
        key,
        min(seen.weights),
        max(seen.weight_masks),
        PROMPT.encode(),
        np.array(seen.tokens[0]).tobytes(),
    ):
        with pytest.raises(AssertionError):
            seen.check_file(Role.EVALUATOR_A, path.name, data[:40] + leak + data[40:])
    with pytest.raises(AssertionError):
        seen.check_file(Role.EVALUATOR_B, "seed-2", seen.seeds[1])
    seen.check_file(Role.DEALER, "seed-2", seen.seeds[2])
