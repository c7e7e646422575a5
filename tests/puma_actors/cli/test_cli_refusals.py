"""The command line on bad input: one line, an exit code, and no work before it."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from conversation import PROMPT
from reference import (
    save_tokenizer,
    set_config,
)
from waiting import HANG

from puma_actors.api.local import LocalCluster


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


EARLY = [
    "generate --prompt a --model",
    "forward --input-ids 1 --output out.npz --model",
    "embed --text a --model",
    "classify --text a --model",
    "fill-mask --text [MASK] --model",
    "answer --question a --context b --model",
    "tag --text a --model",
    "compare --text a --model",
    "perplexity --file README.md --model",
    "profile --model",
    "inspect",
    "upload --name a",
]
_FRESH = """
import sys
from puma_actors.cli import main
try:
    main()
finally:
    sys.exit(3) if "numba" in sys.modules else None
"""


@pytest.mark.parametrize("command", EARLY, ids=lambda command: command.split()[0])
def test_an_unsupported_model_is_refused_before_anything_heavy_is_imported(command, tmp_path):
    """Which takes a second by itself: a refusal takes less."""
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    (tmp_path / "model.safetensors").touch()
    line = [sys.executable, "-c", _FRESH, *command.split(), str(tmp_path)]
    found = subprocess.run(line, capture_output=True, text=True, check=False)
    refused((found.returncode, found.stdout, found.stderr), "'t5'", "supported: bert, camembert")


GENERATE = {
    "empty prompt": (["-p", ""], "--prompt: the text is empty: give some"),
    "blank prompt": (["-p", " \n "], "--prompt: the text is empty"),
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
    "no tokens": (["-p", "x", "-n", "0"], "greater than or equal to 1, and '0' is not"),
    "no model": (["-p", "x", "-m", ""], "the model's path is empty"),
    "not unicode": (["-p", "x\udcff"], "not valid UTF-8"),
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


def test_a_short_model_is_inspected_with_what_fits(puma, classifier):
    code, out, err = puma("inspect", classifier, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["prompt_tokens"] == 20


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


@pytest.mark.parametrize("arguments", [["generate", "-p", "x"], ["inspect", ""]])
def test_heads_and_empty_names(puma, no_work, classifier, arguments):
    if arguments[0] == "generate":
        refused(puma(*arguments, "-m", classifier), "generates no text")
    else:
        refused(puma(*arguments), "path is empty")


def test_a_full_disk(puma, folder, tmp_path, monkeypatch):
    def full(*_args, **_options) -> None:
        Path(_args[0]).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez", full)
    out = tmp_path / "out.npz"
    code, _, err = puma("forward", "-m", folder, "--input-ids", "1", "-o", out, "--json")
    assert code == 2
    assert err == f"error: --output: cannot write {out}: No space left on device\n"
    assert not out.exists()


def test_a_full_disk_behind_stdout(folder):
    with Path("/dev/full").open("w") as stdout:
        done = subprocess.run(
            [sys.executable, "-c", "from puma_actors.cli import main; main()", "costs", "--json"],
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=HANG,
        )
    assert done.returncode == 1
    assert done.stderr == "error: No space left on device\n"


def test_version(puma):
    code, out, err = puma("--version")
    assert (code, err) == (0, "")
    assert out.startswith("puma-actors ")


def test_help(puma):
    for arguments in (["--help"], ["generate", "-h"], ["inspect", "--help"]):
        code, out, err = puma(*arguments)
        assert (code, err) == (0, "")
        assert "Usage" in out
    code, out, err = puma()
    assert "generate" in out + err
