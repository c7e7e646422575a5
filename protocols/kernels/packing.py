"""The low bits of ring words packed tightly, least significant bit first, for the wire."""

from typing import Any

import numpy as np

from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.kernels.jit import MODE, Bytes, Words, kernel

_NATIVE = {width: np.dtype(f"<u{width // 8}") for width in (8, 16, 32, 64)}


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
            f"packed buffer has {buffer.size} bytes, but {count} words of {width} bits take"
            f" {expected}; both parties must run the same program"
        )
    spare = expected * 8 - count * width
    if spare and int(buffer[-1]) >> (8 - spare):
        raise RemoteProtocolError(
            f"the {spare} padding bits of a packed buffer are not zero; the peer is out of step"
        )


@kernel()
def pack_on(words: Words, count: int, width: Any, out: Words, begun: Any) -> Any:
    """Pack the first `count` words after what was packed before.

    Args:
        out: has one word more than all the bits need.
        begun: the last word so far, the bits of it that are used, and its place: three zeros at the
            beginning.

    Returns:
        The same for what follows.
    """
    pending, fill, at = begun
    mask = ~np.uint64(0) >> (np.uint64(64) - width)
    for i in range(count):
        word = words[i] & mask
        pending |= word << fill
        out[at] = pending
        # Two shifts, because one by 64 is undefined; no branch, because the pattern is irregular.
        rest = (word >> np.uint64(1)) >> (np.uint64(63) - fill)
        fill += width
        full = fill >> np.uint64(6)
        pending = rest if full else pending
        at += full
        fill &= np.uint64(63)
    return pending, fill, at


@kernel("void(in1, uint64, uint64[::1])")
def _pack(words: Words, width: Any, out: Words) -> None:
    """Fill `out`, which has one word more than the bits need."""
    begun = np.uint64(0), np.uint64(0), np.uint64(0)
    pending, _, at = pack_on(words, words.size, width, out, begun)
    out[at] = pending


@kernel()
def _word_at(data: Bytes, at: int) -> Any:
    """The eight bytes from `at` on as a little-endian word (LLVM makes it one load)."""
    word = np.uint64(data[at])
    for i in range(1, 8):
        word |= np.uint64(data[at + i]) << np.uint64(8 * i)
    return word


@kernel()
def _easy(size: int, width: Any, count: int) -> Any:
    """Elements that begin so far before the end of `size` bytes that nine bytes can be read."""
    return min(count, int(np.uint64(8 * (size - 16)) // width)) if size > 16 else 0


@kernel()
def _element(packed: Bytes, width: Any, mask: Any, i: int) -> Any:
    """Element number i, one of those that `_easy` counts."""
    bit = np.uint64(i) * width
    at, shift = np.int64(bit >> np.uint64(3)), bit & np.uint64(7)
    # A shift by 64 is undefined: use two smaller ones where the shift may be 64.
    high = (np.uint64(packed[at + 8]) << np.uint64(1)) << (np.uint64(63) - shift)
    return ((_word_at(packed, at) >> shift) | high) & mask


@kernel()
def _last_element(packed: Bytes, width: Any, i: int) -> Any:
    """Element number i, read bit by bit."""
    word = np.uint64(0)
    for b in range(np.int64(width)):
        bit = np.uint64(i) * width + np.uint64(b)
        found = np.uint64(packed[np.int64(bit >> np.uint64(3))]) >> (bit & np.uint64(7))
        word |= (found & np.uint64(1)) << np.uint64(b)
    return word


@kernel("void(in1_8, uint64, uint64[::1])")
def _unpack(packed: Bytes, width: Any, out: Words) -> None:
    """Fill `out` from `packed`, which may have any alignment."""
    mask = ~np.uint64(0) >> (np.uint64(64) - width)
    easy = _easy(packed.size, width, out.size)
    for i in range(easy):
        out[i] = _element(packed, width, mask, i)
    for i in range(easy, out.size):
        out[i] = _last_element(packed, width, i)


@kernel("void(in1_8, uint64, in1, boolean, uint64[::1])")
def _unpack_sum(packed: Bytes, width: Any, mine: Words, xor: Any, out: Words) -> None:
    """Fill `out` with what `_unpack` would, added to `mine` (or its XOR)."""
    mask = ~np.uint64(0) >> (np.uint64(64) - width)
    easy = _easy(packed.size, width, out.size)
    if xor:
        for i in range(easy):
            out[i] = mine[i] ^ _element(packed, width, mask, i)
    else:
        for i in range(easy):
            out[i] = mine[i] + _element(packed, width, mask, i)
    for i in range(easy, out.size):
        word = _last_element(packed, width, i)
        out[i] = mine[i] ^ word if xor else mine[i] + word


def _pack_numba(words: Words, width: int) -> Bytes:
    """The low `width` bits (1..64) of each word of an array, flattened: ceil(n * width / 8) bytes.

    Unused final bits are zero. At width 64 the result is a view of `words`, if they are contiguous.
    """
    flat = words.ravel()
    if width == 64:
        return flat.view(np.uint8)
    if width in _NATIVE:
        return flat.astype(_NATIVE[width], copy=False).view(np.uint8)
    if not 1 <= width <= 64:
        packed_bytes(flat.size, width)
    size = (flat.size * width + 7) // 8
    out = np.empty(size // 8 + 2, dtype=np.uint64)
    _pack.run(flat, width, out)
    return out.view(np.uint8)[:size]


def _unpack_numba(buffer: Bytes, width: int, count: int) -> Words:
    """The `count` words that `pack` packed; at width 64 a view of `buffer` where it is aligned.

    Raises RemoteProtocolError for a wrong length or nonzero padding.
    """
    size, spare = (count * width + 7) // 8, -count * width % 8
    if buffer.size != size or (spare and buffer[-1] >> 8 - spare):
        _check(buffer, width, count)
    if not buffer.flags.c_contiguous:
        buffer = np.ascontiguousarray(buffer)
    if width in _NATIVE:
        words = buffer.view(_NATIVE[width])
        if width < 64:
            return words.astype(np.uint64)
        return words if words.flags.aligned else words.copy()
    out = np.empty(count, dtype=np.uint64)
    _unpack.run(buffer, width, out)
    return out


def unpack_sum_numpy(buffer: Bytes, width: int, mine: Words, xor: bool) -> Words:
    """NumPy twin of `unpack_sum`."""
    theirs = unpack(buffer, width, mine.size).reshape(mine.shape)
    return mine ^ theirs if xor else mine + theirs


def _unpack_sum_numba(buffer: Bytes, width: int, mine: Words, xor: bool) -> Words:
    """`mine`, of any shape, plus the words that `pack` packed, or their XOR; raises as `unpack`."""
    if width in _NATIVE or not buffer.flags.c_contiguous:
        return unpack_sum_numpy(buffer, width, mine, xor)
    size, spare = (mine.size * width + 7) // 8, -mine.size * width % 8
    if buffer.size != size or (spare and buffer[-1] >> 8 - spare):
        _check(buffer, width, mine.size)
    out = np.empty(mine.shape, dtype=np.uint64)
    _unpack_sum.run(buffer, width, mine.ravel(), xor, out.reshape(-1))
    return out


pack = _pack_numba if MODE == "numba" else pack_numpy
unpack = _unpack_numba if MODE == "numba" else unpack_numpy
unpack_sum = _unpack_sum_numba if MODE == "numba" else unpack_sum_numpy
