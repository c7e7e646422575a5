"""Turning float matrices into shares, and shares into the handles a party computes with."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from models.plan import Kind, Parameter
from protocols.errors import RangeError
from protocols.linear import Table, Weight, weight_mask
from protocols.ring import (
    FRACTION_BITS,
    RESIDUAL_BITS,
    WEIGHT_BITS,
    Floats,
    Words,
    encode,
)
from protocols.shares import Role, SecretTensor

SEED_BYTES = 32
_FRACTIONS: dict[Kind, int] = {
    "table": RESIDUAL_BITS,
    "weight": WEIGHT_BITS,
    "vector": FRACTION_BITS,
}


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
    try:
        words = encode(matrix, _FRACTIONS[kind])
    except RangeError as error:
        raise RangeError(f"{name}: {error}") from None
    for seed in seeds:
        words += weight_mask(seed, number, matrix.shape)
    return words


def hold_parameter(
    role: Role, number: int, parameter: Parameter, m: Words | None, seeds: Mapping[int, bytes]
) -> Any:
    """What a party keeps of a tensor: a `Table`, a `Weight` or a `SecretTensor`.

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
        if parameter.kind == "weight":
            one += two
            return Weight(role, _matrix(shape), None, one)
    else:
        assert m is not None
        one, two = m, halves[1 if role is Role.EVALUATOR_A else 2]
        if parameter.kind == "weight":
            return Weight(role, _matrix(shape), one, two)
    if parameter.kind == "table":
        table = Table(role, _matrix(shape), one, two)
        _ = table.low_halves  # made now rather than while somebody waits for an answer
        return table
    return SecretTensor(role, one, two, frac=FRACTION_BITS)


def _blank(parameter: Parameter) -> Any:
    if parameter.kind == "weight":
        return Weight(Role.TRACE, _matrix(parameter.shape), None, None)
    if parameter.kind == "table":
        return Table(Role.TRACE, _matrix(parameter.shape), None, None)
    zeros = np.zeros(parameter.shape, dtype=np.uint64)
    return SecretTensor(Role.TRACE, zeros, zeros)


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    rows, columns = shape
    return rows, columns
