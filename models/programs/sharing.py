"""Turning float matrices into shares, and shares into the handles a party computes with."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.programs.folding import row_major
from models.programs.plan import Kind, Parameter
from protocols.base.prf import Stream, add_stream
from protocols.base.ring import (
    FRACTION_BITS,
    RESIDUAL_BITS,
    WEIGHT_BITS,
    Floats,
    Words,
    encode,
)
from protocols.base.shares import Role, SecretTensor
from protocols.elsewhere import Elsewhere
from protocols.embedding import LOOKUP_BITS
from protocols.errors import RangeError
from protocols.linear import Table, Weight, mask_key, weight_mask
from protocols.streamed import PANEL_WORDS, MaskedWords, Streamed

SEED_BYTES = 32
_BLOCK_WORDS, _BLOCK_ROWS = 1 << 18, 64
_SEEDS: Mapping[Role, tuple[int, ...]] = {
    Role.DEALER: (1, 2),
    Role.EVALUATOR_A: (1,),
    Role.EVALUATOR_B: (2,),
}

TABLE_LIMIT = 2.0 ** (LOOKUP_BITS - 2 - RESIDUAL_BITS)
"""Limit on the size of an embedding table's entries."""
STREAMED: frozenset[Kind] = frozenset({"weight", "table"})
"""Kinds of tensors whose factor can be made while it is used."""
FRACTIONS: dict[Kind, int] = {
    "table": RESIDUAL_BITS,
    "weight": WEIGHT_BITS,
    "gain": FRACTION_BITS,
    "rows": RESIDUAL_BITS,
    "relative": FRACTION_BITS,
}


def seeds_of(role: Role) -> tuple[int, ...]:
    """The numbers of an upload's two seeds that a party knows."""
    return _SEEDS[role]


def mask_parameter(
    name: str, number: int, kind: Kind, matrix: Floats, seeds: Sequence[bytes]
) -> Words:
    """The owner's part: `m = W + lam1 + lam2` of tensor `number`, to be sent to both evaluators.

    Args:
        seeds: two seeds of `SEED_BYTES`; the first goes to evaluator A and the dealer, the second
            to B and the dealer.

    Raises:
        RangeError: a weight is not finite or too large for its fraction bits in the ring.
    """
    frac = FRACTIONS[kind]
    try:
        if kind == "table":
            _check_table(matrix)
        words = np.empty(matrix.shape, dtype=np.uint64)
        step = max(_BLOCK_ROWS, _BLOCK_WORDS // max(1, matrix[0].size))
        for start in range(0, len(matrix), step):  # no second copy of a large matrix
            block = slice(start, start + step)
            words[block] = encode(row_major(matrix[block]), frac)
    except RangeError as error:
        raise RangeError(f"{name}: {error}") from None
    for seed in seeds:
        add_stream(mask_key(seed, number), 0, 1, words.reshape(-1))
    return words


def _check_table(table: Floats) -> None:
    largest = float(np.abs(table).max(initial=0.0))
    if not largest < TABLE_LIMIT:
        raise RangeError(
            f"entries reach {largest:.3g}, but a look-up only handles them below {TABLE_LIMIT:g}"
        )


def hold_parameter(
    role: Role, number: int, parameter: Parameter, m: Words | None, seeds: Mapping[int, bytes]
) -> Any:
    """The form in which a party keeps a tensor: a `Table`, a `Weight` or a `SecretTensor`.

    Args:
        m: the masked tensor, at an evaluator.
        seeds: {1: first seed, 2: second seed}, of which an evaluator knows one and the dealer both.
    """
    shape = parameter.shape
    halves = {which: weight_mask(seed, number, shape) for which, seed in seeds.items()}
    if role is Role.TRACE:
        return _blank(parameter)
    if role.is_dealer:
        one, two = halves[1], halves[2]
    else:
        assert m is not None
        one, two = m, halves[1 if role is Role.EVALUATOR_A else 2]
    share = SecretTensor(role, one, two, frac=FRACTIONS[parameter.kind])
    if parameter.kind == "weight":
        return Weight.of(share)
    return Table.of(share) if parameter.kind == "table" else share


def stream_parameter(
    role: Role,
    number: int,
    parameter: Parameter,
    masked: MaskedWords | None,
    seeds: Mapping[int, bytes],
) -> Weight | Table:
    """The form of a matrix whose factor is not kept in memory; otherwise as `hold_parameter`.

    Args:
        masked: the masked tensor, at an evaluator.
    """
    shape, keys = _matrix(parameter.shape), keys_of(role, number, seeds)
    factor = Streamed(role, shape, keys, masked)
    return matrix_parameter(role, parameter, factor, keys, masked)


def keys_of(role: Role, number: int, seeds: Mapping[int, bytes]) -> tuple[bytes, ...]:
    """The keys of the masks of tensor `number` that a party knows."""
    return tuple(mask_key(seeds[which], number) for which in seeds_of(role))


def matrix_parameter(
    role: Role,
    parameter: Parameter,
    factor: Streamed | Elsewhere,
    keys: Sequence[bytes],
    masked: MaskedWords | None,
) -> Weight | Table:
    """The form of a matrix with a factor that is made while it is used, or held elsewhere; a table
    also has the halves of its words, for look-ups.
    """
    shape = _matrix(parameter.shape)
    frac = FRACTIONS[parameter.kind]
    if parameter.kind == "weight":
        return Weight(role, shape, factor, frac)
    halves = [_low_words(shape, key) for key in keys]
    if masked is not None:
        halves.insert(0, _low_words(shape, masked))
    return Table(role, shape, factor, (halves[0], halves[1]), frac)


def _low_words(shape: tuple[int, int], source: bytes | MaskedWords) -> NDArray[np.uint32]:
    """A matrix modulo 2^32, of the stream of a key or of masked words."""
    low = np.empty(prod(shape), dtype=np.uint32)
    for start in range(0, low.size, PANEL_WORDS):
        part = low[start : start + PANEL_WORDS]
        if isinstance(source, bytes):
            words = Stream(source, start).words(part.shape)
        else:
            words = np.empty(part.shape, dtype=np.uint64)
            source.read(start, words)
        part[:] = words
    return low.reshape(shape)


def _blank(parameter: Parameter) -> Any:
    if parameter.kind == "weight":
        return Weight(Role.TRACE, _matrix(parameter.shape), None)
    if parameter.kind == "table":
        return Table(Role.TRACE, _matrix(parameter.shape), None, None)
    zeros = np.zeros(parameter.shape, dtype=np.uint64)
    return SecretTensor(Role.TRACE, zeros, zeros, frac=FRACTIONS[parameter.kind])


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    rows, columns = shape
    return rows, columns
