"""`puma what-if`: its output, and what it refuses."""

import json
import re
from functools import partial

import anyio
import pytest
from tiny_models import save, tiny_model

from protocols.base.lane import Settings
from puma_actors.profiling.profile import run_profile

GIVEN = ("--computation", "3s,600ms")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tiny_model("gpt2", "causal-lm"), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def profile(folder, tmp_path_factory):
    options = {"tokens_in": 4, "tokens_out": 2, "settings": Settings()}
    found = anyio.run(partial(run_profile, folder, **options))
    file = tmp_path_factory.mktemp("profiles") / "p.json"
    file.write_text(json.dumps(found.to_public()))
    return file


def test_help_lists_it(puma):
    code, out, _ = puma("--help")
    assert code == 0
    assert re.search(r"what-if\s+Show how long a request would take on other networks", out)


def test_a_profiles_tables(puma, profile):
    code, out, err = puma("what-if", profile, "--compare", profile)
    assert (code, err) == (0, "")
    for part in (
        "4 tokens in",
        "recorded (in memory, no network)",
        "prefill: until the first token",
        "decode: a further token",
        "by round trip and bandwidth, least of all trees",
        "what would gain most",
        "latency halved",
        "critical path",
        "the client's request and the answer",
        "by place, all layers together (rounds)",
        "layers.*.attention",
        "time on intercontinental",
    ):
        assert part in out
    for name in ("lan", "paper", "wan", "intercontinental"):
        assert re.search(rf"^{name} +rounds .* m?s ", out, re.M)
        assert re.search(rf"^{name} +traffic .* m?s ", out, re.M)
    assert "…" not in out
    assert "drafted" not in out
    out = puma("what-if", profile, "--accepted", 2)[1]
    assert "…" not in out
    assert re.search(r"^wan +rounds, 8 drafted .* least$", out, re.M)


def test_json_is_one_object_and_a_page_is_written(puma, folder, tmp_path):
    html = tmp_path / "page.html"
    code, out, err = puma(
        *("what-if", folder, "--tokens-in", 5, "--lanes", "1,2", *GIVEN, "--json"),
        *("--network", "wan", "--network", "5ms,1gbit", "--html", html),
        *("--round-trips", "1ms,2ms,4ms", "--bandwidths", "1mbit,2mbit"),
    )
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    data = json.loads(out)
    assert (data["tokens_in"], data["recorded"], data["computation"]) == (5, False, "given")
    assert data["grid"] == {"round_trips_ms": [1, 2, 4], "bandwidths_mbit": [1, 2]}
    assert [(each["tree"], each["lanes"]) for each in data["variants"]] == [
        ("rounds", 1),
        ("rounds", 2),
        ("balanced", 1),
        ("balanced", 2),
        ("traffic", 1),
        ("traffic", 2),
    ]
    prefill, decode = data["variants"][0]["steps"]
    assert (prefill["computation_seconds"], decode["computation_seconds"]) == (3.0, 0.6)
    assert [network["name"] for network in prefill["networks"]] == ["wan", "5ms,1gbit"]
    assert html.read_text().startswith("<!doctype html>")


def test_a_predictions_tables(puma, folder):
    code, out, err = puma("what-if", folder, "--tokens-in", 5, *GIVEN)
    assert (code, err) == (0, "predicting ...\n")
    assert "computation: given" in out
    assert "rounds: predicted with typical ranges" in out
    assert "decode: a further token" in out


def test_tables_of_many_variants_fit(puma, folder):
    options = ("--tokens-in", 5, "--lanes", "1,2", "--draft-tokens", 4, "--accepted", 2)
    code, out, _ = puma("what-if", folder, *options, *GIVEN)
    assert code == 0
    assert "…" not in out
    first, _, further = out.partition("decode: a further token")
    assert "drafted" not in first
    assert "rounds, 2 lanes, 4 drafted" in further
    for trip in ("0.5 ms", "300 ms"):
        assert re.search(rf"^{trip} ", further, re.M)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["none.json"],
            "none.json: No such file or directory: give what puma profile",
        ),
        (["{model}/config.json"], "is not a profile: model: Field required"),
        (
            ["{profile}", "--tokens-in", "3"],
            "--tokens-in is for a prediction: give a model",
        ),
        (["{profile}", "--lanes", "2"], "--lanes is for a prediction"),
        (["{profile}", "--draft-tokens", "2"], "--draft-tokens is for a prediction"),
        (["{profile}", "--accepted", "9"], "9 accepted of 8 proposed tokens: give at most"),
        (["{model}", *GIVEN, "--draft-tokens", "2", "--accepted", "2.5"], "2.5 accepted of 2"),
        (["{profile}", *GIVEN], "--computation is for a prediction"),
        (["{profile}", "--compare", "none.json"], "none.json: No such file or directory"),
        (["{profile}", "--html", "page.txt"], "--html: page.txt must end in .html"),
        (["{profile}", "--network", "wam"], "'wam' is not known"),
        (
            ["{profile}", "--round-trips", "1ms,,2ms"],
            "'1ms,,2ms': give figures separated by",
        ),
        (["{profile}", "--round-trips", "0.5"], "'0.5' is not known"),
        (["{profile}", "--bandwidths", "40ms"], "'40ms' is no bandwidth"),
        (["{model}", *GIVEN, "--tokens-in", "500"], "500 tokens in: this model takes 1 to 19"),
        (["{model}", *GIVEN, "--lanes", "0"], "--lanes '0': give whole numbers from 1 to 1024"),
        (["{model}", *GIVEN, "--lanes", "99999999"], "give whole numbers from 1 to 1024"),
        (["{model}", "--computation", "3"], "--computation '3': give two times, like 3s,600ms"),
        (["{model}", "--computation", "3,1"], "--computation '3': give a time such as 3s"),
        (["{model}/no"], "no"),
    ],
)
def test_bad_input_is_one_line(puma, folder, profile, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    given = [option.format(model=folder, profile=profile) for option in options]
    code, out, err = puma("what-if", *given)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_name_in_a_profile_is_not_markup(puma, profile, tmp_path):
    data = json.loads(profile.read_text())
    data["model"] = "[red]x\x1b[31m"
    file = tmp_path / "q.json"
    file.write_text(json.dumps(data))
    code, out, _ = puma("what-if", file)
    assert code == 0
    assert out.startswith("[red]x?[31m, 4 tokens in")
