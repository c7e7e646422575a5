"""The command line: what it prints where, and how it refuses bad input."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from reference import (
    CHOICE,
    save_model,
    save_tokenizer,
    set_config,
    torch_greedy,
    torch_logits,
    torch_model,
    usual_logs,
)

from models.predict import predict
from models.tokenizer import Tokenizer
from models.weights import open_checkpoint
from protocols.cost import Cost
from protocols.lane import APPROXIMATIONS
from puma_actors.cli import main
from puma_actors.cli.app import Approximation
from puma_actors.cluster import LocalCluster

PROMPT = "I see the red cat"
IDS = [1, 3, 7, 14, 16, 19, 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tokenizer(save_model(tmp_path_factory.mktemp("model"), seed=3))


@pytest.fixture(scope="module")
def reference(folder):
    with open_checkpoint(folder) as checkpoint:
        return torch_model(checkpoint)


@pytest.fixture(scope="module")
def answer(reference):
    tokens, leads = torch_greedy(reference, IDS, 4)
    assert min(leads) > CHOICE
    return tokens


@pytest.fixture
def puma(monkeypatch, capsys):
    """Run a command in this process: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["puma", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        out, err = capsys.readouterr()
        return code, out, err

    with usual_logs():
        yield run


# -- generate --------------------------------------------------------------------------------------


def test_generate_json_is_one_object(puma, folder, answer):
    code, out, err = puma(
        "generate", "--model", folder, "--prompt", PROMPT, "--max-new-tokens", 4, "--json"
    )
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    data = json.loads(out)
    assert list(data) == ["text", "prompt_ids", "token_ids", "seconds", "traffic", "network"]
    assert data["network"] is None
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
    for part in ("loading", "sharing", "prefill, 7 tokens", "each of 3 more tokens", "rounds"):
        assert part in err
    assert "Traceback" not in err


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
    assert (product["rounds"], product["online_bits"], product["offline_bits"]) == (1, 128, 64)
    code, out, err = puma("costs")
    assert (code, err) == (0, "")
    for name in ("SiLU", "RMSNorm", "comparison, 20 bits"):
        assert name in out


def test_inspect(puma, folder):
    code, out, err = puma("inspect", folder, "--prompt-tokens", 5, "--json")
    assert (code, err) == (0, "")
    data = json.loads(out)
    assert data["supported"] is True
    assert data["architecture"]["family"] == "llama"
    assert data["parameters"] == 46 * 32 * 2 + 32 + 2 * (2 * 32 + 32 * (32 + 32 + 32) + 3 * 32 * 48)
    assert set(data["predicted"]) == {"prefill", "first decode"}
    with open_checkpoint(folder) as checkpoint:
        (expected,) = predict(checkpoint.config, 5)
    assert data["predicted"]["prefill"] == {
        "rounds": expected.cost.rounds,
        "online_bytes": expected.cost.online,
        "offline_bytes": expected.cost.offline,
    }
    assert set(data["share_bytes"]) == {"dealer", "evaluator-a", "evaluator-b"}
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


# -- bad input -------------------------------------------------------------------------------------


def damaged(folder: Path, parent: Path, how: str) -> Path:
    """A copy of the model with one thing wrong."""
    copy = shutil.copytree(folder, parent / how.replace(" ", "-"))
    weights = copy / "model.safetensors"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "empty file":
        weights.write_bytes(b"")
    elif how == "unknown family":
        set_config(copy, model_type="mamba", architectures=["MambaForCausalLM"])
    elif how == "wrong dtype":
        tensors = safetensors.numpy.load_file(weights)
        tensors["model.norm.weight"] = np.ones(32, np.int32)
        safetensors.numpy.save_file(tensors, weights)
    elif how == "no config":
        (copy / "config.json").unlink()
    elif how == "bad json":
        (copy / "config.json").write_text("{")
    elif how == "no tokenizer":
        (copy / "tokenizer.json").unlink()
    elif how == "bad tokenizer":
        (copy / "tokenizer.json").write_text("{}")
    elif how == "pickled":
        weights.rename(copy / "pytorch_model.bin")
    elif how == "no weights":
        weights.unlink()
    elif how == "bad template":
        save_tokenizer(copy, template="{{ raise_exception('no system') }}")
    return copy


MODELS = {
    "truncated": "model.safetensors",
    "empty file": "model.safetensors",
    "unknown family": "mamba",
    "wrong dtype": "I32",
    "no config": "config.json",
    "bad json": "config.json",
    "no tokenizer": "tokenizer.json",
    "bad tokenizer": "tokenizer.json",
    "pickled": "pickled",
    "no weights": "holds no model",
    "bad template": "no system",
}


@pytest.fixture
def no_work(monkeypatch):
    """Fail if a cluster starts: bad input must be found before."""

    async def started(self) -> None:
        pytest.fail("the model was loaded first")

    monkeypatch.setattr(LocalCluster, "__aenter__", started)


def refused(result: tuple[int, str, str], *says: str) -> None:
    code, out, err = result
    assert code == 2, err
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert "Traceback" not in err
    for part in says:
        assert part in err


@pytest.mark.parametrize("how", MODELS)
@pytest.mark.parametrize("as_json", [False, True])
def test_unusable_models(puma, no_work, folder, tmp_path, how, as_json):
    model = damaged(folder, tmp_path, how)
    options = ("--json",) if as_json else ()
    refused(puma("generate", "-m", model, "-p", PROMPT, *options), MODELS[how])


GENERATE = {
    "empty prompt": (["-p", ""], "prompt is empty"),
    "blank prompt": (["-p", " \n "], "prompt is empty"),
    "long prompt": (["-p", "cat " * 70], "72 prompt tokens do not fit the model's 64 positions"),
    "no prompt": ([], "--prompt"),
    "temperature": (["-p", "x", "--temperature", "-1"], "temperature"),
    "nan": (["-p", "x", "--temperature", "nan"], "temperature"),
    "a word": (["-p", "x", "--temperature", "hot"], "--temperature"),
    "top-k": (["-p", "x", "--top-k", "-3"], "top_k"),
    "top-p": (["-p", "x", "--top-p", "1.5"], "top_p"),
    "top-p of 0": (["-p", "x", "--top-p", "0"], "top_p"),
    "penalty": (["-p", "x", "--repetition-penalty", "0"], "repetition_penalty"),
    "stop": (["-p", "x", "--stop", ""], "stop"),
    "no tokens": (["-p", "x", "-n", "0"], "--max-new-tokens"),
    "lanes": (["-p", "x", "--lanes", "0"], "--lanes"),
    "approximation": (["-p", "x", "--approximation", "loose"], "--approximation"),
    "tree": (["-p", "x", "--tree", "oak"], "--tree"),
    "network": (["-p", "x", "--network", "wlan"], "use lan, paper, wan, intercontinental"),
    "unknown option": (["-p", "x", "--colour"], "--colour"),
    "secret sampling": (["-p", "x", "--secret-logits", "--temperature", "1"], "secret logits"),
    "secret penalty": (["-p", "x", "--secret-logits", "--repetition-penalty", "2"], "secret"),
}


@pytest.mark.parametrize("name", GENERATE)
def test_unusable_options_of_generate(puma, no_work, folder, name):
    options, says = GENERATE[name]
    refused(puma("generate", "-m", folder, *options), says)


FORWARD = {
    "no ids": ("", "out.npz", "not a token id"),
    "words": ("1,two", "out.npz", "'two' is not a token id"),
    "negative": ("1,-2", "out.npz", "'-2' is not a token id"),
    "gap": ("1,,2", "out.npz", "not a token id"),
    "fraction": ("1.5", "out.npz", "not a token id"),
    "superscript": ("²", "out.npz", "not a token id"),
    "large": ("46", "out.npz", "token id 46 is not in the model's vocabulary of 46"),
    "huge": ("9" * 40, "out.npz", "vocabulary"),
    "many": (",".join(["1"] * 65), "out.npz", "65 prompt tokens do not fit"),
    "suffix": ("1", "out.txt", "must end in .npz"),
    "no folder": ("1", "missing/out.npz", "cannot write"),
    "a folder": ("1", "folder.npz", "cannot write"),
    "through a file": ("1", "file/out.npz", "cannot write"),
}


@pytest.mark.parametrize("name", FORWARD)
def test_unusable_options_of_forward(puma, no_work, folder, tmp_path, name):
    ids, output, says = FORWARD[name]
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    refused(puma("forward", "-m", folder, "--input-ids", ids, "-o", tmp_path / output), says)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "-p", "x", "-m", "no/such/folder/here"],
        ["forward", "--input-ids", "1", "-o", "out.npz", "-m", "no/such/folder/here"],
        ["inspect", "no/such/folder/here"],
        ["inspect", "missing.gguf"],
    ],
)
def test_missing_paths(puma, no_work, monkeypatch, tmp_path, arguments):
    monkeypatch.chdir(tmp_path)
    refused(puma(*arguments), "no such file or folder")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["nonsense"], ["--nonsense"], ["generate", "x"]])
def test_unknown_commands(puma, arguments):
    refused(puma(*arguments))


def test_lengths_to_inspect(puma, folder):
    says = "60 prompt tokens and 5 new ones need more than the model's 64 positions"
    refused(puma("inspect", folder, "--prompt-tokens", 60, "--new-tokens", 5), says)
    refused(puma("inspect", folder, "--prompt-tokens", 0), "--prompt-tokens")


def test_broken_weights_are_refused_while_loading(puma, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    file = copy / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    tensors["model.norm.weight"][0] = np.nan
    safetensors.numpy.save_file(tensors, file, metadata={"format": "pt"})
    code, out, err = puma("generate", "-m", copy, "-p", PROMPT, "--json")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "model.norm.weight contains NaN" in err


def test_unforeseen_errors_say_nothing_but_their_kind(puma, folder, monkeypatch):
    async def broken(self) -> None:
        raise KeyError("a secret")

    monkeypatch.setattr(LocalCluster, "__aenter__", broken)
    code, out, err = puma("generate", "-m", folder, "-p", PROMPT)
    assert (code, out) == (1, "")
    assert err.endswith("unexpected KeyError: run `puma --debug ...` for the traceback\n")
    assert "a secret" not in err
    code, _, err = puma("--debug", "generate", "-m", folder, "-p", PROMPT)
    assert code == 1
    assert "Traceback" in err


def test_interruption(puma, folder, monkeypatch):
    async def interrupted(self) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalCluster, "__aenter__", interrupted)
    code, out, err = puma("generate", "-m", folder, "-p", PROMPT, "--json")
    assert (code, out, err) == (130, "", "interrupted\n")


def test_help(puma):
    for arguments in (["--help"], ["generate", "-h"], ["inspect", "--help"]):
        code, out, err = puma(*arguments)
        assert (code, err) == (0, "")
        assert "Usage" in out
    code, out, err = puma()
    assert "generate" in out + err
