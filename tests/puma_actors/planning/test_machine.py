"""What this machine is expected to take for a step."""

import pytest
from tiny_models import tiny_model

from models.configs.reading import config_from_hf
from protocols.base.lane import TREES
from puma_actors.planning import machine
from puma_actors.planning.machine import REFERENCE, Speed, computation, matrix_entries, pace


def test_every_tree_was_measured():
    assert set(REFERENCE) == set(TREES)
    assert all(speed.exchange > 0 and speed.byte > 0 for speed in REFERENCE.values())


def test_a_slower_machine_takes_longer(monkeypatch):
    config = config_from_hf(tiny_model("llama", "causal-lm").config.to_dict(), None)
    seconds = []
    for factor in (1.0, 2.5):
        monkeypatch.setattr(machine, "pace", lambda factor=factor: factor)
        seconds.append(computation(config, 4, "rounds", 100, 10**6))
    assert seconds[1] == pytest.approx(2.5 * seconds[0])
    assert seconds[0] > REFERENCE["rounds"].seconds(100, 10**6)
    assert computation(config, 5, "rounds", 100, 10**6) > seconds[1]


def test_this_machine_is_compared_once(monkeypatch):
    pace.cache_clear()
    first = pace()
    assert first > 0
    monkeypatch.setattr(machine, "piece", lambda: pytest.fail("measured again"))
    assert pace() == first


def test_matrices_are_counted():
    config = config_from_hf(tiny_model("llama", "causal-lm").config.to_dict(), None)
    assert matrix_entries(config) > config.num_layers * config.hidden_size**2


def test_seconds_add_up():
    assert Speed(0.5, 0.25).seconds(4, 8) == 4
