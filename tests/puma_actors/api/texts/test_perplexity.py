"""Perplexities: which tokens a window scores, plaintext against torch, private against both."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import WORDS, save_model, save_tokenizer, torch_logits, torch_model
from tiny_models import save, tiny_model

from models.checkpoints.weights import open_checkpoint
from models.owner.perplexity import Window, log_likelihoods, perplexity, scored, windows_of
from protocols.errors import ConfigError
from puma_actors.api.local import LocalCluster
from puma_actors.api.scoring import DEFAULT_WINDOW, plan_windows, score_plain

WORDS_OF_TEXT = [WORDS[(7 * i + i * i) % len(WORDS)] for i in range(50)]


# -- windows ---------------------------------------------------------------------------------------


@st.composite
def sizes(draw):
    size = draw(st.integers(2, 40))
    return draw(st.integers(2, 200)), size, draw(st.integers(1, size))


@given(sizes())
def test_a_token_is_scored_once_and_never_without_context(case):
    tokens, size, stride = case
    windows = windows_of(tokens, size, stride)
    places = [place for w in windows for place in range(w.first, w.stop)]
    assert places == sorted(set(places))
    for window in windows:
        assert 0 <= window.start < window.first < window.stop <= tokens
        assert window.stop - window.start <= size
        assert window.start % stride == 0
        assert window.scored > 0
    # Left out are the first token, and the first of each window that shares none with the last.
    left_out = set(range(0, tokens, stride)) if stride == size else {0}
    assert set(places) == set(range(tokens)) - left_out


@given(sizes())
def test_windows_are_those_of_the_guide(case):
    """The loop of transformers' guide, with what its labels leave after the shift by one."""
    tokens, size, stride = case
    expected, previous = [], 0
    for begin in range(0, tokens, stride):
        end = min(begin + size, tokens)
        target = end - previous
        labels = [i if i >= end - begin - target else -100 for i in range(end - begin)]
        kept = [begin + i for i in labels[1:] if i != -100]
        if kept:
            expected.append((begin, end, kept))
        previous = end
        if end == tokens:
            break
    found = windows_of(tokens, size, stride)
    assert [(w.start, w.stop, [*range(w.first, w.stop)]) for w in found] == expected


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ((1, 8, 8), "a text of 1 tokens scores nothing"),
        ((9, 1, 1), "a window of 1 tokens scores nothing"),
        ((9, 4, 5), "stride 5 does not fit windows of 4 tokens: give 1 to 4"),
        ((9, 4, 0), "stride 0 does not fit"),
    ],
)
def test_unusable_windows(case, message):
    with pytest.raises(ConfigError, match=message):
        windows_of(*case)


def test_likelihoods_of_large_logits_and_a_window_of_them():
    logits = np.array([[1000.0, 1000.0], [0.0, -800.0], [3.0, 1.0]])
    found = log_likelihoods(logits, [0, 1, 1])
    np.testing.assert_allclose(found, [-math.log(2), -800.0])
    np.testing.assert_array_equal(scored(Window(4, 7, 6), found), found[1:])
    assert perplexity(found[:1]) == pytest.approx(2.0)
    assert perplexity(found) == pytest.approx(math.exp(400.0 + math.log(2) / 2))
    assert perplexity(np.array([-1e6])) == math.inf


# -- against torch ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tokenizer(save_model(tmp_path_factory.mktemp("model"), seed=3))


@pytest.fixture(scope="module")
def file(folder):
    path = folder / "text.txt"
    path.write_text(" ".join(WORDS_OF_TEXT))
    return path


def torch_perplexity(folder, ids, size, stride):
    """Straightforward, in torch: mean cross entropy of every token that has a context."""
    with open_checkpoint(folder) as checkpoint:
        model = torch_model(checkpoint)
    losses = []
    for window in windows_of(len(ids), size, stride):
        logits = torch.from_numpy(torch_logits(model, ids[window.start : window.stop]))
        for place in range(window.first, window.stop):
            row = logits[place - 1 - window.start]
            losses.append(torch.nn.functional.cross_entropy(row, torch.tensor(ids[place])))
    return float(torch.exp(torch.stack(losses).mean())), len(losses)


@pytest.mark.parametrize(("size", "stride"), [(16, 16), (16, 5), (64, 64)])
def test_plaintext_equals_torch(folder, size, stride):
    ids = [WORDS.index(word) for word in WORDS_OF_TEXT]
    told = []
    with open_checkpoint(folder) as checkpoint:
        windows = windows_of(len(ids), size, stride)
        found = score_plain(checkpoint, ids, windows, lambda *progress: told.append(progress))
    expected, count = torch_perplexity(folder, ids, size, stride)
    assert len(found.likelihoods) == count
    assert found.perplexity == pytest.approx(expected, rel=1e-3)
    assert [progress[:2] for progress in told] == [(i + 1, len(windows)) for i in range(len(told))]
    assert told[-1][2] == 0.0
    assert all(left > 0 for *_, left in told[:-1])


async def test_likelihoods_of_a_cluster(folder):
    ids = [WORDS.index(word) for word in WORDS_OF_TEXT[:12]]
    async with LocalCluster.from_pretrained(folder) as cluster:
        found = await cluster.log_likelihoods(ids)
        with open_checkpoint(folder) as checkpoint:
            logits = torch_logits(torch_model(checkpoint), ids)
        expected = log_likelihoods(logits, ids)
        assert found.shape == (11,)
        np.testing.assert_allclose(found, expected, atol=0.02)
        longer = WORDS_OF_TEXT * 3  # than the model's context
        assert cluster.text_ids(" ".join(longer)) == [WORDS.index(word) for word in longer]


def test_other_heads_have_no_perplexity(tmp_path):
    path = save(tiny_model("bert", "masked-lm"), tmp_path)
    cluster = LocalCluster.from_pretrained(path)
    with cluster.checkpoint, pytest.raises(ConfigError, match="need head 'causal-lm'"):
        plan_windows(cluster, [1, 2, 3])


def test_the_default_window_is_what_the_model_can_take(folder):
    cluster = LocalCluster.from_pretrained(folder)
    with cluster.checkpoint:
        assert cluster.config.max_positions == 64 < DEFAULT_WINDOW
        windows = plan_windows(cluster, [1] * 150)
        assert [(w.start, w.stop) for w in windows] == [(0, 64), (64, 128), (128, 150)]
        starts = [w.start for w in plan_windows(cluster, [1] * 150, stride=32)]
        assert {b - a for a, b in itertools.pairwise(starts)} == {32}


# -- the command -----------------------------------------------------------------------------------


def test_private_perplexity_in_json(puma, folder, file):
    code, out, err = puma(
        "perplexity", "-m", folder, "-f", file, "--window", 16, "--stride", 8, "--json"
    )
    assert (code, err, out.count("\n")) == (0, "", 1)
    data = json.loads(out)
    ids = [WORDS.index(word) for word in WORDS_OF_TEXT]
    expected, count = torch_perplexity(folder, ids, 16, 8)
    assert data["plain"] == pytest.approx(expected, rel=1e-3)
    assert data["private"] == pytest.approx(expected, rel=5e-3)
    assert data["relative_difference"] == pytest.approx(data["private"] / data["plain"] - 1)
    assert (data["tokens"], data["tokens_scored"]) == (50, count)
    assert sum(window["scored"] for window in data["windows"]) == count
    assert all(window["rounds"] > 0 < window["online_bytes"] for window in data["windows"])


def test_the_table_and_its_progress(puma, folder, file):
    code, out, err = puma(
        "perplexity", "-m", folder, "-f", file, "--window", 16, "--max-tokens", 20
    )
    text = " ".join(out.split())
    assert code == 0
    assert "plaintext (float64)" in text
    assert "18 tokens scored in 2 windows" in text
    told = [line for line in err.splitlines() if "windows, about" in line]
    assert [line.split(" ")[0] for line in told] == [
        f"{kind}:{done}/2" for kind in ("plaintext", "private") for done in (1, 2)
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--window", 65), "windows of 65 tokens do not fit the model's 64 positions"),
        (("--window", 8, "--stride", 9), "stride 9 does not fit windows of 8 tokens"),
        (("-f", "/nowhere/text.txt"), "--file: cannot read /nowhere/text.txt: No such file"),
    ],
)
def test_bad_requests_are_refused(puma, folder, file, arguments, message):
    code, out, err = puma("perplexity", "-m", folder, "-f", file, *arguments)
    assert (code, out) == (2, "")
    assert f"error: {message}" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"red", "a text of 1 tokens scores nothing: give at least 2"),
        (b"", "a text of 0 tokens scores nothing"),
        (b"\xff\xfe\x00", "is not UTF-8 text (byte 1): convert it first"),
    ],
)
def test_unusable_texts_are_refused(puma, folder, tmp_path, content, message):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    code, out, err = puma("perplexity", "-m", folder, "-f", path)
    assert (code, out) == (2, "")
    assert message in err
