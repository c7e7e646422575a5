"""Products with the model's weights, secret or public.

The shares of secret weights stay the same from one inference to the next. The owner sends m_W to
both evaluators, and for each evaluator a seed that it shares with the dealer; they expand the masks
from the seeds. A party keeps only the one matrix that it multiplies by, see `protocols.arithmetic`.
Weights that all parties know: `protocols.public_weight`. A weight is a handle: only these two
modules multiply by it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from protocols.arithmetic import left_factor, remask, remask_cost, right_factor
from protocols.base.cost import Cost
from protocols.base.entry import protocol
from protocols.base.lane import Lane
from protocols.base.prf import Stream, derive
from protocols.base.ring import FRACTION_BITS, RESIDUAL_BITS, RING_BITS, WEIGHT_BITS, Words
from protocols.base.shares import Role, SecretTensor
from protocols.elsewhere import Elsewhere
from protocols.errors import LocalProtocolError
from protocols.kernels.matmul import matmul_into
from protocols.kernels.rows import matmul_rows
from protocols.kernels.sums import Half
from protocols.public_weight import PublicTable, PublicWeight, public_product
from protocols.streamed import Panels, Split

LinearMap = Callable[[Words], Words]
Factor: TypeAlias = Words | Panels | Elsewhere | None


@dataclass(frozen=True, slots=True)
class Weight:
    """A (depth, columns) matrix, shared.

    Attributes:
        factor: the `right_factor` of the sharing, or what makes it; None while tracing.
    """

    role: Role
    shape: tuple[int, int]
    factor: Factor = field(repr=False)
    frac: int = WEIGHT_BITS

    @classmethod
    def of(cls, share: SecretTensor) -> "Weight":
        """From a party's share of the matrix."""
        rows, columns = share.shape
        return cls(share.role, (rows, columns), right_factor(share), share.frac)


@dataclass(frozen=True, slots=True)
class Table:
    """A shared (rows, columns) matrix, used both for look-ups of rows and for products.

    Attributes:
        factor: the sharing's `right_factor`, or what makes it, for the product. None while tracing,
            and for a table that is never multiplied by.
        halves: its a and b as in `SecretTensor`, modulo 2^32: a look-up reads no more, and so takes
            half the memory traffic.
    """

    role: Role
    shape: tuple[int, int]
    factor: Factor = field(repr=False)
    halves: tuple[Half, Half] | None = field(repr=False)
    frac: int = RESIDUAL_BITS

    @classmethod
    def of(cls, share: SecretTensor) -> "Table":
        """From a party's share of the matrix."""
        rows, columns = share.shape
        halves = share.a.astype(np.uint32), share.b.astype(np.uint32)
        factor = Split.of(share.role, right_factor(share), halves)
        return cls(share.role, (rows, columns), factor, halves, share.frac)


AnyWeight: TypeAlias = Weight | PublicWeight
AnyTable: TypeAlias = Table | PublicTable


def mask_key(seed: bytes, number: int) -> bytes:
    """The key of the stream of one half of the mask of tensor `number`, of an upload's seed."""
    return derive(seed, b"puma weight", (number,))


def weight_mask(seed: bytes, number: int, shape: tuple[int, ...]) -> Words:
    """One half of the mask of the model's tensor `number`, expanded from an upload's seed."""
    return Stream(mask_key(seed, number)).words(shape)


@protocol("linear")
async def linear(
    lane: Lane,
    x: SecretTensor,
    weight: AnyWeight,
    *,
    then: LinearMap | None = None,
    then_frac: int = 0,
    frac: int = FRACTION_BITS,
) -> SecretTensor:
    """x @ W for x (T, depth), truncated to `frac` fraction bits, over the narrow ring.

    Args:
        then: a public linear map on the ring words of the (T, columns) product, applied before
            truncation (RoPE);
            it adds `then_frac` fraction bits.

    |result| < 2^(61 - x.frac - W.frac - then_frac), of public weights too: a program runs on both.

    Cost: 1 round; 63 - shift bits per output element each way, 64 bits dealt (63 for a public
    weight), with `shift` the fraction bits that are dropped.
    """
    _check_whole(x)
    shift = x.frac + weight.frac + then_frac - frac
    rows, (depth, columns) = x.shape[0], weight.shape
    if lane.tracing:
        lane.charge("linear", _truncated_cost(rows * columns, shift))
        return lane.blank((rows, columns), RING_BITS - 1 - shift, frac)
    if isinstance(weight, PublicWeight):
        part = await public_product(lane, x, weight)
    elif isinstance(weight.factor, Elsewhere):
        part = await weight.factor.matmul(left_factor(x))
    else:
        part = await lane.run(rows * depth * columns, _weight_part, x, weight)
    if then is not None:
        part = then(part)
    return await _truncated(lane, part, weight, frac, shift)


def _check_whole(x: SecretTensor) -> None:
    if x.width != RING_BITS:
        raise LocalProtocolError(
            f"a weight is multiplied by a sharing over 64 bits, not over {x.width}: lift it"
        )


async def _truncated(
    lane: Lane, part: Words, factor: AnyWeight | AnyTable, frac: int, shift: int
) -> SecretTensor:
    """Divide by 2^shift. Products with secret weights come out twice as large; others are doubled,
    so that the same ring is left, and the same is sent, in both cases.
    """
    if isinstance(factor, PublicWeight | PublicTable):
        part = part + part
    return await remask(lane, part, frac=frac, shift=shift + 1)


def _truncated_cost(count: int, shift: int) -> Cost:
    return remask_cost(count, RING_BITS, dealt=True, shift=shift + 1)


def _weight_part(x: SecretTensor, weight: Weight) -> Words:
    left, factor = left_factor(x), weight.factor
    if isinstance(factor, Panels):
        return factor.matmul(left)
    out = np.empty((x.shape[0], weight.shape[1]), dtype=np.uint64)
    matmul_into(left, _array(factor), out, 0, out.shape[1])
    return out


def _table_part(x: SecretTensor, table: Table) -> Words:
    left, factor = left_factor(x), table.factor
    if isinstance(factor, Panels):
        return factor.matmul_rows(left)
    return matmul_rows(left, _array(factor))


def _array(words: Words | Elsewhere | None) -> Words:
    if not isinstance(words, np.ndarray):
        raise LocalProtocolError("this party has no share of the weight")
    return words


@protocol("table_product")
async def table_product(lane: Lane, x: SecretTensor, table: AnyTable) -> SecretTensor:
    """x @ table^T for x (T, columns): one result per row of the table (a tied language-model head).

    Otherwise as `linear`.
    """
    _check_whole(x)
    shift = x.frac + table.frac - FRACTION_BITS
    count = x.shape[0] * table.shape[0]
    if lane.tracing:
        lane.charge("table_product", _truncated_cost(count, shift))
        return lane.blank((x.shape[0], table.shape[0]), RING_BITS - 1 - shift, FRACTION_BITS)
    if isinstance(table, PublicTable):
        part = await public_product(lane, x, table.weight)
    elif isinstance(table.factor, Elsewhere):
        part = await table.factor.matmul_rows(left_factor(x))
    else:
        part = await lane.run(count * table.shape[1], _table_part, x, table)
    return await _truncated(lane, part, table, FRACTION_BITS, shift)
