"""The activation functions in float64: the reference for the secure versions and the constants."""

from math import erf as _erf
from math import factorial, pi, sqrt

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]

_STEP = 1 / 32
_END = 6.0  # beyond it erf is 1 to the last bit
_TERMS = 11


def _taylor() -> Reals:
    """Coefficients (terms, nodes) of erf around multiples of `_STEP`, lowest degree first.

    The n-th derivative of erf is 2 / sqrt(pi) (-1)^(n-1) H_(n-1)(x) exp(-x^2), H the physicists'
    Hermite polynomials.
    """
    nodes = np.arange(0, _END + _STEP, _STEP)
    values = np.array([_erf(node) for node in nodes])
    bell = 2 / sqrt(pi) * np.exp(-nodes * nodes)
    hermite = [np.ones_like(nodes), 2 * nodes]
    for n in range(1, _TERMS):
        hermite.append(2 * nodes * hermite[n] - 2 * n * hermite[n - 1])
    rows = [(-1) ** n * hermite[n] * bell / factorial(n + 1) for n in range(_TERMS)]
    return np.stack([values, *rows])


_TAYLOR = _taylor()


def erf(x: Reals) -> Reals:
    """The error function, within 1e-15."""
    size = np.minimum(np.abs(x), _END)
    index = np.rint(size / _STEP).astype(np.intp)
    distance = size - index * _STEP
    total = _TAYLOR[-1][index]
    for row in _TAYLOR[-2::-1]:
        total = total * distance + row[index]
    signed: Reals = np.copysign(np.minimum(total, 1.0), x)
    return signed


def sigmoid(x: Reals) -> Reals:
    """1 / (1 + exp(-x)), without overflow."""
    small = np.exp(-np.abs(x))
    value: Reals = np.where(x < 0, small, 1.0) / (1 + small)
    return value


def gelu(x: Reals) -> Reals:
    """x Phi(x) (arXiv 1606.08415)."""
    return 0.5 * x * (1 + erf(x / sqrt(2)))


def gelu_tanh(x: Reals) -> Reals:
    """GeLU's approximation by tanh, as GPT-2 uses it."""
    # (1 + tanh z) / 2 is the sigmoid of 2 z, which keeps its precision far to the left.
    return x * sigmoid(2 * sqrt(2 / pi) * (x + 0.044715 * x**3))


def quick_gelu(x: Reals) -> Reals:
    """x sigmoid(1.702 x), as CLIP uses it."""
    return x * sigmoid(1.702 * x)


def silu(x: Reals) -> Reals:
    """x sigmoid(x)."""
    return x * sigmoid(x)


def relu(x: Reals) -> Reals:
    """max(x, 0)."""
    return np.maximum(x, 0.0)


def tanh(x: Reals) -> Reals:
    """The hyperbolic tangent."""
    return np.tanh(x)
