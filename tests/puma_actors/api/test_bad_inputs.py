"""What callers of the Python interface may hand over by mistake: refused by name, never guessed."""

import anyio
import numpy as np
import pytest

from models.tokens.sampling import SamplingConfig
from protocols.errors import ConfigError, ModelError, PumaError
from puma_actors.api.blocking import PrivateModel
from puma_actors.api.ids import token_ids, token_sequences, whole
from puma_actors.api.pipelines import local_pipeline, pipeline

NO_IDS = {
    "None": None,
    "a number": 1,
    "a text": "12",
    "texts": ["1"],
    "bools": [True],
    "bools of numpy": [np.True_],
    "an array of bools": np.array([True]),
    "floats": [1.0],
    "an array of floats": np.array([1.0]),
    "a float of numpy": [np.float64(1)],
    "bytes": b"12",
    "a bytearray": bytearray(b"1"),
    "a list of bytes": [b"1"],
    "a dict": {1: 2},
    "a list of dicts": [{}],
    "a set": {1, 2},
    "Nones": [None],
    "an array of no axes": np.array(1),
    "three axes": np.zeros((1, 1, 1), np.int64),
    "mixed": [1, [2]],
    "mixed the other way": [[1], 2],
    "a sequence with a float": [[1], [2.0]],
    "an object": object(),
    "nothing": [],
    "an empty sequence": [[]],
}
NO_TEXTS = [
    None,
    1,
    True,
    1.5,
    b"a",
    {},
    {"a": 1},
    [None],
    ["a", 1],
    [b"a"],
    [{}],
    {"text": 1},
    {"text": "a", "text_pair": 3},
    [{"text": "a"}, {"text": None}],
    {"question": 1, "context": "a"},
    {"question": "a", "context": None},
    [{"role": 1, "content": "a"}],
    [{"role": "user", "content": None}],
    np.array([1]),
    object(),
]
NO_SWITCHES = ["false", 1, 0, [], np.True_]


@pytest.fixture(scope="module")
def model(folder):
    with PrivateModel.from_pretrained(folder) as model:
        yield model


@pytest.mark.parametrize("kind", NO_IDS)
def test_no_ids(model, kind):
    given = NO_IDS[kind]
    before = model.usage
    uses = [
        lambda: model.forward(given),
        lambda: model.call(model.cluster.log_likelihoods, given),
        lambda: model.cluster.check_ids(given),
    ]
    if given is not None:
        uses.append(lambda: model.forward([1, 2], types=given))
    if not isinstance(given, str):
        uses.append(lambda: model.generate(given, max_new_tokens=1))
    for use in uses:
        with pytest.raises(ConfigError) as refusal:
            use()
        assert len(str(refusal.value)) > 20
    assert model.usage is before  # nothing was begun


def test_the_value_is_named():
    for given, named in (([1, True], "bool True"), (["1"], "str '1'"), (None, "None")):
        with pytest.raises(ConfigError, match=named):
            token_ids(given)
    with pytest.raises(ConfigError, match="bool True"):
        whole(True, "decode")
    with pytest.raises(ConfigError, match=r"str 'x+…"):
        token_ids(["x" * 1000])


def test_ids_in_any_holder():
    for given in ([1, 2], (1, 2), range(1, 3), np.array([1, 2]), np.array([1, 2], np.uint8)):
        assert token_ids(given) == [1, 2]
        assert token_sequences(given) == [[1, 2]]
        assert token_sequences([given, given]) == [[1, 2], [1, 2]]
    assert token_sequences(np.array([[1, 2], [3, 4]])) == [[1, 2], [3, 4]]
    assert token_sequences([np.int32(1), 2]) == [[1, 2]]


def test_options_of_generate(model):
    for options in (
        {"temprature": 1.0},
        {"temperature": "hot"},
        {"max_new_tokens": True},
        {"stop": [1]},
        {"stop": {}},
        {"raw": "no"},
        {"sampling": {"temperature": 1.0}},
        {"sampling": SamplingConfig(), "temperature": 1.0},
        {"seed": "7"},
    ):
        with pytest.raises(ConfigError, match=next(iter(options))):
            model.generate("I see", **options)
    with pytest.raises(ConfigError, match="rows"):
        model.forward([1, 2], rows=[])
    for wrong in (True, None, 1.5, "7"):
        with pytest.raises(ConfigError, match="whole number"):
            model.cluster.predict(wrong)


TASKS = {
    "text-classification": "classifier",
    "token-classification": "tagger",
    "fill-mask": "filler",
    "question-answering": "reader",
    "feature-extraction": "filler",
    "sentence-embedding": "filler",
    "text-generation": "writer",
}


@pytest.mark.parametrize("task", TASKS)
def test_no_texts(request, task):
    pipe = local_pipeline(task, request.getfixturevalue(TASKS[task]))
    for given in NO_TEXTS:
        with pytest.raises(ConfigError):
            pipe.check(given)
        with pytest.raises(ConfigError):
            anyio.run(pipe, given)
    pipe.requests.checkpoint.close()


SWITCHES = [
    ("text-classification", "a cat", "truncation"),
    ("token-classification", "a cat", "truncation"),
    ("question-answering", {"question": "a", "context": "a cat"}, "handle_impossible_answer"),
    ("question-answering", {"question": "a", "context": "a cat"}, "align_to_words"),
    ("feature-extraction", "a cat", "return_tensors"),
    ("sentence-embedding", "a cat", "normalize"),
    ("text-generation", "a cat", "do_sample"),
    ("text-generation", "a cat", "return_full_text"),
]


@pytest.mark.parametrize(("task", "text", "name"), SWITCHES)
def test_switches(request, task, text, name):
    pipe = local_pipeline(task, request.getfixturevalue(TASKS[task]))
    for wrong in NO_SWITCHES:
        with pytest.raises(ConfigError, match=f"{name}=.*True or False"):
            pipe.check(text, **{name: wrong})
    pipe.requests.checkpoint.close()


WORDS = [
    ("text-classification", "a cat", "function_to_apply", [1, True, "max", ["none"]]),
    ("token-classification", "a cat", "ignore_labels", [None, 1, b"O", [1], {}]),
    ("fill-mask", "a [MASK]", "targets", [1, b"cat", [1], {"a": 1}, [None]]),
]


@pytest.mark.parametrize(("task", "text", "name", "values"), WORDS)
def test_words(request, task, text, name, values):
    pipe = local_pipeline(task, request.getfixturevalue(TASKS[task]))
    for wrong in values:
        with pytest.raises(ConfigError, match=name):
            pipe.check(text, **{name: wrong})
    pipe.requests.checkpoint.close()


def test_what_a_model_is_made_of(folder):
    for wrong in (None, 1, [], {}, b"x"):
        with pytest.raises(ConfigError, match="LocalCluster"):
            PrivateModel(wrong)
        with pytest.raises(ModelError, match="give a folder"):
            PrivateModel.from_pretrained(wrong)
        with pytest.raises(PumaError, match="not known"):
            pipeline(wrong, folder)
    for name in ("settings", "network"):
        for wrong in (1.5, True, ["lan"], {"a": 1}):
            with pytest.raises(ConfigError, match=name):
                PrivateModel.from_pretrained(folder, **{name: wrong})
