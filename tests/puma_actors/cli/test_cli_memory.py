"""What a model takes in memory and on disk, before it is run."""

import json

import pytest
from reference import save_model, save_tokenizer

from puma_actors.api import keeping

SIZES = ("--prompt-tokens", 8, "--new-tokens", 2)


@pytest.fixture
def model(tmp_path):
    return save_tokenizer(save_model(tmp_path))


def inspected(puma, model):
    code, out, err = puma("inspect", str(model), *SIZES, "--json")
    assert code == 0, err
    return json.loads(out)["weights"]


def test_inspect_says_what_each_way_takes(puma, model):
    found = inspected(puma, model)
    assert found["kept"] == "memory"
    assert set(found["choices"]) == {"memory", "disk", "public"}
    for kept, choice in found["choices"].items():
        assert 0 < choice["memory_bytes"] < found["available_bytes"]
        assert (choice["disk_bytes"] > 0) is (kept == "disk")
        seconds = choice["pass_seconds"]
        assert 0 < seconds["pass"] == max(seconds["read"], seconds["compute"])
        assert (seconds["read"] > 0) is (kept == "disk")
    code, out, _ = puma("inspect", str(model), *SIZES)
    assert code == 0
    shown = " ".join(out.split())
    assert "weights in memory (default)" in shown
    assert "--public-weights" in shown


def test_what_does_not_fit_stays_on_disk_by_default(puma, model, monkeypatch):
    monkeypatch.setattr(keeping, "available_memory", lambda: 1000)
    assert inspected(puma, model)["kept"] == "disk"
    code, out, _ = puma("inspect", str(model), *SIZES)
    assert code == 0
    assert "weights on disk (default)" in " ".join(out.split())


def test_a_run_that_cannot_fit_is_refused_with_the_numbers(puma, model):
    code, _, err = puma("generate", "-p", "I see", "--model", str(model), "--memory", "1kB")
    assert code == 2
    assert "the model needs 0.0 GB of memory even with its weights on disk" in err


def test_memory_is_not_for_remote_parties(puma, tmp_path):
    where = ["--cluster", str(tmp_path / "c.toml"), "--memory", "1GB"]
    code, _, err = puma("generate", "-p", "x", *where, "--model", "m")
    assert code == 2
    assert "--memory: remote parties set their own limits.memory" in err
