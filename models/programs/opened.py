"""Public weights: what a party computes with when everybody knows the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from models.checkpoints.checkpoint import Checkpoint
from models.configs.architecture import ModelConfig
from models.programs.families import parameters_of
from models.programs.folding import Matrix, Recipe, Source, Stored, row_major, values_of
from models.programs.plan import Parameter
from models.programs.rescaling import untouched
from models.programs.sharing import FRACTIONS, STREAMED
from protocols.base.ring import encode
from protocols.base.shares import Role, constant
from protocols.public_weight import Part, PublicTable, PublicWeight

MOST_PARTS = 4
"""Layers side by side in one matrix, such as queries, keys and values."""


@dataclass(frozen=True)
class Ingredients:
    """What a public tensor is made of, see `PublicWeight.of`; of a table, its transpose. What is no
    matrix is one row of float32.
    """

    parts: tuple[Part, ...]
    row: Matrix | None = None
    column: Matrix | None = None
    bias: Matrix | None = None
    shift: Matrix | None = None


def open_parameter(role: Role, name: str, parameter: Parameter, source: Source) -> Any:
    """The handle of a tensor: as the checkpoint stores it, with what is folded into it.

    Raises:
        RangeError: a number does not fit its fraction bits. Only evaluator A looks, because that
        reads the whole tensor.
    """
    if role.is_dealer:
        return unread(parameter)
    handle = made_of(role, parameter, ingredients(parameter, source))
    if role is Role.EVALUATOR_A:
        check_range(name, handle)
    return handle


def unread(parameter: Parameter) -> Any:
    """The dealer's handle, which has a shape alone: it never uses a public number."""
    if parameter.kind not in STREAMED:
        blank = np.zeros(parameter.shape, np.uint64)
        return constant(Role.DEALER, blank, frac=FRACTIONS[parameter.kind])
    rows, columns = parameter.shape
    if parameter.kind == "weight":
        return PublicWeight(Role.DEALER, (rows, columns))
    return PublicTable(PublicWeight(Role.DEALER, (columns, rows), frac=FRACTIONS["table"]))


def made_of(
    role: Role,
    parameter: Parameter,
    found: Ingredients,
    expect: Callable[[], None] | None = None,
) -> Any:
    """An evaluator's handle.

    Args:
        expect: called before each use of a matrix; it may refuse by an error.

    Raises:
        LocalProtocolError: sizes do not fit. RangeError: a factor, a bias or a constant is not
        finite or too large. Matrices are not looked at, see `check_range`.
    """
    if parameter.kind not in STREAMED:
        values = found.parts[0].data.view("<f4").reshape(parameter.shape)
        frac = FRACTIONS[parameter.kind]
        return constant(role, encode(values, frac), frac=frac)
    if parameter.kind == "table":
        table = PublicTable.of(
            role, found.parts, row=found.row, column=found.column, bias=found.bias
        )
        return PublicTable(replace(table.weight, expect=expect))
    weight = PublicWeight.of(
        role,
        found.parts,
        row=found.row,
        column=found.column,
        bias=found.bias,
        shift=found.shift,
    )
    return replace(weight, expect=expect)


def check_range(name: str, handle: Any) -> None:
    """Read a matrix once. Raises RangeError, with its name, if a number does not fit."""
    if isinstance(handle, PublicWeight | PublicTable):
        handle.check(name)


def opened_bytes(config: ModelConfig) -> int:
    """Bytes of a model of public weights in an evaluator's own memory: factors, orders and biases
    of matrices, and two words for each entry of everything else. The matrices are in mapped files,
    which the system may drop from its memory at any time.
    """
    total = 0
    for parameter in parameters_of(config).values():
        if parameter.kind not in STREAMED:
            total += 2 * 8 * prod(parameter.shape)
            continue
        rows, columns = parameter.shape
        inputs, outputs = (rows, columns) if parameter.kind == "weight" else (columns, rows)
        total += MOST_PARTS * 4 * inputs + (4 + 8 + 8) * outputs
    return total


def ingredients(parameter: Parameter, source: Source) -> Ingredients:
    """What a tensor is made of. What cannot be described by a checkpoint's own bytes (an adapter's
    sum, a matrix that was balanced) is in float32.
    """
    if parameter.kind not in STREAMED:
        return Ingredients((Part(_bytes(values_of(source).reshape(1, -1)), "f32"),))
    source = untouched(source)
    if parameter.kind == "table":
        return _table(source)
    return _recipe(source) if isinstance(source, Recipe) else _whole(source)


def _recipe(source: Recipe) -> Ingredients:
    checkpoint = source.checkpoint
    parts = [_part(checkpoint, f"{name}.weight", across=not source.turned) for name in source.names]
    if source.order is not None:
        if len(parts) > 1 or not source.turned:
            return _whole(source)
        parts = [Part(parts[0].data, parts[0].kind, order=source.order)]
    return Ingredients(tuple(parts), source.gain, source.columns, source.bias(), source.shift)


def _table(source: Source) -> Ingredients:
    if isinstance(source, Stored):
        bias = source.checkpoint.tensor(source.bias) if source.bias else None
        return Ingredients((_part(source.checkpoint, source.name),), bias=bias)
    return Ingredients((Part(_bytes(values_of(source)), "f32"),))


def _whole(source: Source) -> Ingredients:
    return Ingredients((Part(_bytes(values_of(source)), "f32", across=True),))


def _part(checkpoint: Checkpoint, name: str, *, across: bool = False) -> Part:
    packed = checkpoint.packed(name)
    if packed is None:
        return Part(_bytes(checkpoint.tensor(name)), "f32", across)
    if across and packed.kind not in ("bf16", "f16", "f32"):
        return Part(_bytes(checkpoint.tensor(name)), "f32", across)
    return Part(packed.data, packed.kind, across)


def _bytes(matrix: Matrix) -> Any:
    rows = row_major(np.asarray(matrix, dtype=np.float32))
    return rows.view(np.uint8).reshape(len(rows), -1)
