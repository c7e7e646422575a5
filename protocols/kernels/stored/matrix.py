"""A matrix as a checkpoint stores it, and its ring integers.

The integer of input i and output o is

    rint((stored[i, o] * inputs[i]) * (outputs[o] * 2^frac)),

every operation in float32, once and in this order, so that it is the same on every machine. It must
fit 32 bits; `panels.largest` finds out.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocols.errors import LocalProtocolError
from protocols.kernels.jit import Bytes, Words
from protocols.kernels.stored.formats import BATCH, Format, Values, values_numpy

Integers = NDArray[np.int32]

_PAD = BATCH  # factors behind the last one: batches are decoded whole
_TWIN_NUMBERS = 1 << 20  # decoded by the twin at a time


@dataclass(frozen=True, slots=True)
class Stored:
    """A matrix in a checkpoint's bytes, and the factors that its integers take.

    Attributes:
        data: (stored rows, bytes of a row) uint8, C-contiguous; may be a memory map.
        kind: how the numbers are stored.
        across: stored by inputs, (inputs, outputs); otherwise by outputs.
        inputs, outputs: their factors, float32, with `_PAD` zeros behind the last; those of the
            outputs times 2^frac.
        order: the stored row of each output, if stored by outputs.
        shape: (inputs, outputs).
    """

    data: Bytes
    kind: Format
    across: bool
    inputs: Values
    outputs: Values
    order: Words
    shape: tuple[int, int]

    @classmethod
    def of(
        cls,
        data: Bytes,
        kind: Format,
        inputs: Values,
        outputs: Values,
        *,
        across: bool = False,
        order: NDArray[np.intp] | None = None,
    ) -> "Stored":
        """Checks that bytes and factors fit.

        Raises:
            LocalProtocolError: they do not.
        """
        shape = inputs.size, outputs.size
        lines, numbers = shape if across else shape[::-1]
        if numbers % kind.entries or (across and (kind.blocked or order is not None)):
            raise LocalProtocolError(
                f"a matrix of {shape} in {kind.name} must be stored by outputs, in blocks of"
                f" {kind.entries} inputs"
            )
        size = kind.row_bytes(numbers)
        if data.dtype != np.uint8 or data.shape != (lines, size) or not data.flags.c_contiguous:
            raise LocalProtocolError(
                f"{lines} rows of {numbers} numbers in {kind.name} take"
                f" {lines} x {size} bytes without gaps, not {data.dtype} {data.shape}"
            )
        places = np.arange(shape[1]) if order is None else np.asarray(order)
        if places.shape != (shape[1],) or (np.sort(places) != np.arange(shape[1])).any():
            raise LocalProtocolError(f"the order of {shape[1]} outputs is not a permutation")
        words, plain = places.astype(np.uint64), data.view(np.ndarray)
        return cls(plain, kind, across, _padded(inputs), _padded(outputs), words, shape)


def _padded(factors: Values) -> Values:
    return np.concatenate([factors.astype(np.float32), np.zeros(_PAD, np.float32)])


def scaled_numpy(stored: Stored, lo: int, hi: int) -> Values:
    """The float32 values of outputs lo..hi before rounding: (outputs, inputs)."""
    inputs, outputs = stored.inputs[: stored.shape[0]], stored.outputs[lo:hi, None]
    with np.errstate(invalid="ignore", over="ignore"):
        if stored.across:
            one = stored.kind.nbytes
            piece = values_numpy(stored.data[:, lo * one : hi * one], stored.kind).T
        else:
            piece = values_numpy(stored.data[stored.order[lo:hi].astype(np.intp)], stored.kind)
        return (piece * inputs) * outputs


def room_for(stored: Stored, outputs: int) -> Integers:
    """An array for the integers of so many outputs: whole batches."""
    return np.empty((outputs, -(-stored.shape[0] // BATCH) * BATCH), np.int32)


def integers_numpy(stored: Stored, lo: int, hi: int, room: Integers | None = None) -> Integers:
    """NumPy twin of `integers`."""
    check_range(stored, lo, hi)
    found = np.rint(scaled_numpy(stored, lo, hi)).astype(np.int32)
    if room is None:
        return found
    room[: hi - lo, : stored.shape[0]] = found
    return room[: hi - lo, : stored.shape[0]]


def largest_numpy(stored: Stored, lo: int, hi: int) -> float:
    """NumPy twin of `largest`."""
    check_range(stored, lo, hi)
    found = [
        float(np.abs(scaled_numpy(stored, start, stop)).max(initial=0.0))
        for start, stop in pieces(stored, lo, hi)
    ]
    return max(found, default=0.0) if np.isfinite(found).all() else float("inf")


def pieces(stored: Stored, lo: int, hi: int) -> list[tuple[int, int]]:
    """Ranges of the outputs lo..hi that a twin decodes at a time."""
    step = max(1, _TWIN_NUMBERS // max(1, stored.shape[0]))
    return [(start, min(start + step, hi)) for start in range(lo, hi, step)]


def check_range(stored: Stored, lo: int, hi: int) -> None:
    """Raise LocalProtocolError unless there are outputs lo..hi."""
    if not 0 <= lo <= hi <= stored.shape[1]:
        raise LocalProtocolError(f"outputs {lo}..{hi} are not within {stored.shape[1]}")
