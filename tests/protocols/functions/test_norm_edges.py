"""Norms at the edge of what their ranges accept: adversarial rows of every size up to 65,536."""

import math

import numpy as np
import pytest
from helpers import combine, floats, generator, ints, run, share, signed
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.arithmetic import lift, square_sum
from protocols.base.ring import RESIDUAL_BITS
from protocols.base.shares import Role
from protocols.errors import RangeError
from protocols.functions.elementary import rsqrt
from protocols.functions.normalize import (
    Norm,
    _centred,
    longest_result,
    norm_range,
    normalize,
)

SIZES = [1, 2, 3, 576, 4096, 16_384, 65_535, 65_536]
KINDS = [False, True]


def rows_of(size, length):
    """Rows of a Euclidean length: (rows, size)."""
    places = np.arange(size)
    spike = np.where(places == size // 2, 1.0, 0.0)
    shapes = [
        spike,
        np.where(places == 0, 1.0, 0.0) - np.where(places == size - 1, 1.0, 0.0),
        np.ones(size) + spike * math.sqrt(size),
        np.where(places % 2, 1.0, -1.0),
        np.ones(size),
        -np.ones(size) * (places < max(1, size // 2)),
        generator(size).normal(size=size),
    ]
    lengths = [max(float(np.linalg.norm(shape)), 1e-9) for shape in shapes]
    return np.stack([shape * (length / one) for shape, one in zip(shapes, lengths, strict=True)])


def accepted(norm, length, gain=1.0):
    try:
        return norm_range(norm, length, gain)
    except RangeError:
        return None


def edge(norm, gain=1.0):
    """The largest length that is accepted."""
    low, high = 1.0, 2.0**60
    while high > low * (1 + 1e-13):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if accepted(norm, middle, gain) else (low, middle)
    return low


def exact(x, norm):
    moved = x - x.mean(-1, keepdims=True) if norm.center else x
    return moved / np.sqrt((moved * moved).mean(-1, keepdims=True) + norm.eps)


def check(norm, length, gain=None):
    x = rows_of(norm.size, length * (1 - 1e-12))
    bounds = norm_range(norm, length, 1.0 if gain is None else gain)

    async def program(lane, x, *rest):
        found = rest if rest else (None, None)
        return await normalize(lane, x, norm, bounds, gain=found[0], shift=found[1], frac=18)

    rest = [] if gain is None else [share(np.full(norm.size, gain)), share(np.zeros(norm.size))]
    got = floats(program, share(x, RESIDUAL_BITS), *rest)
    expected = exact(x, norm) * (gain or 1.0)
    moved = x - x.mean(-1, keepdims=True) if norm.center else x
    # An all-equal row is centred to its float errors; its sum is `eps` or noise.
    spread = np.sqrt((moved * moved).mean(-1, keepdims=True) + norm.eps)
    step = 2.0 ** (bounds.drop - RESIDUAL_BITS)
    relative = 2.0 ** (2 - bounds.frac) + 3e-4 + 4 * step / spread
    few = (gain or 1.0) * (2.0 ** (2 - RESIDUAL_BITS) / np.sqrt(norm.eps) + 2.0**-16)
    assert (np.abs(got - expected) <= relative * np.abs(expected) + few).all()
    return bounds


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("center", KINDS)
@pytest.mark.parametrize("eps", [1e-5, 1e-12])
def test_rows_at_the_accepted_edge(size, center, eps):
    norm = Norm(size, eps, center)
    length = edge(norm)
    assert length > 1e7
    assert check(norm, length).drop > 0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("center", KINDS)
@pytest.mark.parametrize("gain", [0.5, 1000.0])
def test_gains_at_the_accepted_edge(size, center, gain):
    """Early gains at the last length for which they are early, and late ones."""
    norm = Norm(size, 1e-5, center)
    late = 2.0**20 / norm.stretch / gain
    for length in (late * (1 - 1e-12), late * 2):
        bounds = accepted(norm, length, gain)
        if bounds is not None:
            check(norm, length, gain)
            assert bounds.early == (length < late)


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from([1, 2, 5, 31, 768, 2047, 9000, 65_536]),
    st.floats(-2, 8),
    st.sampled_from([1e-5, 1e-6, 1e-12]),
    st.booleans(),
)
def test_rows_of_any_accepted_length(size, exponent, eps, center):
    norm, length = Norm(size, eps, center), 10.0**exponent
    if accepted(norm, length) is None:
        assert length >= edge(norm)
        return
    bounds = norm_range(norm, length)
    for value in power_sides(norm, bounds):
        if accepted(norm, value) is not None:
            held(norm, value)


def power_sides(norm, bounds):
    """Lengths on both sides of where the published power changes."""
    turn = 2.0 ** (bounds.high + bounds.drop - RESIDUAL_BITS) / norm.stretch
    return turn, math.nextafter(turn, 0.0), math.nextafter(turn, math.inf), turn * (1 - 1e-6)


def held(norm, length):
    """Every integer of a run is within what its proof says of it."""
    bounds = norm_range(norm, length)
    words = np.trunc(rows_of(norm.size, length) * 2.0**RESIDUAL_BITS * (1 - 2.0**-50))
    x = share(words * 2.0**-RESIDUAL_BITS, RESIDUAL_BITS)

    async def prepared(lane, x):
        return await lift(lane, _centred(x, norm).drop(norm.extra + bounds.drop))

    async def summed(lane, x):
        small = await prepared(lane, x)
        return (await square_sum(lane, small)).add_public(bounds.eps_word(norm))

    async def product(lane, x):
        sums = await summed(lane, x)
        root = await rsqrt(lane, sums, bounds.low, bounds.high, frac=bounds.frac)
        return root.value, root.scale

    whole = words.astype(np.int64)
    largest = float(np.abs(words - words.mean(axis=1, keepdims=True)).max())
    room, unit = 2**62, 1 << norm.extra + bounds.drop
    if norm.center:
        assert norm.size * largest * (1 + 1e-9) + 2 * unit < room
        whole = norm.size * whole - whole.sum(axis=1, keepdims=True)
    assert (np.abs(whole - ints(prepared, x) * unit) < 2 * unit).all()
    sums = ints(summed, x)
    assert (sums >= 4**bounds.low).all()
    assert (sums < 4**bounds.high).all()
    results = run(product, x).results
    value, scale = (
        signed(combine({role: pair[part] for role, pair in results.items()})) for part in range(2)
    )
    wide = np.abs(whole >> norm.extra).max(axis=1) + 2
    for row, entry in enumerate(wide):
        assert int(entry) * int(value[row]) * int(scale[row]) < room
    assert set(results) == {Role.DEALER, Role.EVALUATOR_A, Role.EVALUATOR_B}


@pytest.mark.parametrize("size", [1, 2, 16, 100, 4096])
@pytest.mark.parametrize("center", KINDS)
def test_every_integer_at_the_edge_is_within_its_proof(size, center):
    norm = Norm(size, 1e-5, center)
    held(norm, edge(norm))
    for exponent in (-3.0, 0.0, 3.0, 6.0):
        bounds = norm_range(norm, 10.0**exponent)
        for length in power_sides(norm, bounds):
            if accepted(norm, length) is not None:
                held(norm, length)


def test_centring_over_many_features_has_its_room():
    """Off by 333 where the product of an entry and the size left the ring."""
    norm = Norm(16_384, 1e-5, center=True)
    with pytest.raises(RangeError, match=r"centred over 16384 entries.*above 6.71e\+07.*weights"):
        norm_range(norm, 1e8)
    check(norm, 6.7e7)
    assert norm_range(Norm(16_384, 1e-5), 1e8).drop > 0


# -- rows that are constant ------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [1e-5, 1e-6, 2.4e-7, 1e-12, 1e-15, 1e-24])
@pytest.mark.parametrize("size", [2, 16, 100, 768, 65_536])
@pytest.mark.parametrize("length", [4.0, 3000.0])
@pytest.mark.parametrize("gain", [None, 2.0, 1e4])
def test_constant_rows_are_nothing(eps, size, length, gain):
    norm = Norm(size, eps, center=True)
    constants = np.array([[0.0], [1.0], [-0.37], [1 / 3], [0.99], [2.0**-22]])
    x = np.broadcast_to(constants * length / math.sqrt(size), (6, size))
    bounds = norm_range(norm, length, gain or 1.0)

    async def program(lane, x, *rest):
        found = rest if rest else (None, None)
        return await normalize(lane, x, norm, bounds, gain=found[0], shift=found[1], frac=18)

    shift = np.linspace(-1, 1, size)
    rest = [] if gain is None else [share(np.full(size, gain)), share(shift)]
    got = floats(program, share(x, RESIDUAL_BITS), *rest)
    base = 0.0 if gain is None else np.rint(shift * 2**18) * 2.0**-18
    assert np.abs(got - base).max() <= (1e-3 * (gain or 1.0) if eps >= 2.0**-22 else 0.0)


@pytest.mark.parametrize("eps", [1e-5, 1e-12, 1e-15, 1e-24])
@pytest.mark.parametrize("unit", [False, True])
def test_rows_of_zeros_stay_zeros_under_rmsnorm(eps, unit):
    norm = Norm(96, eps)
    bounds = norm_range(norm, 300.0)

    async def program(lane, x):
        return await normalize(lane, x, norm, bounds, unit=unit)

    assert not floats(program, share(np.zeros((3, 96)), RESIDUAL_BITS)).any()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_usual_rows_under_a_tiny_eps(scale):
    x = generator().normal(size=(5, 768)) * scale + 2 * scale
    norm = Norm(768, 1e-12, center=True)
    bounds = norm_range(norm, 4 * float(np.linalg.norm(x, axis=1).max()))

    async def program(lane, x):
        return await normalize(lane, x, norm, bounds)

    got = floats(program, share(x, RESIDUAL_BITS))
    assert np.abs(got - exact(x, norm)).max() < 1e-3 + 2.0**-20 / scale


# -- how long a result can get ---------------------------------------------------------------------


@pytest.mark.parametrize(("size", "eps", "largest"), [(8, 1e-6, 2.0**20), (256, 1e-6, 2.0**20)])
@pytest.mark.parametrize("units", [0.9, 1.9, 5.5, 30.0])
def test_rows_of_a_few_units_stay_below_their_longest_result(size, eps, largest, units):
    """Squares are summed of shifted entries, and the whole ones are scaled: 1.4 times too long."""
    norm = Norm(size, eps)
    bounds = norm_range(norm, largest)
    assert bounds.drop > 8
    rows = np.full((64, size), units * 2.0 ** (bounds.drop - RESIDUAL_BITS))
    rows[::2, ::2] *= -1

    async def program(lane, x):
        return await normalize(lane, x, norm, bounds)

    lengths = np.linalg.norm(floats(program, share(rows, RESIDUAL_BITS)), axis=1)
    limit = math.sqrt(size) * longest_result(norm, bounds)
    assert lengths.max() <= 1.001 * limit
