"""GeLU and SiLU of both sets, over all arguments they may meet."""

from math import erf

import numpy as np
import pytest
from helpers import A, floats, generator, run, share, value_of
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.activations import GELU, SILU, activate
from protocols.lane import Settings
from protocols.shares import COMPUTING


def gelu(x):
    return x * (1 + np.vectorize(erf)(x / np.sqrt(2))) / 2


def silu(x):
    return x / (1 + np.exp(-np.maximum(x, -700)))


EXACT = {"gelu": gelu, "silu": silu}
both = pytest.mark.parametrize("activation", [GELU, SILU], ids=lambda a: a.name)
tree = pytest.mark.parametrize("tree", ["rounds", "traffic"])


async def function(lane, x, activation):
    return (await activate(lane, x, activation))[0]


def arguments():
    """Dense where the functions bend, around every cut, and out to 2^14 on both sides."""
    rng = generator()
    cuts = np.array([-16, -15.75, -8, -7.75, -4, -1.95, 0, 3, 4, 7.5, 8, 15.5, 15.75, 16])
    near = (cuts[:, None] + np.arange(-12, 13) / 64).reshape(-1)
    far = np.concatenate([s * 2.0 ** rng.uniform(3, 14, 400) for s in (1, -1)])
    return np.concatenate([rng.uniform(-17, 17, 12000), near, far, [2.0**14, -(2.0**14)]])


@both
@tree
@pytest.mark.parametrize("width", [36, 44, 64])
def test_tight(activation, tree, width):
    x = arguments()
    got = floats(function, share(x, width=width), activation, settings=Settings(tree=tree))
    error = np.abs(got - EXACT[activation.name](x))
    assert error.max() <= 2.5e-4
    assert error.mean() <= 2e-5


def pieces(activation, x):
    """The paper's function in floating point."""
    c = activation.centre
    left = sum(a * x**i for i, a in enumerate(activation.left))
    centre = x / 2 + sum(a * x ** (2 * i) for i, a in enumerate(c))
    first, second, third = activation.cuts
    return np.where(x < first, 0, np.where(x < second, left, np.where(x < third, centre, x)))


@both
@tree
def test_puma(activation, tree):
    x = arguments()
    settings = Settings(approximation="puma", tree=tree)
    got = floats(function, share(x), activation, settings=settings)
    error = np.abs(got - EXACT[activation.name](x))
    # The paper's own errors (0.0199 and 0.0719) and what fixed point adds to them.
    assert error.max() <= {"gelu": 0.0202, "silu": 0.0725}[activation.name]
    clear = np.abs(x[:, None] - activation.cuts).min(axis=1) > 1 / 8
    assert np.abs(got - pieces(activation, x))[clear].max() <= 5e-4


def test_the_papers_constants():
    """Their errors, measured in floating point: what the secure versions are held to."""
    x = np.linspace(-20, 20, 400001)
    assert np.abs(pieces(GELU, x) - gelu(x)).max() == pytest.approx(0.0199, abs=1e-4)
    assert np.abs(pieces(SILU, x) - silu(x)).max() == pytest.approx(0.0719, abs=1e-4)


@both
@pytest.mark.parametrize("approximation", ["tight", "puma"])
def test_another_tensor_is_lifted_beside(activation, approximation):
    rng = generator(3)
    x, other = rng.normal(size=(3, 4)) * 5, rng.normal(size=(3, 2)) * 900

    async def program(lane, x, other):
        return await activate(lane, x, activation, beside=other)

    settings = Settings(approximation=approximation)
    results = run(program, share(x, width=44), share(other, width=44), settings=settings).results
    lifted = {role: results[role][1] for role in COMPUTING}
    assert lifted[A].width == 64
    assert np.abs(value_of(lifted) - other).max() <= 2.0**-18
    got = value_of({role: results[role][0] for role in COMPUTING})
    assert np.abs(got - EXACT[activation.name](x)).max() <= (
        3e-4 if approximation == "tight" else 0.08
    )


@both
@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-(2.0**14), 2.0**14), min_size=1, max_size=6))
def test_any_argument(activation, values):
    got = floats(function, share([values]), activation)
    assert np.abs(got[0] - EXACT[activation.name](np.array(values))).max() <= 2.5e-4
