"""Adversarial weights: a right answer or a refusal that names the place, never a wrong answer."""

import re

import numpy as np
import pytest
from rounding import explained
from secure_models import family_values, infer_batch, random_values, share_model, tiny_config
from tiny_models import ENCODERS, SETTINGS

from models.owner import calibrate as calibration
from models.owner.bounds import Bounds
from models.owner.calibrate import calibrate, plain_run
from models.programs.families import forward
from models.programs.head_layers import default_rows
from models.programs.program import Batch, Cache
from protocols.base.lane import APPROXIMATIONS, Settings
from protocols.drivers.trace import run_now
from protocols.errors import RangeError

TEXTS = [[5, 9, 30, 2], [6, 31]]
FACTOR = 2.0
"""A secure run's roundings are few draws more than those that were tried."""
FLOOR = 5e-4
"""Plus what splines may add, per unit of the largest result."""


def check(config, values, *, rows=None, texts=TEXTS, refusal="", eps=None):
    """The secure result is right, or `calibrate` refuses it at a place that `refusal` matches.

    Returns:
        Whether there was a result.
    """
    rows = rows or default_rows(config)
    try:
        model = share_model(config, values)
    except RangeError as error:
        assert re.match(
            r"(layers\.\d+|table|positions|types|norm|head|result|unit|embeddings)\b[\w.]*: ",
            str(error),
        )
        assert refusal and re.search(refusal, str(error)), error
        with pytest.raises(RangeError):
            calibrate(config, values)
        return False
    found = infer_batch(model, texts, rows)
    exact, moved = explained(config, model.plan.ranges, values, texts, rows)
    error = np.abs(found - exact)
    allowed = FACTOR * moved + FLOOR * max(1.0, float(np.abs(exact).max()))
    assert (error <= allowed).all(), (error.max(), moved.max(), np.abs(exact).max())
    return True


def scaled(values, factor, *names):
    return {
        name: value * np.float32(factor) if not names or name.endswith(names) else value
        for name, value in values.items()
    }


def head_of(model_type):
    return "masked-lm" if model_type in ENCODERS else "causal-lm"


FAMILIES = ["bert", "distilbert", "gpt2", "llama", "qwen2", "qwen3", "falcon"]
assert set(FAMILIES) <= set(SETTINGS)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return family_values(request.param, head_of(request.param), folder)


def outlier(values, name, column, size):
    changed = values[name].copy()
    changed[:, column] = 0
    changed[1, column] = size
    changed[-1, column] = -size
    return {**values, name: changed}


def test_as_they_are(model):
    assert check(*model)


@pytest.mark.parametrize("factor", [0.01, 10, 100, 1e4, 1e8])
def test_every_weight_scaled(model, factor):
    config, values = model
    given = check(config, scaled(values, factor), refusal="can reach|too large|length|entries")
    assert given or factor >= 10


@pytest.mark.parametrize("part", ["qkv", "output", "up", "down", "head", "table", "gain", "shift"])
@pytest.mark.parametrize("factor", [30, 1e5])
def test_one_kind_of_weight_scaled(model, part, factor):
    config, values = model
    if not any(name.endswith(part) for name in values):
        return
    check(config, scaled(values, factor, part), refusal="can reach|too large|length|entries")


@pytest.mark.parametrize("name", ["table", "positions", "layers.0.down", "layers.1.down"])
@pytest.mark.parametrize("size", [200.0, 30_000.0])
def test_an_outlier_channel(model, name, size):
    config, values = model
    if name not in values:
        return
    given = check(
        config, outlier(values, name, 3, size), refusal=rf"^{name}|can reach|too large|length"
    )
    if name == "positions" or (size == 200.0 and name == "table"):
        assert given


@pytest.mark.parametrize("name", ["table", "qkv", "output", "up", "down", "gain", "shift", "norm"])
def test_zeros(model, name):
    config, values = model
    zeros = {n: np.zeros_like(v) if n.endswith(name) else v for n, v in values.items()}
    assert check(config, zeros)


def test_all_zero_weights(model):
    config, values = model
    zeros = {name: np.zeros_like(value) for name, value in values.items()}
    found = infer_batch(share_model(config, zeros), TEXTS, default_rows(config))
    assert np.abs(found).max() < 1e-3


def beside_zeros(values, up, down):
    """Activation functions are read at 0 alone, beside large values and before large weights."""
    changed = dict(values)
    for place, value in values.items():
        if place.endswith(("gate_up", ".up")):
            changed[place] = value * np.float32(up)
            activated = value.shape[1] // (2 if place.endswith("gate_up") else 1)
            changed[place][:, :activated] = 0
        elif place.endswith(".down"):
            changed[place] = np.concatenate([value[:-1] * np.float32(down), 0 * value[-1:]])
    return changed


@pytest.mark.parametrize("factor", [1, 3, 10, 30, 100, 1000])
def test_what_approximations_make_of_zero_is_not_blown_up(model, factor):
    """Every number stays in its range, and yet the answer would be wrong."""
    config, values = model
    given = check(config, beside_zeros(values, factor, factor), refusal=r"\.(gate_up|up): ")
    assert given or factor >= 30


@pytest.mark.parametrize("approximation", APPROXIMATIONS)
def test_what_approximations_make_of_zero_stays_in_range(model, approximation, monkeypatch):
    """0.0085 in place of SiLU(0) in the paper's set: beside large values more than the exact
    function could ever give. The result is then off, but nothing leaves its range.
    """
    monkeypatch.setattr(calibration, "probe", lambda *given, **options: 0.0)  # it would be refused
    config, values = model
    changed = beside_zeros(values, 100, 1000)
    bounds, cache = Bounds(config.max_positions), Cache.empty(config.num_layers)
    most = run_now(forward(bounds, config, changed, Batch((1,), "all"), cache)).radius
    shared = share_model(config, changed)
    found = infer_batch(shared, TEXTS, "all", Settings(approximation=approximation))
    assert np.abs(found).max() <= most


@pytest.mark.parametrize("eps", [1e-12, 1e-8, 1.0])
def test_eps(eps, tmp_path):
    for model_type, key in (("bert", "layer_norm_eps"), ("llama", "rms_norm_eps")):
        folder = tmp_path / model_type
        config, values = family_values(model_type, head_of(model_type), folder, **{key: eps})
        assert check(config, values)
        values["table"][5] = 0
        check(config, values)
        tiny = {**values, "table": values["table"] * np.float32(1e-2)}
        check(config, tiny)


@pytest.mark.parametrize("size", [0.0, 1e-4, 1000.0])
def test_gains(model, size):
    config, values = model
    changed = {
        name: np.full_like(value, size) if name.endswith(("gain", "norm")) else value
        for name, value in values.items()
    }
    given = check(config, changed, refusal="can reach|too large|length")
    assert given or size == 1000.0


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_weights_that_are_no_numbers(model, bad):
    config, values = model
    for name, value in values.items():
        spoiled = value.copy()
        spoiled.reshape(-1)[-1] = bad
        with pytest.raises(RangeError):
            calibrate(config, {**values, name: spoiled})


@pytest.mark.parametrize("rows", ["mean", "unit", "first", "last", "all"])
@pytest.mark.parametrize("factor", [1, 300])
def test_pooled_rows(rows, factor, tmp_path):
    for model_type in ("bert", "gpt2", "llama"):
        config, values = family_values(model_type, "none", tmp_path / model_type)
        values = scaled(values, factor, "gain", "norm")
        texts = [[5, 9, 30, 2, 11, 14, 7], [6], [31, 8, 30]]
        given = check(config, values, rows=rows, texts=texts, refusal="can reach|too large|length")
        assert given or factor > 1


def test_secret_logits_far_apart():
    """The best of logits thousands apart is still the best."""
    config = tiny_config(tied=False, layers=1)
    values = random_values(config, 1)
    values["head"] = values["head"] * 2000
    model = share_model(config, values)
    exact, _ = explained(config, model.plan.ranges, values, TEXTS, "all", runs=1)
    assert np.ptp(exact) > 8000
    top = np.sort(exact, axis=1)
    assert (top[:, -1] - top[:, -2]).min() > 1
    found = infer_batch(model, TEXTS, "all", Settings(reveal="argmax"))
    np.testing.assert_array_equal(found, exact.argmax(axis=1))


@pytest.mark.parametrize("size", [1.0, 300.0, 10_000.0])
def test_large_values_leave_angles_their_bits(size):
    """They share a truncation with queries and keys, whose angles count times the score. The large
    channel itself is read by nothing, so that it can do no other harm.
    """
    config = tiny_config(tied=False)
    values = random_values(config)
    for layer in range(config.num_layers):
        qkv, output = values[f"layers.{layer}.qkv"], values[f"layers.{layer}.output"]
        qkv[:, :48] *= 2
        qkv[:, 48] *= size
        output[[0, 8]] = 0  # the two query heads that share the first key head
    model = share_model(config, values)
    ids = [int(token) for token in np.random.default_rng(1).integers(0, config.vocab_size, 40)]
    exact = plain_run(config, values, [ids])
    assert np.abs(infer_batch(model, [ids]) - exact).max() <= 0.01
