"""Secret values: 2-out-of-3 replicated shares `x = m - lam1 - lam2`, and local operations on them.

Who holds what (a, b):   dealer (lam1, lam2) · evaluator A (m, lam1) · evaluator B (m, lam2).
Every operation here is local and linear; a product needs a round and lives in
`protocols.arithmetic`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from protocols.base.blank import blank
from protocols.base.ring import FRACTION_BITS, RING_BITS, Bytes, Words, shift_left, shift_right
from protocols.errors import LocalProtocolError

T = TypeVar("T", bound=np.generic)


class Role(StrEnum):
    """A party. `TRACE` is not a real one: it runs a program over shapes to predict its cost."""

    DEALER = "dealer"
    EVALUATOR_A = "evaluator-a"
    EVALUATOR_B = "evaluator-b"
    OWNER = "owner"
    CLIENT = "client"
    TRACE = "trace"

    @property
    def is_dealer(self) -> bool:
        return self is Role.DEALER


COMPUTING = (Role.DEALER, Role.EVALUATOR_A, Role.EVALUATOR_B)
EVALUATORS = (Role.EVALUATOR_A, Role.EVALUATOR_B)


@dataclass(slots=True, eq=False, init=False)
class SecretTensor:
    """A tensor of ring elements, shared. `width` is the ring's bits, `frac` the fraction bits.

    Never changed once made (not frozen, because thousands per second are made, which must be
    cheap).
    """

    role: Role
    a: Words = field(repr=False)
    b: Words = field(repr=False)
    width: int
    frac: int
    shape: tuple[int, ...] = field(init=False)

    def __init__(
        self, role: Role, a: Words, b: Words, width: int = RING_BITS, frac: int = FRACTION_BITS
    ) -> None:
        self.role = role
        self.a = a
        self.b = b
        self.width = width
        self.frac = frac
        self.shape = a.shape

    @property
    def size(self) -> int:
        return self.a.size

    @property
    def lam(self) -> Words:
        """The whole mask; only the dealer knows it."""
        if self.role is not Role.DEALER:
            raise LocalProtocolError(f"{self.role} does not know the mask")
        return self.a + self.b

    # -- linear algebra ----------------------------------------------------------------------------

    def _like(self, a: Words, b: Words) -> "SecretTensor":
        return SecretTensor(self.role, a, b, self.width, self.frac)

    def _refuse(self, other: "SecretTensor") -> NoReturn:
        raise LocalProtocolError(
            f"cannot add a sharing over 2^{other.width} with {other.frac} fraction bits to one "
            f"over 2^{self.width} with {self.frac}: lift, drop or narrow one of them first"
        )

    def __add__(self, other: "SecretTensor") -> "SecretTensor":
        if self.width != other.width or self.frac != other.frac:
            self._refuse(other)
        return SecretTensor(self.role, self.a + other.a, self.b + other.b, self.width, self.frac)

    def __sub__(self, other: "SecretTensor") -> "SecretTensor":
        if self.width != other.width or self.frac != other.frac:
            self._refuse(other)
        return SecretTensor(self.role, self.a - other.a, self.b - other.b, self.width, self.frac)

    def __neg__(self) -> "SecretTensor":
        return self._like(np.uint64(0) - self.a, np.uint64(0) - self.b)

    def __mul__(self, other: object) -> NoReturn:
        raise LocalProtocolError("a product of secrets is a round: use protocols.arithmetic.mul")

    __matmul__ = __mul__

    def add_public(self, words: Words | np.uint64) -> "SecretTensor":
        """Add public ring words (already encoded with this tensor's fraction bits)."""
        return self if self.role is Role.DEALER else self._like(self.a + words, self.b)

    def times(self, words: Words | np.uint64, frac: int = 0) -> "SecretTensor":
        """Multiply by public ring words that carry `frac` fraction bits."""
        return SecretTensor(self.role, self.a * words, self.b * words, self.width, self.frac + frac)

    # -- width and fraction bits -------------------------------------------------------------------

    def drop(self, bits: int) -> "SecretTensor":
        """Shift right by `bits`: ring 2^(width-bits), off by at most 2 units, unbiased up to half a
        unit.

        The sum of three truncated shares only misses carries between them, which are small; the
        wrap of the shares' sum vanishes modulo 2^(width-bits). Half a unit is taken off first, so
        that the mean of the error over uniform masks is zero.
        """
        if bits == 0:
            return self
        moved = self.add_public(np.uint64(2**64 - (1 << (bits - 1))))
        return SecretTensor(
            self.role,
            shift_right(moved.a, bits, self.width),
            shift_right(moved.b, bits, self.width),
            self.width - bits,
            self.frac - bits,
        )

    def narrow(self, width: int) -> "SecretTensor":
        """The same value modulo 2^width: exact while it fits. Free."""
        if width > self.width:
            raise LocalProtocolError(f"cannot narrow from {self.width} to {width} bits: use lift")
        return SecretTensor(self.role, self.a, self.b, width, self.frac)

    def scale_up(self, bits: int) -> "SecretTensor":
        """Multiply by 2^bits; ring and fraction bits grow by as many bits."""
        width = min(self.width + bits, RING_BITS)
        return SecretTensor(
            self.role,
            shift_left(self.a, bits),
            shift_left(self.b, bits),
            width,
            self.frac + bits,
        )

    def reinterpret(self, frac: int) -> "SecretTensor":
        """The same words read with another number of fraction bits: a scaling by 2^n."""
        return SecretTensor(self.role, self.a, self.b, self.width, frac)

    # -- shape -------------------------------------------------------------------------------------

    def __getitem__(self, index: Any) -> "SecretTensor":
        return SecretTensor(self.role, self.a[index], self.b[index], self.width, self.frac)

    def reshape(self, *shape: int) -> "SecretTensor":
        return self._like(self.a.reshape(shape), self.b.reshape(shape))

    def transpose(self, *axes: int) -> "SecretTensor":
        return self._like(self.a.transpose(axes), self.b.transpose(axes))

    def broadcast(self, shape: tuple[int, ...]) -> "SecretTensor":
        return self._like(np.broadcast_to(self.a, shape), np.broadcast_to(self.b, shape))

    def copy(self) -> "SecretTensor":
        """A copy that does not share memory with this one."""
        return self._like(self.a.copy(), self.b.copy())

    def sum(self, axis: int) -> "SecretTensor":
        return self._like(
            self.a.sum(axis=axis, dtype=np.uint64), self.b.sum(axis=axis, dtype=np.uint64)
        )

    def scatter(self, shape: tuple[int, ...], index: Any) -> "SecretTensor":
        """A tensor of zeros of `shape` with this one written at the public `index`."""
        if self.role is Role.TRACE:
            return self._like(blank(shape), blank(shape))
        a, b = np.zeros(shape, dtype=np.uint64), np.zeros(shape, dtype=np.uint64)
        a[index], b[index] = self.a, self.b
        return self._like(a, b)


def side_by_side(arrays: Sequence[NDArray[T]], axis: int = 0) -> NDArray[T]:
    """`np.stack` of arrays of one shape and type; along the first axis it takes a single call."""
    if axis == 0 and arrays[0].ndim:
        joined: NDArray[T] = np.concatenate(arrays).reshape(-1, *arrays[0].shape)
        return joined
    return np.stack(arrays, axis=axis)


def concat(tensors: Sequence[SecretTensor], axis: int) -> SecretTensor:
    """Join sharings of one width along an axis."""
    return _joined(tensors, lambda parts: np.concatenate(parts, axis=axis))


def stack(tensors: Sequence[SecretTensor], axis: int) -> SecretTensor:
    """Sharings of one shape side by side along a new axis."""
    return _joined(tensors, lambda parts: side_by_side(parts, axis))


def _joined(tensors: Sequence[SecretTensor], join: Callable[[list[Words]], Words]) -> SecretTensor:
    first = tensors[0]
    for other in tensors[1:]:
        if first.width != other.width or first.frac != other.frac:
            first._refuse(other)
    a, b = join([t.a for t in tensors]), join([t.b for t in tensors])
    return SecretTensor(first.role, a, b, first.width, first.frac)


def constant(role: Role, words: Words, width: int = RING_BITS, frac: int = 0) -> SecretTensor:
    """A public value as a sharing with zero masks."""
    if role is Role.TRACE:
        return SecretTensor(role, blank(words.shape), blank(words.shape), width, frac)
    zeros = np.zeros_like(words)
    return SecretTensor(role, zeros if role is Role.DEALER else words, zeros, width, frac)


@dataclass(slots=True, eq=False, init=False)
class SecretBits:
    """Bits shared over Z_2: `x = c ^ r1 ^ r2`, one 0/1 byte each. Held as in `SecretTensor`."""

    role: Role
    a: Bytes = field(repr=False)
    b: Bytes = field(repr=False)
    shape: tuple[int, ...] = field(init=False)

    def __init__(self, role: Role, a: Bytes, b: Bytes) -> None:
        self.role = role
        self.a = a
        self.b = b
        self.shape = a.shape

    @property
    def mask(self) -> Bytes:
        """r1 ^ r2; only the dealer knows it."""
        if self.role is not Role.DEALER:
            raise LocalProtocolError(f"{self.role} does not know the mask")
        return self.a ^ self.b

    def __invert__(self) -> "SecretBits":
        if self.role is Role.DEALER:
            return self
        return SecretBits(self.role, self.a ^ np.uint8(1), self.b)

    def __xor__(self, other: "SecretBits") -> "SecretBits":
        return SecretBits(self.role, self.a ^ other.a, self.b ^ other.b)

    def __getitem__(self, index: Any) -> "SecretBits":
        return SecretBits(self.role, self.a[index], self.b[index])

    def reshape(self, *shape: int) -> "SecretBits":
        return SecretBits(self.role, self.a.reshape(shape), self.b.reshape(shape))


def stack_bits(bits: Sequence[SecretBits]) -> SecretBits:
    """Bits of one shape side by side along a new first axis."""
    a, b = side_by_side([bit.a for bit in bits]), side_by_side([bit.b for bit in bits])
    return SecretBits(bits[0].role, a, b)
