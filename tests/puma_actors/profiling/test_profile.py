"""The profiler: its records contain nothing secret, and its counts are exact."""

from functools import partial
from pathlib import Path

import anyio
import pytest
from clock import standing
from tiny_models import save, tiny_model

from models.programs.program import Batch
from protocols.base.cost import Cost
from protocols.base.events import Call, Receive, Send, Slice
from protocols.base.lane import Lane, Settings
from protocols.base.meter import Meter
from protocols.base.shares import COMPUTING, EVALUATORS, Role
from protocols.drivers import observed
from protocols.errors import ConfigError
from puma_actors.api.local import LocalCluster
from puma_actors.profiling.analysis import ROLES, transfer_of
from puma_actors.profiling.counts import compare, counted, declared
from puma_actors.profiling.profile import (
    profile_cluster,
    record,
    run_profile,
    traced,
    without_upload,
)
from puma_actors.profiling.sweep import message_of
from puma_actors.roles.peers import CountingLane
from puma_actors.session import recorder
from puma_actors.session.recorder import Recorder
from puma_actors.transports.delay.network import PRESETS, Route, parse_network

FAST = "1ms,1gbit"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save(tiny_model("llama", "causal-lm"), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def profile(folder):
    """By a clock that stands while anything can happen: nothing waits but for the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observed, "LEAST_WORK", 0)  # the model is tiny
        clock = standing(patch)
        for module in (observed, recorder):
            patch.setattr(module, "clock", clock.tick)
        return anyio.run(partial(run_profile, folder, network=FAST, tokens_in=5, tokens_out=3))


# -- counts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "head", "settings"),
    [
        ("llama", "causal-lm", Settings()),
        ("llama", "causal-lm", Settings("puma", "traffic", 2, "argmax")),
        ("qwen3", "causal-lm", Settings("fast")),
        ("bert", "sequence-classification", Settings(lanes=3)),
    ],
)
async def test_every_place_costs_what_its_protocols_declare(model_type, head, settings, tmp_path):
    path, recorder = save(tiny_model(model_type, head), tmp_path), Recorder()
    async with LocalCluster.from_pretrained(path, settings=settings, recorder=recorder) as cluster:
        tokens_out = 2 if head == "causal-lm" else None
        found = await profile_cluster(cluster, recorder, 4, tokens_out)
        costs = cluster.predict(
            Batch((4,), "last" if tokens_out else "first"), len(found.phases) - 1
        )
    assert found.matches
    assert [Cost(p.rounds, p.online, p.offline) for p in found.phases] == costs
    for phase in found.phases:
        for rows in (phase.layers, phase.places, phase.operations, phase.protocols):
            assert sum(row.rounds for row in rows) == phase.rounds
            assert sum(row.exchanges for row in rows) == phase.exchanges
            assert sum(row.online for row in rows) == phase.online
            assert sum(row.offline for row in rows) == phase.offline
        assert sum(online for online, _ in phase.sent.values()) == phase.online
        assert sum(offline for _, offline in phase.sent.values()) == phase.offline


async def test_a_difference_is_found_and_named(folder):
    recorder = Recorder()
    async with LocalCluster.from_pretrained(folder, recorder=recorder) as cluster:
        number = await record(cluster, Batch((4,), "last"), 1)
        longer = traced(cluster.plan, Batch((5,), "last"), 0, Settings())[0]
    found = counted([recorder.meters[role, number] for role in ROLES])
    differences = compare(found, declared(longer))
    assert any(line.startswith("online of late_norm at layers.0.qkv: ") for line in differences)


def _first(profile) -> int:
    return min(number for _, number in profile.recorder.meters)


async def test_lanes_change_hardly_a_byte_and_no_round_in_a_row(folder):
    recorder, costs = Recorder(), []
    async with LocalCluster.from_pretrained(folder, recorder=recorder) as cluster:
        for lanes in (1, 2):
            cluster.settings = Settings(lanes=lanes)
            phase = (await profile_cluster(cluster, recorder, 4, 1)).phases[0]
            costs.append((phase.rounds, phase.online, phase.exchanges))
    assert costs[0][0] == costs[1][0]
    assert costs[0][1] == pytest.approx(costs[1][1], rel=1e-3)  # each message ends with a byte
    assert costs[0][2] < costs[1][2]


# -- what is recorded ------------------------------------------------------------------------------

_ALLOWED = {
    "start": float,
    "end": float,
    "asked": float,
    "lane": tuple,
    "task": tuple,
    "place": str,
    "protocol": str,
    "name": str,
    "threaded": bool,
    "peer": Role,
    "nbytes": int,
    "number": int,
    "online": bool,
}


def test_events_hold_times_sizes_and_names_and_nothing_else(profile):
    places = {row.name for phase in profile.phases for row in phase.layers}
    for meter in profile.recorder.meters.values():
        events = [*meter.slices, *meter.calls, *meter.sends, *meter.receives]
        assert {type(event) for event in events} <= {Slice, Call, Send, Receive}
        for event in events:
            for name, value in event._asdict().items():
                assert type(value) is _ALLOWED[name]
            assert all(type(part) is int for part in event.lane)
            assert event.start <= event.end
            assert event.place == "" or any(event.place.startswith(place) for place in places)
            assert len(event.protocol) < 60
    arrivals = profile.recorder.arrivals
    for sender, receiver, tag in arrivals:
        assert isinstance(sender, Role)
        assert isinstance(receiver, Role)
        assert type(tag) is int  # its hash
    assert arrivals


def test_every_message_is_sent_then_there_then_taken(profile):
    sent, taken = {}, 0
    for (role, number), meter in profile.recorder.meters.items():
        for send in meter.sends:
            sent[message_of(role, number, send)] = send
    for (role, number), meter in profile.recorder.meters.items():
        for wait in meter.receives:
            message = message_of(role, number, wait)
            arrival = profile.recorder.arrivals[message]
            assert sent[message].nbytes == wait.nbytes
            assert sent[message].start + 0.5e-3 <= arrival <= wait.end  # half of the round trip
            taken += 1
    assert taken == len(sent)


def test_slices_of_a_party_never_overlap(profile):
    for (role, number), meter in profile.recorder.meters.items():
        ends = 0.0
        for piece in meter.slices:
            assert ends <= piece.start, (role, number)
            ends = piece.end


def test_kernels_on_threads_are_told_from_those_inline(profile):
    calls = [call for meter in profile.recorder.meters.values() for call in meter.calls]
    assert {"_weight_part", "_read"} <= {call.name for call in calls}
    assert not any(call.threaded for call in calls)  # the model is tiny
    assert all(call.asked <= call.start for call in calls)


async def test_small_calls_are_not_worth_an_event(folder):
    recorder = Recorder()
    async with LocalCluster.from_pretrained(folder, recorder=recorder) as cluster:
        await record(cluster, Batch((3,), "last"), 1)
    assert not any(meter.calls for meter in recorder.meters.values())


async def test_nothing_is_recorded_without_a_recorder(folder):
    async with LocalCluster.from_pretrained(folder) as cluster:
        await record(cluster, Batch((3,), "last"), 1)
        parties = [*cluster._parties, cluster.client]
        lanes = [party.lane(party.scheduler.link(99)) for party in parties]
        assert {type(lane) for lane in lanes} == {Lane, CountingLane}
        ports = [port for party in parties for port in party.scheduler.ports.values()]
        assert all(port.arrived is None for port in ports)
    lane = Lane.__new__(Lane)
    task = _nothing()
    assert lane.watch(task) is lane.span("less", task) is task
    task.close()


async def _nothing() -> None:
    return None


async def test_a_failing_program_closes_its_slice(folder):
    recorder = Recorder()
    async with LocalCluster.from_pretrained(folder, recorder=recorder) as cluster:
        lane = cluster.client.lane(cluster.client.scheduler.link(50))

        async def fails() -> None:
            raise ConfigError("on purpose")

        with pytest.raises(ConfigError, match="on purpose"):
            await lane.watch(lane.span("less", fails()))
    meter: Meter = recorder.meters[Role.CLIENT, 50]
    assert [piece.protocol for piece in meter.slices] == ["", "less", ""]


# -- times -----------------------------------------------------------------------------------------


def test_times_add_up_to_the_time_until_the_answer(profile):
    for phase in profile.phases:
        spent = sum(row.total for row in phase.layers)
        assert 0.7 * phase.wall < spent <= 1.001 * phase.wall
        for rows in (phase.places, phase.operations, phase.protocols):
            assert sum(row.total for row in rows) == pytest.approx(spent)
        assert sum(phase.keys.values()) == pytest.approx(spent)
        for role in COMPUTING:
            computed = sum(row.compute[role] for row in phase.layers)
            assert computed == pytest.approx(phase.busy[role])
        assert 0 <= phase.hidden <= phase.transfer <= phase.wall
        assert phase.wall > phase.rounds * 0.5e-3  # each round waits half of the round trip
        assert phase.lead.messages == sum(
            wait.peer is Role.DEALER
            for number in _numbers(profile, phase)
            for role in EVALUATORS
            for wait in profile.recorder.meters[role, number].receives
        )
        assert phase.lead.bytes <= sum(
            send.nbytes
            for number in _numbers(profile, phase)
            for send in profile.recorder.meters[Role.DEALER, number].sends
        )


def _numbers(profile, phase):
    first = _first(profile)
    return [first] if phase.name == "prefill" else [first + 1, first + 2]


def test_ranking_is_by_share_with_a_reason(profile):
    for phase in profile.phases:
        ranking = profile.ranking(phase)
        assert ranking
        assert [a.seconds for a in ranking] == sorted((a.seconds for a in ranking), reverse=True)
        for advice in ranking:
            assert advice.share == pytest.approx(advice.seconds / phase.wall)
            assert advice.reason
            assert "\n" not in advice.reason


async def test_the_dealer_is_waited_for_where_its_link_is_slow(folder, tmp_path, monkeypatch):
    clock = standing(monkeypatch)
    for module in (observed, recorder):
        monkeypatch.setattr(module, "clock", clock.tick)
    file = tmp_path / "far.toml"
    file.write_text(
        'round_trip = "0ms"\n[[links]]\nbetween = ["dealer", "*"]\nround_trip = "60ms"\n'
    )
    profile = await run_profile(folder, network=file, tokens_in=3, tokens_out=1)
    lead = profile.phases[0].lead
    assert lead.late > 0
    assert lead.least < 0
    assert lead.waited > 0.01


# -- input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens_in", "tokens_out", "message"),
    [
        (0, 1, "0 tokens in: give at least 1"),
        (3, 0, "0 tokens out: give at least 1"),
        (19, 5, "positions: ask for fewer"),
    ],
)
async def test_lengths_are_checked_before_anything_runs(folder, tokens_in, tokens_out, message):
    with pytest.raises(ConfigError, match=message):
        await run_profile(folder, tokens_in=tokens_in, tokens_out=tokens_out)


async def test_a_model_that_generates_nothing(tmp_path):
    path = save(tiny_model("bert", "none"), tmp_path)
    with pytest.raises(ConfigError, match="omit --tokens-out"):
        await run_profile(path, tokens_in=4, tokens_out=2)
    profile = await run_profile(path, tokens_in=4)
    assert [phase.name for phase in profile.phases] == ["forward"]
    assert profile.tokens_out == 0
    assert profile.matches


def test_the_upload_is_not_delayed():
    network = without_upload(parse_network("wan"))
    assert network is not None
    for role in COMPUTING:
        assert network.route(Role.OWNER, role) == Route()
        assert network.route(Role.CLIENT, role) == PRESETS["wan"].default
    assert without_upload(None) is None


def test_transfer_counts_only_what_is_under_way(profile):
    transfer, hidden = transfer_of(profile.recorder, [_first(profile)])
    assert hidden <= transfer
    assert transfer == pytest.approx(profile.phases[0].transfer)
