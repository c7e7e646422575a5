"""Side by side with SPU: everything but SPU itself, for which a small script stands in."""

import subprocess
import xml.etree.ElementTree as ET
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.paper import SIZES, shrunk
from bench.spu.__main__ import main
from bench.spu.install import PYTHONS, SPU, spu_python
from bench.spu.pairs import compare, difference
from bench.spu.plot import plot
from bench.spu.reading import read_weights, traffic
from bench.spu.report import write_page
from bench.spu.table import BEGIN, END, Conditions, Row, Side, markdown, replaced, warning
from bench.spu.talk import PeerError
from bench.spu.workloads import ITEMS, OPERATIONS, Figures, Item, Opened
from bench.tools.checkpoints import write_checkpoint
from models.checkpoints.weights import open_checkpoint
from protocols.errors import ConfigError

ROOT = Path(__file__).parents[2]


def conditions(load: float = 0.1) -> Conditions:
    machine = {"cpu": "Some CPU", "cores": 2, "memory_bytes": 24 << 30}
    versions = {"commit": "abc", "python": "3.12", "numpy": "2", "numba": "1"}
    return Conditions("2026-01-02", 2, load, (3, 1), machine, versions, {"spu": "0.9.5"})


def row(ours: list[float], theirs: list[float], **more: str) -> Row:
    name = more.get("name", "a product")
    return Row(name, Side(ours, 2.0, 4, 1e-5), Side(theirs, 5.0, 9, 0.25))


# -- the table -------------------------------------------------------------------------------------


def test_a_ratio_is_the_median_over_pairs():
    found = row([1.0, 2.0, 10.0], [4.0, 6.0, 20.0])
    assert found.time_ratio == 3.0  # not 6 / 2, nor 10 s beside 4 s
    assert found.traffic_ratio == 2.5
    assert row([1.0, 2.0, 10.0], [4.0]).time_ratio == 4.0
    assert row([1.0], []).time_ratio is None
    assert row([1.0], []).traffic_ratio is None


def test_the_table_has_a_line_for_each_row():
    failed = Row("broken", Side([1.0], 2.0, 4), Side(failed="killed\nby | signal 9"))
    text = markdown([row([1.0], [4.0]), failed], conditions(), [("Seconds", "spu-seconds.svg")])
    lines = text.splitlines()
    assert "| a product | 1 | 4 | 4.0 x | 2 | 5 | 2.5 x | 4 | 9 | 1e-05 | 0.25 |" in lines
    assert "| broken | 1 | failed |  | 2 |  |  | 4 |  | 0 |  |" in lines
    assert "broken, SPU: failed: killed by / signal 9" in lines
    assert lines[-1] == "![Seconds](spu-seconds.svg)"
    assert "Some CPU, 2 cores, 24 GiB, 2 threads for each system, load average 0.10" in lines[0]
    bars = {line.count("|") for line in lines if line.startswith("|")}
    assert bars == {12}


def test_several_runs_show_their_span():
    text = markdown([row([1.0, 1.5, 3.0], [4.0] * 3)], conditions(), [])
    assert "| 1.5 (1 to 3) | 4 (4 to 4) | 2.7 x |" in text


def test_a_busy_machine_is_told():
    assert warning(1.0) == ""
    assert "load average was 1.2" in warning(1.2)
    assert "**Warning**" in markdown([], conditions(1.2), [])
    assert "**Warning**" not in markdown([], conditions(0.5), [])


@given(st.text(), st.text(), st.text())
def test_only_what_is_between_the_markers_is_replaced(before, old, after):
    page = f"{before}{BEGIN}\n{old}\n{END}{after}"
    once = replaced(page, "new")
    assert once == f"{before}{BEGIN}\nnew\n{END}{after}"
    assert replaced(once, "new") == once


@pytest.mark.parametrize(
    "page", ["", BEGIN, END, f"{END} {BEGIN}", f"{BEGIN} {BEGIN} {END}", f"{BEGIN} {END} {END}"]
)
def test_a_page_without_its_markers_is_refused(page):
    with pytest.raises(ConfigError, match="once each, in this order"):
        replaced(page, "new")


def test_the_page_of_the_docs_has_its_markers():
    assert replaced((ROOT / "docs" / "benchmarks.md").read_text("utf-8"), "")


def test_a_page_gets_its_table_and_plots(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    plots = write_page(page, [row([1.0], [4.0]), row([], [1.0], name="no")], conditions())
    text = page.read_text()
    assert "old" not in text and text.startswith("before\n") and text.endswith("\nafter\n")
    assert [file.name for file in plots if f"]({file.name})" in text and file.is_file()] == [
        "spu-seconds.svg",
        "spu-megabytes.svg",
    ]


def test_a_page_stays_as_it_is_if_nothing_ran_on_both_sides(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\nold\n{END}")
    with pytest.raises(ConfigError, match="no workload ran on both sides"):
        write_page(page, [row([1.0], [])], conditions())
    assert page.read_text() == f"{BEGIN}\nold\n{END}"
    assert list(tmp_path.iterdir()) == [page]


positive = st.floats(1e-4, 1e5)


@given(st.lists(st.tuples(st.text("ab<&\"'", max_size=9), positive, positive), min_size=1))
def test_a_plot_is_well_formed_and_its_dots_are_in_order(points):
    root = ET.fromstring(plot("A <title>", "s", [(*point, "2 x") for point in points]))
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    dots = root.findall("{*}circle")[2:]  # after the legend's
    assert len(dots) == 2 * len(points)
    for (_, ours, theirs), right, left in zip(points, dots[::2], dots[1::2], strict=True):
        xs = [float(dot.get("cx", 0)) for dot in (left, right)]
        assert all(300 < x < width for x in xs)
        assert all(0 < float(dot.get("cy", 0)) < height for dot in (left, right))
        assert (xs[0] <= xs[1]) == (ours <= theirs) or xs[0] == xs[1]


# -- what SPU's side reads -------------------------------------------------------------------------


def test_traffic_is_read_from_what_was_logged_last(tmp_path):
    log = tmp_path / "log"
    old = "Link details: total send bytes 9, recv bytes 9, send actions 9, recv actions 9\n"
    new = "".join(
        f"[info] Link details: total send bytes {size}, recv bytes 0, send actions {count}, ...\n"
        for size, count in ((1_000_000, 3), (2_000_000, 5), (500_000, 4))
    )
    log.write_text(old + new)
    assert traffic(log, len(old), 3) == {"megabytes": 3.5, "sends": 5}
    with pytest.raises(RuntimeError, match="traffic of 4 parties, not of 3"):
        traffic(log, 0, 3)


@pytest.mark.parametrize("name", ["BERT-base", "GPT-2 base"])
def test_both_systems_read_the_same_weights(tmp_path, name):
    config = write_checkpoint(tmp_path, shrunk(SIZES[name]).given)
    weights = read_weights(tmp_path)
    assert weights.keys() == config.tensors().keys()
    checkpoint = open_checkpoint(tmp_path)
    for tensor, values in weights.items():
        np.testing.assert_array_equal(values, checkpoint.tensor(tensor))


# -- turns -----------------------------------------------------------------------------------------


class Told:
    """Stands in for `Peer`: answers from a list, and writes down who ran."""

    def __init__(self, ran: list[str], answers: list[object]) -> None:
        self.ran, self.answers = ran, answers
        self.still_during: list[list[str]] = []

    @contextmanager
    def still(self):
        begun = len(self.ran)
        yield
        self.still_during.append(self.ran[begun:])

    async def ask(self, request):
        self.ran.append("theirs" if "run" in request else "prepare")
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def item(ran: list[str], exact=(), broken: str = "") -> Item:
    @asynccontextmanager
    async def opened(quick):
        def ours(variant):
            async def run():
                ran.append(variant)
                if variant == broken:
                    raise ConfigError("out of range")
                return Figures(float(len(ran)), 1.0, 2, 0.1)

            return run

        yield Opened({"prepare": "x"}, {name: ours(name) for name in ("tight", "fast")}, exact)

    return Item("x", "thing", False, opened)


def figures(seconds: float) -> dict[str, float]:
    return {"seconds": seconds, "megabytes": 3.0, "sends": 7, "error": 0.5}


async def test_the_systems_take_turns_and_the_first_run_is_not_counted():
    ran: list[str] = []
    told = Told(ran, [{"exact": []}, figures(99.0), figures(30.0), figures(60.0)])
    tight, fast = await compare(item(ran), told, 2, lambda line: None)
    assert ran == ["prepare", *(["tight", "fast", "theirs"] * 3)]
    assert told.still_during == [["tight", "fast"]] * 3
    assert tight.workload == "thing, tight" and tight.theirs is fast.theirs
    assert (tight.ours.seconds, fast.ours.seconds) == ([5.0, 8.0], [6.0, 9.0])
    assert tight.theirs == Side([30.0, 60.0], 3.0, 7, 0.5)


async def test_a_system_that_fails_keeps_its_runs_and_is_left_out_from_then_on():
    ran: list[str] = []
    told = Told(ran, [{"exact": []}, figures(9.0), figures(30.0), PeerError("it died")])
    tight, fast = await compare(item(ran, broken="fast"), told, 3, lambda line: None)
    assert tight.theirs == Side([30.0], 3.0, 7, 0.5, failed="it died")
    assert len(tight.ours.seconds) == 3
    assert fast.ours.failed == "ConfigError: out of range"
    assert ran.count("fast") == 1 and ran.count("theirs") == 3


async def test_another_function_is_not_compared():
    ran: list[str] = []
    told = Told(ran, [{"exact": [0.5, 0.7]}])
    rows = await compare(item(ran, exact=(0.5, 0.71)), told, 1, lambda line: None)
    assert "computes another function" in rows[0].theirs.failed
    assert rows[0].theirs.seconds == [] and rows[0].ours.seconds


def test_exact_results_may_differ_by_roundings_only():
    assert difference([100.0, 1.0], [100.05, 1.0]) == ""
    assert "0.2 from ours" in difference([100.0, 1.0], [100.2, 1.0])
    assert "another function" in difference([1.0], [float("nan")])
    assert "1 exact results instead of 2" in difference([1.0, 2.0], [1.0])


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_finds_its_variants(name):
    _, operation = OPERATIONS[name]
    assert list(operation.chosen(quick=True)) == list(operation.variants)


# -- its environment -------------------------------------------------------------------------------


def done(code: int = 0, out: str = "", err: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.CompletedProcess([], code, out, err)


def test_an_environment_is_made_once(tmp_path):
    commands = []

    def run(command):
        commands.append(" ".join(command))
        if "venv" in command:
            (tmp_path / "venv" / "bin").mkdir(parents=True)
        return done(out=PYTHONS[0])

    said: list[str] = []
    python = spu_python(tmp_path / "venv", said.append, run)
    assert python == tmp_path / "venv" / "bin" / "python"
    assert any(command.endswith(f"--no-compile {SPU}") for command in commands)
    count = len(commands)
    assert spu_python(tmp_path / "venv", said.append, run) == python
    assert len(commands) == count and len(said) == 1


def test_no_fitting_python_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"needs Python 3\.11 or 3\.10.*install one"):
        spu_python(tmp_path / "venv", lambda line: None, lambda command: done(out="3.14"))
    with pytest.raises(ConfigError, match="needs Python"):
        spu_python(tmp_path / "venv", lambda line: None, lambda command: done(127))


def test_a_registry_that_cannot_be_reached_is_told(tmp_path):
    def run(command):
        if "pip" in command:
            return done(1, err="WARNING: retrying\nERROR: No matching distribution")
        return done(out=PYTHONS[0])

    with pytest.raises(ConfigError, match=r"registry can be reached.*ERROR: No matching"):
        spu_python(tmp_path / "venv", lambda line: None, run)
    assert not (tmp_path / "venv" / f".{SPU}").exists()


# -- the command -----------------------------------------------------------------------------------


def test_wrong_arguments_are_refused_before_any_work(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("no markers")
    wrong = [["bret"], ["--pairs", "0"], ["--threads", "4096"], ["--quick", "--docs", str(page)]]
    for arguments in wrong:
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
    assert "no workload 'bret': choose from product," in capsys.readouterr().err
    assert main(["--docs", str(page), "--environment", str(tmp_path / "venv")]) == 2
    assert BEGIN in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [page]


def test_names_are_distinct():
    assert len({item.name for item in ITEMS}) == len(ITEMS) == len(OPERATIONS) + 2
