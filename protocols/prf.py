"""Randomness that two parties draw without talking: AES-128-CTR keyed per pair, inference and lane.

A `KeyRing` holds the secrets a party shares with each peer and derives one `Stream` per (peer,
path). The path is the lane's place in the program (session, inference, forks), so both parties open
the same stream whenever they get there, and within a lane the stream is consumed in program order.
A second stream for the same (peer, path) would repeat masks; the ring refuses it.
"""

import hashlib
import math
import os
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from protocols.errors import LocalProtocolError
from protocols.ring import Bytes, Words, bit_mask, canonical

KEY_BYTES = 16
_BLOCK = 16
_ZEROS = memoryview(bytes(1 << 20))
_SLACK = _BLOCK - 1  # update_into wants room for one more block than it writes
_AHEAD = 2048  # bytes generated at least, because a call costs more than that many
_WORD = np.dtype("<u8")
_NARROW: dict[int, np.dtype[Any]] = {size: np.dtype(f"<u{size}") for size in (1, 2, 4)}


def word_bytes(width: int) -> int:
    """Bytes of stream spent on an element of `width` bits: 1, 2, 4 or 8."""
    return 8 if width > 32 else 4 if width > 16 else 2 if width > 8 else 1


def stream_bytes(count: int, width: int) -> int:
    """Bytes of stream spent on `count` elements: whole words of 8, so that all draws stay
    aligned.
    """
    return (count * word_bytes(width) + 7) & -8


def as_words(drawn: Bytes, count: int, width: int) -> Words:
    """The first `count` elements of `width` bits from bytes of a stream."""
    if width > 32:
        whole: Words = drawn[: 8 * count].view(_WORD)
        if not whole.flags.aligned:
            whole = whole.copy()
        return canonical(whole, width)
    kind = _NARROW[word_bytes(width)]
    words: Words = drawn[: count * kind.itemsize].view(kind).astype(np.uint64)
    if width != 8 * kind.itemsize:
        words &= bit_mask(width)
    return words


class Stream:
    """A pseudo-random stream: AES-128-CTR from counter 0 under a key used for nothing else.

    Small draws are served from a block generated ahead. An array drawn is its owner's: no part of
    the stream is given out twice.
    """

    __slots__ = ("_ahead", "_at", "_encryptor", "_end")

    def __init__(self, key: bytes) -> None:
        cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(_BLOCK)))
        self._encryptor = cipher.encryptor()
        self._ahead = np.empty(0, dtype=np.uint8)
        self._at = self._end = 0

    def fill(self, count: int) -> Bytes:
        """The next `count` bytes."""
        at, end = self._at, self._at + count
        if end > self._end:
            self._generate(count)
            at, end = 0, count
        self._at = end
        return self._ahead[at:end]

    def _generate(self, count: int) -> None:
        """Make `_ahead` what is left of it and so much more that it holds `count` bytes."""
        left, size = self._end - self._at, max(count, _AHEAD)
        out = np.empty(size + _SLACK, dtype=np.uint8)
        out[:left] = self._ahead[self._at : self._end]
        view, step = memoryview(out.data), len(_ZEROS)
        for start in range(left, size, step):
            part = min(step, size - start)
            self._encryptor.update_into(_ZEROS[:part], view[start : start + part + _SLACK])
        self._ahead, self._end = out, size

    def words(self, shape: tuple[int, ...], width: int = 64) -> Words:
        """Uniform ring elements of `width` bits, as uint64 of the given shape."""
        count = math.prod(shape)
        return as_words(self.fill(stream_bytes(count, width)), count, width).reshape(shape)

    def bits(self, shape: tuple[int, ...]) -> Bytes:
        """Uniform bits, one 0/1 byte each."""
        count = math.prod(shape)
        packed = self.fill((count + 63) // 64 * 8)
        return np.unpackbits(packed, count=count, bitorder="little").reshape(shape)


def derive(key: bytes, label: bytes, path: tuple[int, ...]) -> bytes:
    """A fresh AES key for a place in the program (keyed BLAKE2b over an injective encoding)."""
    message = struct.pack(f"<I{len(path)}Q", len(path), *path)
    return hashlib.blake2b(message, digest_size=KEY_BYTES, key=key, person=label[:16]).digest()


class KeyRing:
    """The pair secrets of one party in one session.

    Args:
        secrets: peer name -> the secret (16..64 bytes) known to this party and that peer only. The
            party's own
            name may be among them; without it, a private secret comes from the operating system.
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
        secret = self._secrets.get(peer)
        if secret is None:
            raise LocalProtocolError(f"no key agreed with {peer}")
        self._opened.add((peer, path))
        return Stream(derive(secret, b"puma lane", path))

    def forget(self, prefix: tuple[int, ...]) -> None:
        """Drop the record of streams below `prefix`, whose number will never be used again."""
        size = len(prefix)
        self._opened = {entry for entry in self._opened if entry[1][:size] != prefix}
