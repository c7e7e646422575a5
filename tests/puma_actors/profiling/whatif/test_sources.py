"""Where what-if's counts come from: a recorded profile, or a prediction."""

import copy
import json
from functools import partial

import anyio
import pytest
from tiny_models import save, tiny_model

from models.checkpoints.weights import open_checkpoint
from models.programs.predict import predict
from models.programs.program import Batch, Drafted
from protocols.base.lane import TREES, Settings
from protocols.errors import ConfigError
from puma_actors.planning import machine
from puma_actors.planning.timing import time_of, token_time
from puma_actors.profiling.profile import run_profile
from puma_actors.profiling.whatif import recorded
from puma_actors.profiling.whatif.answer import grid_of, places, to_public
from puma_actors.profiling.whatif.predicted import Computing, predicted
from puma_actors.profiling.whatif.recorded import read_profile, request_of
from puma_actors.profiling.whatif.variants import Draft
from puma_actors.transports.delay.network import parse_network

FAST = "1ms,1gbit"
GIVEN = Computing(3.0, 0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tiny_model("llama", "causal-lm"), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def recording(folder):
    options = {"network": FAST, "tokens_in": 4, "tokens_out": 3, "settings": Settings()}
    found = anyio.run(partial(run_profile, folder, **options))
    return json.loads(json.dumps(found.to_public()))


@pytest.fixture
def data(recording):
    return copy.deepcopy(recording)


# -- recorded --------------------------------------------------------------------------------------


def test_a_profile_knows_all_trees(data):
    request = request_of(data, "it")
    assert (request.tokens_in, request.recorded) == (4, True)
    assert [variant.tree for variant in request.variants] == ["rounds", "balanced", "traffic"]
    rounds, _, traffic = request.variants
    for index, phase in enumerate(data["phases"]):
        step, other = rounds.works[index].step, traffic.works[index].step
        assert step.name == phase["name"]
        assert step.rounds == pytest.approx(phase["rounds"] / phase["steps"])
        assert step.messages == pytest.approx(phase["exchanges"] / phase["steps"])
        assert other.rounds > step.rounds
        assert 0.2 < other.computation / step.computation < 5


def test_bytes_are_those_of_the_busier_link(data):
    request = request_of(data, "it")
    for phase, work in zip(data["phases"], request.variants[0].works, strict=True):
        links = {(s["from"], s["to"]): s for s in phase["sent"]}
        dealt = max(links["dealer", f"evaluator-{x}"]["offline_bytes"] for x in "ab")
        sent = links["evaluator-a", "evaluator-b"]["online_bytes"]
        assert work.step.dealt == pytest.approx(dealt / phase["steps"])
        assert work.step.sent == pytest.approx(sent / phase["steps"])


def test_the_recorded_network_gives_the_recorded_time(data):
    request = request_of(data, "it")
    for phase, work in zip(data["phases"], request.variants[0].works, strict=True):
        wall = phase["wall_seconds"] / phase["steps"]
        assert time_of(work.step, parse_network(FAST)).total == pytest.approx(wall, rel=1e-6)


def test_a_profile_without_a_network_is_all_computation(data):
    data["network"] = None
    (prefill, _) = request_of(data, "it").variants[0].works
    assert prefill.step.computation == data["phases"][0]["wall_seconds"]


def test_an_older_profile_knows_one_tree(data):
    del data["variants"]
    (variant,) = request_of(data, "it").variants
    assert (variant.tree, variant.lanes) == ("rounds", 1)


def test_links_of_their_own_are_read(data):
    route = {"round_trip_ms": 9.0, "bandwidth_mbit": 5.0, "jitter_ms": 2.0}
    data["network"]["links"] = [{"between": ["dealer", "*"], **route}]
    assert request_of(data, "it").variants[0].works[0].step.computation > 0


def test_shares_of_places_add_up(data):
    for work in request_of(data, "it").variants[0].works:
        found = places(work)
        assert {row.name for row, *_ in found} >= {"embed", "layers.*.attention", "head"}
        for column in (1, 2, 3):
            assert sum(entry[column] for entry in found) == pytest.approx(1)


def _without(*path):
    def change(data):
        for key in path[:-1]:
            data = data[key]
        del data[path[-1]]

    return change


def _with(value, *path):
    def change(data):
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("phases"), "phases: Field required"),
        (_without("settings", "tree"), "settings.tree: Field required"),
        (_with([], "phases"), "phases: List should have at least 1 item"),
        (_with(-1, "phases", 0, "layers", 0, "rounds"), "phases.0.layers.0.rounds"),
        (_with(0, "phases", 1, "steps"), "phases.1.steps"),
        (_with(0.0, "phases", 0, "wall_seconds"), "phases.0.wall_seconds"),
        (_with(float("nan"), "phases", 0, "wall_seconds"), "finite number"),
        (_with("training", "phases", 0, "name"), "phases.0.name"),
        (_with("no phases", "phases"), "phases: Input should be a valid list"),
        (_with(-3.0, "network", "round_trip_ms"), "round_trip of -0.003 s"),
        (_with([], "variants", 0, "phases"), "its variants have other phases"),
        (
            _with(
                [{"between": ["dealer", "cat"], "round_trip_ms": 1, "bandwidth_mbit": None}],
                *("network", "links"),
            ),
            "no such roles",
        ),
    ],
)
def test_what_is_no_profile_is_refused_by_name(data, change, message):
    change(data)
    with pytest.raises(ConfigError, match=r"p\.json is not a profile: ") as error:
        request_of(data, "p.json")
    assert message in str(error.value)
    assert str(error.value).endswith("write it again with puma profile --json")


@pytest.mark.parametrize("data", [None, 3, [], "profile", {}])
def test_other_json_is_no_profile(data):
    with pytest.raises(ConfigError, match="is not a profile"):
        request_of(data, "p.json")


def test_files_that_cannot_be_read(tmp_path, monkeypatch, data):
    with pytest.raises(ConfigError, match=r"none.json: No such file .* puma profile --json wrote"):
        read_profile(tmp_path / "none.json")
    file = tmp_path / "p.json"
    for text in (b"", b"{", b"\xff", b"[" * 100_000):
        file.write_bytes(text)
        with pytest.raises(ConfigError, match="is no JSON"):
            read_profile(file)
    file.write_text(json.dumps(data))
    assert read_profile(file) == request_of(data, str(file))
    monkeypatch.setattr(recorded, "_MOST_BYTES", 100)
    with pytest.raises(ConfigError, match="more than 0 MB"):
        read_profile(file)


# -- predicted -------------------------------------------------------------------------------------


def test_a_prediction_counts_what_predict_counts(folder):
    with open_checkpoint(folder) as checkpoint:
        request = predicted(checkpoint, 4, Settings("fast"), [1, 2], GIVEN)
    found = [(variant.tree, variant.lanes) for variant in request.variants]
    assert found == [(tree, lanes) for tree in TREES for lanes in (1, 2)]
    assert (request.recorded, request.source) == (False, "given")
    for variant in request.variants:
        settings = Settings("fast", variant.tree, variant.lanes)
        costs = predict(checkpoint.config, Batch((4,), "last"), 1, settings)
        for work, cost in zip(variant.works, costs, strict=True):
            assert work.step.rounds == cost.cost.rounds
            assert work.step.sent == cost.cost.online / 2
            assert sum(row.online for row in work.places) == cost.cost.online
            assert sum(row.offline for row in work.places) == cost.cost.offline
        assert [work.step.computation for work in variant.works] == [3.0, 0.5]
    assert request.variants[1].works[0].step.messages > request.variants[0].works[0].step.messages


def test_a_model_that_generates_nothing_has_one_step(tmp_path):
    path = save(tiny_model("bert", "none"), tmp_path)
    with open_checkpoint(path) as checkpoint:
        request = predicted(checkpoint, 4, Settings(), [1], GIVEN)
    assert [work.step.name for work in request.variants[0].works] == ["forward"]
    assert list(to_public(request, grid_of(["wan"]))["best"][0]) == ["network", "forward"]


@pytest.mark.parametrize("tokens", [0, 20, 10**9])
def test_the_models_positions_are_the_limit(folder, tokens):
    with (
        open_checkpoint(folder) as checkpoint,
        pytest.raises(ConfigError, match=f"{tokens} tokens in: this model takes 1 to 19"),
    ):
        predicted(checkpoint, tokens, Settings(), [1], GIVEN)


def test_computation_is_estimated_from_this_machines_pace(folder, monkeypatch):
    spent = []
    for pace in (1.0, 2.0):
        monkeypatch.setattr(machine, "pace", lambda pace=pace: pace)
        with open_checkpoint(folder) as checkpoint:
            request = predicted(checkpoint, 4, Settings(), [1], None)
            costs = predict(checkpoint.config, Batch((4,), "last"), 1, Settings())
        spent.append([work.step.computation for work in request.variants[0].works])
        for work, cost in zip(request.variants[0].works, costs, strict=True):
            nbytes = cost.cost.online + cost.cost.offline
            least = machine.REFERENCE["rounds"].seconds(machine.exchanges_of(cost), nbytes)
            assert work.step.computation > pace * least
    assert spent[1] == pytest.approx([2 * each for each in spent[0]])
    assert "times as long for a fixed piece of work" in request.source


def test_a_prediction_with_a_draft(folder):
    with open_checkpoint(folder) as checkpoint:
        request = predicted(checkpoint, 4, Settings(), [1], GIVEN, Draft(3, 1.5))
        costs = predict(checkpoint.config, Batch((4,), "last"), [Drafted(3, 0)], Settings())
    plain, drafted, *_ = request.variants
    assert [each.draft for each in request.variants] == [0, 3] * 3
    assert drafted.works[1].step.rounds == costs[1].cost.rounds
    assert (plain.works[1].step.tokens, drafted.works[1].step.tokens) == (1.0, 2.5)
    assert drafted.works[0].step.tokens == 1.0
    far = parse_network("300ms,10gbit")
    each = token_time(drafted.works[1].step, far).total
    assert each == pytest.approx(time_of(drafted.works[1].step, far).total / 2.5)
    assert each < token_time(plain.works[1].step, far).total
    data = to_public(request, grid_of(["300ms,10gbit"]))
    assert data["best"][0]["decode"]["draft"] == 3
    assert data["variants"][1]["draft"] == 3


@pytest.mark.parametrize("accepted", [-1.0, 3.1, float("nan")])
def test_no_more_tokens_stay_than_are_proposed(accepted, data):
    with pytest.raises(ConfigError, match="accepted of 3 proposed tokens"):
        Draft(3, accepted)
    with pytest.raises(ConfigError, match="9 accepted of 8 proposed tokens"):
        request_of(data, "it", 9.0)
    del data["variants"]  # an older profile
    with pytest.raises(ConfigError, match="accepted of 0 proposed tokens"):
        request_of(data, "it", 1.0)


def test_a_profile_without_a_draft_tells_what_one_would_bring(data, folder):
    """Shown if something would stay of it."""
    assert {each.draft for each in request_of(data, "it").variants} == {0}
    request = request_of(data, "it", 1.5)
    kinds = {(each.tree, each.draft) for each in request.variants}
    assert kinds == {(tree, draft) for tree in TREES for draft in (0, 8)}
    assert len(request.variants) == len(kinds)
    plain, drafted = (
        next(each for each in request.variants if (each.tree, each.draft) == ("rounds", draft))
        for draft in (0, 8)
    )
    assert plain is request.variants[0]
    assert (plain.works[1].step.tokens, drafted.works[1].step.tokens) == (1.0, 2.5)
    assert drafted.works[1].step.rounds == plain.works[1].step.rounds
    assert drafted.works[1].step.sent > 6 * plain.works[1].step.sent
    assert drafted.works[1].step.computation > plain.works[1].step.computation
    far = parse_network("300ms,10gbit")
    times = [token_time(each.works[1].step, far).total for each in (plain, drafted)]
    assert times[1] < times[0] / 2
    data["variants"] = [each for each in data["variants"] if not each.pop("draft")]  # as it was
    assert {each.draft for each in request_of(data, "it").variants} == {0}


def test_a_profile_of_steps_with_a_draft(folder):
    options = {"tokens_in": 4, "tokens_out": 3, "draft": 2, "settings": Settings()}
    found = anyio.run(partial(run_profile, folder, **options))
    assert found.matches
    data = json.loads(json.dumps(found.to_public()))
    request = request_of(data, "it", 1.0)
    assert {each.draft for each in request.variants} == {0, 2}
    assert {each.draft for each in request_of(data, "it").variants} == {2}
    assert request.variants[0].works[1].step.tokens == 2.0
    assert all(each.works[1].step.tokens == 1.0 for each in request.variants if not each.draft)
