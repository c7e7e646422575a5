"""text-ranking: scores as those of CrossEncoder of sentence-transformers."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from pipeline_cases import computed, task_of
from reference import set_config
from tiny_models import tiny_model
from tiny_texts import TEXTS

from models.checkpoints.in_memory import open_model
from models.checkpoints.weights import open_checkpoint
from models.configs.tasks.ranking import RankingSettings, ranking_settings
from models.configs.tasks.sentences import is_sentence_model
from models.programs.plan import Plan, draft_plan
from protocols.drivers.ops import Ranges
from protocols.errors import ConfigError, ModelError
from puma_actors.api.pipelines import local_pipeline, pipeline

QUERY = "the cat?"
LONG = "the dogs sat in Paris, " * 5
DOCUMENTS = [*TEXTS, LONG]
SIGMOID = "torch.nn.modules.activation.Sigmoid"
IDENTITY = "torch.nn.modules.linear.Identity"
TANH = "torch.nn.modules.activation.Tanh"


@pytest.fixture
def ranker(ranker, tmp_path):
    """A copy, to be changed."""
    return shutil.copytree(ranker, tmp_path / "ranker")


def model_of(folder):
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()


def logits_of(folder, query, documents, limit=20):
    """As CrossEncoder.predict, without an activation."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model, found = model_of(folder), []
    for text in documents:
        given = tokenizer(query, text, truncation=True, max_length=limit, return_tensors="pt")
        with torch.no_grad():
            found.append(float(model(**given).logits[0, 0]))
    return np.array(found)


def check(ranked, scores):
    """As CrossEncoder.rank sorts."""
    assert [each["corpus_id"] for each in ranked] == list(np.argsort(-scores))
    np.testing.assert_allclose([each["score"] for each in ranked], np.sort(scores)[::-1], atol=0.01)


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def test_documents_are_sorted(ranker):
    scores = sigmoid(logits_of(ranker, QUERY, DOCUMENTS))
    other = sigmoid(logits_of(ranker, TEXTS[2], DOCUMENTS))
    with pipeline("reranking", ranker) as rank:
        assert rank.task == "text-ranking"
        found = rank(query=QUERY, documents=DOCUMENTS, truncation=True)
        check(found, scores)
        assert rank.usage.dropped_tokens[:3] == [0, 0, 0] < rank.usage.dropped_tokens[3:]
        best = rank({"query": QUERY, "documents": TEXTS}, top_k=1, return_documents=True)
        assert [each["text"] for each in best] == [TEXTS[int(np.argmax(scores[:3]))]]
        both = rank(query=[QUERY, TEXTS[2]], documents=DOCUMENTS, truncation=True)
        check(both[0], scores)
        check(both[1], other)


SETTINGS = [
    ({}, {}, sigmoid),
    ({"sentence_transformers": {"activation_fn": IDENTITY}}, {}, np.array),
    ({"sentence_transformers": {"version": "5"}}, {}, sigmoid),
    ({"sbert_ce_default_activation_function": IDENTITY}, {}, np.array),
    ({"sbert_ce_default_activation_function": TANH}, {}, np.tanh),
    ({"sbert_ce_default_activation_function": "my.Own"}, {}, sigmoid),
    (
        {
            "sentence_transformers": {"activation_fn": SIGMOID},
            "sbert_ce_default_activation_function": IDENTITY,
        },
        {},
        sigmoid,
    ),
    ({"sentence_transformers": {"activation_fn": IDENTITY}}, {"activation_fn": SIGMOID}, sigmoid),
    ({}, {"activation_fn": IDENTITY}, np.array),
    ({"sentence_transformers": {"activation_fn": IDENTITY}}, {"activation_fn": "x.Y"}, np.array),
]


def describe(folder, own, limit=None):
    """Add the files that newer versions of sentence-transformers write."""
    modules = [{"path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    settings = {"model_type": "CrossEncoder", "default_prompt_name": None, **own}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    if limit is not None:
        file = folder / "sentence_bert_config.json"
        file.write_text(json.dumps({"max_seq_length": limit}))


@pytest.mark.parametrize(("config", "own", "function"), SETTINGS)
def test_the_function_is_the_models_own(ranker, config, own, function):
    set_config(ranker, **config)
    if own:
        describe(ranker, own, 12)
        assert not is_sentence_model(ranker)
    limit = 12 if own else 20
    job = task_of("text-ranking", ranker).job(query=QUERY, documents=DOCUMENTS)
    assert job.encodings[-1].dropped > 0
    assert len(job.encodings[-1]) == limit
    check(computed(job, model_of(ranker)), function(logits_of(ranker, QUERY, DOCUMENTS, limit)))


def test_files_count_beside_modules_alone(ranker):
    """sentence-transformers reads the others only if there is a modules.json."""
    describe(ranker, {"activation_fn": IDENTITY}, 12)
    (ranker / "modules.json").unlink()
    with open_checkpoint(ranker) as checkpoint:
        assert checkpoint.ranking is None


def test_a_model_in_memory_keeps_its_function():
    model = tiny_model("bert", "sequence-classification", num_labels=1)
    assert open_model(model).ranking is None
    model.config.sentence_transformers = {"activation_fn": IDENTITY}
    assert open_model(model).ranking == RankingSettings("identity")


@pytest.mark.parametrize(
    ("config", "own", "says"),
    [
        (
            {"sentence_transformers": {"activation_fn": "torch.nn.ReLU"}},
            {},
            r"config.json: sentence_transformers.activation_fn: 'torch.nn.ReLU' is not supported",
        ),
        ({}, {"activation_fn": "torch.nn.GELU"}, "^config_sentence_transformers.json: activation"),
        ({}, {"default_prompt_name": "query"}, "default_prompt_name is not supported for ranking"),
    ],
)
def test_other_settings_are_refused_by_name(ranker, config, own, says):
    set_config(ranker, **config)
    if own:
        describe(ranker, own)
    with pytest.raises(ModelError, match=says):
        local_pipeline("text-ranking", ranker)
    task_of("text-classification", ranker)


def test_models_with_several_outputs_are_refused(classifier):
    with pytest.raises(ModelError, match="needs a model with one output, but this one has 3"):
        local_pipeline("text-ranking", classifier)


def test_settings_travel_in_the_plan(ranker):
    set_config(ranker, sentence_transformers={"activation_fn": IDENTITY})
    with open_checkpoint(ranker) as checkpoint:
        draft = replace(draft_plan(checkpoint.config), ranges=Ranges({}, {}))
        settings = checkpoint.ranking
    for each in (None, settings, RankingSettings("tanh", 5, "no")):
        plan = replace(draft, ranking=each)
        assert Plan.from_public(json.loads(json.dumps(plan.to_public()))) == plan
        assert each is None or plan.digest() != draft.digest()
    assert draft.to_public().keys() == {"config", "norms", "attention"}


@pytest.mark.parametrize(
    ("name", "value"),
    [("activation", "relu"), ("max_length", 0), ("refusal", 1), ("refusal", "x" * 2000), ("a", 1)],
)
def test_settings_of_a_peer_are_checked(name, value):
    with pytest.raises(ModelError, match="ranking: "):
        RankingSettings.from_public({**RankingSettings().to_public(), name: value})
    with pytest.raises(ModelError, match="ranking: must have"):
        RankingSettings.from_public(None)


def test_odd_settings_are_those_of_no_cross_encoder():
    for config in ({"sentence_transformers": 5}, {"sentence_transformers": {"activation_fn": 1}}):
        assert ranking_settings(config) is None


BAD = [
    (None, {}, "nothing to rank"),
    (None, {"query": "a"}, "nothing to rank"),
    (None, {"query": "a", "documents": []}, "nothing to rank"),
    (None, {"query": "a", "documents": "b"}, "nothing to rank"),
    (None, {"query": [], "documents": ["b"]}, "nothing to rank"),
    (None, {"query": "a", "documents": ["b", " "]}, "a document is empty"),
    (None, {"query": "a", "documents": ["b", 3]}, "no text"),
    ([], {}, "nothing to rank"),
    ({"query": "a"}, {}, 'needs the keys "query" and "documents"'),
    ({"query": "a", "documents": ["b"]}, {"top_k": 0}, "top_k=0"),
    ({"query": "a", "documents": ["b"]}, {"truncation": False}, None),
    ({"query": "a", "documents": [LONG]}, {"truncation": False}, "do not fit the limit of 20"),
]


@pytest.mark.parametrize(("inputs", "options", "says"), BAD)
def test_unusable_calls(ranker, inputs, options, says):
    task = task_of("text-ranking", ranker)
    if says is None:
        assert task.job(inputs, **options).dropped == [0]
        return
    with pytest.raises(ConfigError, match=says):
        task.job(inputs, **options)


def test_ties_keep_their_order(ranker):
    job = task_of("text-ranking", ranker).job(query=QUERY, documents=["cat", "dog", "cat"])
    found = computed(job, model_of(ranker))
    same = [each["corpus_id"] for each in found if each["corpus_id"] != 1]
    assert same == [0, 2]
