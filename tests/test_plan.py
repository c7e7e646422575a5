"""The public plan of a model, and the calibration that makes it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import save_model, torch_logits, torch_model

from models.calibrate import MARGIN, calibrate, draft_plan, plain_logits
from models.config import LlamaConfig
from models.llama import load_parameters, parameters_of
from models.plan import MAX_ROPE_FRAC, MIN_ROPE_FRAC, Plan
from models.weights import open_checkpoint
from protocols.errors import ModelError, RangeError

IDS = list(range(0, 40, 3))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Configuration, parameters as they are shared, and torch's model."""
    with open_checkpoint(save_model(tmp_path_factory.mktemp("model"))) as checkpoint:
        return checkpoint.config, dict(load_parameters(checkpoint)), torch_model(checkpoint)


@pytest.fixture
def public(model):
    config, parameters, _ = model
    return calibrate(config, parameters, [IDS]).to_public()


# -- the description -------------------------------------------------------------------------------


def test_a_plan_is_json_and_comes_back(model):
    config, parameters, _ = model
    for plan in (draft_plan(config), calibrate(config, parameters, [IDS])):
        sent = json.loads(json.dumps(plan.to_public()))
        assert Plan.from_public(sent) == plan
        assert Plan.from_public(sent).digest() == plan.digest()
        assert len(plan.norms) == 2 * config.num_layers + 1
        assert len(plan.rope_frac) == config.num_layers


def test_a_plan_holds_no_weight(public):
    """Integers, and the two constants of the architecture that are not."""

    def numbers(value):
        if isinstance(value, dict):
            return [n for item in value.values() for n in numbers(item)]
        if isinstance(value, list):
            return [n for item in value for n in numbers(item)]
        return [value] if isinstance(value, float) else []

    assert set(numbers(public)) == {public["config"]["rms_norm_eps"], 10000.0}


def test_digests_differ_where_anything_differs(model):
    config, _, _ = model
    plan = draft_plan(config)
    first = replace(plan.norms[0], high=plan.norms[0].high - 1)
    others = [
        replace(plan, rope_frac=(9, *plan.rope_frac[1:])),
        replace(plan, norms=(first, *plan.norms[1:])),
        draft_plan(replace(config, max_positions=65)),
    ]
    assert len({plan.digest(), *(other.digest() for other in others)}) == 4


BAD = {
    "text": lambda p: "plan",
    "nothing": lambda p: {},
    "more": lambda p: {**p, "more": 1},
    "no norms": lambda p: {**p, "norms": []},
    "norms of text": lambda p: {**p, "norms": "norms"},
    "a norm short": lambda p: {**p, "norms": p["norms"][1:]},
    "a norm of text": lambda p: {**p, "norms": ["x", *p["norms"][1:]]},
    "rope short": lambda p: {**p, "rope_frac": p["rope_frac"][1:]},
    "rope of text": lambda p: {**p, "rope_frac": ["8", *p["rope_frac"][1:]]},
    "rope true": lambda p: {**p, "rope_frac": [True, *p["rope_frac"][1:]]},
    "rope low": lambda p: {**p, "rope_frac": [MIN_ROPE_FRAC - 1, *p["rope_frac"][1:]]},
    "rope high": lambda p: {**p, "rope_frac": [MAX_ROPE_FRAC + 1, *p["rope_frac"][1:]]},
    "another family": lambda p: {**p, "config": {**p["config"], "family": "bert"}},
    "huge": lambda p: {**p, "config": {**p["config"], "hidden_size": 1 << 40}},
    **{
        f"norm {name} = {value}": lambda p, name=name, value=value: {
            **p,
            "norms": [{**p["norms"][0], name: value}, *p["norms"][1:]],
        }
        for name, value in [
            ("drop", -1),
            ("drop", 21),
            ("low", 29),
            ("high", 30),
            ("high", 0),
            ("frac", 3),
            ("frac", 27),
            ("frac", 20.0),
            ("size", 33),
            ("size", "32"),
            ("eps", 1e-3),
            ("more", 1),
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
                st.sampled_from(["config", "norms", "rope_frac", "family"]), inner, max_size=4
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
    np.testing.assert_allclose(plain_logits(config, parameters, IDS), expected, atol=1e-4)
    last = plain_logits(config, parameters, IDS, last_only=True)
    np.testing.assert_allclose(last, expected[-1:], atol=1e-4)


def test_parameters_have_the_announced_shapes(model):
    config, parameters, _ = model
    wanted = parameters_of(config)
    assert list(parameters) == list(wanted)
    assert {name: p.shape for name, p in parameters.items()} == {
        name: p.shape for name, p in wanted.items()
    }


def test_norms_reach_above_what_was_seen(model):
    config, parameters, _ = model
    plan = calibrate(config, parameters, [IDS, IDS[::-1]])
    seen: dict[str, float] = {}

    def record(name, value):
        seen[name] = max(seen.get(name, 0.0), float(np.abs(value).max()))

    plain_logits(config, parameters, IDS, record)
    names = [f"layers.{i}.{part}" for i in range(2) for part in ("attention", "mlp")] + ["norm"]
    for norm, name in zip(plan.norms, names, strict=True):
        assert norm.size == config.hidden_size
        assert norm.eps == config.rms_norm_eps
        assert norm.low < norm.high
        assert seen[name] > 0


def test_larger_activations_drop_more_bits(model):
    config, parameters, _ = model
    drops = []
    for scale in (1.0, 300.0, 30000.0):
        table = {**parameters, "table": parameters["table"] * np.float32(scale)}
        plan = calibrate(config, table, [IDS])
        drops.append(plan.norms[0].drop)
    assert drops == sorted(drops)
    assert drops[-1] > drops[0]
    assert MARGIN > 1


def test_larger_projections_leave_fewer_bits_for_angles(model):
    config, parameters, _ = model
    fracs = []
    for scale in (1.0, 100.0, 1000.0):
        name = "layers.1.qkv"
        changed = {**parameters, name: parameters[name] * np.float32(scale)}
        plan = calibrate(config, changed, [IDS])
        fracs.append(plan.rope_frac[1])
        assert plan.rope_frac[0] == fracs[0]
    assert MAX_ROPE_FRAC >= fracs[0] > fracs[1] > fracs[2] >= MIN_ROPE_FRAC
    queries = parameters[name].copy()
    queries[:, : config.num_heads * config.head_dim] *= np.float32(1e9)
    with pytest.raises(RangeError, match="attention weights are too large"):
        calibrate(config, {**parameters, name: queries}, [IDS])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_weights_that_overflow_are_broken(model):
    config, parameters, _ = model
    spoiled = {**parameters, "layers.0.gate_up": parameters["layers.0.gate_up"] * np.float32("inf")}
    with pytest.raises(RangeError, match="not finite in a plaintext run"):
        calibrate(config, spoiled, [IDS])


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
    assert Plan.from_public(plan.to_public()) == plan
