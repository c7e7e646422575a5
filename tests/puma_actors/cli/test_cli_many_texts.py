"""Several texts, pairs and questions in one command, long texts, and the tasks that take labels."""

import io
import json

import pytest
import transformers
from pipeline_cases import assert_same, theirs
from tiny_texts import TEXTS

from puma_actors.api.local import LocalCluster

LONG = "The cat sat on the dogs. London, the dog ran in Paris. Cats ran in London!"


@pytest.fixture
def run(puma):
    """A command's JSON result and what it said on stderr."""

    def ran(command, model, *arguments):
        code, out, err = puma(command, "-m", model, *arguments, "--json")
        assert code == 0, err
        return json.loads(out), err

    return ran


def lines(tmp_path, *items):
    file = tmp_path / "items.jsonl"
    file.write_text("\n".join(json.dumps(item) for item in items) + "\n\n", encoding="utf-8")
    return file


def test_pairs_in_a_file(run, puma, classifier, tmp_path):
    pair = {"text": TEXTS[0], "text_pair": "Paris\u2028ran"}
    file = lines(tmp_path, pair, TEXTS[1], {"text": TEXTS[2]})
    found, err = run("classify", classifier, "--file", file)
    reference = theirs("text-classification", classifier)
    assert_same(found["result"], reference([pair, TEXTS[1], TEXTS[2]], top_k=None))
    assert err == ""
    assert "dropped_tokens" not in found
    code, out, _ = puma(
        "classify", "-m", classifier, "-t", TEXTS[0], "-t", TEXTS[1], "--pair", "cat", "--pair", "a"
    )
    assert code == 0
    assert out.count("label") == 2
    assert TEXTS[1] in out


def test_a_text_that_was_cut_is_announced(run, puma, classifier):
    found, err = run("classify", classifier, "-t", LONG)
    (dropped,) = found["dropped_tokens"]
    assert dropped > 0
    assert err == (
        f"note: the text of {20 + dropped} tokens is cut to the limit of 20, which leaves out "
        f"{dropped}; truncation=False (--no-truncate) cuts nothing\n"
    )
    reference = theirs("text-classification", classifier)
    assert_same(found["result"], reference(LONG, top_k=None, truncation=True))
    code, _, err = puma("classify", "-m", classifier, "-t", LONG, "--no-truncate")
    assert code == 2
    assert "do not fit the limit of 20: shorten the text" in err


def test_tags_of_a_long_text(run, tagger):
    found, err = run("tag", tagger, "-t", LONG, "--stride", 5)
    options = {"aggregation_strategy": "simple", "stride": 5}
    assert_same(found["result"], theirs("ner", tagger, **options)(LONG))
    assert err == ""


def test_texts_from_standard_input(run, classifier, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TEXTS[1].encode())))
    found, _ = run("classify", classifier, "--file", "-", "--top-k", 1)
    assert_same(found["result"], theirs("text-classification", classifier)([TEXTS[1]], top_k=1))


def test_questions_in_a_file_and_in_options(run, reader, tmp_path):
    asked = [{"question": f"the {word}?", "context": TEXTS[2]} for word in ("cat", "dog")]
    found, _ = run("answer", reader, "--file", lines(tmp_path, *asked))
    twice, _ = run("answer", reader, "-q", "the cat?", "-q", "the dog?", "-c", TEXTS[2])
    assert_same(found["result"], twice["result"])
    assert len(found["result"]) == 2
    found, _ = run("answer", reader, "-q", "the cat?", "-c", TEXTS[2], "-c", TEXTS[0])
    assert_same(found["result"][0], twice["result"][0])
    assert len(found["result"]) == 2


def test_zero_shot(run, puma, judge, tmp_path):
    reference = theirs("zero-shot-classification", judge)
    found, _ = run("zero-shot", judge, "-t", TEXTS[0], "--labels", "cats, dogs")
    assert_same(found["result"], reference(TEXTS[0], ["cats", "dogs"]))
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(TEXTS[:2]))
    command = ("zero-shot", "-m", judge, "--file", file, "-l", "cats,dogs", "--multi-label")
    code, out, _ = puma(*command, "--template", "{}!")
    assert code == 0
    assert out.count("cats") == out.count("label") == 2


def test_rerank(run, puma, ranker, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(ranker)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(ranker).eval()
    expected = {}
    for text in TEXTS:
        given = tokenizer("the cat?", text, truncation=True, return_tensors="pt")
        expected[text] = model(**given).logits.sigmoid().item()
    file = tmp_path / "documents.txt"
    file.write_text("\n".join(TEXTS[1:]))
    found, _ = run("rerank", ranker, "-q", "the cat?", "-d", TEXTS[0], "--documents", file)
    result = found["result"]
    assert [each["score"] for each in result] == sorted(
        [pytest.approx(score, abs=0.01) for score in expected.values()],
        key=lambda score: -score.expected,
    )
    assert {each["text"]: each["corpus_id"] for each in result} == {
        text: number for number, text in enumerate(TEXTS)
    }
    queries = lines(tmp_path, {"query": "the cat?", "documents": TEXTS})
    code, out, _ = puma("rerank", "-m", ranker, "--file", queries, "--top-k", 1)
    assert code == 0
    assert "the cat?" in out
    assert "document" in out


@pytest.fixture
def no_work(monkeypatch):
    async def started(self):
        pytest.fail("the model was loaded first")

    monkeypatch.setattr(LocalCluster, "__aenter__", started)


REFUSED = [
    ("classifier", "classify", ["-t", "a", "-t", "b", "--pair", "c"], "2 texts for 1 second texts"),
    ("classifier", "classify", ["--file", "{"], "line 1 of {file} is not JSON"),
    ("classifier", "classify", ["--file", "[1]"], "neither a string nor an object with the keys"),
    ("classifier", "classify", ["--file", '{"text": "a", "b": "c"}'], "the keys 'text', 'text_pai"),
    (
        "classifier",
        "classify",
        ["--file", '{"text_pair": "a"}'],
        "line 1 of {file}: a text is empty or mi",
    ),
    (
        "classifier",
        "classify",
        ["--file", '{"text": "a", "text_pair": ""}'],
        "a text_pair is empty",
    ),
    ("classifier", "classify", ["--file", '{"text": ["a"]}'], "an input is list, not text"),
    ("tagger", "tag", ["-t", "a", "--stride", "3", "--aggregation", "none"], "makes none"),
    ("reader", "answer", ["-q", "a"], "1 questions for 0 contexts"),
    ("reader", "answer", [], "give --question or --file"),
    ("judge", "zero-shot", ["-t", "a", "--labels", ","], "no classes were given"),
    (
        "judge",
        "zero-shot",
        ["-t", "a", "--labels", "b", "--template", "c"],
        "write a sentence with",
    ),
    ("classifier", "zero-shot", ["-t", "a", "--labels", "b"], "the labels of this one are bad"),
    ("classifier", "rerank", ["-q", "a", "-d", "b"], "needs a model with one output"),
    ("ranker", "rerank", ["-q", "a"], "a query has no documents"),
    ("ranker", "rerank", ["-d", "a"], "documents have no query"),
    ("ranker", "rerank", ["--file", '{"query": "a"}'], "a list of documents is empty or missing"),
]


@pytest.mark.parametrize(("model", "command", "arguments", "says"), REFUSED)
def test_unusable_input(request, puma, no_work, tmp_path, model, command, arguments, says):
    if "--file" in arguments:
        file = tmp_path / "in.jsonl"
        file.write_text(arguments[1])
        arguments = ["--file", file]
        says = says.replace("{file}", str(file))
    code, out, err = puma(command, "-m", request.getfixturevalue(model), *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert says in err
