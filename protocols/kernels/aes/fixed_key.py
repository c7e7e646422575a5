"""Fixed-key AES-128 in Matyas-Meyer-Oseas form, H_k(s) = AES_k(s) xor s, over many blocks.

The keys are public constants: the first 16 bytes of SHA-256 of a name and an index. Keys 0 and 1
make the left and right child of a tree node, keys 2, 3, ... turn a leaf into ring words, so no key
has two uses. Security rests on modelling AES under each fixed key as an independent random
permutation, as in Boyle, Gilboa, Ishai, "Function Secret Sharing: Improvements and Extensions"
(CCS 2016).
"""

import hashlib
import threading
from functools import cache

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from protocols.kernels.jit import Words

LEFT, RIGHT, LEAF = 0, 1, 2
_OVERHANG = 15  # update_into needs room for one more block less a byte

_local = threading.local()


@cache
def fixed_key(index: int) -> bytes:
    """The public AES-128 key number `index` (16 bytes)."""
    return hashlib.sha256(f"puma dpf fixed key {index}".encode()).digest()[:16]


def _encryptor(index: int) -> CipherContext:
    """This thread's cipher context for a key: contexts must not be shared among threads."""
    made: dict[int, CipherContext] = _local.__dict__.setdefault("encryptors", {})
    if index not in made:
        made[index] = Cipher(AES(fixed_key(index)), ECB()).encryptor()  # noqa: S305 - a permutation
    return made[index]


def mmo(index: int, seeds: Words) -> Words:
    """H_k of every block: seeds (..., 2) uint64, contiguous, little endian; same shape out."""
    if not seeds.size:
        return seeds.copy()
    out = np.empty(seeds.nbytes + _OVERHANG, dtype=np.uint8)
    _encryptor(index).update_into(seeds.reshape(-1).view(np.uint8).data, out.data)
    hashed = out[: seeds.nbytes].view(np.uint64).reshape(seeds.shape)
    hashed ^= seeds
    return hashed
