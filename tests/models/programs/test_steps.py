"""The settings of a request: what is wished for, and what its steps have."""

from dataclasses import replace

import pytest
from tiny_models import tiny_model

from models.configs.reading import config_from_hf
from models.programs.memory import footprint
from models.programs.predict import predict
from models.programs.program import Batch
from models.programs.steps import RequestSettings, StepSettings
from protocols.base.lane import TREES, Settings
from protocols.errors import ConfigError

ROUNDS, TRAFFIC = Settings(tree="rounds"), Settings(tree="traffic", lanes=2)


@pytest.fixture(scope="module")
def config():
    return config_from_hf(tiny_model("llama", "causal-lm").config.to_dict(), None)


def test_settings_of_all_steps_stand_for_themselves():
    assert StepSettings.of(None) == StepSettings(Settings(), Settings())
    assert StepSettings.of(TRAFFIC) == StepSettings(TRAFFIC, TRAFFIC)
    both = StepSettings(ROUNDS, TRAFFIC)
    assert StepSettings.of(both) is both
    assert [both.at(step) for step in range(3)] == [ROUNDS, TRAFFIC, TRAFFIC]


@pytest.mark.parametrize("change", [{"approximation": "fast"}, {"reveal": "argmax"}, {"block": 7}])
def test_steps_differ_in_tree_and_lanes_only(change):
    with pytest.raises(ConfigError, match="they may differ in tree and lanes only"):
        StepSettings(ROUNDS, replace(TRAFFIC, **change))


def test_what_is_left_open():
    assert RequestSettings.of(None).open
    wished = RequestSettings.of(TRAFFIC)
    assert not wished.open
    assert wished.variants() == (TRAFFIC,)
    assert RequestSettings(lanes=3).open
    assert [each.tree for each in RequestSettings(approximation="fast").variants()] == list(TREES)
    assert {each.approximation for each in RequestSettings("fast").variants()} == {"fast"}
    assert len(RequestSettings(tree="traffic").variants([1, 2])) == 2
    assert RequestSettings.of(wished) is wished


@pytest.mark.parametrize("given", [1, "rounds", StepSettings.of(None)])
def test_other_things_are_no_settings(given):
    with pytest.raises(ConfigError, match="give a Settings or a RequestSettings"):
        RequestSettings.of(given)


def test_each_step_is_predicted_with_its_own_settings(config):
    batch = Batch((6,), "last")
    mixed = [each.cost for each in predict(config, batch, 2, StepSettings(TRAFFIC, ROUNDS))]
    traffic = [each.cost for each in predict(config, batch, 2, TRAFFIC)]
    rounds = [each.cost for each in predict(config, batch, 2, ROUNDS)]
    assert mixed == [traffic[0], *rounds[1:]]
    assert traffic[0] != rounds[0]


def test_memory_is_that_of_each_steps_settings(config):
    batch = Batch((6,), "last")

    def total(settings):
        return footprint(config, batch, 3, settings, dealer=True).total

    found = total(StepSettings(TRAFFIC, ROUNDS))
    assert min(map(total, (TRAFFIC, ROUNDS))) <= found <= max(map(total, (TRAFFIC, ROUNDS)))
