"""Python in the README and docs runs as printed, except for the paths of models."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md"]
SNIPPETS = [
    snippet
    for page in PAGES
    for snippet in re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)
]
PLACE = '"path/or/hub-name"'


def run(snippet: str, models: dict[str, Path]) -> dict[str, Any]:
    """Run a snippet as a script; return the names it defines.

    models: model by a word in the statement; "" for all other statements.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    for statement in ast.parse(snippet).body:
        source = ast.get_source_segment(snippet, statement)
        assert source is not None
        model = next(path for word, path in models.items() if word in source)
        exec(compile(source.replace(PLACE, repr(str(model))), "README.md", "exec"), names)
    return names


def test_no_snippet_is_passed_over():
    assert len(SNIPPETS) == 9
    assert sum(snippet.count(PLACE) for snippet in SNIPPETS) == 14


def test_the_front_page_is_short():
    assert len(PAGES[0].read_text("utf-8").split()) <= 1100


@pytest.mark.parametrize("page", [*PAGES, ROOT / "SECURITY.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_files_that_the_docs_name_are_there():
    for page in PAGES:
        named = re.findall(
            r"`((?:puma_actors|models|protocols|tests|bench)/[\w/.]*)", page.read_text("utf-8")
        )
        for path in named:
            assert (ROOT / path).exists(), f"{page.name}: {path}"


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_a_snippet_runs(snippet, folder, classifier, judge, ranker, reader, capsys):
    models = {
        "text-classification": classifier,
        "zero-shot-classification": judge,
        "text-ranking": ranker,
        "question-answering": reader,
        "": folder,
    }
    names = run(snippet, models)
    out = capsys.readouterr().out
    if "cluster.generate" in snippet:
        assert out.startswith("(3, 46)\n")
        assert out.count("Cost(rounds=") >= 2  # counted, then predicted
    elif "classify" in snippet:
        assert "score" in out
    elif "rank" in names:
        assert "'labels': ['" in out
        assert "'corpus_id': " in out
    if "private" in names:
        assert names["private"].usage.token_ids
    if "vectors" in names:
        assert names["vectors"].shape == (2, 384)
        assert "'answer': " in out


# -- the rounds of a layer -------------------------------------------------------------------------

STEPS = {
    ("attention_norm", "qkv"): ["RMSNorm with queries, keys and values"],
    ("attention",): ["scores", "softmax: ", "weights × values", "product of three"],
    ("output",): ["output projection"],
    ("mlp_norm", "gate_up"): ["RMSNorm with gate and up", "SiLU: ", "gate × up"],
    ("down",): ["down projection"],
}
"""Places of a layer, and how the rows of the page's table begin that are computed there."""


def test_the_rounds_of_a_layer_are_those_of_a_run(puma, folder):
    code, out, err = puma("profile", "-m", folder, "--tokens-in", 32, "--tokens-out", 2, "--json")
    assert (code, err) == (0, "")
    page = (ROOT / "docs" / "protocols.md").read_text("utf-8")
    text = page.partition("## The rounds of a layer")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]*) \| (\d+)(?: or (\d+))? \| [^|]+ \|$", text, re.M)
    for phase in json.loads(out)["phases"]:
        counted = {row["name"].removeprefix("layers.*."): row["rounds"] for row in phase["places"]}
        for places, starts in STEPS.items():
            found = [[row for row in rows if f"{row[0]} |".startswith(s)] for s in starts]
            assert all(len(matching) == 1 for matching in found), (places, found)
            least = sum(int(low) for [(_, low, _)] in found)
            most = sum(int(high or low) for [(_, low, high)] in found)
            rounds = sum(counted.get(place, 0) for place in places)
            assert 2 * least <= rounds <= 2 * most, places  # the model has two layers
