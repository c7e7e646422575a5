"""Families with operations of their own: what they cost is predicted, and what they need proven."""

import json

import numpy as np
import pytest
from secure_models import family_values, infer, share_model
from tiny_models import ENCODERS

from models.configs.encoders.encoder import EncoderConfig
from models.configs.reading import config_from_public
from models.owner.calibrate import calibrate, plain_run
from models.programs.families import parameters_of
from models.programs.head_layers import default_rows
from models.programs.memory import footprint
from models.programs.plan import Plan
from models.programs.predict import predict
from models.programs.program import Batch
from models.programs.public import plan_digests
from protocols.base.lane import Settings
from protocols.errors import RangeError

IDS = [5, 9, 30, 2, 17, 22, 8, 11, 38]
NEW = {
    "mpnet": {},
    "electra": {},
    "deberta-v2": {},
    "modernbert": {"classifier_pooling": "mean"},
    "opt": {},
    "gemma2": {},
    "gemma3_text": {},
    "smollm3": {},
}


@pytest.fixture(scope="module", params=NEW)
def model(request, tmp_path_factory):
    head = "sequence-classification" if request.param in ENCODERS else "causal-lm"
    folder = tmp_path_factory.mktemp("model")
    return share_model(*family_values(request.param, head, folder, **NEW[request.param]))


@pytest.mark.parametrize("settings", [Settings(), Settings(block=64, tree="traffic", lanes=2)])
def test_costs_are_predicted_exactly(model, settings):
    rows = default_rows(model.config)
    batch = Batch((len(IDS),), rows)
    found = infer(model, [IDS], settings, batches=[batch]).outcome.cost
    (step,) = predict(model.plan, batch, settings=settings)
    assert found == step.cost


def test_decoding_with_the_cache_gives_what_the_whole_text_gives(model):
    if isinstance(model.config, EncoderConfig):
        return
    chunks = [IDS[:6], IDS[6:7], IDS[7:8], IDS[8:]]
    found = np.concatenate(infer(model, chunks).chunks)
    expected = plain_run(model.config, model.floats, [IDS])
    assert np.abs(found - expected).max() < 0.02
    best = np.sort(expected)
    clear = best[:, -1] - best[:, -2] > 0.05
    tokens = np.concatenate(infer(model, chunks, Settings(reveal="argmax")).chunks)
    assert (tokens == expected.argmax(axis=1))[clear].all()


def test_a_plan_survives_the_wire(model):
    plan = Plan.from_public(json.loads(json.dumps(model.plan.to_public())))
    assert plan == model.plan
    assert config_from_public(plan.config.to_public()) == model.config
    assert plan_digests(plan) == plan_digests(model.plan)


@pytest.mark.parametrize("bad", [np.inf, np.nan, 1e9])
def test_weights_of_positions_that_are_no_numbers_are_refused_at_their_place(model, bad):
    kinds = {name: each.kind for name, each in parameters_of(model.config).items()}
    for name in (name for name, kind in kinds.items() if kind == "relative"):
        spoiled = {**model.floats, name: model.floats[name].copy()}
        spoiled[name][-1, -1] = bad
        with pytest.raises(RangeError, match=r"^layers\.\d: attention scores can reach"):
            calibrate(model.config, spoiled)


def test_memory_is_foreseen(model):
    rows = default_rows(model.config)
    for dealer in (True, False):
        short, long = (
            footprint(model.config, Batch((n,), rows), dealer=dealer).work for n in (3, 12)
        )
        assert 0 < short < long
