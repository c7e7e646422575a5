"""What a profile says about what to do."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import anyio
import pytest
from tiny_models import save, tiny_model

from protocols.base.events import Key
from protocols.base.lane import Settings
from puma_actors.planning.timing import Part, Step
from puma_actors.profiling.advice import actions
from puma_actors.profiling.analysis import Row
from puma_actors.profiling.profile import run_profile
from puma_actors.profiling.ranking import rank
from puma_actors.profiling.whatif.recorded import request_of_profile
from puma_actors.profiling.whatif.variants import Request, Variant, Work
from puma_actors.transports.delay.network import PRESETS, parse_network


@pytest.fixture(scope="module")
def request_of_all_trees(tmp_path_factory):
    folder = save(tiny_model("llama", "causal-lm"), tmp_path_factory.mktemp("model"))
    options = {"tokens_in": 4, "tokens_out": 2, "settings": Settings()}
    return request_of_profile(anyio.run(partial(run_profile, folder, **options)))


def test_another_tree_is_named_where_it_helps(request_of_all_trees):
    request = request_of_all_trees
    far = parse_network("intercontinental")
    traffic = replace(request, variants=request.variants[::-1])
    assert traffic.variants[0].tree == "traffic"
    (first, further) = actions(traffic, far)
    for found, which in ((first, "the first step"), (further, "further steps")):
        assert found[0].partition(f" for {which}: ")[0] in ("use tree rounds", "use tree balanced")
    (first, further) = actions(request, far)
    assert first[0].startswith("bring the parties closer together: latency halved, it would take ")
    assert "--draft ngram" in further[0]  # a shorter text would take no fewer rounds
    drafted = replace(request, variants=tuple(replace(v, draft=4) for v in request.variants))
    assert "--draft" not in actions(drafted, far)[1][0]


@pytest.mark.parametrize(
    ("sent", "dealt", "words"),
    [
        (9e6, 1e6, "give the evaluators a faster line, or send less (a shorter text"),
        (1e6, 9e6, "give the dealer a faster line, or have it deal beforehand (puma prepare"),
    ],
)
def test_the_line_that_holds_up_is_named(sent, dealt, words):
    step = Step("prefill", (Part("layers.0", 3, 3, sent, dealt),))
    request = Request("m", 1, True, "made up", (Variant("rounds", 1, (Work(step, ()),)),))
    (found,) = actions(request, parse_network("1ms,50mbit"))
    assert found[0].startswith(words)
    assert "bandwidth doubled, it would take " in found[0]


def test_rounds_that_wait_beside_others_are_not_blamed_on_the_other_evaluator():
    """Two of seven are in a row; all seven took 0.1 s, which is less than their way alone takes."""
    row = Row("spline", rounds=2, exchanges=7, online=1800)
    phase = SimpleNamespace(
        keys={("network", Key("norm", "rsqrt/spline")): 0.1}, protocols=[row], wall=2.0
    )
    (advice,) = rank(phase, PRESETS["wan"], Settings())
    assert advice.share == 0.05
    assert advice.reason == (
        "2 in a row (7 with concurrent ones), 14.29 ms of waiting each: 2 x 20.00 ms of latency; "
        "only parties closer together help"
    )
    (advice,) = rank(phase, PRESETS["wan"], Settings(tree="balanced"))
    assert advice.reason.endswith("2 x 20.00 ms of latency; fewer rounds (--tree rounds) help")
    row.exchanges = 2
    (advice,) = rank(phase, PRESETS["wan"], Settings())
    assert advice.reason.endswith(
        "50.00 ms of waiting each: mostly for the other evaluator, which was not there yet"
    )
