"""Table rows for distances between tokens, to look up the secret weights of relative positions.

Positions are public, so the rows are public too. transformers computes the rows with float32
logarithms. Here they are computed exactly, so that they are the same on every machine.
"""

from decimal import ROUND_FLOOR, Decimal, localcontext
from functools import lru_cache
from math import isqrt

import numpy as np

from protocols.base.precise import PRECISE
from protocols.drivers.ops import Index

_HALF, _EXACT, _STEPS = 16, 8, 7
"""MPNet's constants: 16 classes per direction, 8 of them with a single distance each."""


def distance_buckets(distance: Index) -> Index:
    """MPNet's class of each distance (key position minus query position).

    Keys before the query, or at it, have the classes 0 to 15, keys after it 16 to 31. From a
    distance of 8 on, each class spans a factor of sqrt(2).
    """
    size = np.abs(distance)
    # 8 2^(j/2) <= n for whole n and j
    edges = [isqrt((_EXACT * _EXACT << step) - 1) + 1 for step in range(1, _STEPS + 1)]
    far = _EXACT + np.searchsorted(edges, size, side="right")
    rows: Index = np.where(distance > 0, _HALF, 0) + np.where(size < _EXACT, size, far)
    return rows


def log_rows(distance: Index, buckets: int, reach: int) -> Index:
    """DeBERTa's row of each distance (key position minus query position).

    The table has 2 * buckets rows, or 2 * reach rows if `buckets` is 0. Distances up to half the
    buckets have one row each. Each row for longer distances spans a constant factor.
    """
    span, size = buckets or reach, np.abs(distance)
    if buckets:
        middle = buckets // 2
        far = middle + 1 + np.searchsorted(_log_edges(middle, reach), size, side="left")
        size = np.where(size <= middle, size, far)
    rows: Index = np.clip(span - np.sign(distance) * size, 0, 2 * span - 1)
    return rows


@lru_cache(maxsize=16)
def _log_edges(middle: int, reach: int) -> tuple[int, ...]:
    """The last distance of each row with several distances, except for the last row.

    These are middle * ((reach - 1) / middle)^(c / (middle - 1)) for c = 1, 2 .., rounded down.
    """
    with localcontext(PRECISE):
        log = (Decimal(reach - 1) / middle).ln() / (middle - 1)
        exact = [middle * (log * step).exp() for step in range(1, 2 * middle)]
        tiny = Decimal(10) ** -40  # for whole numbers that came out slightly too small
        return tuple(int((edge + tiny).to_integral_value(ROUND_FLOOR)) for edge in exact)
