"""Decoding panels of a stored matrix: its ring integers, and the largest of them."""

from typing import Any

import numpy as np

from protocols.kernels.jit import MODE, Bytes, Words, kernel
from protocols.kernels.stored.formats import BATCH, FORMATS, PLAIN, Values
from protocols.kernels.stored.matrix import (
    Integers,
    Stored,
    check_range,
    integers_numpy,
    largest_numpy,
    room_for,
)
from protocols.kernels.stored.vectors import make_decode

MANY, ACROSS = (48, 512), (192, 128)
"""Outputs and inputs of a panel of a matrix stored by outputs and of one stored by inputs."""
_AHEAD = 512  # numbers of a stored row to prefetch ahead

_bf16, _f16, _f32, _q8_0, _q4_0, _q4_1, _q4_k, _q6_k = (
    make_decode(kind, across=False, ahead=_AHEAD) for kind in FORMATS.values()
)
_bf16_across, _f16_across, _f32_across = (
    make_decode(FORMATS[name], across=True, ahead=ACROSS[0]) for name in PLAIN
)


@kernel()
def _decode(
    code: int, stored: Bytes, at: int, count: int, along: Values, along_at: int, own: Any,
    out: Any, out_at: int,
) -> None:  # fmt: skip
    """Whole batches of a stored row, which belongs to one output."""
    if code == 0:
        _bf16(stored, at, count, along, along_at, own, out, out_at)
    elif code == 1:
        _f16(stored, at, count, along, along_at, own, out, out_at)
    elif code == 2:
        _f32(stored, at, count, along, along_at, own, out, out_at)
    elif code == 3:
        _q8_0(stored, at, count, along, along_at, own, out, out_at)
    elif code == 4:
        _q4_0(stored, at, count, along, along_at, own, out, out_at)
    elif code == 5:
        _q4_1(stored, at, count, along, along_at, own, out, out_at)
    elif code == 6:
        _q4_k(stored, at, count, along, along_at, own, out, out_at)
    else:
        _q6_k(stored, at, count, along, along_at, own, out, out_at)


@kernel()
def _decode_across(
    code: int, stored: Bytes, at: int, count: int, along: Values, along_at: int, own: Any,
    out: Any, out_at: int,
) -> None:  # fmt: skip
    """Whole batches of a stored row, which belongs to one input."""
    if code == 0:
        _bf16_across(stored, at, count, along, along_at, own, out, out_at)
    elif code == 1:
        _f16_across(stored, at, count, along, along_at, own, out, out_at)
    else:
        _f32_across(stored, at, count, along, along_at, own, out, out_at)


@kernel()
def _rest(stored: Bytes, at: int, size: int, spare: Bytes) -> None:
    """A broken batch of `size` bytes, with zeros behind: nothing behind a row may be read."""
    for i in range(size):
        spare[i] = stored[at + i]
    spare[size:] = 0


@kernel()
def _rows(
    code: int, entries: int, nbytes: int, stored: Bytes, line: int, order: Words,
    inputs: Values, outputs: Values, c: int, tall: int, p: int, deep: int,
    panel: Any, start: int, step: int,
) -> None:  # fmt: skip
    """Outputs c..c+tall and inputs p..p+deep of a matrix stored by outputs, to panel (outputs,
    step) from `start` on. Zeros follow a broken batch.
    """
    spare = np.zeros(4 * BATCH, np.uint8)
    whole = deep // BATCH * BATCH
    for o in range(tall):
        at, own = np.int64(order[c + o]) * line + p // entries * nbytes, outputs[c + o]
        place = start + o * step
        _decode(code, stored, at, whole, inputs, p, own, panel, place)
        if whole < deep:  # there are no blocks
            _rest(stored, at + nbytes * whole, nbytes * (deep - whole), spare)
            _decode(code, spare, 0, BATCH, inputs, p + whole, own, panel, place + whole)


@kernel()
def _columns(
    code: int, nbytes: int, stored: Bytes, line: int, inputs: Values, outputs: Values,
    c: int, tall: int, p: int, deep: int, panel: Any, start: int, step: int, beside: Any,
) -> None:  # fmt: skip
    """As `_rows`, of a matrix stored by inputs. beside: room for deep x (tall, padded)."""
    spare = np.zeros(4 * BATCH, np.uint8)
    whole, wide = tall // BATCH * BATCH, (tall + BATCH - 1) // BATCH * BATCH
    for i in range(deep):
        at, own = (p + i) * line + c * nbytes, inputs[p + i]
        _decode_across(code, stored, at, whole, outputs, c, own, beside, i * wide)
        if whole < tall:
            _rest(stored, at + nbytes * whole, nbytes * (tall - whole), spare)
            place = i * wide + whole
            _decode_across(code, spare, 0, BATCH, outputs, c + whole, own, beside, place)
    for o in range(tall):
        for i in range(deep):
            panel[start + o * step + i] = beside[i * wide + o]


@kernel()
def fill_panel(
    code: int, across: bool, entries: int, nbytes: int, stored: Bytes, line: int, order: Words,
    inputs: Values, outputs: Values, c: int, tall: int, p: int, deep: int,
    panel: Any, start: int, step: int, beside: Any,
) -> None:  # fmt: skip
    if across:
        _columns(
            code, nbytes, stored, line, inputs, outputs, c, tall, p, deep, panel, start, step,
            beside,
        )  # fmt: skip
    else:
        _rows(
            code, entries, nbytes, stored, line, order, inputs, outputs, c, tall, p, deep, panel,
            start, step,
        )  # fmt: skip


STORED = "in1_8, int64, boolean, int64, int64, int64, in1, in1_f, in1_f, int64, int64"


@kernel(f"void({STORED}, int64, int64, int64, int64, int32[::1], int64)")
def _integers(
    stored: Bytes, code: int, across: bool, entries: int, nbytes: int, line: int, order: Words,
    inputs: Values, outputs: Values, depth: int, columns: int,
    lo: int, hi: int, tall: int, deep: int, out: Integers, step: int,
) -> None:  # fmt: skip
    beside = np.empty(tall * deep if across else 0, np.int32)
    for c in range(lo, hi, tall):
        for p in range(0, depth, deep):
            fill_panel(
                code, across, entries, nbytes, stored, line, order, inputs, outputs, c,
                min(tall, hi - c), p, min(deep, depth - p), out, (c - lo) * step + p, step, beside,
            )  # fmt: skip


@kernel(f"uint32({STORED}, int64, int64, int64, int64)")
def _largest(
    stored: Bytes, code: int, across: bool, entries: int, nbytes: int, line: int, order: Words,
    inputs: Values, outputs: Values, depth: int, columns: int,
    lo: int, hi: int, tall: int, deep: int,
) -> Any:  # fmt: skip
    """The bits of the largest size, which are in the order of the sizes, with NaN at the end."""
    beside = np.empty(tall * deep if across else 0, np.float32)
    panel = np.zeros(tall * deep, np.float32)
    found = np.uint32(0)
    for c in range(lo, hi, tall):
        for p in range(0, depth, deep):
            panel[:] = 0
            fill_panel(
                code, across, entries, nbytes, stored, line, order, inputs, outputs, c,
                min(tall, hi - c), p, min(deep, depth - p), panel, 0, deep, beside,
            )  # fmt: skip
            for word in panel.view(np.uint32):
                found = max(found, word & np.uint32(0x7FFFFFFF))
    return found


def described(stored: Stored) -> tuple[Any, ...]:
    """The arguments that describe a matrix to a kernel."""
    kind = stored.kind
    return (
        stored.data.reshape(-1), kind.code, stored.across, kind.entries, kind.nbytes,
        stored.data.shape[1], stored.order, stored.inputs, stored.outputs, *stored.shape,
    )  # fmt: skip


def _integers_numba(stored: Stored, lo: int, hi: int, room: Integers | None = None) -> Integers:
    """The ring integers of outputs lo..hi: (outputs, inputs).

    Args:
        room: `room_for` at least as many outputs, if the result may be a view of it.
    """
    check_range(stored, lo, hi)
    out = room_for(stored, hi - lo) if room is None else room
    size = ACROSS if stored.across else MANY
    _integers(*described(stored), lo, hi, *size, out.reshape(-1), out.shape[1])
    return out[: hi - lo, : stored.shape[0]]


def _largest_numba(stored: Stored, lo: int, hi: int) -> float:
    """The largest size of the numbers of outputs lo..hi before they are rounded; infinity if one
    is not finite.
    """
    check_range(stored, lo, hi)
    bits = _largest(*described(stored), lo, hi, *(ACROSS if stored.across else MANY))
    value = float(np.array(bits, np.uint32).view(np.float32))
    return value if np.isfinite(value) else float("inf")


integers = _integers_numba if MODE == "numba" else integers_numpy
largest = _largest_numba if MODE == "numba" else largest_numpy
