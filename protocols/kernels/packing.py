"""The low bits of ring words packed tightly, least significant bit first, for the wire."""

from typing import Any

import numpy as np

from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.kernels.jit import MODE, Bytes, Words, kernel

_NATIVE = {8: "<u1", 16: "<u2", 32: "<u4", 64: "<u8"}


def packed_bytes(count: int, width: int) -> int:
    """Bytes that `count` words of `width` bits take on the wire."""
    if not 1 <= width <= 64:
        raise LocalProtocolError(f"width {width} is not in 1..64; pass the ring's width in bits")
    return (count * width + 7) // 8


def pack_numpy(words: Words, width: int) -> Bytes:
    """NumPy twin of `pack`."""
    packed_bytes(words.size, width)
    bits = np.unpackbits(
        np.ascontiguousarray(words, dtype="<u8").view(np.uint8).reshape(-1, 8),
        axis=1,
        count=width,
        bitorder="little",
    )
    return np.packbits(bits.reshape(-1), bitorder="little")


def unpack_numpy(buffer: Bytes, width: int, count: int) -> Words:
    """NumPy twin of `unpack`."""
    _check(buffer, width, count)
    bits = np.unpackbits(buffer, count=count * width, bitorder="little").reshape(count, width)
    full = np.packbits(np.pad(bits, ((0, 0), (0, 64 - width))), axis=1, bitorder="little")
    return np.ascontiguousarray(full).view("<u8").reshape(count).astype(np.uint64)


def _check(buffer: Bytes, width: int, count: int) -> None:
    expected = packed_bytes(count, width)
    if buffer.size != expected:
        raise RemoteProtocolError(
            f"packed buffer has {buffer.size} bytes where {count} words of {width} bits take"
            f" {expected}; both parties must run the same program"
        )
    spare = expected * 8 - count * width
    if spare and int(buffer[-1]) >> (8 - spare):
        raise RemoteProtocolError(
            f"the {spare} padding bits of a packed buffer are not zero; the peer is out of step"
        )


@kernel("int64(in1, uint64, uint64[::1])")
def _pack(words: Words, width: Any, out: Words) -> Any:
    """Fill `out`, which has one word more than the bits need; returns the full words written."""
    mask = ~np.uint64(0) >> (np.uint64(64) - width)
    pending, fill, at = np.uint64(0), np.uint64(0), np.int64(0)
    for i in range(words.size):
        word = words[i] & mask
        pending |= word << fill
        out[at] = pending
        # Two shifts, because one by 64 is undefined; no branch, because the pattern is irregular.
        rest = (word >> np.uint64(1)) >> (np.uint64(63) - fill)
        fill += width
        full = fill >> np.uint64(6)
        pending = rest if full else pending
        at += np.int64(full)
        fill &= np.uint64(63)
    out[at] = pending
    return at


@kernel("void(in1, uint64, uint64[::1])")
def _unpack(packed: Words, width: Any, out: Words) -> None:
    """Fill `out` from `packed`, which has at least one word more than the bits need."""
    mask = ~np.uint64(0) >> (np.uint64(64) - width)
    for i in range(out.size):
        bit = np.uint64(i) * width
        at, shift = bit >> np.uint64(6), bit & np.uint64(63)
        high = (packed[at + np.uint64(1)] << np.uint64(1)) << (np.uint64(63) - shift)
        out[i] = ((packed[at] >> shift) | high) & mask


def _pack_numba(words: Words, width: int) -> Bytes:
    """The low `width` bits (1..64) of each word of a 1-D uint64 array: ceil(n * width / 8) bytes.

    Unused final bits are zero. At width 64 the result is a view of `words`.
    """
    size = packed_bytes(words.size, width)
    words = np.ascontiguousarray(words)
    if width in _NATIVE:
        return words.astype(_NATIVE[width], copy=False).view(np.uint8)
    out = np.empty(size // 8 + 2, dtype="<u8")
    _pack(words, width, out)
    return out.view(np.uint8)[:size]


def _unpack_numba(buffer: Bytes, width: int, count: int) -> Words:
    """The `count` words that `pack` packed; at width 64 a view of `buffer` where it is aligned.

    Raises RemoteProtocolError for a wrong length or nonzero padding.
    """
    _check(buffer, width, count)
    buffer = np.ascontiguousarray(buffer)
    if width in _NATIVE:
        words = buffer.view(_NATIVE[width]).astype(np.uint64, copy=False)
        return words if words.flags.aligned else words.copy()
    packed = np.empty(buffer.size // 8 + 2, dtype="<u8")
    packed[-2:] = 0
    packed.view(np.uint8)[: buffer.size] = buffer
    out = np.empty(count, dtype=np.uint64)
    _unpack(packed, width, out)
    return out


pack = _pack_numba if MODE == "numba" else pack_numpy
unpack = _unpack_numba if MODE == "numba" else unpack_numpy
