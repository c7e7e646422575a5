"""Float matrices in the shared form: (inputs, outputs), with a bias as their last row.

Exact foldings: the gain of a norm scales the rows of the matrix after it, its shift goes into that
matrix's bias, and 1 / sqrt(head size) into the queries.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.checkpoints.checkpoint import Checkpoint

Matrix = NDArray[np.float32]


def dense(
    checkpoint: Checkpoint,
    names: str | Sequence[str],
    *,
    gain: Matrix | None = None,
    shift: Matrix | None = None,
    turned: bool = True,
) -> Matrix:
    """Linear layers side by side, with their biases if the checkpoint has them.

    Args:
        names: without `.weight`.
        gain, shift: those of the norm before them, each (inputs,).
        turned: whether they are stored as (outputs, inputs).
    """
    names = [names] if isinstance(names, str) else names
    known = set(checkpoint.names())
    parts, biases = [], []
    for name in names:
        weight = checkpoint.tensor(f"{name}.weight")
        parts.append(weight.T if turned else weight)
        if f"{name}.bias" in known:
            biases.append(checkpoint.tensor(f"{name}.bias"))
    weight = np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
    bias = np.concatenate(biases) if biases else None
    return folded(weight, bias, gain, shift)


def folded(
    weight: Matrix, bias: Matrix | None, gain: Matrix | None = None, shift: Matrix | None = None
) -> Matrix:
    """(inputs, outputs) with the foldings, and with its bias, if any, as one more row."""
    if shift is not None:
        moved = shift.astype(np.float64) @ weight
        bias = (moved if bias is None else moved + bias).astype(np.float32)
    if gain is not None:
        weight = weight * gain[:, None]
    rows = [weight] if bias is None else [weight, bias[None]]
    return np.ascontiguousarray(np.concatenate(rows) if bias is not None else weight)


def norm_of(checkpoint: Checkpoint, name: str) -> tuple[Matrix, Matrix]:
    """Gain and shift of a LayerNorm."""
    return checkpoint.tensor(f"{name}.weight"), checkpoint.tensor(f"{name}.bias")
