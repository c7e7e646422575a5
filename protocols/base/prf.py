"""Randomness two parties draw without communicating: AES-128-CTR keyed per pair, inference, lane.

A `KeyRing` holds the secrets a party shares with each peer and derives one `Stream` per (peer,
path). The path is the lane's place in the program (session, inference, forks), so both parties open
the same stream whenever they reach it, and within a lane the stream is consumed in program order.
A second stream for the same (peer, path) would repeat masks; the ring refuses it.
"""

import hashlib
import math
import os
import struct
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from protocols.base.ring import RING_BITS, Bytes, Words, bit_mask, canonical
from protocols.errors import LocalProtocolError
from protocols.kernels.aes.aesni import available
from protocols.kernels.aes.ctr import STATE_WORDS, add_drawn, begin, complete, draw, move_to
from protocols.kernels.packing import pack

KEY_BYTES = 16
_BLOCK = 16
_ZEROS = memoryview(bytes(1 << 20))
_SLACK = _BLOCK - 1  # update_into needs room for one more block than it writes
_AHEAD = 2048  # bytes generated at least, because a call costs more than this many
_WORD = np.dtype("<u8")
_NARROW: dict[int, np.dtype[Any]] = {size: np.dtype(f"<u{size}") for size in (1, 2, 4)}

Source: TypeAlias = Callable[[int, int], Words]
"""Draws a number of words of a given width in bits. An element takes 1, 2, 4 or 8 bytes, a draw a
whole number of eight-byte words.
"""


def _kernel_state(key: bytes, position: int) -> Words:
    state = np.empty(STATE_WORDS, dtype=np.uint64)
    begin.run(np.frombuffer(key, dtype=np.uint64), state)
    if position:
        move_to(state, position)
    return state


def kernel_source(key: bytes, position: int = 0) -> Source:
    """AES-128-CTR on the processor's instructions; it holds no lock while it draws."""
    state = _kernel_state(key, position)

    def source(count: int, width: int) -> Words:
        out = np.empty(count, dtype=np.uint64)
        draw(state, width, out)
        return out

    return source


def library_source(key: bytes, position: int = 0) -> Source:
    """The same stream from `cryptography`. Small draws are served from bytes made ahead."""
    block, odd = divmod(position, _BLOCK // 8)
    counter = block.to_bytes(_BLOCK, "big")
    encryptor = Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor()
    ahead, at, end = np.empty(0, dtype=np.uint8), 0, 0

    def generate(count: int) -> None:
        """Keep the rest of `ahead` and extend it so that it holds `count` bytes."""
        nonlocal ahead, at, end
        left, size = end - at, max(count, _AHEAD)
        out = np.empty(size + _SLACK, dtype=np.uint8)
        out[:left] = ahead[at:end]
        view, step = memoryview(out.data), len(_ZEROS)
        for start in range(left, size, step):
            part = min(step, size - start)
            encryptor.update_into(_ZEROS[:part], view[start : start + part + _SLACK])
        ahead, at, end = out, 0, size

    def source(count: int, width: int) -> Words:
        nonlocal at
        kind = 8 if width > 32 else 4 if width > 16 else 2 if width > 8 else 1
        size = (count * kind + 7) & -8
        if at + size > end:
            generate(size)
        drawn = ahead[at : at + count * kind]
        at += size
        if kind == 8:
            return canonical(drawn.view(_WORD).copy(), width)
        words: Words = drawn.view(_NARROW[kind]).astype(np.uint64)
        return words & bit_mask(width)

    if odd:
        source(1, RING_BITS)
    return source


class Stream:
    """A pseudo-random stream: AES-128-CTR from counter 0 under a key used for nothing else.

    The caller owns the array it gets: no part of the stream is given out twice.

    Args:
        position: number of eight-byte words to leave out.
    """

    __slots__ = ("_source", "_state")

    def __init__(self, key: bytes, position: int = 0) -> None:
        self._source: Source | None = None
        self._state: Words
        if available():
            self._state = _kernel_state(key, position)
        else:
            self._source = library_source(key, position)

    def words(self, shape: tuple[int, ...], width: int = 64) -> Words:
        """Uniform ring elements of `width` bits, as uint64 of the given shape."""
        if self._source is not None:
            return self._source(math.prod(shape), width).reshape(shape)
        out = np.empty(shape, dtype=np.uint64)
        draw.run(self._state, width, out if out.ndim == 1 else out.ravel())
        return out

    def rest(self, values: Words, width: int, *, xor: bool) -> Bytes:
        """What completes the next words of `width` bits to `values`, of any shape: with it, they
        add up (or XOR) to them modulo 2^width. Packed, as `protocols.kernels.packing.pack` does.
        """
        if self._source is not None:
            half = self.words(values.shape, width)
            return pack(values ^ half if xor else values - half, width)
        out = np.empty(values.size * width // 64 + 2, dtype=np.uint64)
        complete.run(self._state, width, xor, values.ravel(), out)
        return out.view(np.uint8)[: (values.size * width + 7) // 8]

    def fill(self, count: int) -> Bytes:
        """The next `count` bytes; the rest of the last eight-byte word is skipped."""
        return self.words(((count + 7) // 8,)).view(np.uint8)[:count]

    def bits(self, shape: tuple[int, ...]) -> Bytes:
        """Uniform bits, one 0/1 byte each."""
        count = math.prod(shape)
        packed = self.fill((count + 63) // 64 * 8)
        return np.unpackbits(packed, count=count, bitorder="little").reshape(shape)


def add_stream(key: bytes, position: int, factor: int, out: Words) -> None:
    """Add `factor` times the stream's eight-byte words from `position` on to a flat array."""
    if available():
        add_drawn(_kernel_state(key, position), np.uint64(factor % 2**RING_BITS), out)
    else:
        out += np.uint64(factor % 2**RING_BITS) * Stream(key, position).words(out.shape)


def derive(key: bytes, label: bytes, path: tuple[int, ...]) -> bytes:
    """A fresh AES key for a place in the program (keyed BLAKE2b over an injective encoding)."""
    length = len(path)
    message = struct.pack(f"<I{length}Q", length, *path)
    return hashlib.blake2b(message, digest_size=KEY_BYTES, key=key, person=label[:16]).digest()


class KeyRing:
    """The pair secrets of one party in one session.

    Args:
        secrets: peer name -> the secret (16..64 bytes) known to this party and that peer only. The
            party's own name may be among them; if not, its private secret comes from the operating
            system.
        own: this party's own name.
    """

    def __init__(self, own: str, secrets: Mapping[str, bytes]) -> None:
        self._secrets = {own: os.urandom(32), **secrets}
        self._opened: set[tuple[str, tuple[int, ...]]] = set()

    def stream(self, peer: str, path: tuple[int, ...]) -> Stream:
        """The stream this party shares with `peer` at `path`, once.

        Raises:
            LocalProtocolError: the stream was opened before, or there is no secret with that peer.
        """
        if (peer, path) in self._opened:
            raise LocalProtocolError(f"random stream {path} with {peer} was opened twice")
        if peer not in self._secrets:
            raise LocalProtocolError(f"no key agreed with {peer}")
        self._opened.add((peer, path))
        return Stream(derive(self._secrets[peer], b"puma lane", path))

    def forget(self, prefix: tuple[int, ...]) -> None:
        """Drop the record of streams below `prefix`, whose number will never be used again."""
        size = len(prefix)
        self._opened = {entry for entry in self._opened if entry[1][:size] != prefix}
