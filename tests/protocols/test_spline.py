"""Splines: the fitted tables, their evaluation on shares, and the ends of their windows."""

import numpy as np
import pytest
from helpers import A, floats, generator, run, share, share_ints
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.base.ring import signed
from protocols.drivers.lockstep import combine
from protocols.errors import ConfigError, LocalProtocolError
from protocols.functions.exact import silu
from protocols.kernels.waves import EXACT_BITS
from protocols.spline import evaluate, fit


def whole(function):
    """A float function as `fit` takes it."""

    def on_integers(x):
        return round(float(function(x / (1 << EXACT_BITS))) * (1 << EXACT_BITS))

    return on_integers


sine = whole(np.sin)
EXP = fit(whole(np.exp), -15.5, segment_bits=6, width_bits=2, frac=15, degree=3)
SINE = fit(sine, -8.0, segment_bits=6, width_bits=2, frac=16, degree=3)
SILU = fit(
    whole(lambda x: silu(np.array(x))), -16.0, segment_bits=7, width_bits=2, frac=16, degree=3
)


def window(spline):
    """Every representable argument near both ends, and many between."""
    unit = 2.0**-spline.frac
    inside = generator().uniform(spline.low, spline.high, 4000)
    low = spline.low + unit * np.arange(40)
    high = spline.high - unit * np.arange(1, 41)
    cuts = spline.low + 2.0 ** (spline.local_bits - spline.frac) * np.arange(1, 8)
    around = (cuts[:, None] + unit * np.arange(-2, 3)).reshape(-1)
    return np.rint(np.concatenate([inside, low, high, around]) / unit) * unit


async def on_shares(lane, x, spline, frac):
    return await evaluate(lane, x, spline, frac)


@pytest.mark.parametrize(
    ("degree", "segment_bits", "width_bits", "frac", "bound"),
    [(3, 5, 2, 14, 3e-4), (2, 6, 3, 12, 1e-3), (1, 8, 5, 10, 4e-3), (4, 3, 1, 10, 2e-3)],
)
def test_a_smooth_function(degree, segment_bits, width_bits, frac, bound):
    low = -(2.0 ** (segment_bits - width_bits - 1))
    spline = fit(
        sine, low, segment_bits=segment_bits, width_bits=width_bits, frac=frac, degree=degree
    )
    assert (spline.degree, spline.low) == (degree, low)
    assert spline.high == -low - 2.0**-width_bits
    x = window(spline)
    got = floats(on_shares, share(x, frac=frac), spline, 18)
    assert np.abs(got - np.sin(x)).max() < bound


@pytest.mark.parametrize(
    ("spline", "function", "bound"),
    [
        (EXP, np.exp, 2e-4),
        (SILU, lambda x: x / (1 + np.exp(-x)), 1e-4),
    ],
)
def test_splines_over_their_whole_window(spline, function, bound):
    x = window(spline)
    got = floats(on_shares, share(x, frac=spline.frac, width=48), spline, 18)
    assert np.abs(got - function(x)).max() < bound


def test_evaluation_is_the_tables_polynomial_truncated():
    """Exactly: segment t or t + 1, each with its own local coordinate, rounded down or up."""
    spline = SINE
    x = window(spline)
    units = np.rint(x * 2.0**spline.frac).astype(int)
    shift = spline.scale - 18
    results = run(on_shares, share_ints(units, frac=spline.frac), spline, 18).results
    assert results[A].width == 64 - shift
    got = signed(combine(results), 64 - shift)
    table = spline.tables[0].view(np.int64)
    size, count = 1 << spline.local_bits, 1 << spline.segment_bits
    for value, unit in zip(got.tolist(), units.tolist(), strict=True):
        choices = set()
        for extra in (0, 1):
            segment = unit // size + extra
            local = unit - segment * size
            column = [int(c) for c in table[:, segment % count]]
            exact = sum(c * local**k for k, c in enumerate(column))
            choices |= {exact >> shift, (exact >> shift) + 1}
        assert value in choices


@settings(max_examples=20, deadline=None)
@given(st.floats(-7.9, 7.4), st.integers(20, 64), st.integers(4, 20))
def test_any_ring_and_any_precision(x, width, frac):
    spline = fit(sine, -8.0, segment_bits=6, width_bits=2, frac=14, degree=3)
    got = floats(on_shares, share([x], frac=14, width=width), spline, frac)
    assert abs(got[0] - np.sin(x)) < 3e-4 + 2.0**-frac


def test_outside_the_window_the_value_stays_bounded():
    spline = EXP
    x = generator().uniform(-4000, 4000, 2000)
    got = floats(on_shares, share(x, frac=spline.frac), spline, 18)
    assert np.abs(got).max() < 2 * np.exp(0.5)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="2 fraction bits do not resolve segments"):
        fit(sine, -8.0, segment_bits=6, width_bits=2, frac=2, degree=3)
    spline = EXP
    for x in (share([0.0], frac=spline.frac + 1), share([0.0], frac=spline.frac, width=16)):
        with pytest.raises(LocalProtocolError, match="spline over 15 fraction bits"):
            run(on_shares, x, spline, 18)
    with pytest.raises(LocalProtocolError, match="spline over"):
        run(on_shares, share([0.0], frac=spline.frac), spline, spline.scale)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 63, 1535, 1536, 1537, 6144])
def test_every_number_of_elements(count):
    """Kernels work in chunks and groups: no element may depend on its neighbours."""
    spline = SILU
    x = np.rint(generator().uniform(-15, 15, count) * 2**spline.frac) / 2**spline.frac
    got = floats(on_shares, share(x, frac=spline.frac), spline, 18)
    assert np.abs(got - x / (1 + np.exp(-x))).max() < 6e-5
