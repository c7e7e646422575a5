"""The public plan of a model, and the calibration that makes it."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import save_model, torch_logits, torch_model

from models.checkpoints.weights import open_checkpoint
from models.configs.reading import LlamaConfig
from models.owner.calibrate import calibrate, plain_run
from models.owner.rotary import MIN_ROPE_FRAC
from models.programs.families import load_parameters, parameters_of
from models.programs.plan import MAX_ROPE_FRAC, MAX_VALUE_BITS, Plan, draft_plan
from protocols.drivers.ops import Ranges
from protocols.errors import ModelError, RangeError
from protocols.functions.attention import MAX_SCORE_BITS
from protocols.functions.late import LateRange

IDS = list(range(0, 40, 3))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Configuration, parameters as they are shared, and torch's model."""
    with open_checkpoint(save_model(tmp_path_factory.mktemp("model"))) as checkpoint:
        return checkpoint.config, dict(load_parameters(checkpoint)), torch_model(checkpoint)


@pytest.fixture
def public(model):
    config, parameters, _ = model
    return calibrate(config, parameters).to_public()


# -- the description -------------------------------------------------------------------------------


def test_a_plan_is_json_and_comes_back(model):
    config, parameters, _ = model
    plan = calibrate(config, parameters)
    sent = json.loads(json.dumps(plan.to_public()))
    assert Plan.from_public(sent) == plan
    assert Plan.from_public(sent).digest() == plan.digest()
    layers = [f"layers.{i}" for i in range(config.num_layers)]
    norms = {f"{layer}.{part}_norm" for layer in layers for part in ("attention", "mlp")}
    assert plan.ranges.norms.keys() == {*norms, "norm"}
    assert plan.ranges.attention.keys() == set(layers)


def test_a_draft_has_ranges_for_every_place(model):
    plan = draft_plan(model[0])
    assert plan.ranges.norms["anything"] == plan.ranges.norms["anything else"]
    assert plan.ranges.attention["x"].score_bits <= MAX_SCORE_BITS
    empty = Plan(model[0], Ranges({}, {}))
    assert Plan.from_public(plan.to_public()) == empty


def test_a_plan_holds_no_weight(public):
    """Integers, and the constants of the architecture that are not."""

    def numbers(value):
        if isinstance(value, dict):
            return [n for item in value.values() for n in numbers(item)]
        if isinstance(value, list):
            return [n for item in value for n in numbers(item)]
        return [value] if isinstance(value, float) else []

    assert set(numbers(public)) == {public["config"]["rms_norm_eps"], 10000.0, 1.0}


def test_digests_differ_where_anything_differs(model):
    config, parameters, _ = model
    plan = calibrate(config, parameters)
    norms, attention = dict(plan.ranges.norms), dict(plan.ranges.attention)
    norm, layer = norms["norm"], attention["layers.0"]
    others = [
        Ranges({**norms, "norm": replace(norm, high=norm.high - 1)}, attention),
        Ranges({**norms, "norm": replace(norm, early=not norm.early)}, attention),
        Ranges({**norms, "other": norm}, attention),
        Ranges(norms, {**attention, "layers.0": replace(layer, rope_frac=9)}),
        Ranges(norms, {**attention, "layers.0": replace(layer, value_bits=layer.value_bits + 1)}),
    ]
    late = {"layers.0.qkv": LateRange(0, 18, 18, 12), "layers.0.gate_up": LateRange(0, 19, 18)}
    other = {**late, "layers.0.qkv": replace(late["layers.0.qkv"], drop=1)}
    others += [Ranges(norms, attention, late), Ranges(norms, attention, other)]
    plan = Plan(config, Ranges(norms, attention))
    plans = [plan, *(Plan(config, ranges) for ranges in others)]
    plans.append(Plan(replace(config, max_positions=65), plan.ranges))
    assert len({found.digest() for found in plans}) == len(plans)


def with_entry(kind, change):
    """A plan with one range changed."""

    def changed(p):
        name = {"norms": "norm", "late": "layers.0.qkv"}.get(kind, "layers.0")
        held = p.get(kind) or {name: asdict(LateRange(0, 18, 18, 12))}
        return {**p, kind: {**held, name: change(held[name])}}

    return changed


BAD = {
    "text": lambda p: "plan",
    "nothing": lambda p: {},
    "more": lambda p: {**p, "more": 1},
    "a list of norms": lambda p: {**p, "norms": []},
    "norms of text": lambda p: {**p, "norms": "norms"},
    "no attention": lambda p: {**p, "attention": None},
    "too many norms": lambda p: {
        **p,
        "norms": {str(i): p["norms"]["norm"] for i in range(200)},
    },
    "a place that is no text": lambda p: {**p, "norms": {**p["norms"], 3: p["norms"]["norm"]}},
    "a long place": lambda p: {**p, "norms": {**p["norms"], "x" * 65: p["norms"]["norm"]}},
    "a norm of text": with_entry("norms", lambda item: "x"),
    "a norm of nothing": with_entry("norms", lambda item: {}),
    "attention of a number": with_entry("attention", lambda item: 3),
    "an empty norm": with_entry("norms", lambda item: {**item, "low": 20, "high": 20}),
    "another family": lambda p: {**p, "config": {**p["config"], "family": "mamba"}},
    "huge": lambda p: {**p, "config": {**p["config"], "hidden_size": 1 << 40}},
    **{
        f"{kind} {name} = {value}": with_entry(
            kind, lambda item, name=name, value=value: {**item, name: value}
        )
        for kind, name, value in [
            ("norms", "drop", -1),
            ("norms", "drop", 21),
            ("norms", "low", 30),
            ("norms", "high", 31),
            ("norms", "high", 0),
            ("norms", "frac", 3),
            ("norms", "frac", 27),
            ("norms", "frac", 20.0),
            ("norms", "early", 1),
            ("norms", "early", "yes"),
            ("norms", "more", 1),
            ("attention", "score_bits", 0),
            ("attention", "score_bits", MAX_SCORE_BITS + 1),
            ("attention", "value_bits", -1),
            ("attention", "value_bits", MAX_VALUE_BITS + 1),
            ("attention", "value_bits", True),
            ("attention", "rope_frac", MAX_ROPE_FRAC + 1),
            ("attention", "rope_frac", "8"),
            ("attention", "more", 1),
            ("late", "drop", 10),
            ("late", "frac", 11),
            ("late", "frac", 23),
            ("late", "root", 27),
            ("late", "root", "12"),
            ("late", "rope", -1),
            ("late", "rope", True),
            ("late", "more", 1),
        ]
    },
}


@pytest.mark.parametrize("name", BAD)
def test_plans_from_a_peer_are_checked(public, name):
    with pytest.raises(ModelError) as caught:
        Plan.from_public(BAD[name](public))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@settings(max_examples=50, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["config", "norms", "attention", "family"]), inner, max_size=4
            )
        ),
        max_leaves=10,
    )
)
def test_any_plan_is_refused_or_a_plan(data):
    with pytest.raises(ModelError):
        Plan.from_public(data)


# -- calibration -----------------------------------------------------------------------------------


def test_the_program_in_plain_floats_is_torchs_model(model):
    """The foldings of gains and scales into weights are exact."""
    config, parameters, reference = model
    expected = torch_logits(reference, IDS)
    np.testing.assert_allclose(plain_run(config, parameters, [IDS]), expected, atol=1e-4)
    last = plain_run(config, parameters, [IDS], "last")
    np.testing.assert_allclose(last, expected[-1:], atol=1e-4)


def test_parameters_have_the_announced_shapes(model):
    config, parameters, _ = model
    wanted = parameters_of(config)
    assert list(parameters) == list(wanted)
    assert {name: p.shape for name, p in parameters.items()} == {
        name: p.shape for name, p in wanted.items()
    }


def test_larger_activations_drop_more_bits(model):
    config, parameters, _ = model
    drops = []
    for scale in (0.1, 3.0, 50.0):
        table = {**parameters, "table": parameters["table"] * np.float32(scale)}
        plan = calibrate(config, table)
        drops.append(plan.ranges.norms["layers.0.attention_norm"].drop)
    assert drops == sorted(drops)
    assert drops[-1] > drops[0]


def test_larger_projections_leave_fewer_bits_for_angles(model):
    config, parameters, _ = model
    name, found = "layers.1.qkv", []
    for scale in (1.0, 10.0, 100.0):
        plan = calibrate(config, {**parameters, name: parameters[name] * np.float32(scale)})
        found.append(plan.ranges.attention["layers.1"])
        assert plan.ranges.attention["layers.0"].rope_frac <= MAX_ROPE_FRAC
    fracs = [item.rope_frac for item in found]
    assert MAX_ROPE_FRAC >= fracs[0] > fracs[1] > fracs[2] >= MIN_ROPE_FRAC
    scores, values = (
        [getattr(item, name) for item in found] for name in ("score_bits", "value_bits")
    )
    assert scores[0] + 6 <= scores[1] <= scores[2] - 6  # a factor of 100 each
    assert values[0] + 3 <= values[1] <= values[2] - 3  # a factor of 10 each


@pytest.mark.parametrize(
    ("name", "scale", "says"),
    [
        ("layers.1.qkv", 1e3, "attention scores can reach"),
        ("layers.1.qkv", 1e9, r"layers\.1: values can reach"),
        ("layers.0.output", 1e9, r"layers\.0\.output: values can reach"),
        ("layers.0.gate_up", 1e4, r"layers\.0\.gate_up: values can reach"),
        ("layers.1.down", 1e9, r"layers\.1\.down: values can reach"),
        ("head", 1e9, "head: values can reach"),
        ("table", 1e3, "table: values can reach"),
        ("norm", 1e9, "norm: "),
        ("layers.0.gate_up", np.inf, r"layers\.0\.gate_up: values can reach"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_cannot_be_held_is_refused_by_its_place(model, name, scale, says):
    config, parameters, _ = model
    with pytest.raises(RangeError, match=says) as caught:
        calibrate(config, {**parameters, name: parameters[name] * np.float32(scale)})
    assert "\n" not in str(caught.value)


def test_nothing_is_measured(model):
    """The same weights in another order of tokens have the same ranges."""
    config, parameters, _ = model
    turned = {**parameters, "table": parameters["table"][::-1].copy()}
    assert calibrate(config, turned) == calibrate(config, parameters)


def test_bounds_hold_for_absurd_architectures():
    config = LlamaConfig(
        vocab_size=1 << 22,
        hidden_size=1 << 16,
        num_layers=1 << 10,
        num_heads=1 << 10,
        max_positions=1 << 24,
        bos_token_id=None,
        eos_token_ids=(),
        intermediate_size=1 << 20,
        num_kv_heads=1 << 10,
        head_dim=1 << 10,
        rms_norm_eps=1e-12,
        rope_theta=1e12,
        tie_embeddings=False,
    )
    plan = draft_plan(config)
    assert Plan.from_public(plan.to_public()).config == config
