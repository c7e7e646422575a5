"""A bound on how much a matrix can stretch a vector."""

import math
import secrets

import numpy as np

from models.owner.rounding import noise
from protocols.base.ring import Floats

SLACK = 1.001
"""A factor that covers float32 errors: products of a few thousand terms stay well within it."""
EXACT = 2048
"""Up to this many rows or columns a bound is certain; for more, that would take hours."""
_SQUARINGS = 3
_VECTORS, _ALPHA, _STEPS = 16, 10.0, 7


def spectral(matrix: Floats) -> float:
    """An upper bound on the largest singular value.

    If the smaller side has at most `EXACT` entries it always holds, and is too large by a factor of
    at most size^(1/32). For larger matrices see `_likely`.
    """
    w = np.asarray(matrix, dtype=np.float32)
    peak = float(np.abs(w).max(initial=0.0))
    if peak == 0.0 or not math.isfinite(peak):
        return peak
    w = w / np.float32(peak)
    return SLACK * peak * (_certain(w) if min(w.shape) <= EXACT else _likely(w))


def _certain(w: Floats) -> float:
    """||G||_2 <= ||G^8||_F^(1/8) for the symmetric G = W^T W (or W W^T, whichever is smaller)."""
    gram = w @ w.T if w.shape[0] < w.shape[1] else w.T @ w
    log = 0.0
    for power in range(_SQUARINGS):
        size = float(np.linalg.norm(gram))
        gram = gram / np.float32(size)
        log += math.log(size) / 2**power
        gram = gram @ gram
    log += math.log(float(np.linalg.norm(gram))) / 2**_SQUARINGS
    return math.exp(log / 2)


def _likely(w: Floats) -> float:
    """A bound that fails for a share of 1e-16 of all choices of random vectors: for B = W (W^T W)^7
    and 16 vectors v of Gaussian entries, ||B|| <= 10 sqrt(2 / pi) max ||B v|| except with
    probability 10^-16 (Halko, Martinsson, Tropp: Finding Structure with Randomness, SIAM Review
    2011, lemma 4.1). It is too large by a factor below 1.7 in matrices of up to 32,768 rows.
    """
    x = _gaussian((w.shape[1], _VECTORS))
    log = 0.0
    for step in range(2 * _STEPS + 1):
        x = w.T @ x if step % 2 else w @ x
        size = float(np.sqrt(np.einsum("ij,ij->j", x, x, dtype=np.float64)).max())
        log += math.log(size)
        x /= np.float32(size)
    return math.exp((math.log(_ALPHA * math.sqrt(2 / math.pi)) + log) / (2 * _STEPS + 1))


def _gaussian(shape: tuple[int, int]) -> Floats:
    """Box and Muller's method. New vectors each time: no checkpoint can be made to fit them."""
    one, two = (noise(shape, secrets.randbits(62)) / 2 + 0.5 for _ in range(2))
    found: Floats = np.sqrt(-2 * np.log1p(-one)) * np.cos(2 * np.pi * two)
    return found.astype(np.float32)
