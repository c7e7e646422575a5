"""Activation functions of every set, over all arguments they may meet."""

from dataclasses import replace
from math import erf

import numpy as np
import pytest
from helpers import A, floats, generator, run, share, value_of
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bench.fit import centres, fitted, largest_errors
from protocols.base.lane import APPROXIMATIONS, Settings
from protocols.errors import LocalProtocolError
from protocols.functions import exact
from protocols.functions.activations import ACTIVATIONS, GELU, SILU, activate, gate

NAMES = sorted({activation.name for activation in ACTIVATIONS.values()})
IN_PAPER = [name for name in NAMES if ACTIVATIONS[name].paper is not None]
EDGE = 2.0**15 - 1
every = pytest.mark.parametrize("name", NAMES)
both = pytest.mark.parametrize("activation", [GELU, SILU], ids=lambda a: a.name)
tree = pytest.mark.parametrize("tree", ["rounds", "traffic"])
BOUNDS = {
    "tight": dict.fromkeys(NAMES, 1.2e-4) | {"relu": 2.5e-4},
    "fast": {
        "gelu": 0.0065,
        "gelu_new": 0.006,
        "quick_gelu": 0.0085,
        "silu": 0.0175,
        "tanh": 0.002,
        "relu": 2.5e-4,
    },
}
"""Largest errors: a new activation's belongs under "fast"."""
HINT = "`python -m bench.fit` shows whether the waves or the cut are to blame"


async def function(lane, x, activation):
    return await activate(lane, x, activation)


def cuts_of(activation):
    cuts = [0.0] if activation.paper is None else list(activation.paper.cuts)
    for centre in (activation.tight, activation.fast):
        if centre is not None:
            cuts += [centre.cut, -centre.cut]
    return np.array(cuts)


def arguments(activation):
    """Dense where the functions bend, around every cut, and out to 2^15 - 1 on both sides."""
    rng = generator()
    near = (cuts_of(activation)[:, None] + np.arange(-20, 21) / 64).reshape(-1)
    far = np.concatenate([s * 2.0 ** rng.uniform(3, 15, 400) for s in (1, -1)])
    far = np.clip(far, -EDGE, EDGE)
    tiny = np.arange(-70, 70) * 2.0**-18
    return np.concatenate([rng.uniform(-17, 17, 12000), near, far, tiny, [EDGE, -EDGE]])


def errors(name, settings, width=64, x=None):
    activation = ACTIVATIONS[name]
    x = arguments(activation) if x is None else x
    got = floats(function, share(x, width=width), activation, settings=settings)
    return np.abs(got - activation.exact(x))


@every
@tree
@pytest.mark.parametrize("width", [36, 44, 64])
def test_tight(name, tree, width):
    error = errors(name, Settings(tree=tree), width)
    assert error.max() <= BOUNDS["tight"][name], HINT
    assert error[:12000].mean() <= 1e-5, HINT


@every
@tree
@pytest.mark.parametrize("width", [36, 44])
def test_fast(name, tree, width):
    error = errors(name, Settings(approximation="fast", tree=tree), width)
    assert error.max() <= BOUNDS["fast"][name], HINT


def pieces(activation, x):
    """The paper's function in floating point."""
    paper = activation.paper
    left = sum(a * x**i for i, a in enumerate(paper.left))
    centre = x / 2 + sum(a * x ** (2 * i) for i, a in enumerate(paper.centre))
    first, second, third = paper.cuts
    return np.where(x < first, 0, np.where(x < second, left, np.where(x < third, centre, x)))


@pytest.mark.parametrize("name", IN_PAPER)
@pytest.mark.parametrize("reach", [4, 5, 8, 12])
def test_fast_is_no_less_accurate_than_the_paper(name, reach):
    """On every range, the largest and the mean error; the paper's without those of fixed point."""
    activation = ACTIVATIONS[name]
    x = np.linspace(-reach, reach, 20001)
    ours = errors(name, Settings(approximation="fast"), x=x)
    theirs = np.abs(pieces(activation, x) - activation.exact(x))
    assert ours.max() <= theirs.max() / 2
    assert ours.mean() <= theirs.mean()


@tree
@pytest.mark.parametrize("name", IN_PAPER)
@pytest.mark.parametrize("width", [36, 44, 64])
def test_puma(name, tree, width):
    activation = ACTIVATIONS[name]
    x = arguments(activation)
    settings = Settings(approximation="puma", tree=tree)
    got = floats(function, share(x, width=width), activation, settings=settings)
    error = np.abs(got - activation.exact(x))
    # The paper's own errors (0.0199 and 0.0719) and what fixed point adds to them.
    assert error.max() <= (0.0725 if name == "silu" else 0.0202)
    clear = np.abs(x[:, None] - activation.paper.cuts).min(axis=1) > 1 / 8
    assert np.abs(got - pieces(activation, x))[clear].max() <= 5e-4


@pytest.mark.parametrize("name", [name for name in NAMES if name not in IN_PAPER])
def test_what_the_paper_does_not_define_is_tight(name):
    x = generator().uniform(-9, 9, 2000)
    assert errors(name, Settings(approximation="puma"), x=x).max() <= BOUNDS["tight"][name]


def test_the_papers_constants():
    """Their errors, measured in floating point: what the secure versions are held to."""
    x = np.linspace(-20, 20, 400001)
    assert np.abs(pieces(GELU, x) - GELU.exact(x)).max() == pytest.approx(0.0199, abs=1e-4)
    assert np.abs(pieces(SILU, x) - SILU.exact(x)).max() == pytest.approx(0.0719, abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("approximation", APPROXIMATIONS)
def test_a_gate_is_the_function_times_another_tensor(name, approximation):
    rng = generator(3)
    activation = ACTIVATIONS[name]
    x, up = rng.normal(size=(2, 3, 40)) * np.array([5, 900]).reshape(2, 1, 1)

    async def program(lane, x, up):
        return await gate(lane, x, up, activation)

    settings = Settings(approximation=approximation)
    results = run(program, share(x, width=44), share(up, width=44), settings=settings).results
    assert results[A].frac == 18
    bound = {"tight": 2.5e-4, "fast": 0.02, "puma": 0.08}[approximation]
    error = np.abs(value_of(results) - activation.exact(x) * up)
    assert (error <= bound * np.abs(up) + 2.0**-10).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_gate_holds_products_up_to_its_limit(name):
    """2^15 times 2^10, and the other way round, with either sign."""
    activation = ACTIVATIONS[name]
    x = np.array([EDGE, EDGE, -EDGE, 1000.0, -1000.0])
    up = np.array([1023.0, -1023.0, 1023.0, -30000.0, 30000.0])

    async def program(lane, x, up):
        return await gate(lane, x, up, activation)

    results = run(program, share(x, width=44), share(up, width=44)).results
    expected = activation.exact(x) * up
    assert np.abs(value_of(results) - expected).max() <= 2.5e-4 * np.abs(up).max()


@every
@settings(max_examples=15, deadline=None)
@example([EDGE, -EDGE, 0.0])
@given(st.lists(st.floats(-EDGE, EDGE), min_size=1, max_size=6))
def test_any_argument(name, values):
    x = np.array([values])
    assert errors(name, None, 36, x).max() <= 2.5e-4
    assert errors(name, Settings(approximation="fast"), 36, x).max() <= 0.0175


# -- the exact functions and the constants ---------------------------------------------------------


def test_erf_is_exact():
    x = np.concatenate([np.linspace(-8, 8, 40001), [0.0, -0.0, 300.0, -300.0, 1e-300]])
    expected = np.array([erf(value) for value in x])
    assert np.abs(exact.erf(x) - expected).max() <= 1e-15
    assert exact.erf(np.array(0.5)).shape == ()


def test_the_exact_functions_against_torch():
    torch = pytest.importorskip("torch")
    x = np.linspace(-40, 40, 8001)
    given = torch.from_numpy(x)
    functional = torch.nn.functional
    expected = {
        "gelu": functional.gelu(given),
        "gelu_new": functional.gelu(given, approximate="tanh"),
        "quick_gelu": given * torch.sigmoid(1.702 * given),
        "silu": functional.silu(given),
        "tanh": torch.tanh(given),
        "relu": torch.relu(given),
    }
    assert sorted(expected) == NAMES, "every activation needs torch's function here"
    for name, values in expected.items():
        assert np.abs(ACTIVATIONS[name].exact(x) - values.numpy()).max() <= 1e-13, name
    far = np.array([-1e4, 1e4])
    with np.errstate(all="raise", under="ignore"):
        for name in NAMES:
            assert np.isfinite(ACTIVATIONS[name].exact(far)).all()


def test_no_function_is_further_from_0_than_its_argument():
    """`models.owner.bounds` rests on it."""
    for name in NAMES:
        x = arguments(ACTIVATIONS[name])
        assert (np.abs(ACTIVATIONS[name].exact(x)) <= np.abs(x)).all(), name


def test_names_that_mean_the_same():
    assert ACTIVATIONS["gelu_new"] is ACTIVATIONS["gelu_fast"]
    assert ACTIVATIONS["gelu_new"] is ACTIVATIONS["gelu_pytorch_tanh"]
    assert ACTIVATIONS["silu"] is ACTIVATIONS["swish"]


def test_the_constants_are_those_that_the_script_fits():
    for name, (held, found) in fitted().items():
        assert held.count == found.count, name
        says = f"{name}: paste what `python -m bench.fit` prints"
        np.testing.assert_allclose(held.amplitudes, found.amplitudes, 0, 1e-9, err_msg=says)
        np.testing.assert_allclose(held.sines, found.sines, 0, 1e-9, err_msg=says)
        assert held.offset == pytest.approx(found.offset, abs=1e-9), name


def test_the_waves_meet_the_function_up_to_their_cut():
    for activation, kind, centre in centres():
        inside, _ = largest_errors(activation, centre)
        assert inside <= (0.0075 if kind == "fast" else 5e-5), (activation.name, kind, HINT)
        reach = centre.cut + 1 / 8 if kind == "folded" else 2 * centre.cut
        assert reach < centre.waves.period, (activation.name, kind)


def test_amplitudes_that_the_kernels_cannot_hold_are_refused():
    waves = GELU.tight.waves
    largest = 8 - 2.0**-28
    for sign in (1, -1):
        rest = waves.amplitudes[1:]
        assert abs(replace(waves, amplitudes=(sign * largest, *rest)).weights).max() == 2**31 - 1
        with pytest.raises(LocalProtocolError, match="below 8"):
            _ = replace(waves, amplitudes=(sign * 8.0, *rest)).weights
