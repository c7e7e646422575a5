"""What is made of the profiler's records: times by cause, trace events, the page, the command."""

import json
import re
from collections import Counter, defaultdict
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from unittest import mock

import anyio
import pytest
from tiny_models import save, tiny_model

from protocols.base.events import Call, Key, Receive, Send, Slice, Story
from protocols.base.lane import Settings
from protocols.base.meter import Meter
from protocols.base.shares import EVALUATORS, Role
from protocols.drivers import observed
from puma_actors.profiling import chrome, page
from puma_actors.profiling.analysis import Row
from puma_actors.profiling.counts import layer_of, operation_of, place_of, protocol_of
from puma_actors.profiling.profile import run_profile
from puma_actors.profiling.sweep import flights, length, spend, union
from puma_actors.session.recorder import Recorder

A, B = EVALUATORS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tiny_model("gpt2", "causal-lm"), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def profile(folder):
    with mock.patch.object(observed, "LEAST_WORK", 0):  # the model is tiny
        options = {"network": "1ms,1gbit", "tokens_in": 4, "tokens_out": 2}
        return anyio.run(partial(run_profile, folder, settings=Settings(), **options))


# -- where the time went, on made-up events --------------------------------------------------------


def recorded() -> Recorder:
    """A sends at 1, computes from 0 to 2 and waits for B's message, which is there at 5."""
    recorder = Recorder()
    mine, theirs = Story(), Story()
    place, protocol = "layers.0.down", "linear/lift"
    mine.slices = [
        Slice(0.0, 2.0, (), place, protocol),
        Slice(6.0, 6.5, (), place, protocol),
    ]
    mine.receives = [Receive(1.9, 6.1, (), place, protocol, B, 100, 1)]
    theirs.sends = [Send(1.5, 1.5, (), place, protocol, A, 100, 1, True)]
    recorder.meters = {(A, 3): Meter(A, mine), (B, 3): Meter(B, theirs)}
    recorder.arrivals = {(B, A, (3, 1)): 5.0}
    return recorder


KEY = Key("layers.0.down", "linear/lift")


def test_time_is_split_by_cause():
    assert flights(recorded(), A, 3) == [(1.5, 5.0)]
    assert dict(spend(recorded(), A, 3)) == pytest.approx(
        {
            ("compute", KEY): 2.0,  # before the message left, and after it was taken
            ("hidden", KEY): 0.5,
            ("network", KEY): 3.0,
            ("processor", KEY): 1.0,  # it was there, but something else ran
        }
    )


def test_a_window_cuts_what_is_outside():
    spent = spend(recorded(), A, 3, (1.0, 4.0))
    assert dict(spent) == pytest.approx(
        {("compute", KEY): 0.5, ("hidden", KEY): 0.5, ("network", KEY): 2.0}
    )


@pytest.mark.parametrize(
    ("peer", "cause"), [(B, "network"), (Role.DEALER, "dealer"), (Role.CLIENT, "client")]
)
def test_waiting_is_by_sender(peer, cause):
    recorder, story = Recorder(), Story()
    story.receives = [Receive(1.0, 3.0, (2, 0), "embed", "embed", peer, 8, 1)]
    recorder.meters = {(A, 0): Meter(A, story)}
    recorder.arrivals = {(peer, A, (0, 2, 0, 1)): 3.0}
    assert dict(spend(recorder, A, 0)) == {(cause, Key("embed", "embed")): 2.0}


def test_a_kernel_on_a_thread_computes_while_a_lane_waits():
    recorder, story = Recorder(), Story()
    story.calls = [Call(2.0, 4.0, (1, 0), "head", "linear", "gemm", True, 1.5)]
    story.receives = [Receive(1.0, 5.0, (1, 1), "head", "less", B, 8, 1)]
    recorder.meters = {(A, 0): Meter(A, story)}
    recorder.arrivals = {(B, A, (0, 1, 1, 1)): 5.0}
    assert dict(spend(recorder, A, 0)) == {
        ("network", Key("head", "less")): 2.0,
        ("compute", Key("head", "linear")): 2.0,
    }


def test_a_send_that_is_held_back():
    recorder, story = Recorder(), Story()
    story.sends = [
        Send(1.0, 3.0, (), "head", "linear", A, 8, 1, False),
        Send(3.0, 3.00001, (), "head", "linear", A, 8, 2, False),  # no more than the call takes
    ]
    recorder.meters = {(Role.DEALER, 0): Meter(Role.DEALER, story)}
    assert dict(spend(recorder, Role.DEALER, 0)) == {("held", Key("head", "linear")): 2.0}


def test_intervals():
    spans = [(3.0, 4.0), (0.0, 1.0), (0.5, 2.0), (2.0, 2.5)]
    assert union(spans) == [(0.0, 2.5), (3.0, 4.0)]
    assert length(spans) == 3.5
    assert length([]) == 0


def test_groupings():
    key = Key("layers.3.mlp_norm", "norm/rsqrt/less")
    assert layer_of(key) == "layers.3"
    assert place_of(key) == "layers.*.mlp_norm"
    assert (operation_of(key), protocol_of(key)) == ("norm", "less")
    assert layer_of(Key("head", "linear")) == place_of(Key("head", "linear")) == "head"


# -- trace events ----------------------------------------------------------------------------------


def test_trace_events_have_the_format(profile):
    trace = chrome.trace_events(profile.recorder)
    assert set(trace) == {"displayTimeUnit", "traceEvents"}
    by_phase = defaultdict(list)
    for event in json.loads(json.dumps(trace))["traceEvents"]:
        by_phase[event["ph"]].append(event)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
    assert set(by_phase) == {"M", "X", "s", "f"}
    processes = [e["args"]["name"] for e in by_phase["M"] if e["name"] == "process_name"]
    assert processes == ["dealer", "evaluator-a", "evaluator-b", "client"]
    threads = {(e["pid"], e["tid"]) for e in by_phase["M"] if e["name"] == "thread_name"}
    assert {(e["pid"], e["tid"]) for kind in "Xsf" for e in by_phase[kind]} <= threads
    for event in by_phase["X"]:
        assert event["ts"] >= 0
        assert event["dur"] >= 0
        assert event["cat"] in ("compute", "kernel", "wait")
    assert Counter(e["cat"] for e in by_phase["X"]).keys() == {"compute", "kernel", "wait"}


def test_every_arrow_has_a_tail_and_a_head_within_something(profile):
    """Bars of tasks that take turns faster than their entries tell end early: a few arrows then
    start in the gap behind one.
    """
    events = chrome.trace_events(profile.recorder)["traceEvents"]
    bars = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            bars[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    tails = {event["id"]: event for event in events if event["ph"] == "s"}
    heads = {event["id"]: event for event in events if event["ph"] == "f"}
    sent = sum(len(meter.sends) for meter in profile.recorder.meters.values())
    assert tails.keys() == heads.keys()
    assert len(tails) == sent
    beside = 0
    for number, head in heads.items():
        tail = tails[number]
        assert head["bp"] == "e"
        assert tail["ts"] <= head["ts"]
        assert tail["pid"] != head["pid"]
        assert (tail["name"], tail["cat"]) == (head["name"], head["cat"])
        for end in (tail, head):
            row = bars[end["pid"], end["tid"]]
            away = min(max(lo - end["ts"], end["ts"] - hi, 0.0) for lo, hi in row)
            assert away < 100
            beside += away > 0.01
    assert beside < 0.05 * len(tails)


def test_bars_of_a_row_nest(profile):
    """Perfetto drops what overlaps in part."""
    for role in EVALUATORS:
        for track in chrome.tracks(profile.recorder, role)[0]:
            open_ends: list[float] = []
            for bar in sorted(track.bars, key=lambda bar: (bar.start, -bar.end)):
                while open_ends and open_ends[-1] <= bar.start + 1e-9:
                    open_ends.pop()
                assert not open_ends or bar.end <= open_ends[-1] + 1e-9
                open_ends.append(bar.end)


# -- the page --------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """Tags with their attributes; the parser complains of nothing, so balance is counted."""

    VOID = ("meta", "link", "br", "img", "input", "hr")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_works_offline(profile):
    text = page.render(profile)
    elements = Elements()
    elements.feed(text)
    assert elements.open == []
    tags = {tag for tag, _ in elements.found}
    assert not tags & {"link", "img", "iframe", "object", "embed"}
    for _, attributes in elements.found:
        assert not {"src", "href", "srcset", "action"} & attributes.keys()
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(|\bfetch\(|XMLHttp|import\(", text)
    assert "prefers-color-scheme: dark" in text
    assert page._MARK not in text


def test_the_page_holds_the_figures(profile):
    text = page.render(profile)
    line = next(line for line in text.splitlines() if line.startswith("const DATA = "))
    data = json.loads(line.removeprefix("const DATA = ").removesuffix(";"))
    timeline = data.pop("timeline")
    sums, actions = data.pop("sums"), data.pop("actions")
    assert len(sums) == len(actions) == len(data["phases"])
    for phase, line in zip(data["phases"], sums, strict=True):
        measured = phase["wall_seconds"] / phase["steps"]
        assert line.endswith(f" = {1e3 * measured:.3g} ms measured")
        assert f"{phase['rounds'] / phase['steps']:,.0f} rounds x 0.5 ms" in line
    assert all("it would take" in text or "use tree" in text for each in actions for text in each)
    assert data["about"].keys() >= {"date", "version", "processor", "cores", "peak_memory_bytes"}
    for part in ("<svg", "until the first token", "What would gain most", "On other networks"):
        assert part in text
    assert data == json.loads(json.dumps(profile.to_public()))
    assert [role["role"] for role in timeline["roles"]] == [
        "dealer",
        "evaluator-a",
        "evaluator-b",
        "client",
    ]
    assert len(timeline["steps"]) == 2
    for role in timeline["roles"]:
        names = [lane["name"] for lane in role["lanes"]]
        assert names[0] == "main"
        assert len(set(names)) == len(names)
        for lane in role["lanes"]:
            assert re.fullmatch(r"[a-z_]+( \d+)?", lane["name"])
            for start, duration, kind, place, protocol in lane["bars"]:
                assert start >= 0
                assert duration >= 0
                assert kind < len(timeline["kinds"])
                assert max(place, protocol) < len(timeline["names"])


def test_a_model_name_cannot_end_the_script(profile):
    text = page.render(replace(profile, model="</script><b>"))
    assert "</script><b>" not in text


# -- the command -----------------------------------------------------------------------------------


def test_json_is_one_object_and_files_are_written(puma, folder, tmp_path):
    trace, html = tmp_path / "trace.json", tmp_path / "report.html"
    code, out, err = puma(
        *("profile", "-m", folder, "--tokens-in", 3, "--tokens-out", 2, "--json"),
        *("--trace", trace, "--html", html),
    )
    assert (code, err) == (0, "")
    data = json.loads(out)
    assert out.count("\n") == 1
    assert data["matches_prediction"] is True
    assert data["network"] is None
    assert [phase["name"] for phase in data["phases"]] == ["prefill", "decode"]
    assert data["phases"][0]["layers"][1]["name"] == "layers.0"
    assert json.loads(trace.read_text())["traceEvents"]
    assert html.read_text().startswith("<!doctype html>")


def test_tables(puma, folder):
    code, out, _ = puma("profile", "-m", folder, "--tokens-in", 3, "--network", "0ms,10gbit")
    assert code == 0
    for part in (
        "decode, 3 steps together",
        "by role",
        "by layer",
        "layers.*.attention",
        "by protocol, innermost",
        "where the time goes",
        "rounds and bytes match the prediction at every place",
    ):
        assert part in out
    assert "…" not in out


def test_an_older_profile_beside_one_with_a_draft(puma, folder, profile, tmp_path):
    old, html = tmp_path / "old.json", tmp_path / "page.html"
    old.write_text(json.dumps(profile.to_public()))
    options = ("--tokens-in", 3, "--tokens-out", 2, "--tree", "balanced", "--compare", old)
    draft = ("--draft", "ngram", "--draft-tokens", 2)
    code, out, err = puma("profile", "-m", folder, *options, *draft, "--html", html, "--json")
    assert (code, err) == (0, "")
    data = json.loads(out)
    assert data["matches_prediction"] is True
    assert data["draft"] == 2
    assert [step["name"] for step in data["compare"]["steps"]] == ["prefill", "decode"]
    (_, decode) = data["compare"]["steps"]
    assert decode["sent"]["ratio"] > 2  # three rows instead of one
    assert "Compared with model" in html.read_text()
    code, out, _ = puma("profile", "-m", folder, *options)
    assert code == 0
    for part in ("compared with model", "time on wan", "a step: ", "what to do", "tokens in"):
        assert part in out
    assert puma("profile", "-m", folder, "--compare", html)[0] == 2


def test_public_weights_are_profiled(puma, folder):
    options = ("--tokens-in", 3, "--tokens-out", 1, "--public-weights", "--memory", "1GB")
    code, out, err = puma("profile", "-m", folder, *options, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["matches_prediction"] is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trace", "trace.txt"], "--trace: trace.txt must end in .json"),
        (["--html", "nowhere/report.html"], "--html: cannot write nowhere/report.html"),
        (["--network", "wam"], "'wam' is not known"),
        (["--memory", "much"], "--memory 'much' is not a size"),
        (["--tokens-in", "0"], "0 tokens in"),
        (["--tokens-in", "500"], "need more than the model's 20 positions"),
    ],
)
def test_bad_input_is_one_line(puma, folder, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = puma("profile", "-m", folder, *options)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_layers_are_condensed():
    from puma_actors.cli.commands.profile import condensed

    rows = [Row("embed"), *(Row(f"layers.{i}", rounds=4, online=i) for i in range(5)), Row("head")]
    short = condensed(rows)
    assert [row.name for row in short] == [
        "embed",
        "each of 5 layers (mean)",
        "layers.0",
        "layers.4",
        "head",
    ]
    assert (short[1].rounds, short[1].online) == (4, 2)
    assert condensed(rows[:3]) == rows[:3]
