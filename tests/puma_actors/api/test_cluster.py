"""The cluster of five actors on small models: answers and streams, and what is refused."""

import numpy as np
import pytest
from conversation import IDS, PROMPT, TOLERANCE, generated, text_of
from reference import (
    agreeing,
    own_threads,
    save_model,
    save_tokenizer,
    set_config,
    torch_logits,
    torch_model,
)

from protocols.base.lane import Settings
from protocols.errors import ConfigError, ModelError
from puma_actors.api.blocking import PrivateModel
from puma_actors.api.local import LocalCluster

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
        assert len(await cluster.forward(IDS)) == len(IDS)  # a client may request logits


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


# -- what is refused ------------------------------------------------------------------------------


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
