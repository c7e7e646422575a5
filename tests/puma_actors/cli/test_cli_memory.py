"""What a model takes in memory and on disk, before it is run."""

import json

import pytest
from reference import save_model, save_tokenizer

from puma_actors.api import keeping
from puma_actors.cli.commands import reports

SIZES = ("--prompt-tokens", 8, "--new-tokens", 2)


@pytest.fixture
def model(tmp_path):
    return save_tokenizer(save_model(tmp_path))


def inspected(puma, model):
    code, out, err = puma("inspect", str(model), *SIZES, "--json")
    assert code == 0, err
    return json.loads(out)["weights"]


def test_inspect_says_what_a_model_takes_in_memory(puma, model):
    found = inspected(puma, model)
    assert found["kept"] == "memory"
    assert found["in_memory_bytes"] < found["available_bytes"]
    code, out, _ = puma("inspect", str(model), *SIZES)
    assert code == 0
    assert "all roles in one process: " in out


def test_inspect_says_what_a_larger_one_takes_on_disk(puma, model, monkeypatch):
    for module in (keeping, reports):
        monkeypatch.setattr(module, "available_memory", lambda: 1000)
    found = inspected(puma, model)
    assert found["kept"] == "disk"
    seconds = found["pass_seconds"]
    assert 0 < seconds["pass"] == max(seconds["read"], seconds["compute"])
    code, out, _ = puma("inspect", str(model), *SIZES)
    assert code == 0
    shown = " ".join(out.split())
    assert "so that the weights stay on disk" in shown
    assert "a pass over them takes at least" in shown


def test_a_run_that_cannot_fit_is_refused_with_the_numbers(puma, model):
    code, _, err = puma("generate", "-p", "I see", "--model", str(model), "--memory", "1kB")
    assert code == 2
    assert "the model needs 0.0 GB of memory even with its weights on disk" in err


def test_memory_is_not_for_remote_parties(puma, tmp_path):
    where = ["--cluster", str(tmp_path / "c.toml"), "--memory", "1GB"]
    code, _, err = puma("generate", "-p", "x", *where, "--model", "m")
    assert code == 2
    assert "--memory: remote parties set their own limits.memory" in err
