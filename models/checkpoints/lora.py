"""Compute what a low-rank adapter adds to a weight, from a file or in memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float32]


def low_rank(left: Values, right: Values, scale: float, *, transposed: bool) -> Values:
    """`scale * (left @ right)` in float32 (https://arxiv.org/abs/2106.09685).

    Args:
        left: (outputs, rank). right: (rank, inputs).
        transposed: the weight is stored as (inputs, outputs), and so is the result.
    """
    product = (left @ right) * np.float32(scale)
    return product.T if transposed else product
