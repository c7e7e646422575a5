"""`puma compare`: a private evaluation beside the plaintext one, place by place."""

import json
from dataclasses import replace

import numpy as np
import pytest
from reference import save_model, save_tokenizer
from tiny_models import save, tiny_model

from models.checkpoints.weights import open_checkpoint
from models.owner.calibrate import calibrate, plain_run
from models.owner.comparing import (
    THRESHOLD,
    compare_held,
    compare_model,
    compare_place,
    least_cosine,
    relative_difference,
)
from models.owner.observe import Place, Rebuilt, hold_all, longest_row, run_plain
from models.programs.families import load_parameters
from models.programs.head_layers import default_rows
from models.programs.plan import Plan
from models.programs.program import Batch
from protocols.base.lane import Settings
from protocols.base.shares import COMPUTING, Role
from protocols.drivers.lockstep import Pause, run_parties
from protocols.drivers.ops import Ranges
from protocols.errors import LocalProtocolError
from protocols.functions.normalize import Norm, norm_range

IDS = [5, 9, 30, 2, 17, 22, 8]


def opened(folder):
    with open_checkpoint(folder) as checkpoint:
        return checkpoint.config, dict(load_parameters(checkpoint))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return opened(save_model(tmp_path_factory.mktemp("llama"), seed=3))


@pytest.fixture
def shared(llama):
    """Plan, what each party holds, batch, and the plaintext places."""
    config, parameters = llama
    plan, batch = calibrate(config, parameters), Batch((len(IDS),))
    places = run_plain(config, parameters, batch, IDS)
    held = {role: {} for role in COMPUTING}
    for _, parts in hold_all(config, dict(parameters)):
        for role, part in parts.items():
            held[role].update(part)
    return plan, held, batch, places


@pytest.mark.parametrize(
    ("model_type", "head"),
    [
        ("llama", "causal-lm"),
        ("qwen3", "causal-lm"),
        ("gpt2", "sequence-classification"),
        ("falcon", "causal-lm"),
        ("gemma2", "causal-lm"),
        ("bert", "none"),
        ("deberta-v2", "none"),
        ("modernbert", "none"),
        ("mpnet", "none"),
        ("distilbert", "masked-lm"),
    ],
)
def test_sound_models_agree_at_every_place(model_type, head, tmp_path):
    config, parameters = opened(save(tiny_model(model_type, head), tmp_path))
    names = list(parameters)
    expected = plain_run(config, parameters, [IDS, IDS[:3]], default_rows(config))
    found = compare_model(config, parameters, [IDS, IDS[:3]])
    assert found.first_stray is None
    assert all(place.agreed for place in found.places)
    assert found.result.shape == expected.shape
    assert found.result.largest == pytest.approx(np.abs(expected).max())
    assert 0 < found.result.most < 0.02 * max(1.0, found.result.largest)
    assert found.cosine > 0.999
    rows = len(expected)
    assert found.agreement == (None if head == "none" else (rows, rows))
    assert all(0 <= place.fill < 1 for place in found.places)  # ranges are proven
    named = {place.name for place in found.places}
    assert named >= {name for name in names if name.endswith((".output", ".down"))}
    assert named >= {f"layers.{i}.{part}" for i in (0, 1) for part in ("queries", "attention")}


def test_every_place_of_a_layer_is_named_in_order(shared):
    places = shared[3]
    layer = [place.name for place in places if place.name.startswith("layers.1")]
    attention = ["attention_norm", "queries", "keys", "values", "attention", "output"]
    parts = [*attention, "mlp_norm", "gate_up", "down"]
    assert layer == [f"layers.1.{part}" for part in parts]
    assert [place.name for place in places[-3:]] == ["norm", "head", "result"]


@pytest.mark.parametrize(
    ("parameter", "place"),
    [
        ("layers.0.down", "layers.0.down"),
        ("layers.1.qkv", "layers.1.queries"),
        ("layers.1.output", "layers.1.output"),
    ],
)
@pytest.mark.parametrize("role", [Role.EVALUATOR_A, Role.DEALER])
def test_an_altered_share_is_found_at_its_place(shared, parameter, place, role):
    plan, held, batch, places = shared
    weight = held[role][parameter]
    factor = weight.factor.copy()
    factor[:, 0] += np.uint64(1 << 21)  # by 2: not seen in any single share
    held[role][parameter] = replace(weight, factor=factor)
    found = compare_held(plan, held, batch, IDS, places)
    stray = found.first_stray
    assert stray is not None
    assert stray.name == place
    assert stray.relative > THRESHOLD
    before = found.places[: found.places.index(stray)]
    assert all(p.relative < THRESHOLD for p in before)


def test_parties_that_hold_different_shares_are_told(shared):
    plan, held, batch, places = shared
    gain = held[Role.EVALUATOR_B]["norm"]
    held[Role.EVALUATOR_B]["norm"] = gain._like(gain.a + np.uint64(1 << 40), gain.b)
    found = compare_held(plan, held, batch, IDS, places)
    stray = found.first_stray
    assert stray is not None
    assert stray.name == "norm"


def test_a_set_that_strays_is_named_at_its_first_function(shared):
    plan, held, batch, places = shared
    found = compare_held(plan, held, batch, IDS, places, settings=Settings("puma"))
    assert found.first_stray is not None
    assert found.first_stray.name in ("layers.0.attention", "layers.0.gate_up")
    assert found.result.most > 20 * compare_held(plan, held, batch, IDS, places).result.most


def test_a_range_that_is_too_small_saturates(shared):
    plan, held, batch, places = shared
    norms, name = dict(plan.ranges.norms), "layers.1.attention_norm"
    size = next(place.sizes["row lengths"] for place in places if place.name == name)
    norms[name] = norm_range(Norm(32, 1e-6), size / 16)
    narrow = Plan(plan.config, Ranges(norms, plan.ranges.attention))
    found = compare_held(narrow, held, batch, IDS, places)
    place = next(place for place in found.places if place.name == name)
    assert place.fill > 1
    assert any(note.startswith("saturated: row lengths reach") for note in place.notes)
    assert found.first_stray is place


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("length", [0.5, 7.0, 300.0])
def test_the_longest_row_holds_what_the_range_was_made_for(center, length):
    norm = Norm(48, 1e-5, center)
    longest = longest_row(norm, norm_range(norm, length))
    assert length <= longest <= 4.1 * length


def place_of(plain, **options):
    return Place("x", np.asarray(plain, dtype=np.float64), options)


def test_warnings_of_a_place():
    plain = np.array([[1.0, -2.0], [0.5, 4.0]])
    moved = plain + np.array([[0.0, 0.1], [0.0, 0.0]])
    rebuilt = Rebuilt("x", moved, {"entries": 6.0, "scores": 4.0}, True)
    found = compare_place(place_of(plain, entries=4.0, scores=4.0), rebuilt)
    assert (found.largest, found.most) == (4.0, pytest.approx(0.1))
    assert found.mean == pytest.approx(0.025)
    assert found.relative == pytest.approx(0.1 / 3)  # the middle row's largest is 3
    assert found.fill == 1.0
    assert found.warnings(0.01) == [
        "entries reach 4, near the end of their range, 6",
        "saturated: scores reach 4, the range ends at 4",
        "differs by 0.033 of its size",
    ]
    assert found.warnings(0.05) == found.notes
    assert found.strays(0.01)
    assert not found.strays(0.05)
    broken = compare_place(place_of(plain), Rebuilt("x", plain, {}, False))
    assert broken.strays(1.0)
    assert broken.warnings(1.0) == ["the parties' shares are inconsistent"]


def test_programs_at_different_places_are_a_fault():
    with pytest.raises(LocalProtocolError, match=r"y \(1, 1\) met x \(1, 2\)"):
        compare_place(place_of([[1.0, 2.0]]), Rebuilt("y", np.zeros((1, 1)), {}, True))


def test_not_a_number_strays():
    plain = np.ones((2, 2))
    difference = relative_difference(plain, np.array([[np.nan, 0.0], [0.0, 0.0]]))
    assert np.isnan(difference)
    rebuilt = Rebuilt("x", plain * np.nan, {}, True)
    assert compare_place(place_of(plain), rebuilt).strays(1e9)


def test_least_cosine_of_zeros():
    zeros, ones = np.zeros((2, 3)), np.ones((2, 3))
    assert least_cosine(zeros, zeros) == 1.0
    assert least_cosine(zeros, ones) == 0.0
    assert least_cosine(ones, -ones) == pytest.approx(-1.0)


def test_parties_that_wait_for_each_other_without_a_message():
    """What a comparison does at a place: no deadlock if a party says that it moved on."""
    arrived = []

    async def party(lane):
        for place in (1, 2, 3):
            arrived.append(place)
            moved = True
            while arrived.count(place) < 3:
                await Pause(moved=moved)
                moved = False

    outcome = run_parties(dict.fromkeys(COMPUTING, party), record=False)
    assert outcome.views == {}
    assert sorted(arrived) == [1, 1, 1, 2, 2, 2, 3, 3, 3]

    async def stuck(lane):
        while True:
            await Pause()

    with pytest.raises(LocalProtocolError, match="every party waits"):
        run_parties(dict.fromkeys(COMPUTING, stuck))


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tokenizer(save_model(tmp_path_factory.mktemp("model"), seed=3))


def test_the_json_of_a_comparison(puma, folder):
    given = ("--text", "I see the red cat", "--input-ids", "1,3,7")
    code, out, err = puma("compare", "-m", folder, *given, "--approximation", "puma", "--json")
    assert (code, err, out.count("\n")) == (0, "", 1)
    data = json.loads(out)
    assert (data["tokens"], data["approximation"], data["threshold"]) == (8, "puma", THRESHOLD)
    assert data["result"]["rows"] == 8
    assert 0 <= data["result"]["arg_max_equal"] <= 8
    straying = [p["name"] for p in data["places"] if p["relative"] > THRESHOLD]
    assert data["first_stray"] == straying[0]
    assert all(p["warnings"] for p in data["places"] if p["name"] in straying)
    assert data["rounds"] > 0 < data["online_bytes"]


def test_the_table_of_a_comparison(puma, folder):
    code, out, _ = puma("compare", "-m", folder, "--text", "I see the red cat")
    text = " ".join(out.split())
    assert code == 0
    assert "layers.1.gate_up" in text
    assert "best entry equal in 5 of 5 rows" in text
    assert "no place strays (threshold 0.01)" in text
    assert "A place strays if the relative difference" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "error: nothing to compare on: give --text or --input-ids"),
        (("--text", " "), "error: --text: the text is empty: give some"),
        (("--input-ids", "1,x"), "error: --input-ids: 'x' is not a token id; write ids as 1,2,3"),
        (("--input-ids", "99"), "error: token id 99 is not in the model's vocabulary of 46"),
        (
            ("--input-ids", "1", "--threshold", "0"),
            "error: --threshold 0: give a number above 0, such as 0.01",
        ),
    ],
)
def test_bad_comparisons_are_refused(puma, folder, arguments, message):
    code, out, err = puma("compare", "-m", folder, *arguments)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == message
