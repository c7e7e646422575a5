"""zero-shot-classification against transformers' pipeline."""

import json
import shutil
from dataclasses import replace

import pytest
import transformers
from pipeline_cases import assert_same, computed, folder_of, task_of, theirs, with_settings
from reference import set_config
from tiny_texts import TEXTS, save_byte_level

from models.configs.reading import config_from_public, load_config
from models.texts.needs import tasks_of_checkpoint
from protocols.errors import ConfigError, ModelError
from puma_actors.api.pipelines import local_pipeline, pipeline

TASK = "zero-shot-classification"
CLASSES = ["cats", "dogs", "Paris"]
NAMES = [
    ["contradiction", "neutral", "entailment"],
    ["ENTAILMENT", "neutral", "contradiction"],
    ["not", "Entails", "other"],
    ["entailment", "not_entailment"],
]


def named(factory, names, model_type="bert", **options):
    labels = dict(enumerate(names))
    inverse = {name: number for number, name in labels.items()}
    return folder_of(
        factory,
        model_type,
        "sequence-classification",
        num_labels=len(names),
        id2label=labels,
        label2id=inverse,
        **options,
    )


def model_of(folder):
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()


CALLS = [
    (TEXTS[0], {}),
    (TEXTS, {}),
    ([TEXTS[0]], {}),
    (TEXTS[0], {"multi_label": True}),
    (TEXTS, {"multi_label": True, "hypothesis_template": "{} ran!"}),
    (TEXTS[0], {"candidate_labels": "cats, dogs ,"}),
    (TEXTS[0], {"candidate_labels": ["cats"]}),
    (TEXTS[0], {"candidate_labels": "Paris"}),
    ("the cat " * 12, {}),
]


@pytest.mark.parametrize(("inputs", "options"), CALLS)
def test_calls(judge, inputs, options):
    options = {"candidate_labels": CLASSES, **options}
    job = task_of(TASK, judge).job(inputs, **options)
    assert_same(computed(job, model_of(judge)), theirs(TASK, judge)(inputs, **options))


@pytest.mark.parametrize("names", NAMES[1:])
def test_the_label_is_found_by_name(tmp_path_factory, names):
    folder = named(tmp_path_factory, names, "roberta", save_tokenizer=save_byte_level)
    task, model, reference = task_of(TASK, folder), model_of(folder), theirs(TASK, folder)
    for several in (False, True):
        options = {"candidate_labels": ["in", "cat"], "hypothesis_template": "{}!"}
        job = task.job("the cat", multi_label=several, **options)
        expected = reference("the cat", multi_label=several, **options)
        assert_same(computed(job, model), expected)


def test_only_the_text_is_cut(judge, tmp_path):
    folder = with_settings(judge, tmp_path / "copy", truncation_side="left", model_max_length=18)
    options = {"candidate_labels": CLASSES, "hypothesis_template": "The {} sat."}
    long = " ".join(TEXTS * 2)
    job = task_of(TASK, folder).job(long, **options)
    assert min(job.dropped) > 0
    assert_same(computed(job, model_of(folder)), theirs(TASK, folder)(long, **options))
    with pytest.raises(ConfigError, match="no room for text beside the second text"):
        task_of(TASK, folder).job(TEXTS[0], candidate_labels="cat " * 18)


def test_on_shares(judge):
    with pipeline(TASK, judge) as classify:
        expected = theirs(TASK, judge)(TEXTS, CLASSES)
        assert_same(classify(TEXTS, CLASSES), expected)
        assert classify.usage.dropped_tokens == [0] * 9
        assert_same(classify(TEXTS[0], candidate_labels=CLASSES), expected[0])
        with pytest.raises(ConfigError, match="takes inputs, then candidate_labels"):
            classify(TEXTS, CLASSES, candidate_labels=CLASSES)


def test_other_models_are_refused_by_name(classifier, tagger):
    with pytest.raises(ModelError, match="label 'entailment', but the labels of this one are bad"):
        local_pipeline(TASK, classifier)
    with pytest.raises(ModelError, match="needs a model with head 'sequence-classification'"):
        local_pipeline(TASK, tagger)


def test_tasks_are_listed_where_the_labels_allow_them(judge, classifier):
    assert TASK in tasks_of_checkpoint(load_config(judge))
    assert "text-ranking" not in tasks_of_checkpoint(load_config(judge))
    assert TASK not in tasks_of_checkpoint(load_config(classifier))
    one = replace(load_config(judge), num_labels=1, labels=("score",), entailment=None)
    assert "text-ranking" in tasks_of_checkpoint(one)


def test_the_number_is_that_of_label2id(judge, tmp_path):
    """transformers takes it from there, even where `id2label` says something else."""
    folder = shutil.copytree(judge, tmp_path / "copy")
    for numbers, expected in (
        ({"entailment": 1, "contradiction": 2, "neutral": 0}, 1),
        ({"a": 0, "b": 1, "c": 2}, None),
        ({"entailment": 7}, None),
        (None, 2),
    ):
        set_config(folder, label2id=numbers)
        config = load_config(folder)
        assert config.entailment == expected
        assert config_from_public(json.loads(json.dumps(config.to_public()))) == config
        assert config.with_head("none").entailment is None
    set_config(folder, label2id={"entailment": 1, "contradiction": 2, "neutral": 0})
    found = computed(
        task_of(TASK, folder).job(TEXTS[0], candidate_labels=CLASSES), model_of(folder)
    )
    assert_same(found, theirs(TASK, folder)(TEXTS[0], CLASSES))
    set_config(folder, id2label=None, num_labels=3)
    assert load_config(folder).entailment is None


def test_a_peers_number_is_checked(judge):
    public = load_config(judge).to_public()
    for number in (-1, 3, "2"):
        with pytest.raises(ModelError, match="entailment"):
            config_from_public({**public, "entailment": number})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "no classes were given"),
        ({"candidate_labels": " , "}, "no classes were given"),
        ({"candidate_labels": [1]}, "give a string or a list of strings"),
        ({"candidate_labels": "a", "hypothesis_template": "all"}, "write a sentence with {}"),
        ({"candidate_labels": "a", "hypothesis_template": "{x}"}, "write a sentence with {}"),
        ({"candidate_labels": "a", "hypothesis_template": "{"}, "write a sentence with {}"),
        ({"candidate_labels": "a", "hypothesis_template": None}, "write a sentence with {}"),
    ],
)
def test_unusable_calls(judge, options, says):
    with pytest.raises(ConfigError, match=says):
        task_of(TASK, judge).job(TEXTS[0], **options)
