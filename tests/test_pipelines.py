"""Pipelines on shares against transformers' own, on the same folders."""

import shutil
import warnings
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
import transformers
from reference import leaves_nothing, set_config
from tiny_models import save, tiny_model
from tiny_texts import TEXTS, save_byte_level, save_wordpiece

from models.locate import embedding_model_path
from models.tokenizer import Tokenizer
from protocols.errors import ConfigError, ModelError
from puma_actors.cluster import LocalCluster
from puma_actors.pipelines import TextPipeline, local_pipeline, pipeline

TOLERANCE = 0.01
ENTITIES = {"num_labels": 4, "id2label": {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC"}}


def folder_of(factory, model_type, head, save_tokenizer=save_wordpiece, **changes):
    """A model whose head tells tokens apart, with a tokenizer."""
    folder = factory.mktemp(f"{model_type}-{head}")
    model = tiny_model(model_type, head, **changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("classifier", "score", "qa_outputs")):
                parameter *= 4
            if name.endswith("word_embeddings.weight") and "masked" not in head:
                parameter *= 4
    return save_tokenizer(save(model, folder))


@cache
def theirs(task, folder, **options):
    return transformers.pipeline(task, model=str(folder), device="cpu", **options)


def assert_same(ours, expected):
    """Equal, with the same fields in any order, but for numbers that are not whole."""
    if isinstance(expected, dict):
        assert set(ours) == set(expected)
        for key in expected:
            assert_same(ours[key], expected[key])
    elif isinstance(expected, list):
        assert isinstance(ours, list)
        assert len(ours) == len(expected)
        for mine, other in zip(ours, expected, strict=True):
            assert_same(mine, other)
    elif isinstance(expected, float | np.floating):
        assert type(ours) is float
        assert ours == pytest.approx(float(expected), abs=TOLERANCE)
    else:
        assert ours == expected


# -- text-classification ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    labels = {0: "bad", 1: "fair", 2: "good"}
    return folder_of(tmp_path_factory, "bert", "sequence-classification", id2label=labels)


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
def tagger(tmp_path_factory):
    return folder_of(tmp_path_factory, "bert", "token-classification", **ENTITIES, seed=1)


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
def filler(tmp_path_factory):
    return folder_of(tmp_path_factory, "bert", "masked-lm")


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


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    folder = folder_of(tmp_path_factory, "gpt2", "causal-lm", save_byte_level, n_positions=64)
    template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    return folder


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


# -- question-answering ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return folder_of(tmp_path_factory, "bert", "question-answering", seed=2)


@pytest.fixture(scope="module")
def ask(reader):
    with pipeline("question-answering", reader) as pipe:
        yield pipe


def torch_answers(folder, question, context, kept, *, longest=15, limit=20, overlap=10):
    """The words of each window's best spans with the sum of their scores; the score of no answer.

    (transformers has no such pipeline any more; this is what the one of version 4 computes, span
    by span, of which it keeps twice as many as answers are wanted and 10.)
    """
    model = transformers.BertForQuestionAnswering.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    windows = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=limit,
        stride=overlap,
        return_overflowing_tokens=True,
    )
    scores, nothing = {}, []
    for i, (ids, types) in enumerate(
        zip(windows["input_ids"], windows["token_type_ids"], strict=True)
    ):
        with torch.no_grad():
            out = model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([types]))
        inside = [place for place, text in enumerate(windows.sequence_ids(i)) if text == 1]
        allowed = [0, *inside]
        starts = torch.softmax(out.start_logits[0, allowed].double(), 0).tolist()
        ends = torch.softmax(out.end_logits[0, allowed].double(), 0).tolist()
        nothing.append(starts[0] * ends[0])
        spans = [
            (starts[a] * ends[b], first, last)
            for (a, first), (b, last) in product(enumerate(inside, 1), repeat=2)
            if 0 <= last - first < longest
        ]
        for score, first, last in sorted(spans, reverse=True)[:kept]:
            begin = windows[i].word_to_chars(windows[i].token_to_word(first), 1)[0]
            end = windows[i].word_to_chars(windows[i].token_to_word(last), 1)[1]
            words = context[begin:end].lower()
            scores[words] = scores.get(words, 0.0) + score
    return scores, min(nothing), len(windows["input_ids"])


def test_question_answering(ask, reader):
    context = "The cat sat on London."
    scores, _, windows = torch_answers(reader, "the cat?", context, 12)
    assert windows == 1
    answer = ask(question="the cat?", context=context)
    assert set(answer) == {"score", "start", "end", "answer"}
    assert answer["answer"] == context[answer["start"] : answer["end"]]
    assert answer["answer"].lower() == max(scores, key=scores.get)
    assert answer["score"] == pytest.approx(max(scores.values()), abs=TOLERANCE)
    several = ask({"question": "the cat?", "context": context}, top_k=4)
    scores, _, _ = torch_answers(reader, "the cat?", context, 18)
    for found in several:
        assert found["score"] == pytest.approx(scores[found["answer"].lower()], abs=TOLERANCE)
    assert sorted((a["score"] for a in several), reverse=True) == [a["score"] for a in several]
    both = ask(question=["the cat?", "on?"], context=context)
    assert_same(both[0], answer)
    assert len(both) == 2
    short = ask(question="the cat?", context=context, max_answer_len=1, align_to_words=False)
    assert len(ask.pipe.tokenizer.encode_text(short["answer"], special_tokens=False)) == 1


def test_long_contexts_are_read_in_windows(ask, reader):
    context = "The cat sat on the dogs. London ran, in Paris! A dog: no cats on a mat? " * 2
    scores, nothing, windows = torch_answers(reader, "the cat?", context, 16, overlap=4)
    assert windows > 3
    found = ask(question="the cat?", context=context, doc_stride=4, top_k=3)
    assert len(ask.usage.steps) == 1
    for answer in found:
        assert answer["answer"] == context[answer["start"] : answer["end"]]
    best = found[0]
    assert best["score"] == pytest.approx(scores[best["answer"].lower()], abs=2 * TOLERANCE)
    many = ask(
        question="the cat?",
        context=context,
        doc_stride=4,
        top_k=500,
        handle_impossible_answer=True,
    )
    (empty,) = [answer for answer in many if answer["answer"] == ""]
    assert empty["score"] == pytest.approx(nothing, abs=TOLERANCE)
    with pytest.raises(ConfigError, match="shorten the question, or use larger windows"):
        ask(question="the cat " * 7, context=context)


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


# -- what is refused -------------------------------------------------------------------------------


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
    with pytest.raises(ConfigError, match="fill-mask has no model of its own"):
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
    ("classifier", "text-classification", "a", {"colour": 1}, "has no option 'colour'"),
    ("classifier", "text-classification", "cat " * 19, {}, "21 tokens do not fit the limit of 20"),
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
    ("writer", "text-generation", [{"role": "assistant", "content": "a"}], {}, "leave that out"),
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


def test_truncation_when_asked(tag, tagger, classify, classifier):
    long = " ".join(TEXTS * 3)
    assert_same(tag(long, truncation=True), theirs("ner", tagger)(long))
    pair = {"text": "the cat " * 12, "text_pair": TEXTS[0]}
    reference = theirs("text-classification", classifier)
    assert_same(classify(pair, truncation=True), reference(pair, truncation=True))


def test_padding_is_no_input_of_roberta(tmp_path_factory):
    folder = folder_of(tmp_path_factory, "roberta", "masked-lm", save_byte_level)
    pipe = local_pipeline("fill-mask", folder)
    with pytest.raises(ConfigError, match="token id 1 is this model's padding"):
        pipe.check("the<mask> <pad>")
    pipe.requests.checkpoint.close()


def test_a_tokenizer_without_a_mask(filler, tmp_path):
    copy = shutil.copytree(filler, tmp_path / "copy")
    (copy / "tokenizer_config.json").write_text("{}")
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
