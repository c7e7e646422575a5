"""Trees and lanes of each kind of step: the parties obey what the client chose."""

from dataclasses import replace

import pytest
from conversation import IDS, Scripted, generated

from models.programs.predict import predict
from models.programs.program import Batch
from models.programs.steps import RequestSettings, StepSettings
from protocols.base.lane import Settings
from protocols.errors import ConfigError
from puma_actors.api.local import LocalCluster
from puma_actors.planning.choice import Chooser
from puma_actors.transports.delay.network import parse_network

MIXED = StepSettings(Settings(tree="traffic", lanes=2), Settings(tree="rounds"))
SLOW = parse_network("1us,10kbit")


async def test_each_step_runs_with_its_own_settings(folder, answer):
    batch = Batch((len(IDS),), "last")
    async with LocalCluster.from_pretrained(folder) as cluster:
        inference = await cluster.client.begin(batch, 3, MIXED)
        found, ids = [], IDS
        for _ in range(3):
            logits = await cluster.client.step(inference, ids)
            ids = [int(logits[-1].argmax())]
            found += ids
        await cluster.client.wait_reports(inference)
        await cluster.client.end(inference)
        assert found == answer[:3]
        costs = [each.cost for each in predict(cluster.plan, batch, 2, MIXED)]
        assert [inference.costs[step] for step in range(3)] == costs
        other = [each.cost for each in predict(cluster.plan, batch, 2, MIXED.further)]
        assert costs[0] != other[0]


async def test_what_is_open_is_chosen_for_the_network_at_hand(folder, answer):
    async with LocalCluster.from_pretrained(folder) as cluster:
        assert cluster.settings == RequestSettings()
        cluster.route = SLOW
        chosen = Chooser(cluster.plan, SLOW).choose(Batch((len(IDS),), "last"), 4, cluster.settings)
        assert await generated(cluster, max_new_tokens=4) == answer[:4]
        usage = cluster.usage
        assert usage.settings == chosen.settings
        assert usage.settings.first.tree == "traffic"
        assert usage.steps == cluster.predict(len(IDS), 3)
        await cluster.forward(IDS)
        assert cluster.usage.settings.first.tree == "traffic"


async def test_names_that_were_given_hold_for_every_step(folder, answer):
    settings = RequestSettings(tree="balanced", lanes=2)
    async with LocalCluster.from_pretrained(folder, settings=settings) as cluster:
        cluster.route = SLOW
        assert await generated(cluster, max_new_tokens=3) == answer[:3]
        assert cluster.usage.settings == StepSettings.of(Settings(tree="balanced", lanes=2))
        cluster.settings = replace(cluster.settings, tree="traffic", lanes="auto")
        assert await generated(cluster, max_new_tokens=3) == answer[:3]
        assert {each.tree for each in (cluster.usage.settings.first,)} == {"traffic"}


async def test_steps_with_a_draft_are_chosen_for_a_token(folder, answer):
    """Most of them propose none or few, however many they may."""
    async with LocalCluster.from_pretrained(folder) as cluster:
        cluster.route = SLOW
        draft = Scripted(answer)
        assert await generated(cluster, max_new_tokens=8, draft=draft, draft_tokens=3) == answer
        usage = cluster.usage
        assert usage.settings == cluster.choose(Batch((len(IDS),), "last"), 8, 1).settings
        assert usage.steps == cluster.predict(len(IDS), usage.drafts, usage.settings)


@pytest.mark.parametrize(
    "settings",
    [
        RequestSettings(tree="oak"),
        RequestSettings(lanes=0),
        RequestSettings(lanes="many"),
        RequestSettings("loose"),
        RequestSettings(reveal="all"),
        Settings(block=0),
        "traffic",
    ],
    ids=str,
)
async def test_unusable_settings_are_refused_before_any_work(folder, settings):
    with pytest.raises(ConfigError):
        LocalCluster.from_pretrained(folder, settings=settings)
    async with LocalCluster.from_pretrained(folder) as cluster:
        with pytest.raises(ConfigError):
            cluster.settings = settings
        assert cluster.settings == RequestSettings()
