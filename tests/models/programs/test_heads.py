"""Which head a checkpoint has, its labels, and what a caller may ask for instead."""

import pytest
from tiny_models import config_json

from models.configs.heads import MAX_LABELS
from models.configs.reading import BertConfig, Gpt2Config, LlamaConfig
from protocols.errors import ModelError

NAMES = {"id2label": {"0": "neg", "2": "pos", "1": "neutral"}}


def bert(head: str = "sequence-classification", override: str | None = None, **changes):
    return BertConfig.from_hf(config_json("bert", head, **changes), head=override)


def test_labels_in_the_order_of_their_numbers():
    config = bert(**NAMES)
    assert (config.num_labels, config.labels) == (3, ("neg", "neutral", "pos"))
    assert bert("token-classification", **NAMES).labels == config.labels
    assert bert("masked-lm", **NAMES).num_labels == 0
    assert bert("question-answering", **NAMES).num_labels == 2  # first and last token


def test_labels_that_are_not_named():
    without = {"id2label": None, "label2id": None}
    assert (bert(**without).num_labels, bert(**without).labels) == (2, ())
    assert bert(**without, num_labels=5).num_labels == 5


@pytest.mark.parametrize("kind", ["regression", "multi_label_classification", None])
def test_problem_types(kind):
    assert bert(problem_type=kind).problem_type == kind
    assert bert("token-classification", problem_type=kind).problem_type is None


def test_names_of_labels_stay_publishable():
    config = bert(id2label={"0": "x" * 1000, "1": "y"})
    assert [len(label) for label in config.labels] == [200, 1]
    many = bert(id2label={str(i): "z" * 100 for i in range(1000)})
    assert (many.num_labels, many.labels) == (1000, ())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"id2label": ["a", "b"]}, "not a mapping"),
        ({"id2label": {"1": "a", "2": "b"}}, "from 0 to 1"),
        ({"id2label": {}}, "id2label"),
        ({**NAMES, "num_labels": 2}, "differs from the 3"),
        ({"id2label": None, "num_labels": MAX_LABELS + 1}, "num_labels"),
        ({"id2label": None, "num_labels": 0}, "num_labels"),
        ({"problem_type": "ranking"}, "problem_type: 'ranking'"),
        ({"architectures": ["BertForTokenisation"]}, "BertForTokenClassification"),
        ({"architectures": [None]}, "architectures"),
        ({"architectures": 5}, "architectures"),
    ],
)
def test_damaged_settings_are_refused(changes, says):
    with pytest.raises(ModelError) as caught:
        bert(**changes)
    assert says in str(caught.value)


def test_a_caller_may_ask_for_another_head():
    assert bert("masked-lm", "none").head == "none"
    config = bert("masked-lm", "sequence-classification", **NAMES)
    assert (config.head, config.num_labels, config.pooler) == ("sequence-classification", 3, True)
    data = config_json("gpt2", "none", architectures=["GPT2DoubleHeadsModel"])
    assert Gpt2Config.from_hf(data, head="causal-lm").head == "causal-lm"
    with pytest.raises(ModelError, match=r"head: 'causal-lm'.*masked-lm"):
        bert("masked-lm", "causal-lm")
    with pytest.raises(ModelError, match=r"head: 'masked-lm'.*causal-lm"):
        LlamaConfig.from_hf(config_json("llama", "causal-lm"), head="masked-lm")


def test_pre_training_is_read_as_masked_tokens():
    assert bert(architectures=["BertForPreTraining"]).head == "masked-lm"
