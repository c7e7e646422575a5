"""Random ring words: AES-128 in counter mode, on the processor's own instructions (see `aesni`).

A state is the key's schedule, followed by the number of eight-byte words drawn so far.
"""

from typing import Any

import numpy as np

from protocols.kernels.aes.aesni import COUNTER_SLACK, KEY_WORDS, make_counter, make_schedule
from protocols.kernels.jit import Words, kernel
from protocols.kernels.packing import pack_on

_CHUNK = 512  # words made at a time; they stay in the first-level cache
_POSITION = KEY_WORDS
STATE_WORDS = KEY_WORDS + 1

_counter = make_counter()
_schedule = make_schedule()


@kernel("void(in1, uint64[::1])")
def begin(key: Words, state: Words) -> None:
    """Fill a state from a key of two words."""
    _schedule(key, state)
    state[_POSITION] = 0


@kernel()
def _widen(elements: Any, mask: np.uint64, out: Words, lo: int) -> None:
    """Elements of any size to out[lo:], as many as fit."""
    for i in range(min(out.size - lo, elements.size)):
        out[lo + i] = np.uint64(elements[i]) & mask


@kernel()
def _spread(made: Words, size: int, mask: np.uint64, out: Words, lo: int) -> None:
    """Elements of `size` bytes to out[lo:], as many as fit."""
    if size == 8:
        _widen(made, mask, out, lo)
    elif size == 4:
        _widen(made.view(np.uint32), mask, out, lo)
    elif size == 2:
        _widen(made.view(np.uint16), mask, out, lo)
    else:
        _widen(made.view(np.uint8), mask, out, lo)


@kernel()
def _size(width: int) -> int:
    """Bytes of the stream that an element of `width` bits takes."""
    return 8 if width > 32 else 4 if width > 16 else 2 if width > 8 else 1


@kernel("void(uint64[::1], int64, uint64[::1])")
def draw(state: Words, width: int, out: Words) -> None:
    """Fill `out` with words of `width` bits. An element takes 1, 2, 4 or 8 bytes of the stream,
    little-endian, and a draw a whole number of eight bytes.
    """
    size, mask = _size(width), ~np.uint64(0) >> np.uint64(64 - width)
    per = 8 // size
    words = (out.size + per - 1) // per
    chunk = np.empty(_CHUNK + COUNTER_SLACK, np.uint64)
    position: Any = np.int64(state[_POSITION])
    state[_POSITION] = np.uint64(position + words)
    block, odd, lo = position // 2, position % 2, 0
    while words > 0:
        taken: int = min(words, _CHUNK - odd)
        _counter(state, block, (taken + odd + 1) // 2, chunk)
        _spread(chunk[odd:_CHUNK], size, mask, out, lo)
        block, odd, lo, words = block + _CHUNK // 2, 0, lo + taken * per, words - taken


@kernel("void(uint64[::1], int64, boolean, in1, uint64[::1])")
def complete(state: Words, width: int, xor: Any, values: Words, out: Words) -> None:
    """Pack `values` less what `draw` would draw, or XOR it; `out` has one word more than the bits
    need. All in one pass: what is drawn stays in the first-level cache.
    """
    size, mask = _size(width), ~np.uint64(0) >> np.uint64(64 - width)
    per, step = 8 // size, _CHUNK * size // 8  # so that the elements of a chunk are few, too
    chunk, part = np.empty(step + COUNTER_SLACK, np.uint64), np.empty(_CHUNK, np.uint64)
    position: Any = np.int64(state[_POSITION])
    state[_POSITION] = np.uint64(position + (values.size + per - 1) // per)
    block, odd, lo = position // 2, position % 2, 0
    begun = np.uint64(0), np.uint64(0), np.uint64(0)
    while lo < values.size:
        count: int = min(values.size - lo, (step - odd) * per)
        _counter(state, block, ((count + per - 1) // per + odd + 1) // 2, chunk)
        _spread(chunk[odd:step], size, mask, part[:count], 0)
        for i in range(count):
            part[i] = values[lo + i] ^ part[i] if xor else values[lo + i] - part[i]
        if width == 64:
            out[lo : lo + count] = part[:count]
        else:
            begun = pack_on(part, count, np.uint64(width), out, begun)
        block, odd, lo = block + step // 2, 0, lo + count
    if width < 64:
        out[begun[2]] = begun[0]


@kernel("void(uint64[::1], int64)")
def move_to(state: Words, position: int) -> None:
    """Draw from the word number `position` on."""
    state[_POSITION] = position


@kernel("void(uint64[::1], uint64, uint64[::1])")
def add_drawn(state: Words, factor: np.uint64, out: Words) -> None:
    """Add `factor` times the next words of the stream to `out`. The state is left as it was."""
    chunk = np.empty(_CHUNK + COUNTER_SLACK, np.uint64)
    position: Any = np.int64(state[_POSITION])
    block, odd, lo = position // 2, position % 2, 0
    while lo < out.size:
        taken: int = min(out.size - lo, _CHUNK - odd)
        _counter(state, block, (taken + odd + 1) // 2, chunk)
        for i in range(taken):
            out[lo + i] += factor * chunk[odd + i]
        block, odd, lo = block + (taken + odd) // 2, (taken + odd) % 2, lo + taken
