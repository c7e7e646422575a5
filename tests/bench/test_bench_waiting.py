"""The benchmarks of transfer and of slow networks: their arithmetic, and the short one once."""

from types import SimpleNamespace

import anyio
import pytest
from reference import save_model, save_tokenizer

from bench import decode
from bench.__main__ import BENCHMARKS
from bench.runtime import hosts, overlap, prepared, profiling, together, whatif
from bench.serve import closing, load
from bench.tools.harness import Options, Result, Spread
from bench.tools.report import _TABLES, console, show
from protocols.base.lane import Settings
from protocols.base.shares import Role
from puma_actors.profiling.whatif.recorded import request_of
from puma_actors.transports.delay.network import PRESETS, Network, Route

pytestmark = pytest.mark.slow

A, B = Role.EVALUATOR_A, Role.EVALUATOR_B


@pytest.mark.parametrize(
    ("name", "expected"), [("wan", 26.6 + 0.32 + 2.0), ("intercontinental", 99.75 + 0.64 + 2.0)]
)
def test_the_bound_takes_each_round_one_way_and_the_busier_direction(name, expected):
    sent = {(A, B): (4_000_000, 0), (B, A): (3_000_000, 0), (Role.DEALER, A): (9_000_000, 10**8)}
    phase = SimpleNamespace(rounds=1330, sent=sent)
    assert decode.bound(phase, PRESETS[name], computing=2.0) == pytest.approx(expected)


def test_an_unlimited_link_adds_no_bytes():
    phase = SimpleNamespace(rounds=10, sent={(A, B): (10**9, 0), (B, A): (10**9, 0)})
    network = Network("near", Route(round_trip=2.0))
    assert decode.bound(phase, network, computing=1.0) == 11.0


def test_long_benchmarks_run_only_when_named():
    modules = (closing, decode, hosts, load, overlap, prepared, profiling, together, whatif)
    for item in [item for module in modules for item in module.BENCHMARKS]:
        assert not item.default


def test_every_group_of_results_can_be_shown(capsys):
    assert {item.name.partition(".")[0] for item in BENCHMARKS} <= set(_TABLES)
    rows = [
        Result("overlap.prefill", "prefill, wan, 3 lanes", Spread.of([2.0]), note="9 % hidden"),
        Result("waiting.decode", "wan", Spread.of([30.0]), note="1.020 of the bound"),
    ]
    show(console(), {"memory_bytes": 0, "cpu": "", "cores": 1, "os": ""}, rows)
    shown = capsys.readouterr().out
    assert "9 % hidden" in shown and "1.020 of the bound" in shown


def test_five_processes_answer_as_one(tmp_path):
    model = save_tokenizer(save_model(tmp_path / "model", seed=3))
    one, five = hosts.compare(model, 3, 1)
    assert one.seconds.median > 0 and five.seconds.median > 0
    assert five.details["ratio"] == pytest.approx(one.seconds.median / five.seconds.median)
    assert len(five.details["token_ids"]) == 3


def test_recording_is_turned_on_and_off(tmp_path):
    on, off = anyio.run(profiling.compare, save_model(tmp_path / "model", seed=3), 1, 2)
    assert len(on) == len(off) == 2
    assert all(seconds > 0 for seconds in (*on, *off))


def test_lanes_of_a_small_attention_layer():
    results = anyio.run(overlap._attention, Options(quick=True), "lan")
    assert [result.case for result in results] == [
        f"attention, lan, {lanes} lanes" for lanes in (1, 2, 4)
    ]
    for result in results:
        assert result.name == "overlap.attention"
        assert 0 <= result.details["hidden_share"] <= 1
        assert result.seconds.median > result.details["rounds"] * 0.25e-3  # one way
        assert result.details["online_bytes"] == results[0].details["online_bytes"]


def test_a_prediction_beside_what_was_measured():
    profile = anyio.run(whatif.profiled, "0ms,10gbit", Settings())
    request = request_of(profile.to_public(), "the profile")
    rows = list(whatif.beside(request, "1s,10gbit", "rounds", profile))
    assert [row.case for row in rows] == [f"{n}, 1s,10gbit, rounds" for n in ("prefill", "decode")]
    for row, phase in zip(rows, profile.phases, strict=True):
        assert row.seconds.median == phase.wall / phase.steps
        assert row.details["predicted"]["latency"] >= phase.rounds / 2
        assert row.details["ratio"] > 1
