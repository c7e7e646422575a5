"""What-if's predictions beside runs over emulated networks, by a clock that stands meanwhile.

So computation takes next to no time, and the network's time is exact on any machine. `python -m
bench whatif` does the same by the real clock.
"""

import json
from functools import partial

import anyio
import pytest
from clock import standing
from tiny_models import save, tiny_model

from models.checkpoints.weights import open_checkpoint
from protocols.base.lane import Settings
from protocols.drivers import observed
from puma_actors.planning.timing import time_of
from puma_actors.profiling.profile import run_profile
from puma_actors.profiling.whatif.predicted import Computing, predicted
from puma_actors.profiling.whatif.recorded import request_of
from puma_actors.session import recorder
from puma_actors.transports.delay.network import parse_network

POINTS = [
    ("lan", "rounds"),
    ("paper", "traffic"),
    ("wan", "rounds"),
    ("wan", "balanced"),
    ("wan", "traffic"),
    ("20ms,1mbit", "rounds"),
    ("40ms,2mbit", "traffic"),
    ("40ms,2mbit", "balanced"),
    ("intercontinental", "rounds"),
    ("20ms,1mbit", "traffic"),
    ("40ms,100mbit,jitter=10ms,seed=7", "rounds"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tiny_model("llama", "causal-lm"), tmp_path_factory.mktemp("model"))


def profiled(folder, network, tree, patch):
    """The JSON of a profile of five tokens in and three out."""
    clock = standing(patch)
    for module in (observed, recorder):
        patch.setattr(module, "clock", clock.tick)
    settings = Settings(tree=tree)
    options = {"network": network, "tokens_in": 5, "tokens_out": 3, "settings": settings}
    return json.loads(json.dumps(anyio.run(partial(run_profile, folder, **options)).to_public()))


@pytest.fixture(scope="module")
def request_on_lan(folder):
    with pytest.MonkeyPatch.context() as patch:
        return request_of(profiled(folder, "1ms,1gbit", "rounds", patch), "the profile")


@pytest.mark.parametrize(("network", "tree"), POINTS)
def test_one_profile_predicts_every_network_and_tree(
    request_on_lan, folder, network, tree, monkeypatch
):
    measured = profiled(folder, network, tree, monkeypatch)
    variant = next(each for each in request_on_lan.variants if each.tree == tree)
    for phase, work in zip(measured["phases"], variant.works, strict=True):
        seconds = phase["wall_seconds"] / phase["steps"]
        found = time_of(work.step, parse_network(network)).total
        assert found == pytest.approx(seconds, rel=0.1), phase["name"]


def test_a_prediction_from_shapes_alone(folder, monkeypatch):
    """Its ranges are typical ones, not those proven from the weights, with which this small model
    normalises after its products: up to a fifth less.
    """
    measured = profiled(folder, "wan", "rounds", monkeypatch)
    with open_checkpoint(folder) as checkpoint:
        request = predicted(checkpoint, 5, Settings(), [1], Computing(0.0, 0.0))
    for phase, work in zip(measured["phases"], request.variants[0].works, strict=True):
        seconds = phase["wall_seconds"] / phase["steps"]
        assert time_of(work.step, parse_network("wan")).total == pytest.approx(seconds, rel=0.2)
