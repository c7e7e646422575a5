"""Rows of distances between tokens: what a relative position's secret weights are looked up by.

Places are public, and so are these. transformers finds them by logarithms in float32; here are the
whole numbers that come of it, the same on every machine.
"""

from decimal import ROUND_FLOOR, Decimal, localcontext
from functools import lru_cache
from math import isqrt

import numpy as np

from protocols.base.precise import PRECISE
from protocols.drivers.ops import Index

_HALF, _EXACT, _STEPS = 16, 8, 7
"""MPNet's: 16 classes a direction, 8 of them of one distance each."""


def distance_buckets(distance: Index) -> Index:
    """MPNet's class of each distance, key less query: of those behind a query 0 to 15, of those
    ahead of it 16 to 31. From 8 tokens on, classes are a factor of sqrt(2) wide.
    """
    size = np.abs(distance)
    # 8 2^(j/2) <= n for whole n and j
    edges = [isqrt((_EXACT * _EXACT << step) - 1) + 1 for step in range(1, _STEPS + 1)]
    far = _EXACT + np.searchsorted(edges, size, side="right")
    rows: Index = np.where(distance > 0, _HALF, 0) + np.where(size < _EXACT, size, far)
    return rows


def log_rows(distance: Index, buckets: int, reach: int) -> Index:
    """DeBERTa's row of each distance, key less query, in a table of 2 buckets rows (2 reach, if
    there are no buckets). Distances up to half the buckets have a row each; longer ones share rows
    of which each is for a factor.
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
    """The last distance of each row behind those of one distance, but for the last row: middle
    times ((reach - 1) / middle)^(c / (middle - 1)) for c = 1, 2 .., rounded down.
    """
    with localcontext(PRECISE):
        log = (Decimal(reach - 1) / middle).ln() / (middle - 1)
        exact = [middle * (log * step).exp() for step in range(1, 2 * middle)]
        tiny = Decimal(10) ** -40  # a whole number that came out below itself
        return tuple(int((edge + tiny).to_integral_value(ROUND_FLOOR)) for edge in exact)
