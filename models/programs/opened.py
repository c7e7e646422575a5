"""Public weights: what a party computes with when everybody knows the model."""

from __future__ import annotations

from typing import Any

import numpy as np

from models.checkpoints.checkpoint import Checkpoint
from models.programs.folding import Matrix, Recipe, Source, Stored, row_major, values_of
from models.programs.plan import Parameter
from models.programs.rescaling import untouched
from models.programs.sharing import FRACTIONS, STREAMED
from protocols.base.ring import encode
from protocols.base.shares import Role, constant
from protocols.public_weight import Part, PublicTable, PublicWeight


def open_parameter(role: Role, name: str, parameter: Parameter, source: Source) -> Any:
    """The handle of a tensor: as the checkpoint stores it, with what is folded into it.

    What cannot be described in that way (an adapter's sum, a matrix that was balanced) is held in
    float32.

    Raises:
        RangeError: a number does not fit its fraction bits. Only evaluator A looks, because that
        reads the whole tensor.
    """
    if parameter.kind not in STREAMED:
        frac = FRACTIONS[parameter.kind]
        return constant(role, encode(values_of(source), frac), frac=frac)
    if role.is_dealer:
        return _unread(parameter)
    source = untouched(source)
    handle: PublicWeight | PublicTable
    if parameter.kind == "table":
        handle = _table(role, source)
    else:
        handle = _recipe(role, source) if isinstance(source, Recipe) else _whole(role, source)
    if role is Role.EVALUATOR_A:
        handle.check(name)
    return handle


def _unread(parameter: Parameter) -> PublicWeight | PublicTable:
    """The dealer's handle, which has a shape alone: it never multiplies by a public matrix."""
    rows, columns = parameter.shape
    if parameter.kind == "weight":
        return PublicWeight(Role.DEALER, (rows, columns))
    return PublicTable(PublicWeight(Role.DEALER, (columns, rows), frac=FRACTIONS["table"]))


def _recipe(role: Role, source: Recipe) -> PublicWeight:
    checkpoint, bias = source.checkpoint, source.bias()
    parts = [_part(checkpoint, f"{name}.weight", across=not source.turned) for name in source.names]
    if source.order is not None:
        if len(parts) > 1 or not source.turned:
            return _whole(role, source)
        parts = [Part(parts[0].data, parts[0].kind, order=source.order)]
    return PublicWeight.of(
        role, parts, row=source.gain, column=source.columns, bias=bias, shift=source.shift
    )


def _table(role: Role, source: Source) -> PublicTable:
    if isinstance(source, Stored):
        bias = source.checkpoint.tensor(source.bias) if source.bias else None
        return PublicTable.of(role, [_part(source.checkpoint, source.name)], bias=bias)
    return PublicTable.of(role, [Part(_bytes(values_of(source)), "f32")])


def _whole(role: Role, source: Source) -> PublicWeight:
    return PublicWeight.of(role, [Part(_bytes(values_of(source)), "f32", across=True)])


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
