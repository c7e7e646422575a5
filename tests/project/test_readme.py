"""The README's Python runs as it stands there, as scripts, but for the paths of models."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parents[2] / "README.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.M | re.S)
PLACE = '"path/or/hub-name"'


def run(snippet: str, models: dict[str, Path]) -> dict[str, Any]:
    """What a snippet leaves behind that is run as a script.

    models: by a word that a statement holds; "" for all others.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    for statement in ast.parse(snippet).body:
        source = ast.get_source_segment(snippet, statement)
        assert source is not None
        model = next(path for word, path in models.items() if word in source)
        exec(compile(source.replace(PLACE, repr(str(model))), "README.md", "exec"), names)
    return names


def test_no_snippet_is_passed_over():
    assert len(SNIPPETS) == 3
    assert sum(snippet.count(PLACE) for snippet in SNIPPETS) == 5


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_a_snippet_runs(snippet, folder, classifier, reader, capsys):
    models = {"text-classification": classifier, "question-answering": reader, "": folder}
    names = run(snippet, models)
    out = capsys.readouterr().out
    if "cluster.generate" in snippet:
        assert out.startswith("(3, 46)\n")
        assert out.count("Cost(rounds=") >= 2  # counted, then predicted
    else:
        assert "score" in out
    if "vectors" in names:
        assert names["vectors"].shape == (2, 384)
        assert "'answer': " in out


# -- the rounds of a layer -------------------------------------------------------------------------

STEPS = {
    "attention_norm": ["RMSNorm: "],
    "qkv": ["queries, keys, values"],
    "attention": ["scores", "row maximum", "exp: ", "weights × values", "product of three"],
    "output": ["output projection"],
    "mlp_norm": ["RMSNorm |"],
    "gate_up": ["gate and up", "SiLU: ", "gate × up"],
    "down": ["down projection"],
}
"""Places of a layer, and how the rows of the README's table begin that are computed there."""


def test_the_rounds_of_a_layer_are_those_of_a_run(puma, folder):
    code, out, err = puma("profile", "-m", folder, "--tokens-in", 32, "--tokens-out", 2, "--json")
    assert (code, err) == (0, "")
    text = README.read_text(encoding="utf-8").partition("### The rounds of a layer")[2]
    rows = re.findall(r"^\| (.*) \| (\d+)(?: or (\d+))? \|$", text, re.M)
    for phase in json.loads(out)["phases"]:
        counted = {row["name"].removeprefix("layers.*."): row["rounds"] for row in phase["places"]}
        for place, starts in STEPS.items():
            found = [[row for row in rows if f"{row[0]} |".startswith(s)] for s in starts]
            assert all(len(matching) == 1 for matching in found), (place, found)
            least = sum(int(low) for [(_, low, _)] in found)
            most = sum(int(high or low) for [(_, low, high)] in found)
            assert 2 * least <= counted[place] <= 2 * most, place  # the model has two layers
