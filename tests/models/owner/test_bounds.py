"""Ranges proven from weights: no input leaves them, and they are not much too wide."""

from unittest.mock import patch

import numpy as np
import pytest
from helpers import generator
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from secure_models import family_values, random_values, tiny_config
from tiny_models import CASES, SETTINGS

from models.owner import calibrate as calibration
from models.owner import spectral as spectral_bound
from models.owner.bounds import Bound, Bounds, HeadBound
from models.owner.rotary import rope_bits, turn_factor
from models.owner.spectral import spectral
from models.programs.families import forward
from models.programs.head_layers import default_rows
from models.programs.program import Batch, Cache
from protocols.base.ring import FRACTION_BITS, RESIDUAL_BITS, RING_BITS, WEIGHT_BITS
from protocols.drivers.ops import Ranges
from protocols.drivers.plain import Plain, raw_scores
from protocols.drivers.trace import run_now
from protocols.errors import RangeError
from protocols.functions.normalize import Norm

IDS = [[5, 9, 30, 2, 17, 22, 8], [6, 31, 7], [12]]


# -- the largest singular value --------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 12), st.integers(1, 12)),
        elements=st.floats(-1e6, 1e6).map(np.float32) | st.floats(-1e-6, 1e-6).map(np.float32),
    )
)
def test_spectral_is_an_upper_bound(matrix):
    largest = np.linalg.norm(matrix.astype(np.float64), 2)
    assert largest <= spectral(matrix) * (1 + 1e-12)
    assert spectral(matrix) <= 1.01 * largest * max(1, min(matrix.shape)) ** (1 / 16)


@pytest.mark.parametrize("shape", [(1, 1), (5, 300), (64, 64), (128, 512), (300, 5)])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
def test_spectral_is_close_for_random_matrices(shape, scale):
    rng = np.random.default_rng(shape[0])
    matrix = (rng.normal(size=shape) * scale).astype(np.float32)
    largest = np.linalg.norm(matrix.astype(np.float64), 2)
    assert largest <= spectral(matrix) <= 1.25 * largest


@pytest.mark.parametrize("shape", [(300, 40), (40, 300), (200, 200), (1, 64), (64, 1)])
@pytest.mark.parametrize("kind", ["random", "one direction", "decaying", "zeros beside"])
def test_the_bound_of_large_matrices(monkeypatch, shape, kind):
    """From random vectors: it fails for a share of 1e-16 of all choices."""
    monkeypatch.setattr(spectral_bound, "EXACT", 0)
    matrix = generator(3).normal(size=shape).astype(np.float32)
    if kind == "one direction":
        matrix = 1e-3 * matrix + np.ones(shape, dtype=np.float32)
    elif kind == "decaying":
        matrix *= (np.arange(shape[1], dtype=np.float32) + 1) ** -1
    elif kind == "zeros beside":
        matrix[:, 1:] = 0
    largest = np.linalg.norm(matrix.astype(np.float64), 2)
    for _ in range(5):
        assert largest <= spectral(matrix) <= 1.7 * largest


def test_spectral_of_extremes():
    assert spectral(np.zeros((4, 7), dtype=np.float32)) == 0
    assert spectral(np.ones((3, 0), dtype=np.float32)) == 0
    one = np.outer(np.arange(1.0, 9), np.arange(1.0, 5))
    assert np.linalg.norm(one, 2) <= spectral(one) <= 1.01 * np.linalg.norm(one, 2)
    assert 1 <= spectral(np.eye(64)) <= 1.01 * 64 ** (1 / 16)
    for bad in (np.inf, np.nan):
        assert not np.isfinite(spectral(np.array([[1.0, bad]])))


# -- a plaintext run against the ranges ------------------------------------------------------------


class Watched(Plain):
    """`Plain` that holds every secret number against the published exponents."""

    def __init__(self, ids, ranges: Ranges) -> None:
        super().__init__(ids, self._size)
        self.ranges = ranges
        self.seen: set[str] = set()
        self.sizes: dict[str, tuple[float, float]] = {}

    def _size(self, name, value):
        rows = value.reshape(-1, value.shape[-1])
        entry, length = np.abs(rows).max(), np.linalg.norm(rows, axis=1).max()
        found = self.sizes.get(name, (0.0, 0.0))
        self.sizes[name] = (max(found[0], entry), max(found[1], length))

    async def norm(self, x, name, norm: Norm, gain=None, shift=None, **how):
        bounds = self.ranges.norms[name]
        step = 2.0 ** (RESIDUAL_BITS - bounds.drop)
        moved = (x - x.mean(-1, keepdims=True)) * norm.stretch if norm.center else x
        total = (moved**2).sum(-1) * step**2 + float(bounds.eps_word(norm))
        assert 4.0**bounds.low <= total.min(), name
        assert total.max() < 4.0**bounds.high, name
        if gain is not None and bounds.early:
            assert np.abs(moved * gain).max() * 2.0 ** (RESIDUAL_BITS + FRACTION_BITS) < 2.0**62
        y = await super().norm(x, name, norm, gain, shift, **how)
        assert np.abs(y).max() * 2.0 ** (RESIDUAL_BITS + FRACTION_BITS) < 2.0**62, name
        self.seen.add(name)
        return y

    async def project(self, x, weight, name, heads, rotation=None, norm=None, gains=None):
        q, k, v = await super().project(x, weight, name, heads, rotation, norm, gains)
        bounds = self.ranges.attention[name]
        room = 62 - RESIDUAL_BITS - WEIGHT_BITS
        if rotation is not None and norm is None:
            room = 62 - FRACTION_BITS - WEIGHT_BITS - bounds.rope_frac
        assert max(np.abs(part).max() for part in (q, k)) < 2.0**room, name
        assert np.abs(v).max() < 2.0 ** (room + bounds.value_drop), name
        return q, k, v

    async def attention(self, q, k, v, name, spans):
        bounds = self.ranges.attention[name]
        keys = np.repeat(k, q.shape[0] // k.shape[0], axis=0)
        for span in spans:
            scores = raw_scores(q[:, span.rows], keys[:, span.context], span)
            if span.cap is not None:
                assert np.abs(scores).max() < span.cap.limit(RING_BITS - 1 - FRACTION_BITS), name
                scores = span.cap.exact(scores)
            assert np.abs(scores).max() < 2.0**bounds.score_bits, name
        assert np.abs(v).max() < 2.0**bounds.value_bits, name
        self.seen.add(name)
        return await super().attention(q, k, v, name, spans)


class Told(Bounds):
    """`Bounds` that records its bounds for each place: (largest entry, largest row)."""

    def __init__(self, positions: int) -> None:
        super().__init__(positions)
        self.told: dict[str, tuple[float, float]] = {}

    async def _keep(self, name, task):
        bound = await task
        self.told[name] = (bound.entry, bound.length)
        return bound

    async def norm(self, x, name, *args, **options):
        return await self._keep(name, super().norm(x, name, *args, **options))

    async def linear(self, x, weight, name):
        return await self._keep(name, super().linear(x, weight, name))

    async def dense(self, x, weight, name, activation):
        return await self._keep(name, super().dense(x, weight, name, activation))

    async def gated(self, x, weight, name, activation):
        return await self._keep(name, super().gated(x, weight, name, activation))


def watch(config, values, sequences=IDS, rows=None):
    """Run in plaintext and record; returns (values seen, bounds told)."""
    rows = rows or default_rows(config)
    ids = np.concatenate([np.asarray(ids) for ids in sequences])
    with patch.object(calibration, "probe"):  # ranges hold regardless of precision
        plan = calibration.calibrate(config, values)
    watched = Watched(ids, plan.ranges)
    batch = Batch(tuple(len(ids) for ids in sequences), rows)
    run_now(forward(watched, config, values, batch, Cache.empty(config.num_layers)))
    told = Told(config.max_positions)
    run_now(forward(told, config, values, Batch((1,), rows), Cache.empty(config.num_layers)))
    assert watched.seen == {*told.ranges.norms, *told.ranges.attention}
    for name, (entry, length) in told.told.items():
        if name in watched.sizes:
            assert watched.sizes[name][0] <= entry, name
            assert watched.sizes[name][1] <= length, name
    return watched, told


@pytest.mark.parametrize(("model_type", "head"), CASES)
def test_no_value_leaves_its_range(model_type, head, tmp_path):
    config, values = family_values(model_type, head, tmp_path)
    watched, told = watch(config, values)
    assert len(watched.sizes) >= 4 * config.num_layers
    if head == "none":
        watch(config, values, rows="unit")
        watch(config, values, rows="first")
    # The bound of a place right after a norm is not idle.
    shares = [
        watched.sizes[name][1] / told.told[name][1]
        for name in told.told
        if name.endswith((".up", ".gate_up"))
    ]
    assert max(shares) > 0.01


@pytest.mark.parametrize("model_type", SETTINGS)
@pytest.mark.parametrize("seed", range(4))
def test_rank_one_weights_come_close_to_their_bounds(model_type, seed, tmp_path):
    """All rows in one direction: nothing cancels, so a bound that is too small is found."""
    head = "none"
    config, values = family_values(model_type, head, tmp_path)
    rng = np.random.default_rng(seed)
    for name, value in values.items():
        if value.ndim == 2:
            signs = [rng.choice([-1.0, 1.0], size) for size in value.shape]
            values[name] = (0.3 * np.outer(*signs)).astype(np.float32)
        else:
            values[name] = rng.choice([-2.0, 2.0], value.shape).astype(np.float32)
    watch(config, values)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.floats(-3, 2), st.booleans())
def test_random_models_and_inputs(seed, exponent, tied):
    config = tiny_config(tied=tied)
    values = random_values(config, seed)
    for name in values:
        if name.endswith(("qkv", "down", "output")):
            values[name] = values[name] * 10.0 ** (exponent / 2)
    rng = np.random.default_rng(seed)
    watch(config, values, [rng.integers(0, config.vocab_size, 9)])


# -- what roundings add ----------------------------------------------------------------------------


def turned_most(frac):
    """By how much a rotation of rounded sines and cosines stretches at most."""
    angles = np.linspace(0, np.pi / 2, 20_001)
    cos, sin = (np.rint(part * 2.0**frac) * 2.0**-frac for part in (np.cos(angles), np.sin(angles)))
    return float(np.hypot(cos, sin).max())


@pytest.mark.parametrize("frac", [8, 9, 12, 18])
def test_a_rotation_of_rounded_angles_stretches_no_more_than_is_said(frac):
    assert 1 < turned_most(frac) <= turn_factor(frac)
    assert turn_factor(0) == 1.0


def test_rotated_entries_beside_a_power_of_two_keep_their_room():
    """8 bits of angles stretch by 0.3 percent, three times the reserve of products."""
    for pair in (2.0**14 * (1 - 1e-6), 2.0**14 * 0.997, 2.0**13 * 1.001, 2.0**14 * 0.99):
        bits, _ = rope_bits("layers.0", FRACTION_BITS, pair, 1.0)
        product = pair * turned_most(bits) * 2.0 ** (FRACTION_BITS + WEIGHT_BITS + bits)
        assert product < 2.0**61
    with pytest.raises(RangeError, match="rotary angles, but 8 are needed"):
        rope_bits("layers.0", FRACTION_BITS, 2.0**15 * 0.9999, 1.0)


def test_scores_of_rotated_heads_beside_a_power_of_two():
    bounds = Bounds(16)
    bounds._rope["layers.0"] = 8, 0
    length = np.array([float(np.sqrt(2.0**20 / 1.0015))])
    head = HeadBound(4, length, 1.0)
    run_now(_attended(bounds, head))
    assert float(length[0] * turned_most(8)) ** 2 > 2.0**20
    assert bounds.ranges.attention["layers.0"].score_bits == 21


async def _attended(bounds, head):
    return await bounds.attention(head, head, head, "layers.0", [])


def test_a_gated_product_leaves_its_own_rounding():
    """Only roundings: a row as long as one unit per entry, after a gate that is 0."""
    zeros = np.zeros((4, 2 * 300), dtype=np.float32)

    async def gated(bounds):
        return await bounds.gated(Bound(4, 1.0), zeros, "layers.0.gate_up", "silu")

    assert run_now(gated(Bounds(8))).length >= np.sqrt(300) * 2.0**-FRACTION_BITS
