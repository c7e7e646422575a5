"""The benchmarks' own logic, and every workload once at a small size."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from clock import standing
from secure_models import tiny_config

from bench import __main__ as command
from bench import errors as error_benchmarks
from bench import protocols as protocol_benchmarks
from bench.fidelity import TorchModel, differences
from bench.model import layer_cost
from bench.runtime import network as network_benchmarks
from bench.tools.harness import Benchmark, Errors, Options, Repeats, Result, Spread, document
from bench.tools.peaks import peak_bytes
from bench.tools.reference import SPU
from bench.tools.report import console, scaled, seconds_text, show
from bench.tools.workloads import comparison, embedding, gelu, product, softmax
from models.programs.plan import draft_plan
from models.programs.predict import predict
from protocols.base.cost import Cost
from protocols.base.lane import Settings
from protocols.drivers.lockstep import run_parties
from protocols.errors import ConfigError
from puma_actors.transports.delay.network import PRESETS

ROOT = Path(__file__).parents[2]
QUICK = Options(quick=True)
GROUPS = {"kernels", "protocols", "network", "errors", "model", "paper", "fidelity"}


def test_the_default_selection_leaves_out_what_is_long():
    chosen = {item.name for item in command.select([])}
    assert {name.partition(".")[0] for name in chosen} == GROUPS - {"fidelity", "paper"}
    assert len({item.name for item in command.BENCHMARKS}) == len(command.BENCHMARKS)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["gelu"], ["protocols.gelu", "errors.gelu"]),
        (["protocols.silu", "kernels.prf"], ["kernels.prf", "protocols.silu"]),
        (
            ["fidelity"],
            [
                *("fidelity.demo", "fidelity.drafts"),
                *("fidelity.perplexity", "fidelity.embeddings", "fidelity.sets"),
            ],
        ),
    ],
)
def test_selection_by_name(names, expected):
    assert [item.name for item in command.select(names)] == expected


def test_selection_by_group():
    chosen = command.select(["kernels"])
    assert chosen == [b for b in command.BENCHMARKS if b.name.startswith("kernels.")]


def test_an_unknown_name_is_refused_before_any_work(capsys):
    with pytest.raises(ConfigError, match=r"no benchmark 'gemmm': choose from kernels\.gemm"):
        command.select(["gemmm"])
    assert command.main(["gemmm"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1


def test_an_unusable_file_is_refused_before_any_work(tmp_path, capsys):
    assert command.main(["product", "--quick", "--json", str(tmp_path)]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_repeat_must_be_positive(capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(["product", "--repeat", "0"])
    assert "at least 1" in capsys.readouterr().err


def test_listing_from_the_command_line():
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--list"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [item.name for item in command.BENCHMARKS]
    long = [line.split()[0] for line in lines if "only when named" in line]
    assert long == [item.name for item in command.BENCHMARKS if not item.default]


def test_one_benchmark_end_to_end(tmp_path, capsys):
    file = tmp_path / "new" / "results.json"
    code = command.main(["selection", "--quick", "--repeat", "2", "--json", str(file)])
    assert code == 0
    out = capsys.readouterr().out
    assert "selection" in out and "dealt MB" in out
    data = json.loads(file.read_text())
    assert data["schema"] == 1
    assert data["failures"] == {}
    assert data["options"] == {"quick": True, "repeat": 2}
    assert data["machine"].keys() == {"cpu", "architecture", "cores", "memory_bytes", "os"}
    assert data["machine"]["cores"] >= 1
    assert data["versions"]["numpy"] == np.__version__
    assert data["versions"].keys() >= {"python", "numpy", "numba", "puma-actors", "commit"}
    (result,) = data["results"]
    assert result["name"] == "protocols.selection"
    assert result["seconds"]["runs"] == 2
    assert result["seconds"]["low"] <= result["seconds"]["median"] <= result["seconds"]["high"]
    assert result["rate"]["unit"] == "elements/s"
    assert result["rate"]["low"] <= result["rate"]["median"] <= result["rate"]["high"]
    assert (result["rounds"], result["online_bytes"]) == (1, 2 * 8 * 20_000)
    assert result["errors"]["largest"] < 1e-5
    assert result["reference"] is None


def test_a_failing_benchmark_does_not_stop_the_others(monkeypatch, tmp_path, capsys):
    def fails(options: Options) -> Iterator[Result]:
        yield Result("kernels.first", "before", Spread.of([1.0]), 1, "things")
        raise ConfigError("no such thing: get one")

    def works(options: Options) -> Iterator[Result]:
        yield Result("kernels.second", "case", Spread.of([2.0]), 4, "things")

    items = [Benchmark("kernels.first", "", fails), Benchmark("kernels.second", "", works)]
    monkeypatch.setattr(command, "BENCHMARKS", items)
    file = tmp_path / "results.json"
    assert command.main(["--json", str(file)]) == 1
    data = json.loads(file.read_text())
    assert data["failures"] == {"kernels.first": "ConfigError: no such thing: get one"}
    assert [result["case"] for result in data["results"]] == ["before", "case"]
    assert data["results"][1]["rate"]["median"] == 2.0
    assert "kernels.first failed" in capsys.readouterr().err


def test_spread_and_rate():
    spread = Spread.of([4.0, 1.0, 2.0])
    assert spread == Spread(2.0, 1.0, 4.0, 3)
    assert spread.rate(8) == Spread(4.0, 2.0, 8.0, 3)


@pytest.mark.parametrize(
    ("options", "runs"), [(Options(repeat=4), 4), (QUICK, 1), (Options(quick=True, repeat=3), 3)]
)
def test_a_given_number_of_runs(options, runs):
    repeats = Repeats(options)
    while repeats.wanted():
        repeats.add(0.1)
    assert repeats.spread().runs == runs
    assert options.runs(7) == runs


def test_texts():
    assert [seconds_text(s) for s in (None, 123.4, 0.0456, 7.8e-6)] == [
        "",
        "123 s",
        "45.6 ms",
        "7.8 µs",
    ]
    assert [scaled(value) for value in (12.34, 5600, 7.8e6, 9.1e10)] == [
        "12.3",
        "5.6 k",
        "7.8 M",
        "91 G",
    ]


# -- workloads -------------------------------------------------------------------------------------

PROTOCOLS = {item.name: item for item in protocol_benchmarks.BENCHMARKS}
BOUNDS = {"puma": 0.1, "fast": 0.02, "tight": 3e-4, "": 1e-4}
RESOLUTION = 1 / 8
"""Of the comparison over 20 bits."""


@pytest.mark.parametrize("name", PROTOCOLS)
def test_workloads_are_right(name):
    for result in PROTOCOLS[name].run(QUICK):
        assert result.errors is not None and result.cost is not None
        bound = RESOLUTION if "20 bits" in result.case else BOUNDS[result.approximation]
        assert result.errors.largest <= bound, (result.case, result.errors)
        assert result.cost.rounds >= 1
        assert result.reference is None  # another shape
        assert (result.online_seconds is None) == (name == "protocols.embedding")


@pytest.mark.parametrize("item", error_benchmarks.BENCHMARKS, ids=lambda item: item.name)
def test_the_table_of_errors(item, capsys):
    results = list(item.run(QUICK))
    largest = {}
    for result in results:
        assert result.errors.largest <= BOUNDS[result.approximation], (result.case, result.errors)
        assert result.errors.mean <= result.errors.largest
        assert result.cost.rounds >= 1
        largest[result.case, result.approximation] = result.errors.largest
    if item.name in ("errors.gelu", "errors.silu", "errors.exp"):
        for case in {result.case for result in results}:
            assert largest[case, "tight"] < largest[case, "fast"] < largest[case, "puma"]
    document(QUICK, results, {}, 1.0)
    show(console(), {"memory_bytes": 0, "cpu": "", "cores": 1, "os": ""}, results)
    printed = capsys.readouterr().out
    assert "Accuracy" in printed
    claimed = "0.014" in printed and "0.00168" in printed
    assert claimed == (item.name == "errors.gelu")


@pytest.mark.parametrize("build", [product, comparison, gelu, softmax, embedding])
def test_actors_count_what_lockstep_counts(build):
    for workload in build(True):
        result = protocol_benchmarks.measure("protocols.any", workload, QUICK)
        settings = Settings(approximation=workload.approximation or "tight", tree=workload.tree)
        outcome = run_parties(workload.programs(), settings)
        assert result.cost == outcome.cost
        assert workload.check(outcome.results).largest <= 0.1


def test_traffic_stands_beside_a_reference(capsys):
    compared = Result(
        "protocols.product",
        "here",
        Spread.of([0.5]),
        10,
        "elements",
        cost=Cost(2, 20_000_000, 6_000_000),
        errors=Errors(1e-5, 1e-6),
        reference=SPU["product"],
    )
    assert compared.traffic_ratio == pytest.approx(26 / 52)
    data = document(QUICK, [compared], {}, 1.0)
    assert data["results"][0]["reference"]["sends"] == 3
    show(console(), data["machine"], [compared])
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("Beside SecretFlow-SPU"))
    assert lines[start + 2].split()[:5] == ["product", "here", "26", "52", "0.5"]


# -- networks --------------------------------------------------------------------------------------


def test_networks_are_as_slow_as_asked(capsys, monkeypatch):
    standing(monkeypatch, network_benchmarks)
    results = list(network_benchmarks.BENCHMARKS[0].run(QUICK))
    assert [r.case for r in results[:2]] == ["lan: round trip", "lan: throughput"]
    assert len(results) == 2 * len(PRESETS)
    for result in results:
        assert result.details["cores"] > 0
        if result.case.endswith("round trip"):
            asked, delivered = result.details["asked"], result.details["delivered"]
            assert asked <= delivered < 1.01 * asked  # the frame has a length
        else:
            assert result.details["ratio"] == pytest.approx(1)
    show(console(), document(QUICK, results, {}, 1.0)["machine"], results)
    out = capsys.readouterr().out
    assert "Modelled networks" in out and "100 Mbit/s" in out and "150 ms" in out


# -- the model -------------------------------------------------------------------------------------


def test_cost_of_a_layer_is_a_difference():
    plan = draft_plan(tiny_config(layers=4))
    layer = layer_cost(plan, 6, 0, Settings())
    whole = predict(plan, 6)[-1].cost
    shorter = predict(draft_plan(tiny_config(layers=3)), 6)[-1].cost
    assert layer == Cost(
        whole.rounds - shorter.rounds,
        whole.online - shorter.online,
        whole.offline - shorter.offline,
    )
    assert layer.rounds > 0 and layer.online > 0 and layer.offline > 0


def test_peak_memory_is_of_this_process():
    held = np.ones(1 << 20)
    assert peak_bytes() > held.nbytes


def test_differences_are_told_with_the_reference_model_s_own_gap():
    logits = np.array([[0.0, 3.0, 1.0], [2.0, 1.99, 0.0], [5.0, 0.0, 1.0]])
    (found,) = differences([1, 1, 0], logits)
    assert (found.position, found.ours, found.theirs) == (1, 1, 0)
    assert found.gap == pytest.approx(0.01)
    assert found.deficit == pytest.approx(0.01)
    assert differences([1, 0, 0], logits) == []


def test_a_missing_torch_is_told_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match=r"which is missing .*: run `make test` once"):
        TorchModel(tmp_path / "model.gguf")
