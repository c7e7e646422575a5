"""Predictions from shapes alone match the counted cost."""

from dataclasses import replace

import numpy as np
import pytest
from reference import save_model, save_tokenizer

from models.configs.reading import load_config
from models.programs.families import parameters_of
from models.programs.plan import Plan
from models.programs.predict import predict, share_bytes
from models.programs.program import Batch
from models.programs.sharing import hold_parameter
from protocols.base.cost import Cost
from protocols.base.lane import Settings
from protocols.base.shares import COMPUTING
from protocols.linear import Table, Weight
from puma_actors.api.local import LocalCluster

IDS = [1, 7, 30, 4, 4, 22, 9]
WHOLE = Batch((len(IDS),))
CHOICES = [
    Settings(),
    Settings(tree="traffic"),
    Settings(approximation="puma"),
    Settings(approximation="puma", tree="traffic", lanes=2),
    Settings(lanes=2),
    Settings(lanes=3, tree="traffic"),
    Settings(reveal="argmax"),
    Settings(reveal="argmax", tree="traffic", lanes=2, approximation="puma"),
]


@pytest.fixture(scope="module", params=["tied", "untied", "every head its own keys"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    changes = {
        "tied": {"tie_word_embeddings": True},
        "untied": {"num_hidden_layers": 3},
        "every head its own keys": {"num_attention_heads": 3, "num_key_value_heads": 3},
    }[request.param]
    if "num_attention_heads" in changes:
        changes |= {"head_dim": 8, "hidden_size": 24, "num_hidden_layers": 1}
    return save_tokenizer(save_model(folder, **changes))


async def test_counted_costs_are_the_predicted_ones(folder):
    async with LocalCluster.from_pretrained(folder) as cluster:
        for settings in CHOICES:
            cluster.settings = settings
            tokens = [token async for token in cluster.generate(IDS, max_new_tokens=3)]
            assert len(tokens) == 3
            assert cluster.usage.steps == cluster.predict(len(IDS), 2), settings
            assert cluster.usage.total == sum(cluster.predict(len(IDS), 2), Cost())

            logits = await cluster.forward(IDS)
            assert len(logits) == len(IDS)
            cluster.settings = replace(settings, reveal="logits")
            assert cluster.usage.steps == cluster.predict(WHOLE), settings
            await cluster.forward(IDS, rows="last")
            assert cluster.usage.steps == cluster.predict(len(IDS)), settings


async def test_one_token_alone(folder):
    async with LocalCluster.from_pretrained(folder) as cluster:
        await cluster.forward([5])
        assert cluster.usage.steps == cluster.predict(Batch((1,))) == cluster.predict(1)


@pytest.mark.parametrize("codec", [False, True])
async def test_costs_do_not_depend_on_the_transport(folder, codec):
    async with LocalCluster.from_pretrained(folder, codec=codec) as cluster:
        await cluster.forward(IDS)
        assert cluster.usage.steps == cluster.predict(WHOLE)


def test_a_prediction_names_the_protocols_and_adds_up(tmp_path):
    config = load_config(save_model(tmp_path))
    steps = predict(config, 5, 2)
    assert [step.tokens for step in steps] == [5, 1, 1]
    for step in steps:
        parts = step.by_protocol.values()
        assert sum(part.online for part in parts) == step.cost.online
        assert sum(part.offline for part in parts) == step.cost.offline
        assert max(part.rounds for part in parts) <= step.cost.rounds
    first, second, third = (step.cost for step in steps)
    assert first.online > third.online > second.online  # the context grows
    assert second.rounds == third.rounds


def test_traffic_and_rounds_are_what_the_trees_trade(tmp_path):
    config = load_config(save_model(tmp_path))
    (rounds,) = predict(config, 8, settings=Settings(tree="rounds"))
    (traffic,) = predict(config, 8, settings=Settings(tree="traffic"))
    assert rounds.cost.rounds < traffic.cost.rounds
    total = [step.cost.online + step.cost.offline for step in (rounds, traffic)]
    assert total[0] > total[1]


def test_lanes_cost_no_rounds(tmp_path):
    config = load_config(save_model(tmp_path))
    costs = [predict(config, 8, settings=Settings(lanes=lanes))[0].cost for lanes in (1, 2, 4, 99)]
    assert len({cost.rounds for cost in costs}) == 1


def test_share_bytes_are_those_held(tmp_path):
    """Every party holds one word per entry of a weight, half a word more of a table, and two of
    everything else."""
    config = load_config(save_model(tmp_path))
    held = share_bytes(config)
    table = config.vocab_size * config.hidden_size
    inner = 3 * config.intermediate_size + (2 * config.num_heads + 2 * config.num_kv_heads) * 8
    weights = config.num_layers * inner * config.hidden_size + table  # and an untied head
    assert held == 8 * (weights + 2 * config.hidden_size) + 12 * table
    parameters = parameters_of(config)
    for role in COMPUTING:
        seeds = {1: bytes(32), 2: bytes(32)}
        handles = [
            hold_parameter(role, number, p, np.zeros(p.shape, np.uint64), seeds)
            for number, p in enumerate(parameters.values())
        ]
        arrays = [array for handle in handles for array in arrays_of(handle)]
        assert sum(array.nbytes for array in arrays) == held


def arrays_of(handle):
    if isinstance(handle, Table):
        return [handle.factor.high, *handle.halves]
    return [handle.factor] if isinstance(handle, Weight) else [handle.a, handle.b]


async def test_a_plan_from_the_wire_predicts_the_same(folder):
    async with LocalCluster.from_pretrained(folder) as cluster:
        plan = Plan.from_public(cluster.plan.to_public())
        steps = predict(plan, len(IDS), 2, cluster.choose(Batch((len(IDS),), "last"), 3).settings)
        assert [step.cost for step in steps] == cluster.predict(len(IDS), 2)
