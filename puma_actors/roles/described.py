"""A public tensor as it is sent and stored: a description, then its bytes in a fixed order.

description, buffers = pack(ingredients)
size = description.size(parameter)            bytes of all buffers; checks everything else, too
ingredients = unpack(description, parameter, data)

The order: factors of the inputs, factors of the outputs, bias, shift (float32), the order of each
part that has one (uint32), the bytes of each part. Everything is little-endian.
"""

from collections.abc import Iterator
from math import prod
from typing import Annotated, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from models.programs.opened import MOST_PARTS, Ingredients
from models.programs.plan import Parameter
from models.programs.sharing import STREAMED
from protocols.errors import RemoteProtocolError
from protocols.kernels.stored.formats import FORMATS, FormatName
from protocols.public_weight import Part
from puma_actors.base.strict import Strict

_HEAD_BYTES = 1 << 14
_ALIGNED = 64
_NUMBER = 4  # bytes of a factor, and of a place in an order

Bytes: TypeAlias = NDArray[np.uint8]


class PartEntry(Strict):
    """Some outputs of a matrix, as in `protocols.public_weight.Part`. `ordered`: the stored row of
    each output is sent with it.
    """

    kind: FormatName
    outputs: int = Field(ge=1, lt=1 << 32)
    across: bool = False
    ordered: bool = False

    def nbytes(self, inputs: int) -> int:
        """Bytes of the numbers.

        Raises:
            RemoteProtocolError: they cannot be stored in this way.
        """
        known = FORMATS[self.kind]
        lines, numbers = (inputs, self.outputs) if self.across else (self.outputs, inputs)
        if numbers % known.entries or (self.across and (known.blocked or self.ordered)):
            raise RemoteProtocolError(
                f"{numbers} numbers in a row, {'across' if self.across else 'by outputs'}, cannot "
                f"be {self.kind}"
            )
        return lines * known.row_bytes(numbers)


class Description(Strict):
    """What a tensor is made of; `row` to `shift` say what is sent beside the parts."""

    parts: Annotated[list[PartEntry], Field(min_length=1, max_length=MOST_PARTS)]
    row: bool = False
    column: bool = False
    bias: bool = False
    shift: bool = False

    def size(self, parameter: Parameter) -> int:
        """Bytes that belong to it.

        Raises:
            RemoteProtocolError: it does not describe a tensor of this kind and shape.
        """
        return sum(self.sizes(parameter))

    def sizes(self, parameter: Parameter) -> Iterator[int]:
        """Bytes of each vector, of each part's order, of each part, in this order. Raises as
        `size`.
        """
        inputs, outputs = self.shape(parameter)
        vectors = (self.row, inputs), (self.column, outputs), (self.bias, outputs)
        for sent, count in (*vectors, (self.shift, inputs)):
            yield _NUMBER * count if sent else 0
        for part in self.parts:
            yield _NUMBER * part.outputs if part.ordered else 0
        for part in self.parts:
            yield part.nbytes(inputs)

    def shape(self, parameter: Parameter) -> tuple[int, int]:
        """Inputs and outputs. Raises as `size`."""
        extra = self.row, self.column, self.bias, self.shift
        if parameter.kind not in STREAMED:
            count = prod(parameter.shape)
            if any(extra) or self.parts != [PartEntry(kind="f32", outputs=1)]:
                raise RemoteProtocolError(f"{parameter.kind} tensors are one row of f32")
            return count, 1
        rows, columns = parameter.shape
        inputs, outputs = (rows, columns) if parameter.kind == "weight" else (columns, rows)
        inputs -= self.bias or self.shift
        if inputs < 1 or sum(part.outputs for part in self.parts) != outputs:
            raise RemoteProtocolError(f"its parts do not make {rows} x {columns} numbers")
        if self.shift and parameter.kind == "table":
            raise RemoteProtocolError("a table has no shift")
        return inputs, outputs

    def head(self) -> bytes:
        """The description as it stands before the bytes in a file, `_ALIGNED` or a multiple."""
        text = self.model_dump_json().encode()
        text += b" " * (-(len(text) + _NUMBER) % _ALIGNED)
        return len(text).to_bytes(_NUMBER, "little") + text


def read_head(data: Bytes) -> tuple[Description, Bytes]:
    """The description at the beginning of a file, and the bytes behind it.

    Raises:
        RemoteProtocolError: there is none.
    """
    length = int.from_bytes(data[:_NUMBER].tobytes(), "little")
    if length <= min(_HEAD_BYTES, data.size - _NUMBER):
        try:
            text = data[_NUMBER : _NUMBER + length].tobytes()
            return Description.model_validate_json(text), data[_NUMBER + length :]
        except ValidationError:
            pass
    raise RemoteProtocolError("it does not begin with a description")


def pack(found: Ingredients) -> tuple[Description, list[Bytes]]:
    """A tensor's description and buffers."""
    parts = [
        PartEntry(
            kind=part.kind,
            outputs=part.shape[1],
            across=part.across,
            ordered=part.order is not None,
        )
        for part in found.parts
    ]
    vectors = (found.row, found.column, found.bias, found.shift)
    sent = [each is not None for each in vectors]
    description = Description(parts=parts, row=sent[0], column=sent[1], bias=sent[2], shift=sent[3])
    buffers = [_raw(each.astype("<f4")) for each in vectors if each is not None]
    buffers += [_raw(part.order.astype("<u4")) for part in found.parts if part.order is not None]
    return description, buffers + [_raw(part.data) for part in found.parts]


def _raw(values: NDArray[np.generic]) -> Bytes:
    return np.ascontiguousarray(values).view(np.ndarray).view(np.uint8).reshape(-1)


def unpack(description: Description, parameter: Parameter, data: Bytes) -> Ingredients:
    """Inverse of `pack`; matrices stay views of `data`.

    Raises:
        RemoteProtocolError: the sizes do not fit.
    """
    inputs, _ = description.shape(parameter)
    sizes = list(description.sizes(parameter))
    if data.size != sum(sizes):
        raise RemoteProtocolError(f"it has {data.size} bytes, not {sum(sizes)}")
    pieces = np.split(data, np.cumsum(sizes)[:-1])
    row, column, bias, shift = (each.view("<f4") if each.size else None for each in pieces[:4])
    count, parts = len(description.parts), []
    for entry, order, stored in zip(
        description.parts, pieces[4 : 4 + count], pieces[4 + count :], strict=True
    ):
        lines = inputs if entry.across else entry.outputs
        places = order.view("<u4").astype(np.intp) if entry.ordered else None
        parts.append(Part(stored.reshape(lines, -1), entry.kind, entry.across, places))
    return Ingredients(tuple(parts), row, column, bias, shift)


def read_stored(parameter: Parameter, data: Bytes) -> Ingredients:
    """What a file of public weights says and holds. Raises RemoteProtocolError."""
    description, body = read_head(data)
    return unpack(description, parameter, body)
