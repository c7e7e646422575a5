"""exp and negative powers over the whole of their ranges."""

import numpy as np
import pytest
from helpers import A, declared, floats, generator, run, share, share_ints
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocols.base import blocks
from protocols.base.lane import TREES as ALL_TREES
from protocols.base.lane import Settings
from protocols.base.ring import decode
from protocols.drivers.lockstep import combine
from protocols.errors import LocalProtocolError
from protocols.functions.elementary import exp_negative, reciprocal, rsqrt
from protocols.functions.exponential import HEAD, TIGHT, exp_part, factor_tables

TREES = ["rounds", "traffic"]


def arguments():
    """From where exp is 1 to far below its clip."""
    rng = generator()
    near = rng.uniform(-16, 0.05, 6000)
    far = -(2.0 ** rng.uniform(4, 12.99, 500))
    edges = [0, 0.05, -1 / 64, -14, -15, -15.02, -15.5, -15.6, -16, -31, -32, -47.25, -8191]
    return np.concatenate([near, far, edges])


def exp_error(x, width=64, **settings):
    got = floats(exp_negative, share(x, width=width), settings=Settings(**settings))
    return np.abs(got - np.exp(x)), got


@pytest.mark.parametrize("width", [32, 44, 64])
@pytest.mark.parametrize("tree", TREES)
def test_tight_exp(width, tree):
    x = arguments()
    error, got = exp_error(x, width, tree=tree)
    assert error.max() <= 2e-5
    assert error[:6000].mean() <= 3e-6
    assert not got[x <= -13.65].any()


@pytest.mark.parametrize("width", [32, 44, 64])
@pytest.mark.parametrize("tree", TREES)
def test_fast_exp(width, tree):
    x = arguments()
    error, got = exp_error(x, width, tree=tree, approximation="fast")
    assert error.max() <= 1.2e-3
    assert not got[x <= -13.65].any()


def test_exp_of_many_arguments_selects_before_it_lifts(monkeypatch):
    """As accurate, two rounds more and a fifth of the bytes fewer; not with the fewest rounds."""
    x = share(arguments(), width=32)
    before = {tree: declared(exp_negative, x, settings=Settings(tree=tree)) for tree in ALL_TREES}
    monkeypatch.setattr(blocks, "MANY", 100)
    after = {tree: declared(exp_negative, x, settings=Settings(tree=tree)) for tree in ALL_TREES}
    assert after["traffic"] == before["traffic"]
    assert after["rounds"] == before["rounds"] == before["balanced"]
    assert after["balanced"].rounds == before["balanced"].rounds + 2
    sent = [cost.online + cost.offline for cost in (after["balanced"], before["balanced"])]
    assert sent[0] < 0.82 * sent[1]
    assert exp_error(arguments(), 32, tree="balanced")[0].max() <= 2e-5


@pytest.mark.parametrize("reach", [4, 8, 14])
def test_fast_exp_is_no_less_accurate_than_the_paper(reach):
    x = np.linspace(-reach, 0, 8001)
    ours, _ = exp_error(x, 32, approximation="fast")
    theirs = np.abs(np.where(x < -14, 0, (1 + x / 32) ** 32) - np.exp(x))
    assert ours.max() <= theirs.max() / 4
    assert ours.mean() <= theirs.mean() / 4


@settings(max_examples=25, deadline=None)
@example([0.2499, -8191.0, -13.4, -13.375])
@given(st.lists(st.floats(-8191, 0.2499), min_size=1, max_size=6))
def test_exp_of_any_argument(values):
    for kind, bound in (("tight", 2e-5), ("fast", 1.2e-3)):
        assert exp_error(np.array(values), 32, approximation=kind)[0].max() <= bound


def test_exp_part_at_both_ends():
    """Every representable argument at the ends of its range, and around the ends of segments."""
    unit, length = 2.0**-18, 128 / 9
    lowest = HEAD - length
    cuts = np.array([lowest, HEAD])
    around = (cuts[:, None] + unit * np.arange(-40, 41)).reshape(-1)
    x = np.rint(around / unit) * unit
    x = x[(x >= lowest) & (x < HEAD)]
    got = floats(exp_part, share(x, width=26), TIGHT)
    assert np.abs(got - np.exp(x)).max() <= 2e-5


def test_exp_part_refuses_what_it_cannot_read():
    for x in (share([0.0], frac=17), share([0.0], width=25)):
        with pytest.raises(LocalProtocolError, match="exp over 18 fraction bits and 26 bits"):
            run(exp_part, x, TIGHT)


def test_the_evaluators_factors_are_right_to_the_last_bit():
    upper, lower = factor_tables()
    unit = 2.0**-18 / 9
    starts = ((upper[0], HEAD, 2**12, 22), (upper[1], HEAD - 128 / 9, 2**12, 22), (lower, 0, 1, 20))
    for table, start, step, bits in starts:
        exact = np.exp(start + np.arange(table.size) * unit * step) * 2.0**bits
        assert np.abs(table - exact).max() <= 0.51
    assert int(upper.max()) * int(lower.max()) < 2**63 - 2**24


def test_puma_exp():
    x = arguments()
    got = floats(exp_negative, share(x), settings=Settings(approximation="puma"))
    paper = np.where(x < -14, 0, (1 + x / 32) ** 32)
    clear = np.abs(x + 14) > 1 / 32
    # The base is dropped to 14 fraction bits, off by at most 2 units, and taken to the 32nd power.
    base = np.maximum(1 + x / 32, 0)
    bound = 32 * base**31 * 2 * 2.0**-14 + 5e-4
    assert (np.abs(got - paper) <= bound)[clear].all()
    away = (x <= -0.1) & clear
    assert np.abs(got - np.exp(x))[away].max() <= 0.0093
    assert not got[x < -14.1].any()


# -- negative powers -------------------------------------------------------------------------------


def powers(low, high, count=60):
    """Ring integers over [4^low, 4^high): both ends of every factor of four, and many between."""
    values = set()
    for j in range(low, high):
        lo, hi = 4**j, 4 ** (j + 1)
        values |= {lo, lo + 1, hi - 1, 2 * lo, (lo + hi) // 2}
        values |= {int(lo * 4**u) for u in generator(j).uniform(0, 1, count)}
        values |= {int(hi * (1 - 2.0**-k)) for k in range(1, 12)}
    return np.array([v for v in sorted(values) if 4**low <= v < 4**high])


def combined(results):
    """value * scale in exact floats."""
    parts = []
    for name in ("value", "scale"):
        shared = {role: getattr(result, name) for role, result in results.items()}
        parts.append(decode(combine(shared), shared[A].frac))
    return parts[0] * parts[1], parts


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize(
    ("low", "high", "frac", "width"),
    [
        (8, 14, 18, 64),
        (0, 8, 18, 64),
        (12, 20, 18, 64),
        (0, 29, 0, 64),
        (5, 29, 44, 64),
        (3, 9, 8, 40),
    ],
)
def test_rsqrt_over_its_range(low, high, frac, width, tree):
    v = powers(low, high)

    async def program(lane, v):
        return await rsqrt(lane, v, low, high, gain=1.0, narrow=tree == "rounds")

    results = run(program, share_ints(v, width, frac), settings=Settings(tree=tree)).results
    got, (value, _) = combined(results)
    exact = (v / 2.0**frac) ** -0.5
    assert np.abs(got / exact - 1).max() <= 5e-5
    assert np.abs(got / exact - 1).mean() <= 1e-5
    assert value.min() > 0.5
    assert value.max() < 10


@pytest.mark.parametrize("gain", [1.0, 0.7, 24.0, 2.0**10 - 1, 3e-3])
def test_rsqrt_takes_a_gain(gain):
    v = powers(6, 16, 20)

    async def program(lane, v):
        return await rsqrt(lane, v, 6, 16, gain=gain, frac=22)

    got, _ = combined(run(program, share_ints(v, frac=20)).results)
    assert np.abs(got / (gain * (v / 2.0**20) ** -0.5) - 1).max() <= 5e-5


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize(("low", "high"), [(8, 13), (0, 10), (8, 10), (9, 20)])
def test_reciprocal_over_its_range(low, high, tree):
    v = powers(low, high)

    async def program(lane, v):
        return await reciprocal(lane, v, low, high, frac=22, narrow=tree == "rounds")

    got, _ = combined(run(program, share_ints(v, frac=18), settings=Settings(tree=tree)).results)
    assert np.abs(got * v / 2.0**18 - 1).max() <= 1e-4


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 12), st.integers(1, 12), st.integers(0, 1000))
def test_any_range_and_shape(low, span, seed):
    high = low + span
    rng = generator(seed)
    v = np.array([[int(4**u) for u in rng.uniform(low, high - 0.001, 5)] for _ in range(2)])

    async def program(lane, v):
        return await reciprocal(lane, v, low, high)

    got, _ = combined(run(program, share_ints(v, frac=10)).results)
    assert got.shape == (2, 5)
    assert np.abs(got * v / 2.0**10 - 1).max() <= 1e-4


def test_what_cannot_be_done_is_refused():
    async def root(lane, v):
        return await rsqrt(lane, v, 8, 14)

    async def wide(lane, v):
        return await rsqrt(lane, v, 8, 32)

    with pytest.raises(LocalProtocolError, match="an even number of fraction bits, not 17"):
        run(root, share_ints([1], frac=17))
    with pytest.raises(LocalProtocolError, match="drop more bits"):
        run(wide, share_ints([1], frac=18))
    with pytest.raises(LocalProtocolError, match=r"up to 4\^14 leave no room in a ring of 20"):
        run(root, share_ints([1], 20, 18))
