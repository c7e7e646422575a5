"""Which tree is chosen for which kind of step, and that it is the one that takes least."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_model

from models.configs.reading import config_from_hf
from models.drafts.drafter import computing
from models.programs.plan import draft_plan
from models.programs.predict import outline, predict
from models.programs.program import Batch, Drafted
from models.programs.steps import RequestSettings, StepSettings
from protocols.base.lane import TREES, Settings
from puma_actors.planning import choice, machine
from puma_actors.planning.choice import Chooser, chosen_public
from puma_actors.profiling.counts import declared
from puma_actors.profiling.profile import traced
from puma_actors.transports.delay.network import PRESETS, Network, Route, parse_network

ANY = RequestSettings()
LONG = Batch((16,), "last")


@pytest.fixture(scope="module")
def config():
    return config_from_hf(tiny_model("llama", "causal-lm").config.to_dict(), None)


@pytest.fixture(autouse=True)
def pace(monkeypatch):
    """This machine is like the one that was measured."""
    monkeypatch.setattr(machine, "pace", lambda: 1.0)


def test_far_away_rounds_count_and_on_a_slow_line_bytes(config):
    far = Chooser(config, parse_network("300ms,10gbit")).choose(LONG, 5, ANY)
    slow = Chooser(config, parse_network("1us,1kbit")).choose(LONG, 5, ANY)
    rounds = {each.settings.tree: each.predicted.cost.rounds for each in far.first}
    nbytes = {each.settings.tree: each.predicted.cost.offline for each in slow.first}
    assert rounds[far.settings.first.tree] == min(rounds.values())
    assert far.settings.first.tree != "traffic"
    assert slow.settings.first.tree == "traffic"
    assert nbytes["traffic"] < nbytes["rounds"]


def test_kinds_of_step_are_chosen_apart(config):
    """Somewhere between, a prompt is limited by bytes and a step of one token by rounds."""
    between = Chooser(config, parse_network("40ms,1mbit")).choose(LONG, 5, ANY)
    assert between.settings == StepSettings(Settings(tree="traffic"), Settings(tree="rounds"))


@given(st.floats(0, 1), st.floats(1e3, 1e10))
def test_nothing_takes_less_than_what_is_chosen(config, trip, rate):
    found = Chooser(config, Network("any", Route(trip, rate))).choose(LONG, 2, ANY)
    for options, chosen in (
        (found.first, found.settings.first),
        (found.further, found.settings.further),
    ):
        assert {each.settings.tree for each in options} == set(TREES)
        assert options[0].settings == chosen
        assert options[0].time.total == min(each.time.total for each in options)


def test_names_that_were_given_hold(config, monkeypatch):
    monkeypatch.setattr(choice, "outline", lambda *_: pytest.fail("nothing is left to choose"))
    asked = Settings("fast", "traffic", 3, "argmax")
    found = Chooser(config, PRESETS["wan"]).choose(LONG, 5, RequestSettings.of(asked))
    assert found.settings == StepSettings(asked, asked)
    assert (found.first, found.further) == ((), ())


def test_without_a_network_the_machine_alone_decides(config):
    found = Chooser(config, None).choose(LONG, 5, ANY)
    for option in (*found.first, *found.further):
        assert option.time.total == option.time.computation > 0


def test_parties_on_machines_of_their_own_compute_at_the_same_time(config):
    one, three = (Chooser(config, None, apart=apart).choose(LONG, 1, ANY) for apart in (0, 1))
    assert one.first[0].time.total == pytest.approx(3 * three.first[0].time.total)


def test_a_request_of_one_step_has_one_kind(config):
    found = Chooser(config, PRESETS["wan"]).choose(LONG, 1, ANY)
    assert found.further == ()
    assert found.settings.first == found.settings.further
    told = chosen_public(found.settings, several=False)
    assert told == {"first": {"tree": found.settings.first.tree, "lanes": 1}}


def test_steps_with_a_draft_are_predicted_with_it(config):
    found = Chooser(config, PRESETS["wan"]).choose(LONG, 9, ANY, draft=4)
    option = next(each for each in found.further if each.settings.tree == "traffic")
    costs = predict(config, LONG, [Drafted(4, 0)], option.settings)
    assert option.predicted == costs[1]
    short = Chooser(config, PRESETS["wan"]).choose(LONG, 3, ANY, draft=4)  # at most 2 are wanted
    assert short.further[0].predicted.tokens == 2


def test_without_a_network_drafts_cost_what_the_parties_compute(config):
    found = Chooser(config, None).lengthened(LONG, 20, Settings(), 8)
    assert found == tuple(computing(count) for count in range(9))


def test_drafts_cost_what_the_network_takes_for_them(config):
    """On a thin line each token costs more than a step; far apart, hardly anything."""
    thin, far = (
        Chooser(config, parse_network(name)).lengthened(LONG, 20, Settings(), 8)
        for name in ("1ms,100kbit", "300ms,10gbit")
    )
    assert len(thin) == len(far) == 9
    assert list(thin) == sorted(thin)
    assert thin[1] > 50
    assert thin[8] > 300
    assert far[8] < 10
    options = [
        Chooser(config, parse_network("1ms,100kbit")).compare(LONG, 20, [Settings()], count)
        for count in (0, 1, 8)
    ]
    none, one, eight = (option.further[0].time for option in options)
    spent = none.computation
    for count, time in ((1, one), (8, eight)):
        longer = time.total - time.computation - (none.total - spent)
        wanted = 100 * longer / none.total + computing(count) * spent / none.total
        assert wanted == pytest.approx(thin[count], rel=0.1, abs=2)


@pytest.mark.parametrize(("steps", "count"), [(1, 1), (2, 1), (3, 2), (5, 4), (30, 9)])
def test_no_more_is_proposed_than_a_request_has_room_for(config, steps, count):
    found = Chooser(config, PRESETS["wan"]).lengthened(LONG, steps, Settings(), 8)
    assert len(found) == count
    assert found[0] == 0


def test_a_prediction_is_made_once(config, monkeypatch):
    made = []

    def counted(*args):
        made.append(args)
        return outline(*args)

    monkeypatch.setattr(choice, "outline", counted)
    chooser = Chooser(config, PRESETS["wan"])
    first = chooser.choose(LONG, 5, ANY)
    assert chooser.choose(LONG, 9, ANY) == first
    assert len(made) == len(TREES)
    for length in range(1, 17):
        for steps in (1, 2):
            chooser.choose(Batch((length,), "last"), steps, ANY)
    before = len(made)
    chooser.choose(Batch((16,), "last"), 2, ANY)
    assert len(made) == before
    chooser.choose(Batch((1,), "last"), 1, ANY)  # forgotten
    assert len(made) == before + len(TREES)


def test_predicted_rounds_beside_others_are_those_that_a_profile_counts(config):
    (meter,) = traced(draft_plan(config), LONG, 0, Settings(lanes=2))
    (found,) = predict(config, LONG, 0, Settings(lanes=2))
    assert machine.exchanges_of(found) == sum(declared(meter).exchanges.values())


def test_texts_of_about_the_same_length_share_a_prediction(monkeypatch):
    shape = {**tiny_model("llama", "causal-lm").config.to_dict(), "max_position_embeddings": 99}
    chooser, seen = Chooser(config_from_hf(shape, None), None), set()

    def counted(plan, batch, *others):
        seen.add(batch.tokens)
        return outline(plan, batch, *others)

    monkeypatch.setattr(choice, "outline", counted)
    for length in range(65, 99):
        chooser.choose(Batch((length,), "last"), 2, ANY)
    assert sorted(seen) == [72, 80, 88, 96, 98]  # the last one is as long as can be


def test_what_is_compared_is_exact(config):
    found = Chooser(config, None).compare(LONG, 3, [Settings(lanes=2)])
    costs = predict(config, LONG, 1, Settings(lanes=2))
    assert [found.first[0].predicted, found.further[0].predicted] == costs


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_an_outline_is_exact_where_layers_are_alike(layers):
    shape = {**tiny_model("llama", "causal-lm").config.to_dict(), "num_hidden_layers": layers}
    plan = draft_plan(config_from_hf(shape, None))
    for tree in TREES:
        settings = Settings(tree=tree)
        found = outline(plan, LONG, [Drafted(0, 0)], settings)
        wanted = predict(plan, LONG, 1, settings)
        assert [each.cost for each in found] == [each.cost for each in wanted]
        for one, two in zip(found, wanted, strict=True):
            assert one.by_protocol == two.by_protocol
