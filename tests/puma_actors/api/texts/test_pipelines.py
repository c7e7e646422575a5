"""Pipelines on shares against transformers' own, on the same folders."""

import warnings

import numpy as np
import pytest
import torch
import transformers
from pipeline_cases import ENTITIES, assert_same, folder_of, theirs
from tiny_texts import TEXTS, save_byte_level

from models.files.locate import embedding_model_path
from puma_actors.api.pipelines import pipeline

# -- text-classification ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classify(classifier):
    with pipeline("text-classification", classifier) as pipe:
        yield pipe


PAIR = {"text": TEXTS[1], "text_pair": TEXTS[2]}
CLASSIFICATIONS = [
    (TEXTS[0], {}),
    (TEXTS, {}),
    ([TEXTS[0]], {}),
    (PAIR, {}),
    ([PAIR, {"text": TEXTS[0]}], {}),
    (TEXTS[0], {"top_k": None}),
    (TEXTS, {"top_k": 2}),
    (TEXTS[0], {"top_k": 1}),
    (PAIR, {"function_to_apply": "sigmoid", "top_k": None}),
    (TEXTS[:2], {"function_to_apply": "none"}),
]


@pytest.mark.parametrize(("inputs", "options"), CLASSIFICATIONS)
def test_text_classification(classify, classifier, inputs, options):
    expected = theirs("text-classification", classifier)(inputs, **options)
    assert_same(classify(inputs, **options), expected)


KINDS = [
    {"num_labels": 1},
    {"num_labels": 1, "problem_type": "regression"},
    {"problem_type": "multi_label_classification"},
]


@pytest.mark.parametrize("changes", KINDS)
def test_the_function_follows_the_kind_of_problem(tmp_path_factory, changes):
    folder = folder_of(
        tmp_path_factory, "roberta", "sequence-classification", save_byte_level, **changes
    )
    expected = theirs("sentiment-analysis", folder, top_k=None)
    with pipeline("sentiment-analysis", folder, top_k=None) as pipe:
        assert pipe.task == "text-classification"
        assert_same(pipe("the cat in"), expected("the cat in"))


def test_a_batch_of_unequal_lengths_is_what_each_text_gives_alone(classify):
    together = classify(TEXTS, top_k=None)
    rounds = classify.usage.total.rounds
    apart = [classify(text, top_k=None) for text in TEXTS]
    assert_same(together, apart)
    assert rounds < 1.5 * classify.usage.total.rounds


def test_batches_that_are_too_large_are_split(classifier):
    with pipeline("text-classification", classifier, batch_tokens=15, top_k=None) as pipe:
        assert_same(pipe([*TEXTS, "?"]), [pipe(text)[0] for text in [*TEXTS, "?"]])
        pipe([*TEXTS, "?"])
        assert len(pipe.usage.steps) == 2
        assert pipe.usage.total.rounds > 0
        assert len(pipe.usage.prompt_ids) == sum(
            len(pipe.pipe.tokenizer.encode(text)) for text in [*TEXTS, "?"]
        )


# -- token-classification --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tag(tagger):
    with pipeline("ner", tagger) as pipe:
        yield pipe


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
def test_token_classification(tag, tagger, strategy):
    expected = theirs("ner", tagger, aggregation_strategy=strategy)
    texts = [*TEXTS, "Zebra, the cats, LONDON!"]
    for options in ({}, {"ignore_labels": []}):
        found = tag(texts, aggregation_strategy=strategy, **options)
        assert any(found)
        assert_same(found, expected(texts, **options))
    assert_same(tag(TEXTS[2], aggregation_strategy=strategy), expected(TEXTS[2]))


def test_words_without_marks(tmp_path_factory):
    """A byte-level tokenizer does not mark what continues a word."""
    folder = folder_of(
        tmp_path_factory,
        "distilbert",
        "token-classification",
        save_byte_level,
        **ENTITIES,
    )
    text = "the cats do, cat"
    with pipeline("ner", folder, ignore_labels=[]) as pipe:
        for strategy in ("none", "simple", "first"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reference = theirs("ner", folder, aggregation_strategy=strategy)
                expected = reference(text, ignore_labels=[])
            assert_same(pipe(text, aggregation_strategy=strategy), expected)


# -- fill-mask -------------------------------------------------------------------------------------

MASKED = [
    ("the [MASK] sat", {}),
    (["the [MASK] sat", "[MASK]!"], {"top_k": 3}),
    (["the [MASK] sat"], {}),
    ("the [MASK] in [MASK].", {"top_k": 2}),
    ("the [MASK] sat", {"targets": ["cat", "dog", "paris"]}),
    ("the [MASK] sat on [MASK]", {"targets": "cat"}),
]


@pytest.fixture(scope="module")
def fill(filler):
    with pipeline("fill-mask", filler) as pipe:
        yield pipe


@pytest.mark.parametrize(("inputs", "options"), MASKED)
def test_fill_mask(fill, filler, inputs, options):
    assert_same(fill(inputs, **options), theirs("fill-mask", filler)(inputs, **options))


def test_fill_mask_of_roberta(tmp_path_factory):
    folder = folder_of(tmp_path_factory, "roberta", "masked-lm", save_byte_level)
    with pipeline("fill-mask", folder, top_k=4) as pipe:
        for text in ("the<mask> in", "<mask> cat<mask>"):
            assert_same(pipe(text), theirs("fill-mask", folder)(text, top_k=4))


# -- feature-extraction and text-generation --------------------------------------------------------


def test_feature_extraction(filler):
    """Of any checkpoint: the head is left out."""
    expected = theirs("feature-extraction", filler)
    with pipeline("feature-extraction", filler) as pipe:
        assert_same(pipe(TEXTS[0]), expected(TEXTS[0]))
        assert_same(pipe(TEXTS), expected(TEXTS))
        arrays = pipe(TEXTS[:2], return_tensors=True)
        assert [array.shape for array in arrays] == [(1, 10, 16), (1, 5, 16)]


def test_text_generation(writer):
    expected = theirs("text-generation", writer)
    greedy = {"max_new_tokens": 2, "do_sample": False}
    chat = [{"role": "user", "content": "the cat"}]
    with pipeline("text-generation", writer) as pipe:
        for inputs in (["the cat", "do in"], [chat], "the cat", chat):
            for full in (True, False):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    wanted = expected(inputs, return_full_text=full, **greedy)
                assert_same(pipe(inputs, return_full_text=full, max_new_tokens=2), wanted)
        assert len(pipe.usage.token_ids) == 2
        sampled = pipe("the cat", do_sample=True, seed=1, max_new_tokens=2)
        assert sampled == pipe("the cat", temperature=1.0, seed=1, max_new_tokens=2)


# -- sentence-embedding ----------------------------------------------------------------------------

SENTENCES = [
    "A cat sits on the mat.",
    "Two parties compute the product of secret numbers, and a third one deals the masks.",
    "Rain.",
]


def test_sentences_of_minilm():
    folder = embedding_model_path()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertModel.from_pretrained(folder).eval()
    expected = []
    for sentence in SENTENCES:
        with torch.no_grad():
            states = model(**tokenizer(sentence, return_tensors="pt")).last_hidden_state[0]
        mean = states.double().mean(0).numpy()
        expected.append(mean / np.linalg.norm(mean))
    with pipeline("sentence-embedding") as pipe:
        found = pipe(SENTENCES)
    assert found.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-4)
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1)
    assert cosines.min() >= 0.99999


def test_truncation_when_asked(tag, tagger, classify, classifier):
    long = " ".join(TEXTS * 3)
    assert_same(tag(long, truncation=True), theirs("ner", tagger)(long))
    pair = {"text": "the cat " * 12, "text_pair": TEXTS[0]}
    reference = theirs("text-classification", classifier)
    assert_same(classify(pair, truncation=True), reference(pair, truncation=True))
    for limit in (6, 9, 15):
        cut = {"truncation": True, "max_length": limit, "padding": True, "batch_size": 2}
        for inputs in (pair, [long, TEXTS[1], TEXTS[0]]):
            assert_same(classify(inputs, **cut), reference(inputs, **cut))
