"""A bound on how much a matrix can stretch a vector."""

import math

import numpy as np

from protocols.base.ring import Floats

SLACK = 1.001
"""A factor that covers float32 errors: products of a few thousand terms stay well within it."""
_SQUARINGS = 3


def spectral(matrix: Floats) -> float:
    """An upper bound on the largest singular value, too large by a factor of at most size^(1/32).

    ||G||_2 <= ||G^8||_F^(1/8) for the symmetric G = W^T W (or W W^T, whichever is smaller).
    """
    w = np.asarray(matrix, dtype=np.float32)
    peak = float(np.abs(w).max(initial=0.0))
    if peak == 0.0 or not math.isfinite(peak):
        return peak
    w = w / np.float32(peak)
    gram = w @ w.T if w.shape[0] < w.shape[1] else w.T @ w
    log = 0.0
    for power in range(_SQUARINGS):
        size = float(np.linalg.norm(gram))
        gram = gram / np.float32(size)
        log += math.log(size) / 2**power
        gram = gram @ gram
    log += math.log(float(np.linalg.norm(gram))) / 2**_SQUARINGS
    return SLACK * peak * math.exp(log / 2)
