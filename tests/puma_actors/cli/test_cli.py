"""The command line: what it prints where, and how it refuses bad input."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conversation import IDS, PROMPT
from reference import (
    save_tokenizer,
    set_config,
    torch_logits,
)

from models.checkpoints.weights import open_checkpoint
from models.programs.predict import predict
from models.tokens.tokenizer import Tokenizer
from protocols.base.cost import Cost
from protocols.base.lane import APPROXIMATIONS, TREES, Settings
from puma_actors.api.local import LocalCluster
from puma_actors.cli.options import Approximation


@pytest.fixture(scope="module")
def answer(answer):
    """Its first tokens are enough here."""
    return answer[:4]


# -- generate --------------------------------------------------------------------------------------


def test_generate_json_is_one_object(puma, folder, answer):
    code, out, err = puma(
        "generate", "--model", folder, "--prompt", PROMPT, "--max-new-tokens", 4, "--json"
    )
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    data = json.loads(out)
    assert list(data) == [
        "text",
        "prompt_ids",
        "token_ids",
        "stop_reason",
        "draft",
        "seconds",
        "traffic",
        "prepared_steps",
        "network",
        "settings",
        "weights",
    ]
    trees = data["settings"]
    assert trees["approximation"] == "tight"
    assert all(trees[kind]["tree"] in TREES for kind in ("first", "further"))
    assert data["network"] is None
    assert data["weights"] == "private"
    assert data["stop_reason"] == "length"
    assert data["prompt_ids"] == IDS
    assert data["token_ids"] == answer
    assert data["text"] == Tokenizer.load(folder).decode(answer)
    assert set(data["seconds"]) == {"load", "share", "prefill", "decode"}
    assert all(isinstance(value, float) and value > 0 for value in data["seconds"].values())
    assert set(data["traffic"]) == {"rounds", "online_bytes", "offline_bytes"}


def test_the_sets_offered_are_those_there_are():
    assert tuple(Approximation) == APPROXIMATIONS


async def test_reported_traffic_is_the_predicted(folder, tmp_path):
    puma = Path(sys.executable).with_name("puma")  # what the package installs
    process = subprocess.run(
        [puma, "generate", "-m", folder, "-p", PROMPT, "-n", "3", "--json"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    data = json.loads(process.stdout)
    assert process.stderr == ""
    async with LocalCluster.from_pretrained(folder) as cluster:
        total = sum(cluster.predict(len(IDS), 2), Cost())
    assert data["traffic"] == {
        "rounds": total.rounds,
        "online_bytes": total.online,
        "offline_bytes": total.offline,
    }


def test_generate_prints_the_answer_on_stdout_and_the_rest_on_stderr(puma, folder, answer):
    code, out, err = puma("generate", "-m", folder, "-p", PROMPT, "-n", "4")
    assert code == 0
    assert out == Tokenizer.load(folder).decode(answer) + "\n"
    end = "stopped: token limit"
    for part in ("loading", "sharing", "prefill, 7 tokens", "each of 3 more tokens", "rounds", end):
        assert part in err
    assert "Traceback" not in err


def test_generate_with_a_draft(puma, folder, answer):
    """The same answer; the table and JSON say how many tokens a step yields."""
    asked = ("generate", "-m", folder, "-p", PROMPT, "-n", 4)
    code, out, err = puma(*asked, "--draft", folder, "--draft-tokens", 2)
    assert code == 0
    assert out.strip() == Tokenizer.load(folder).decode(answer)
    assert "one more step, 3.00 tokens a step" in err
    code, out, _ = puma(*asked, "--draft", "ngram", "--json")
    found = json.loads(out)
    assert found["token_ids"] == answer
    report = found["draft"]
    assert list(report) == ["by", "steps", "proposed", "accepted", "tokens_a_step"]
    assert report["by"] == "ngram"
    assert report["steps"] * report["tokens_a_step"] == 3
    for wrong, reason in (
        (("--draft", "ngram", "--draft-tokens", 65), "64"),
        (("--draft-tokens", 3), "draft_tokens=3 without a draft"),
        (("--draft", folder / "missing"), "missing"),
    ):
        code, out, err = puma(*asked, *wrong)
        assert (code, out) == (2, "")
        assert reason in err


def test_generate_options(puma, folder, answer):
    def tokens(*options: object) -> list[int]:
        code, out, err = puma("generate", "-m", folder, "-p", PROMPT, "--json", *options)
        assert (code, err) == (0, "")
        found: list[int] = json.loads(out)["token_ids"]
        return found

    assert tokens("-n", 3, "--secret-logits", "--codec") == answer[:3]
    assert tokens("-n", 3, "--tree", "traffic", "--lanes", 2) == answer[:3]
    for kind in ("fast", "puma"):
        assert len(tokens("-n", 2, "--approximation", kind)) == 2
    hot = ("-n", 4, "--temperature", 2, "--top-k", 30, "--top-p", 0.99)
    assert tokens(*hot, "--seed", 7) == tokens(*hot, "--seed", 7)
    words = Tokenizer.load(folder).decode(answer).split()
    assert tokens("-n", 4, "--stop", "zebra", "--stop", words[1]) == answer[:2]
    _, out, _ = puma("generate", "-m", folder, "-p", PROMPT, "--json", "--stop", words[1])
    assert json.loads(out)["stop_reason"] == "stop string"


def test_raw_prompts_and_models_without_template(puma, folder, tmp_path):
    code, out, _ = puma("generate", "-m", folder, "-p", PROMPT, "--raw", "-n", 1, "--json")
    assert code == 0
    assert json.loads(out)["prompt_ids"] == IDS[1:-1]
    plain = save_tokenizer(shutil.copytree(folder, tmp_path / "plain"), template=None)
    code, out, err = puma("generate", "-m", plain, "-p", PROMPT, "-n", 1, "--json")
    assert code == 0
    assert json.loads(out)["prompt_ids"] == IDS[1:-1]
    assert "note: this model has no chat template" in err


def test_verbose_logs_go_to_stderr(puma, folder):
    code, out, err = puma("-vv", "generate", "-m", folder, "-p", PROMPT, "-n", 2, "--json")
    assert code == 0
    assert len(json.loads(out)["token_ids"]) == 2
    assert "step done" in err


# -- forward ---------------------------------------------------------------------------------------


def test_forward_writes_logits(puma, folder, reference, tmp_path):
    file = tmp_path / "out.npz"
    command = ("forward", "-m", folder, "--input-ids", "1, 3,7 ,14,16,19,2", "--output", file)
    code, out, err = puma(*command, "--json")
    assert (code, err) == (0, "")
    data = json.loads(out)
    assert data["output"] == str(file)
    assert data["logits_shape"] == [7, 46]
    assert data["prompt_ids"] == IDS
    assert set(data["seconds"]) == {"load", "share", "prefill"}
    assert data["traffic"]["rounds"] > 0
    with np.load(file) as saved:
        assert set(saved) == {"logits", "input_ids"}
        assert saved["logits"].dtype == np.float32
        np.testing.assert_array_equal(saved["input_ids"], IDS)
        np.testing.assert_allclose(saved["logits"], torch_logits(reference, IDS), atol=0.02)
    before = file.stat().st_mtime_ns
    code, out, err = puma(*command)
    assert code == 0
    assert f"(7, 46) written to {file}" in out.replace("\n", "")
    assert "running the model" in err
    assert file.stat().st_mtime_ns > before


def test_a_network_is_put_between_the_roles_and_named(puma, folder, answer, tmp_path):
    generate = ("generate", "-m", folder, "-p", PROMPT, "-n", 2, "--network", "lan,jitter=1ms")
    code, out, err = puma(*generate, "--json")
    assert (code, err) == (0, "")
    data = json.loads(out)
    assert data["token_ids"] == answer[:2]
    assert data["network"] == {
        "name": "lan,jitter=1ms",
        "round_trip_ms": 0.5,
        "bandwidth_mbit": 10000.0,
        "jitter_ms": 1.0,
        "seed": 0,
        "links": [],
    }
    assert data["seconds"]["prefill"] + data["seconds"]["decode"] > (
        data["traffic"]["rounds"] * 0.25e-3
    )
    code, out, err = puma(*generate)
    assert code == 0
    told = "network lan,jitter=1ms: 0.5 ms round trip, 10 Gbit/s, up to 1 ms jitter"
    assert told in err.replace("\n", " ")
    forward = ("forward", "-m", folder, "--input-ids", "1,2", "-o", tmp_path / "out.npz")
    code, out, err = puma(*forward, "--network", "1ms")
    assert code == 0
    assert "network 1ms: 1 ms round trip" in out.replace("\n", " ")


# -- costs and inspect -----------------------------------------------------------------------------


def test_costs(puma):
    found = {}
    for options in ((), ("--tree", "traffic"), ("--approximation", "puma")):
        code, out, err = puma("costs", "--json", *options)
        assert (code, err) == (0, "")
        data = json.loads(out)
        assert set(data) == {"approximation", "tree", "protocols"}
        for row in data["protocols"]:
            assert set(row) == {"name", "rounds", "online_bits", "offline_bits"}
        found[options] = {row["name"]: row for row in data["protocols"]}
    names = list(found[()])
    assert all(list(rows) == names for rows in found.values())
    product = found[()]["product, truncated"]
    # Of 64 bits, 18 and the doubling of a product are dropped before it is sent.
    assert (product["rounds"], product["online_bits"], product["offline_bits"]) == (1, 90, 64)
    row, prompt = (f"maximum and exp, a score of {rows}" for rows in ("a row of 64", "8,192 rows"))
    fewest, least = found[()], found["--tree", "traffic"]
    total = {
        name: rows[name]["online_bits"] + rows[name]["offline_bits"]
        for rows, name in ((fewest, row), (least, prompt))
    }
    assert total[row] < 8 * 1100  # a histogram, for few rows
    assert total[prompt] < 8 * 100
    assert fewest[prompt]["offline_bits"] < 0.2 * fewest[row]["offline_bits"]
    code, out, err = puma("costs", "--tree", "balanced")
    assert (code, err) == (0, "")
    for name in ("tree balanced", "SiLU", "RMSNorm", "comparison, 20 bits", row, prompt):
        assert name in out


def test_inspect_says_what_it_chose_and_why(puma, folder):
    where = ("inspect", folder, "--prompt-tokens", 8, "--new-tokens", 4)
    found = {}
    for network in ("300ms,10gbit", "1us,1kbit"):
        code, out, _ = puma(*where, "--network", network, "--json")
        assert code == 0
        choice = json.loads(out)["choice"]
        assert choice["network"]["name"] == network
        for kind, name in (("first", "prefill"), ("further", "decode")):
            best, *others = choice["compared"][name]
            assert {each["tree"] for each in (best, *others)} == set(TREES)
            assert best["seconds"] == min(each["seconds"] for each in (best, *others))
            assert choice[kind] == {"tree": best["tree"], "lanes": 1}
        found[network] = choice["first"]["tree"]
    assert found["1us,1kbit"] == "traffic" != found["300ms,10gbit"]
    code, out, _ = puma(*where, "--network", "1us,1kbit")
    assert "prefill: traffic, which takes" in out
    assert "…" not in out
    assert "by less waiting; " in out or "by less transfer; " in out
    code, out, _ = puma(*where, "--tree", "balanced", "--lanes", 2, "--json")
    data = json.loads(out)
    assert data["choice"]["first"] == {"tree": "balanced", "lanes": 2}
    assert [each["tree"] for each in data["choice"]["compared"]["decode"]] == ["balanced"]
    code, out, _ = puma(*where, "--tree", "balanced")
    assert "prefill: balanced, as asked" in out
    assert "in one process, without a network" in out
    assert "one lane: more send more messages" in out
    assert "one lane" not in puma(*where, "--lanes", 2)[1]


def test_inspect_counts_what_a_draft_proposes(puma, folder):
    where = ("inspect", folder, "--prompt-tokens", 8, "--new-tokens", 6, "--json")
    plain, drafted = (
        json.loads(puma(*where, *options)[1])["predicted"]["first decode"]["online_bytes"]
        for options in ((), ("--draft", "ngram", "--draft-tokens", 3))
    )
    assert drafted > 2 * plain


def test_inspect(puma, folder):
    code, out, err = puma("inspect", folder, "--prompt-tokens", 5, "--json")
    assert (code, err) == (0, "")
    data = json.loads(out)
    assert data["supported"] is True
    assert data["architecture"]["family"] == "llama"
    tree = data["choice"]["first"]["tree"]
    assert data["parameters"] == 46 * 32 * 2 + 32 + 2 * (2 * 32 + 32 * (32 + 32 + 32) + 3 * 32 * 48)
    assert set(data["predicted"]) == {"prefill", "first decode"}
    with open_checkpoint(folder) as checkpoint:
        (expected,) = predict(checkpoint.config, 5, 0, Settings(tree=tree))
    assert data["predicted"]["prefill"] == {
        "rounds": expected.cost.rounds,
        "online_bytes": expected.cost.online,
        "offline_bytes": expected.cost.offline,
    }
    assert set(data["share_bytes"]) == {"dealer", "evaluator-a", "evaluator-b"}
    assert set(data["request_bytes"]) == {"dealer", "evaluator-a", "evaluator-b"}
    assert all(size > 0 for size in data["request_bytes"].values())
    code, out, _ = puma("inspect", folder, "--new-tokens", 9)
    assert code == 0
    for part in ("supported", "prefill", "first decode", "last decode", "evaluator-a", "hidden"):
        assert part in out


def test_inspect_says_why_not(puma, folder, tmp_path):
    other = set_config(shutil.copytree(folder, tmp_path / "other"), model_type="bert")
    code, out, err = puma("inspect", other, "--json")
    assert code == 2
    data = json.loads(out)
    assert data["supported"] is False
    assert "bert" in data["reason"]
    assert err.count("\n") == 1
