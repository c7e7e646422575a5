"""Results for the client: their width, their means, and public maps of secret words."""

import numpy as np
import pytest
from helpers import A, combine, floats, generator, run, share

from protocols.arithmetic import map_public
from protocols.base.ring import RESIDUAL_BITS, decode
from protocols.drivers.ops import Ranges
from protocols.drivers.secure import OUTPUT_LIMIT, OUTPUT_WIDTH, Secure


def opened(method, x, *args, frac=RESIDUAL_BITS):
    """A result as the client decodes it."""

    async def program(lane, x):
        result = getattr(Secure(lane, Ranges({}, {})), method)(x, *args)
        return await result if hasattr(result, "__await__") else result

    results = run(program, share(x, frac)).results
    assert results[A].width == OUTPUT_WIDTH
    assert results[A].frac == 18
    return decode(combine(results), 18, OUTPUT_WIDTH)


@pytest.mark.parametrize("frac", [18, RESIDUAL_BITS])
def test_results_up_to_their_limit(frac):
    x = np.array([[OUTPUT_LIMIT - 1, -OUTPUT_LIMIT + 1, 0.0, 2.0**-18, -(2.0**-17)]])
    assert np.abs(opened("result", x, frac=frac) - x).max() <= 2.0**-18


@pytest.mark.parametrize("lengths", [(1,), (3, 1, 5), (7, 7), (200,)])
@pytest.mark.parametrize("size", [1.0, OUTPUT_LIMIT / 2])
def test_means_of_runs(lengths, size):
    x = generator(len(lengths)).uniform(-size, size, (sum(lengths), 4))
    x[:, 0] = size  # nothing cancels
    ends = np.cumsum(lengths)
    expected = [x[e - n : e].mean(0) for n, e in zip(lengths, ends, strict=True)]
    # 1 / n has 22 fraction bits, and is multiplied by a sum of n.
    limit = 2.0**-17 + max(lengths) * 2.0**-23 * size
    assert np.abs(opened("mean", x, lengths) - expected).max() <= limit


@pytest.mark.parametrize("shift", [0, 1, 18, 40])
def test_public_maps(shift):
    """A linear map on ring words, on values of either sign, then an exact division."""
    x = generator(1).uniform(-8, 8, (5, 6))
    factors = generator(2).integers(-1000, 1000, (6, 3))

    async def program(lane, x):
        def function(words):
            return words @ factors.view(np.uint64)

        return await map_public(lane, x, function, shift=shift, frac=0)

    words = np.round(x * 2.0**18) @ factors
    got = floats(program, share(x))
    assert np.abs(got - words / 2.0**shift).max() <= 1
