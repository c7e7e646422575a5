"""What-if's answer: grids, the two profiles side by side, the page and the plot."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import ConfigError
from puma_actors.planning.timing import Step, time_of, token_time
from puma_actors.profiling.whatif import page
from puma_actors.profiling.whatif.answer import (
    best,
    compared,
    grid_of,
    seconds_of,
    to_public,
)
from puma_actors.profiling.whatif.chart import Curve, chart
from puma_actors.profiling.whatif.path import beside, critical_path
from puma_actors.profiling.whatif.variants import (
    Request,
    Row,
    Variant,
    Work,
    work_of,
    yielding,
)
from puma_actors.profiling.whatif.words import shown
from puma_actors.transports.delay.network import PRESETS, parse_network


def work(name, rounds, nbytes):
    rows = [Row("embed", 3, 3, nbytes / 4, nbytes), Row("layers.0", rounds, rounds, nbytes, 0, 0.1)]
    found = work_of(name, 1, rows, rows, (0.5, 0.6))
    return Work(replace(found.step, computation=0.25), found.places)


def request(model="m", scale=1.0, names=("prefill", "decode")):
    few = tuple(work(name, 100 * scale, 1e7 * scale) for name in names)
    light = tuple(work(name, 140 * scale, 2e6 * scale) for name in names)
    return Request(
        model, 7, True, "made up", (Variant("rounds", 1, few), Variant("traffic", 4, light))
    )


GRID = grid_of()


# -- grids -----------------------------------------------------------------------------------------


def test_the_usual_grid_has_the_presets():
    assert [network.name for network in GRID.named] == list(PRESETS)
    assert len(GRID.round_trips) * len(GRID.bandwidths) >= 30


def test_a_grid_of_ones_own():
    grid = grid_of(["wan", "3ms,7mbit"], ["40ms", "1ms", "1ms"], ["1gbit", "2mbit"])
    assert [network.name for network in grid.named] == ["wan", "3ms,7mbit"]
    assert grid.round_trips == (0.001, 0.04)
    assert grid.bandwidths == (2e6, 1e9)


@pytest.mark.parametrize(
    ("networks", "trips", "rates", "message"),
    [
        (["wam"], [], [], "'wam' is not known"),
        ([], ["40"], [], "'40' is not known"),
        ([], ["-1ms"], [], "'-1ms' is not known"),
        ([], ["99s"], [], "round_trip of 99 s"),
        ([], ["10mbit"], [], "'10mbit' is no round trip: give figures like 40ms"),
        ([], ["wan"], [], "'wan' is no round trip"),
        ([], ["1ms,10mbit"], [], "is no round trip"),
        ([], [], ["40ms"], "'40ms' is no bandwidth: give figures like 100mbit"),
        ([], [], ["0mbit"], "bandwidth of 0 bit/s"),
        ([], [], ["jitter=2ms"], "is no bandwidth"),
        ([], ["1ms"] * 51, ["1mbit"] * 50, "a grid of 2,550 networks: give at most 2,500"),
    ],
)
def test_nonsense_is_refused(networks, trips, rates, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        grid_of(networks, trips, rates)


def test_times():
    assert seconds_of("--x", "600ms") == 0.6
    assert seconds_of("--x", " 1.5S ") == 1.5
    for text in ("", "3", "-1s", "nans", "1e9s", "3 m"):
        with pytest.raises(ConfigError, match=r"--x .* give a time such as 3s or 600ms"):
            seconds_of("--x", text)


# -- the answer ------------------------------------------------------------------------------------


def test_the_least_variant_depends_on_the_network():
    found = request()
    assert best(found, 0, PRESETS["intercontinental"]).tree == "rounds"
    near = parse_network("1ms,10mbit")
    assert best(found, 0, near).tree == "traffic"
    data = to_public(found, grid_of(["intercontinental", "1ms,10mbit"]))
    marks = {each["network"]: each["prefill"] for each in data["best"]}
    assert marks["intercontinental"] == {"tree": "rounds", "lanes": 1, "draft": 0}
    assert marks["1ms,10mbit"] == {"tree": "traffic", "lanes": 4, "draft": 0}


def test_every_cell_is_the_model_of_time():
    data = json.loads(json.dumps(to_public(request(), GRID), allow_nan=False))
    for variant, made in zip(data["variants"], request().variants, strict=True):
        for step, each in zip(variant["steps"], made.works, strict=True):
            for trip, row in zip(GRID.round_trips, step["grid_seconds"], strict=True):
                for rate, value in zip(GRID.bandwidths, row, strict=True):
                    expected = time_of(each.step, GRID.cell(trip, rate)).total
                    assert value == pytest.approx(expected, abs=1e-6)
            for network in step["networks"]:
                causes = ("latency", "transfer", "computation", "waiting")
                assert sum(network[cause] for cause in causes) == pytest.approx(
                    network["seconds"], abs=4e-6
                )


def test_two_profiles_side_by_side():
    prefill, decode = compared(request(scale=0.5), request(), GRID)
    assert (prefill["name"], decode["name"]) == ("prefill", "decode")
    assert prefill["rounds"] == {"old": 103, "new": 53, "ratio": 0.5146}
    assert decode["sent"]["ratio"] == 0.5
    assert decode["computation"]["ratio"] == 1
    assert [each["name"] for each in decode["networks"]] == list(PRESETS)
    assert all(each["new"] < each["old"] for each in decode["networks"])
    (_, layers) = decode["places"]
    assert layers["rounds"] == {"old": 100, "new": 50, "ratio": 0.5}


def test_a_place_of_one_profile_alone():
    old = request()
    first = old.variants[0].works[0]
    fewer = replace(first, places=first.places[:1])
    (found,) = compared(
        replace(old, variants=(Variant("rounds", 1, (fewer,)),)),
        replace(old, variants=(Variant("rounds", 1, (first,)),)),
        GRID,
    )
    assert found["places"][1]["rounds"] == {"old": 100, "new": 0, "ratio": 0}


def test_other_kinds_of_models_are_not_compared():
    with pytest.raises(ConfigError, match="--compare: the old profile has forward"):
        compared(request(), request(names=("forward",)), GRID)


def test_nothing_takes_no_time():
    """A step without anything: no division by zero."""
    empty = Work(Step("forward", ()), ())
    made = Request("m", 1, False, "given", (Variant("rounds", 1, (empty,)),))
    grid = grid_of(["0ms"], ["0ms"], ["1gbit"])
    data = to_public(made, grid, made)
    assert data["variants"][0]["steps"][0]["grid_seconds"] == [[0.0]]
    assert "<svg" in page.render(data)


# -- the page --------------------------------------------------------------------------------------


class _Elements(HTMLParser):
    """Tags with their attributes; counts whether they are closed."""

    VOID = ("meta", "circle", "line", "polyline")

    def __init__(self):
        super().__init__()
        self.found, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID or tag == "circle":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_works_offline_and_without_scripts():
    text = page.render(to_public(request(), GRID, request(scale=2)))
    elements = _Elements()
    elements.feed(text)
    assert elements.open == []
    tags = {tag for tag, _ in elements.found}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed"}
    for _, attributes in elements.found:
        assert not {"src", "href", "srcset", "action"} & attributes.keys()
    assert not re.search(r"https?:|@import|url\(", text)
    assert "prefers-color-scheme: dark" in text
    assert page._MARK not in text
    for words in (
        *("What would gain most", "By place", "Compared with", "traffic, 4 lanes"),
        *("Critical path, with what takes least", "old: rounds", "new: rounds"),
    ):
        assert words in text


def _drafting(tree, lanes, draft, tokens):
    works = request().variants[0].works
    return Variant(tree, lanes, yielding(works, tokens), draft)


def test_a_plot_has_a_kind_of_line_for_each_tree():
    """However many lanes and drafts are compared: of these it shows the least."""
    made = [
        _drafting(tree, lanes, draft, 1 + draft / 2)
        for tree in ("rounds", "balanced", "traffic")
        for lanes in (1, 2)
        for draft in (0, 4)
    ]
    found = to_public(replace(request(), variants=tuple(made)), GRID)
    text = page.render(found)
    for kind in range(3):
        assert text.count(f'class="curve d{kind}"') == 2  # in the legend of each step
        assert len(re.findall(rf'class="curve s\d d{kind}"', text)) == 2 * len(GRID.bandwidths)
    decode = text.partition("a further token</h2>")[2]
    highest = found["variants"][1]["steps"][1]["grid_seconds"][-1][-1]
    assert f"<title>rounds, 10 Gbit/s: {highest:.4g} s</title>" in decode
    names = [[name for name, _ in shown(found, step)] for step in (0, 1)]
    assert (len(names[0]), len(names[1])) == (6, 12)
    assert not any("drafted" in name for name in names[0])  # it changes no first step


def test_equal_counts_are_not_listed():
    text = page.render(to_public(request(), GRID, request()))
    assert text.count("Rounds and bytes are equal at every place.") == 2
    assert "rounds of embed" not in text


# -- the critical path -----------------------------------------------------------------------------


@given(
    st.sampled_from([*PRESETS.values(), parse_network("0ms"), parse_network("9ms,jitter=3ms")]),
    st.sampled_from(["prefill", "decode"]),
    st.floats(1, 9),
    st.booleans(),
)
def test_a_path_adds_up_to_the_time(network, name, tokens, seen):
    made = work(name, 100, 1e7)
    if not seen:  # which place computes, as in a prediction
        made = replace(made, places=tuple(replace(row, seconds=None) for row in made.places))
    made = replace(made, step=replace(made.step, tokens=tokens))
    path = critical_path(made, network)
    total = token_time(made.step, network)
    for cause in ("latency", "transfer", "computation", "waiting", "total"):
        found = sum(getattr(leg.time, cause) for leg in path)
        assert found == pytest.approx(getattr(total, cause), abs=1e-9), cause
    assert sum(leg.share for leg in path) == pytest.approx(1)
    shares = [leg.share for leg in path]
    assert shares == sorted(shares, reverse=True)
    assert ("computation" in {leg.name for leg in path}) is not seen


def test_paths_on_several_networks_stand_side_by_side():
    paths = [
        [leg.to_public() for leg in critical_path(work("prefill", 100, 1e7), PRESETS[name])]
        for name in ("lan", "intercontinental")
    ]
    rows = beside(paths)
    assert {name for name, _ in rows} == {leg["name"] for path in paths for leg in path}
    assert all(len(legs) == 2 for _, legs in rows)
    most = [max(leg["share"] for leg in legs if leg) for _, legs in rows]
    assert most == sorted(most, reverse=True)


def test_a_name_is_no_markup():
    text = page.render(to_public(request("</h1><script>"), GRID, request("<b>old")))
    assert "<script>" not in text
    assert "<b>old" not in text


def _svg(trips, curves):
    return ElementTree.fromstring(chart(trips, curves, "a & b"))


@given(
    st.lists(st.floats(0, 1e4), min_size=1, max_size=8, unique=True).map(sorted),
    st.data(),
)
def test_a_plot_stays_within_its_frame(trips, data):
    seconds = st.lists(st.floats(0, 1e6), min_size=len(trips), max_size=len(trips)).map(tuple)
    curves = [Curve("x", "<t>", color, color, data.draw(seconds)) for color in range(3)]
    svg = _svg(trips, curves)
    for circle in svg.iter("circle"):
        assert 0 <= float(circle.attrib["cx"]) <= 1000
        assert 0 <= float(circle.attrib["cy"]) <= 420
    assert len(list(svg.iter("polyline"))) == 3
    assert len(list(svg.iter("circle"))) == 3 * len(trips)


def test_labels_do_not_cover_each_other():
    curves = [Curve(f"c{n}", "t", n, 0, (1.0, 1.0 + n / 1000)) for n in range(5)]
    svg = _svg([1.0, 2.0], curves)
    tops = sorted(float(t.attrib["y"]) for t in svg.iter("text") if (t.text or "")[0] == "c")
    assert all(after - before >= 13.9 for before, after in pairwise(tops))
