"""The cluster of five actors on small models: answers, streams, requests side by side, secrets in
the right hands, and nothing left behind.
"""

import asyncio
import gc
import threading
from collections import Counter
from dataclasses import fields

import anyio
import numpy as np
import pytest
from reference import (
    CHOICE,
    agreeing,
    leaves_nothing,
    own_threads,
    save_model,
    save_tokenizer,
    set_config,
    torch_greedy,
    torch_logits,
    torch_model,
)

from models.families import load_parameters, parameters_of
from models.weights import open_checkpoint
from protocols.errors import ConfigError, ModelError
from protocols.lane import Settings
from protocols.ring import FRACTION_BITS, RESIDUAL_BITS, WEIGHT_BITS
from protocols.shares import COMPUTING, EVALUATORS, Role
from puma_actors.cluster import LocalCluster
from puma_actors.messages import InferMessage
from puma_actors.private import PrivateModel
from puma_actors.rounds import RoundScheduler

TOLERANCE = 0.02
PROMPT = "I see the red cat"
IDS = [1, 3, 7, 14, 16, 19, 2]
"""What the template makes of `PROMPT`."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose greedy answer to `PROMPT` has no close choices."""
    folder = tmp_path_factory.mktemp("model")
    return save_tokenizer(save_model(folder, seed=3))


@pytest.fixture(scope="module")
def reference(folder):
    with open_checkpoint(folder) as checkpoint:
        return torch_model(checkpoint)


@pytest.fixture(scope="module")
def answer(reference):
    """Torch's greedy answer to `PROMPT`."""
    tokens, leads = torch_greedy(reference, IDS, 8)
    assert min(leads) > CHOICE
    return tokens


async def generated(cluster, prompt=PROMPT, **options) -> list[int]:
    async for _ in cluster.generate(prompt, **options):
        pass
    return cluster.usage.token_ids


async def text_of(cluster, prompt=PROMPT, **options) -> str:
    return "".join([token.text async for token in cluster.generate(prompt, **options)])


# -- answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 6, "hidden_size": 39},
        {"num_hidden_layers": 1, "vocab_size": 3, "num_key_value_heads": 4},
    ],
    ids=["grouped keys", "one key head, odd sizes", "three words"],
)
@pytest.mark.parametrize("approximation", ["tight", "puma"])
async def test_logits_equal_torch(tmp_path, tied, changes, approximation):
    save_model(tmp_path, tie_word_embeddings=tied, **changes)
    async with LocalCluster.from_pretrained(tmp_path) as cluster:
        size = cluster.plan.config.vocab_size
        ids = [(5 * i * i + i) % size for i in range(20)]
        expected = torch_logits(torch_model(cluster.checkpoint), ids)
        cluster.settings = Settings(approximation=approximation)
        logits = await cluster.forward(ids)
        assert logits.shape == (20, size)
        tolerance = TOLERANCE if approximation == "tight" else 1.0
        np.testing.assert_allclose(logits, expected, atol=tolerance)
        if approximation == "tight":
            agreeing(logits, expected)
        last = await cluster.forward(np.array([ids]), rows="last")
        assert last.shape == (1, size)
        np.testing.assert_allclose(last[0], expected[-1], atol=tolerance)


async def test_greedy_tokens_and_text_equal_torch(folder, answer):
    async with LocalCluster.from_pretrained(folder) as cluster:
        assert cluster.encode(PROMPT) == IDS
        tokens = [token async for token in cluster.generate(PROMPT, max_new_tokens=8)]
        usage = cluster.usage
        assert [token.id for token in tokens] == usage.token_ids == answer
        assert "".join(token.text for token in tokens) == cluster.tokenizer.decode(answer)
        assert usage.prompt_ids == IDS
        assert usage.stop_reason == "length"
        assert set(usage.seconds) == {"prefill", "decode"}
        assert len(usage.steps) == 8
        assert await generated(cluster, IDS, max_new_tokens=3) == answer[:3]
        raw = cluster.encode(PROMPT, raw=True)
        assert raw == IDS[1:-1]
        await generated(cluster, PROMPT, max_new_tokens=1, raw=True)
        assert cluster.usage.prompt_ids == raw


async def test_text_arrives_before_the_end(folder, answer):
    async with LocalCluster.from_pretrained(folder) as cluster:
        seen = 0
        async for token in cluster.generate(PROMPT, max_new_tokens=4):
            seen += 1
            assert token.id == answer[seen - 1]
            assert token.text.strip() == cluster.tokenizer.decode([token.id])
            assert len(cluster.usage.token_ids) == seen
            assert cluster.usage.total.rounds > 0


async def test_end_tokens(folder, answer, tmp_path):
    """Of the configuration, of generation_config.json; the token itself is not shown."""
    end = next(token for token in answer[2:] if token not in answer[:2])
    length = answer.index(end)
    save_tokenizer(save_model(tmp_path, seed=3))
    for name in ("config.json", "generation_config.json"):
        if name == "config.json":
            set_config(tmp_path, eos_token_id=[end])
        else:
            set_config(tmp_path, eos_token_id=None)
            (tmp_path / name).write_text(f'{{"eos_token_id": {end}}}')
        async with LocalCluster.from_pretrained(tmp_path) as cluster:
            tokens = [token async for token in cluster.generate(PROMPT, max_new_tokens=8)]
            assert [token.id for token in tokens] == answer[:length]
            assert cluster.usage.token_ids == answer[: length + 1]
            assert cluster.usage.stop_reason == "end of text"
            again = [token async for token in cluster.generate(PROMPT, max_new_tokens=8)]
            assert again == tokens


async def test_stop_strings(folder, answer):
    async with LocalCluster.from_pretrained(folder) as cluster:
        whole = cluster.tokenizer.decode(answer)
        words = whole.split()
        stop = f"{words[2]} {words[3]}"  # spread over two tokens
        text = await text_of(cluster, max_new_tokens=8, stop=(stop, "never"))
        assert text == whole[: whole.index(stop)]
        assert cluster.usage.stop_reason == "stop string"
        assert len(cluster.usage.token_ids) <= 4
        # What might have begun a stop string is shown in the end.
        text = await text_of(cluster, max_new_tokens=3, stop=(f"{words[2]} zebra",))
        assert text == " ".join(words[:3])
        assert cluster.usage.stop_reason == "length"


async def test_the_context_limits_an_answer(folder):
    async with LocalCluster.from_pretrained(folder) as cluster:
        limit = cluster.plan.config.max_positions
        ids = [i % 40 for i in range(limit - 1)]
        assert len(await generated(cluster, ids, max_new_tokens=50)) == 2
        assert cluster.usage.stop_reason == "context"
        assert len(await generated(cluster, [*ids, 1], max_new_tokens=50)) == 1
        with pytest.raises(ConfigError, match=f"{limit + 1} prompt tokens do not fit"):
            await generated(cluster, [*ids, 1, 1])


async def test_sampling_follows_its_seed(folder):
    async with LocalCluster.from_pretrained(folder) as cluster:
        hot = {"max_new_tokens": 6, "temperature": 3.0}
        one = await generated(cluster, seed=1, **hot)
        assert await generated(cluster, seed=1, **hot) == one
        others = [await generated(cluster, seed=seed, **hot) for seed in (2, 3)]
        assert any(other != one for other in others)
        greedy = await generated(cluster, max_new_tokens=6)
        assert await generated(cluster, seed=5, top_k=1, **hot) == greedy
        assert await generated(cluster, seed=5, temperature=1e-6, max_new_tokens=6) == greedy
        unlike = await generated(cluster, max_new_tokens=6, repetition_penalty=1e9)
        assert not set(unlike) & set(IDS)
        assert len(set(unlike)) == 6


async def test_secret_logits_give_the_greedy_tokens(folder, answer):
    settings = Settings(reveal="argmax")
    async with LocalCluster.from_pretrained(folder, settings=settings) as cluster:
        assert await generated(cluster, max_new_tokens=8) == answer
        assert cluster.usage.steps == cluster.predict(len(IDS), 7)
        for options in ({"temperature": 0.5}, {"repetition_penalty": 1.1}):
            with pytest.raises(ConfigError, match="secret logits"):
                await generated(cluster, **options)
        assert len(await cluster.forward(IDS)) == len(IDS)  # whoever asks for logits gets them


async def test_the_wire_format_changes_nothing(folder, reference, answer):
    results = []
    for codec in (False, True):
        async with LocalCluster.from_pretrained(folder, codec=codec) as cluster:
            logits = await cluster.forward(IDS)
            np.testing.assert_allclose(logits, torch_logits(reference, IDS), atol=TOLERANCE)
            steps = cluster.usage.steps
            assert await generated(cluster, max_new_tokens=4) == answer[:4]
            results.append((steps, cluster.usage.steps))
    assert results[0] == results[1]


@pytest.mark.parametrize("settings", [Settings(lanes=2), Settings(lanes=4, tree="traffic")])
async def test_lanes_and_trees_change_no_answer(folder, answer, settings):
    async with LocalCluster.from_pretrained(folder, settings=settings) as cluster:
        assert await generated(cluster, max_new_tokens=4) == answer[:4]


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
        inferences = [party._running_inferences for party in cluster._parties]
        assert inferences == [{}, {}, {}]
        for actor in (cluster.client, *cluster._parties):
            for port in actor.scheduler.ports.values():
                assert not port.mailboxes


async def test_leaving_in_the_middle_of_an_answer(folder):
    async with leaves_nothing():
        async with LocalCluster.from_pretrained(folder) as cluster:
            tokens = cluster.generate(PROMPT, max_new_tokens=20)
            await anext(tokens)
        await tokens.aclose()
        with pytest.raises(ConfigError, match="not running"):
            await generated(cluster)


async def test_unusable_requests_are_refused_before_any_work(folder):
    async with LocalCluster.from_pretrained(folder) as cluster:
        for bad in ([], [45, 46], [-1], [1] * 65):
            with pytest.raises(ConfigError):
                await cluster.forward(bad)
            with pytest.raises(ConfigError):
                await generated(cluster, bad)
        for bad in ("", " \n"):
            with pytest.raises(ConfigError, match="prompt is empty"):
                await generated(cluster, bad)
        for options in ({"temperature": -1.0}, {"max_new_tokens": 0}, {"top_p": 0.0}):
            with pytest.raises(ConfigError, match=next(iter(options))):
                await generated(cluster, **options)
        assert cluster.client._next == 0  # no inference was begun
        assert len(await generated(cluster, max_new_tokens=1)) == 1


async def test_a_model_without_tokenizer_takes_ids(tmp_path):
    save_model(tmp_path)
    async with LocalCluster.from_pretrained(tmp_path) as cluster:
        with pytest.raises(ConfigError, match=r"no tokenizer.*tokenizer\.json: missing"):
            await generated(cluster, "text")
        tokens = [token async for token in cluster.generate([1, 2], max_new_tokens=2)]
        assert [token.text for token in tokens] == ["", ""]


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    save_tokenizer(save_model(tmp_path, vocab_size=30))
    with pytest.raises(ModelError, match="more tokens than the model's 30"):
        LocalCluster.from_pretrained(tmp_path)


# -- who holds what --------------------------------------------------------------------------------


@pytest.fixture
def sent(monkeypatch):
    """Every message between lanes, as (sender, receiver, online), and every control request."""
    messages: Counter = Counter()
    requests: list = []
    from puma_actors import rounds

    link_send = rounds.InferenceLink.send
    send_control = RoundScheduler.send_control

    async def send(self, to, tag, data, *, online):
        messages[self.role, to, online] += 1
        await link_send(self, to, tag, data, online=online)

    async def control(self, to, header, buffers=()):
        requests.append((self.role, to, header, [bytes(memoryview(b)) for b in buffers]))
        await send_control(self, to, header, buffers)

    monkeypatch.setattr(rounds.InferenceLink, "send", send)
    monkeypatch.setattr(RoundScheduler, "send_control", control)
    return messages, requests


async def test_who_sends_what_to_whom(folder, sent):
    messages, requests = sent
    async with LocalCluster.from_pretrained(folder) as cluster:
        words = {
            name: cluster.checkpoint.tensor(name).tobytes() for name in cluster.checkpoint.names()
        }
        await cluster.forward(IDS)
        await generated(cluster, max_new_tokens=3)
    # The dealer hears the evaluators in the embedding alone: no more messages than there are
    # lookups, however many layers the model has.
    steps = 4
    for evaluator in EVALUATORS:
        assert messages[evaluator, Role.DEALER, True] <= 2 * steps
        assert messages[evaluator, evaluator, True] == 0
        assert messages[evaluator, Role.CLIENT, True] == steps
        assert steps <= messages[Role.CLIENT, evaluator, True] <= 2 * steps
    assert steps <= messages[Role.CLIENT, Role.DEALER, True] <= 2 * steps
    assert not any(Role.OWNER in pair[:2] for pair in messages)
    assert messages[Role.EVALUATOR_A, Role.EVALUATOR_B, True] > 20 * steps

    # Weights: seeds to those who may know them, masked words to the evaluators, the client nothing.
    uploads = [entry for entry in requests if entry[0] is Role.OWNER]
    seeds = [(to, header["which"]) for _, to, header, _ in uploads if header["do"] == "seed"]
    assert sorted(seeds) == sorted(
        [
            (Role.DEALER, 1),
            (Role.DEALER, 2),
            (Role.EVALUATOR_A, 1),
            (Role.EVALUATOR_B, 2),
        ]
    )
    for _, to, header, buffers in uploads:
        if header["do"] == "tensor":
            assert to in EVALUATORS
        elif header["do"] != "seed":
            assert buffers == []
        assert not any(word in buffer for buffer in buffers for word in words.values())
    from_client = [header for role, _, header, buffers in requests if role is Role.CLIENT]
    for header in from_client:
        assert header["do"] in ("infer", "end", "close")
        assert not {"ids", "prompt_ids", "text"} & header.keys()


async def test_who_holds_what(folder):
    """The dealer two masks or their sum, an evaluator m and one mask, the client nothing. All three
    together hold the model.
    """
    async with LocalCluster.from_pretrained(folder) as cluster:
        await cluster.forward(IDS)
        weights = dict(load_parameters(cluster.checkpoint))
        fractions = {"table": RESIDUAL_BITS, "weight": WEIGHT_BITS, "gain": FRACTION_BITS}
        held = {party.role: party._parameters for party in cluster._parties}
        for name, parameter in parameters_of(cluster.plan.config).items():
            dealer, left, right = (arrays(held[role][name]) for role in COMPUTING)
            assert len(left) == len(right) == 2
            assert len(dealer) == (1 if parameter.kind == "weight" else 2)
            np.testing.assert_array_equal(left[0], right[0])
            np.testing.assert_array_equal(sum(dealer[1:], dealer[0]), left[1] + right[1])
            assert not np.array_equal(left[1], right[1])
            frac = fractions[parameter.kind]
            values = (left[0] - left[1] - right[1]).view(np.int64) / 2.0**frac
            np.testing.assert_allclose(values, weights[name], atol=2.0**-frac)
            for mask in (*left, right[1]):  # a bit of a uniform word is set half of the time
                bits = np.unpackbits(np.ascontiguousarray(mask).view(np.uint8))
                assert abs(bits.mean() - 0.5) < 4 / bits.size**0.5
        held_by_client = vars(cluster.client)
        assert not any(isinstance(value, np.ndarray) for value in held_by_client.values())
        assert cluster.client._inferences == {}


def arrays(handle) -> list[np.ndarray]:
    """What a handle holds, in order."""
    values = [getattr(handle, field.name) for field in fields(handle)]
    return [value for value in values if isinstance(value, np.ndarray)]


async def test_equal_requests_travel_under_different_masks(folder, monkeypatch):
    """What evaluators open, and what the client sends, differs between two equal requests."""
    from puma_actors import rounds

    seen: dict[int, dict] = {}
    link_send = rounds.InferenceLink.send

    async def send(self, to, tag, data, *, online):
        key = (self.role, to, tag)
        whole = b"".join(bytes(memoryview(part).cast("B")) for part in data)
        assert key not in seen.setdefault(self.number, {})
        seen[self.number][key] = whole
        await link_send(self, to, tag, data, online=online)

    monkeypatch.setattr(rounds.InferenceLink, "send", send)
    async with LocalCluster.from_pretrained(folder) as cluster:
        await cluster.forward(IDS)
        await cluster.forward(IDS)
    first, second = seen.values()
    assert first.keys() == second.keys()
    long = [key for key in first if len(first[key]) >= 16]
    assert len(long) > 100
    for key in long:
        assert len(first[key]) == len(second[key])
        assert first[key] != second[key], key


async def test_inference_numbers_are_never_used_twice(folder, sent):
    _, requests = sent
    async with LocalCluster.from_pretrained(folder) as cluster:
        await cluster.forward(IDS)
        await generated(cluster, max_new_tokens=3)
        tokens = cluster.generate(PROMPT, max_new_tokens=9)
        await anext(tokens)
        await tokens.aclose()
        await generated(cluster, max_new_tokens=2)
    used: set[int] = set()
    for _, to, header, _ in requests:
        if header["do"] == "infer" and to is Role.DEALER:
            message = InferMessage(**header)
            numbers = set(range(message.number, message.number + message.steps))
            assert not numbers & used
            used |= numbers
    assert len(used) == 1 + 3 + 9 + 2


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


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("missing/folder/of/models", "no such file or folder"),
        ("model.gguf", "no such file or folder"),
        ("empty", "holds no model"),
        ("pickled", "pickled checkpoints"),
        ("garbage", "model_type: None"),
    ],
)
def test_wrong_paths_are_refused_at_once(tmp_path, path, says):
    for name in ("empty", "pickled", "garbage"):
        (tmp_path / name).mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"x")
    (tmp_path / "garbage" / "model.safetensors").write_bytes(b"\xff" * 100)
    (tmp_path / "garbage" / "config.json").write_text("{}")
    before = own_threads()
    for make in (LocalCluster, PrivateModel):
        with pytest.raises(ModelError, match=says):
            make.from_pretrained(tmp_path / path)
    assert own_threads() == before


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
            thread.join(20)
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
