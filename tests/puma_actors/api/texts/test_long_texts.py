"""Texts that are too long: cut, read in windows or refused, against transformers' pipelines."""

import warnings

import pytest
import transformers
from pipeline_cases import (
    ENTITIES,
    assert_same,
    computed,
    evaluated,
    folder_of,
    task_of,
    theirs,
    with_settings,
)
from tiny_texts import TEXTS, save_byte_level

from protocols.errors import ConfigError
from puma_actors.api.local import LocalCluster
from puma_actors.api.pipelines import local_pipeline, pipeline

LONG = (
    "London, the dogs ran in Paris. Zebra! The cats sat on the dog in London? Cats ran, dogs sat."
)
STRATEGIES = ("simple", "first", "average", "max")


def model_of(folder):
    return transformers.AutoModelForTokenClassification.from_pretrained(folder).eval()


def quietly(reference, *inputs, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return reference(*inputs, **options)


# -- cutting ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("limit", [8, 20])
def test_tags_are_those_of_the_cut_text(tagger, tmp_path, side, limit):
    """transformers' pipeline cuts to the tokenizer's limit without being asked."""
    changes = {"truncation_side": side, "model_max_length": limit}
    folder = with_settings(tagger, tmp_path / "copy", **changes)
    task, model = task_of("token-classification", folder), model_of(folder)
    reference = theirs("ner", folder)
    for strategy in ("none", "simple"):
        job = task.job(LONG, aggregation_strategy=strategy, ignore_labels=[])
        assert job.dropped == [len(task.tokenizer.encode(LONG)) - limit]
        expected = quietly(reference, LONG, aggregation_strategy=strategy, ignore_labels=[])
        assert_same(computed(job, model), expected)


@pytest.mark.parametrize("side", ["left"])
def test_a_cut_text_and_pair_are_classified(classifier, tmp_path, logs, side):
    folder = with_settings(classifier, tmp_path / "copy", truncation_side=side)
    reference = theirs("text-classification", folder)
    pair = {"text": TEXTS[2], "text_pair": LONG}
    with pipeline("text-classification", folder) as classify:
        found = classify([LONG, pair, TEXTS[1]])
        assert logs.getvalue().count("of 20 tokens are cut, 2 of 3; tokens left out") == 1
        whole = [classify.pipe.tokenizer.encode_text(LONG, each) for each in (None, TEXTS[2])]
        assert classify.usage.dropped_tokens == [len(whole[0]) - 20, len(whole[1]) - 20, 0]
        assert_same(found, reference([LONG, pair, TEXTS[1]], truncation=True))
        assert_same(classify(LONG, max_length=9), reference(LONG, truncation=True, max_length=9))
        assert classify.usage.dropped_tokens == [len(whole[0]) - 9]
        assert_same(classify(TEXTS[1]), reference(TEXTS[1]))
        assert classify.usage.dropped_tokens == [0]
        assert logs.getvalue().count('event="texts are cut"') == 1  # the others were asked for


def test_where_no_setting_names_a_limit_a_text_is_refused(classifier, tmp_path):
    """transformers reads such a text up to the model's last position, and then fails."""
    folder = with_settings(classifier, tmp_path / "copy", model_max_length=10**30)
    task = task_of("text-classification", folder)
    with pytest.raises(ConfigError, match=r"26 tokens do not fit .* of 20: .* --truncate"):
        task.job("cat " * 24)
    assert task.job("cat " * 24, truncation=True).dropped == [6]


def test_without_truncation_all_positions_are_used(classifier, tmp_path):
    folder = with_settings(classifier, tmp_path / "copy", model_max_length=6)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    task = task_of("text-classification", folder)
    whole = task.job(TEXTS[0], truncation=False)
    assert whole.dropped == [0]
    assert_same(computed(whole, model), quietly(theirs("text-classification", folder), TEXTS[0])[0])
    assert task.job(TEXTS[0]).dropped == [len(whole.encodings[0]) - 6]
    with pytest.raises(ConfigError, match="26 tokens do not fit the limit of 20"):
        task.job("cat " * 24, truncation=False)


def test_a_mask_that_would_be_cut_off_is_refused(filler):
    task, long = task_of("fill-mask", filler), "cat " * 24
    assert task.job(f"[MASK] {long}").dropped == [7]
    for options in ({}, {"truncation": True}):
        with pytest.raises(ConfigError, match=r"27 tokens.* of 20, and a mask is in the part to"):
            task.job(f"{long} [MASK]", **options)
    assert task.job(f"[MASK] {long} [MASK]", truncation=True).dropped == [8]
    with pytest.raises(ConfigError, match="a mask is in the part to cut"):
        task.job(f"[MASK] {long} [MASK]")


def test_a_prompt_is_never_cut(writer):
    pipe = local_pipeline("text-generation", writer)
    assert isinstance(pipe.requests, LocalCluster)
    with pytest.raises(ConfigError, match="prompt tokens do not fit"):
        pipe.check("the cat " * 64)
    pipe.requests.checkpoint.close()


# -- windows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "limit", "stride"), [("right", 20, 0), ("left", 11, 5)])
def test_windows_give_the_entities_of_transformers(tagger, tmp_path, side, limit, stride):
    changes = {"truncation_side": side, "model_max_length": limit}
    check_windows(with_settings(tagger, tmp_path / "copy", **changes), [LONG, TEXTS[1]], stride)


def test_windows_of_a_byte_level_tokenizer(tmp_path_factory, tmp_path):
    folder = folder_of(
        tmp_path_factory, "roberta", "token-classification", save_byte_level, **ENTITIES
    )
    folder = with_settings(folder, tmp_path / "copy", model_max_length=18)
    check_windows(folder, ["the cats do, cat in a hint, the dog. " * 2], 4)


def check_windows(folder, texts, stride):
    task, model, reference = task_of("ner", folder), model_of(folder), theirs("ner", folder)
    results = None
    for strategy in STRATEGIES:
        options = {"aggregation_strategy": strategy, "stride": stride}
        for ignored in (["O"], []) if strategy == "simple" else ([],):
            job = task.job(texts, ignore_labels=ignored, **options)
            assert len(job.encodings) > len(texts)
            assert not any(job.dropped)
            results = results or evaluated(job, model)
            expected = quietly(reference, texts, ignore_labels=ignored, **options)
            assert any(expected)
            assert_same(job.finish(results), expected)


def test_windows_on_shares(tagger):
    options = {"aggregation_strategy": "simple", "stride": 6}
    with pipeline("ner", tagger) as tag:
        assert_same(tag(LONG, **options), theirs("ner", tagger, **options)(LONG))
        assert len(tag.usage.dropped_tokens) > 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"stride": 3}, "aggregation_strategy='none' makes none: use one of simple, first"),
        ({"stride": -1, "aggregation_strategy": "max"}, "stride=-1"),
        ({"stride": 18, "aggregation_strategy": "max"}, "use a smaller stride"),
        ({"stride": 3, "aggregation_strategy": "max", "truncation": True}, "leave out truncation"),
    ],
)
def test_unusable_strides(tagger, options, says):
    with pytest.raises(ConfigError, match=says):
        task_of("token-classification", tagger).job(LONG, **options)
