"""Pipelines: refusals before any work, and how pipelines begin and end."""

import shutil

import pytest
from pipeline_cases import assert_same, folder_of, theirs
from reference import leaves_nothing, set_config
from tiny_texts import TEXTS, save_byte_level

from models.tokens.tokenizer import Tokenizer
from protocols.errors import ConfigError, ModelError
from puma_actors.api.local import LocalCluster
from puma_actors.api.pipelines import TextPipeline, local_pipeline, pipeline


@pytest.fixture
def no_work(monkeypatch):
    """Fail if weights are read or a cluster starts: bad input must be found before."""

    async def started(self):
        pytest.fail("the model was loaded first")

    monkeypatch.setattr(LocalCluster, "__aenter__", started)


@pytest.mark.parametrize(
    ("task", "able"),
    [
        ("text-generation", "fill-mask, feature-extraction, sentence-embedding"),
        ("ner", "token-classification needs a model with head 'token-classification'"),
        ("question-answering", "this one has 'masked-lm'"),
    ],
)
def test_a_head_for_another_task(no_work, filler, task, able):
    with pytest.raises(ModelError, match=able):
        pipeline(task, filler)


def test_a_running_model_of_another_head(no_work, filler):
    cluster = LocalCluster.from_pretrained(filler)
    try:
        with pytest.raises(ModelError, match=r"this model: feature-extraction .* do fill-mask$"):
            TextPipeline("feature-extraction", cluster)
        cluster.tokenizer = None
        with pytest.raises(ModelError, match=r"put the model's tokenizer\.json"):
            TextPipeline("fill-mask", cluster)
    finally:
        cluster.checkpoint.close()


def test_unusable_pipelines(no_work, filler):
    with pytest.raises(ConfigError, match="'summarization' is not known: use one of text-class"):
        pipeline("summarization", filler)
    with pytest.raises(ConfigError, match="fill-mask has no default model"):
        pipeline("fill-mask")
    with pytest.raises(ConfigError, match="fill-mask has no option 'top_p': it has targets, top_k"):
        pipeline("fill-mask", filler, top_p=3)


BAD_CALLS = [
    ("classifier", "text-classification", "", {}, None),
    ("classifier", "text-classification", [], {}, "nothing was given"),
    ("classifier", "text-classification", 5, {}, "nothing was given"),
    ("classifier", "text-classification", [["a", "b"]], {}, '"text_pair": ...'),
    ("classifier", "text-classification", {"text": "a", "pair": "b"}, {}, 'keys "text" and'),
    ("classifier", "text-classification", {"text": "a", "text_pair": 5}, {}, "int, not text"),
    ("classifier", "text-classification", "a", {"top_k": 0}, "top_k=0: .* at least 1"),
    ("classifier", "text-classification", "a", {"function_to_apply": "tanh"}, "use one of softmax"),
    ("classifier", "text-classification", "a", {"max_length": 0}, "max_length=0: .* at least 1"),
    ("classifier", "text-classification", "a", {"colour": 1}, "has no option 'colour'"),
    (
        "classifier",
        "text-classification",
        "cat " * 19,
        {"truncation": False},
        "21 tokens do not fit the limit of 20",
    ),
    ("filler", "fill-mask", "the cat", {}, r"no mask: write \[MASK\]"),
    ("filler", "fill-mask", "[MASK]", {"targets": ["cat", "london"]}, r"targets\[1\] is 2 tokens"),
    ("filler", "fill-mask", "[MASK]", {"targets": []}, "targets is empty"),
    ("tagger", "ner", "a", {"aggregation_strategy": "last"}, "use one of none, simple"),
    ("reader", "question-answering", None, {"question": "a"}, "a context is empty or missing"),
    ("reader", "question-answering", {"context": "a"}, {}, "a question is empty or missing"),
    ("reader", "question-answering", [], {}, "no question was given"),
    (
        "reader",
        "question-answering",
        None,
        {"question": ["a", "b"], "context": ["a"]},
        "2 questions for 1 contexts",
    ),
    (
        "reader",
        "question-answering",
        None,
        {"question": "a", "context": "b", "max_seq_len": 21},
        "the model takes 20 tokens",
    ),
    ("writer", "text-generation", " ", {}, "prompt is empty"),
    ("writer", "text-generation", [{"role": "user"}], {}, 'needs a "role" and a "content"'),
    ("writer", "text-generation", [{"role": "assistant", "content": "a"}], {}, "leave it out"),
    ("writer", "text-generation", "the", {"max_new_tokens": 0}, "max_new_tokens"),
]


@pytest.mark.parametrize(("model", "task", "inputs", "options", "says"), BAD_CALLS)
def test_unusable_calls(request, no_work, model, task, inputs, options, says):
    pipe = local_pipeline(task, request.getfixturevalue(model))
    try:
        if says is None:  # two tokens that the tokenizer adds are an input
            pipe.check(inputs, **options)
        else:
            with pytest.raises(ConfigError, match=says):
                pipe.check(inputs, **options)
    finally:
        pipe.requests.checkpoint.close()


def test_padding_is_no_input_of_roberta(tmp_path_factory):
    folder = folder_of(tmp_path_factory, "roberta", "masked-lm", save_byte_level)
    pipe = local_pipeline("fill-mask", folder)
    with pytest.raises(ConfigError, match="token id 1 is this model's padding"):
        pipe.check("the<mask> <pad>")
    pipe.requests.checkpoint.close()


def test_a_tokenizer_without_a_mask(filler, tmp_path):
    copy = shutil.copytree(filler, tmp_path / "copy")
    settings = '{"tokenizer_class": "PreTrainedTokenizerFast"}'  # BERT's has a mask of its own
    (copy / "tokenizer_config.json").write_text(settings)
    assert Tokenizer.load(copy).special_token("mask_token") is None
    pipe = local_pipeline("fill-mask", copy)
    with pytest.raises(ModelError, match="names no mask token"):
        pipe.check("[MASK]")
    pipe.requests.checkpoint.close()


# -- life ------------------------------------------------------------------------------------------


async def test_over_a_running_cluster(classifier):
    async with leaves_nothing(), LocalCluster.from_pretrained(classifier) as cluster:
        pipe = TextPipeline("text-classification", cluster, top_k=2)
        found = await pipe(TEXTS)
        assert_same(found, theirs("text-classification", classifier)(TEXTS, top_k=2))
        assert len(await pipe(TEXTS[0], top_k=None)) == 3
        assert pipe.usage.total == sum(cluster.usage.steps, start=type(pipe.usage.total)())


def test_a_closed_pipeline(filler):
    pipe = pipeline("fill-mask", filler)
    pipe.close()
    pipe.close()
    with pytest.raises(ConfigError, match="the model is closed: load it again"):
        pipe("[MASK]")


def test_labels_without_names(tmp_path_factory):
    folder = folder_of(tmp_path_factory, "gpt2", "sequence-classification", save_byte_level)
    set_config(folder, id2label=None, label2id=None, num_labels=3)
    with pipeline("text-classification", folder, top_k=None) as pipe:
        (labels,) = pipe("the cat")
        assert {found["label"] for found in labels} == {"LABEL_0", "LABEL_1", "LABEL_2"}


async def test_a_decoder_classifies_the_last_token(tmp_path_factory):
    folder = folder_of(tmp_path_factory, "gpt2", "sequence-classification", save_byte_level)
    async with LocalCluster.from_pretrained(folder) as cluster:
        assert (await cluster.forward([[1, 5], [7]])).shape == (2, 3)
        with pytest.raises(ConfigError, match="ends with token id 1, this model's padding"):
            await cluster.forward([[5, 1], [7]])
