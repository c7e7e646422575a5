"""Products with the model's weights, whose shares stay the same from one inference to the next.

The owner sends m_W to both evaluators and one seed to each evaluator and the dealer, who expand the
masks. A weight is a
handle: its product is asked for here and nowhere else.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from protocols.arithmetic import remask, remask_cost
from protocols.entry import protocol
from protocols.errors import LocalProtocolError
from protocols.kernels.matmul import Half, matmul2_into, matmul_into
from protocols.kernels.rows import matmul_rows
from protocols.lane import Lane
from protocols.prf import Stream, derive
from protocols.ring import FRACTION_BITS, RESIDUAL_BITS, RING_BITS, WEIGHT_BITS, Words
from protocols.shares import Role, SecretTensor

LinearMap = Callable[[Words], Words]


@dataclass(frozen=True, slots=True)
class Weight:
    """A (depth, columns) matrix, shared.

    Attributes:
        m: W + lam1 + lam2, at the evaluators; None elsewhere.
        lam: the evaluator's own half of the mask; at the dealer lam1 + lam2.
    """

    role: Role
    shape: tuple[int, int]
    m: Words | None = field(repr=False)
    lam: Words | None = field(repr=False)
    frac: int = WEIGHT_BITS


@dataclass(frozen=True)
class Table:
    """A (rows, columns) matrix of which rows are looked up and which is also multiplied by, shared.

    a, b are held as in `SecretTensor`: the dealer keeps both halves of the mask apart.
    """

    role: Role
    shape: tuple[int, int]
    a: Words | None = field(repr=False)
    b: Words | None = field(repr=False)
    frac: int = RESIDUAL_BITS

    @cached_property
    def low_halves(self) -> tuple[Half, Half]:
        """a and b modulo 2^32: all that a look-up reads, in half the memory traffic."""
        return _array(self.a).astype(np.uint32), _array(self.b).astype(np.uint32)


def weight_mask(seed: bytes, number: int, shape: tuple[int, ...]) -> Words:
    """One half of the mask of the model's tensor `number`, expanded from an upload's seed."""
    return Stream(derive(seed, b"puma weight", (number,))).words(shape)


def _array(words: Words | None) -> Words:
    if words is None:
        raise LocalProtocolError("this party holds no share of the weight")
    return words


@protocol("linear")
async def linear(
    lane: Lane,
    x: SecretTensor,
    weight: Weight,
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

    |result| < 2^(62 - x.frac - W.frac - then_frac).

    Cost: 1 round; 64 bits an output element each way and dealt.
    """
    shift = x.frac + weight.frac + then_frac - frac
    rows, (depth, columns) = x.shape[0], weight.shape
    if lane.tracing:
        lane.charge("linear", remask_cost(rows * columns, RING_BITS, dealt=True))
        return lane.blank((rows, columns), RING_BITS - shift, frac)
    work = rows * depth * columns * (1 if lane.is_dealer else 2)
    part = await lane.run(work, _weight_part, x, weight)
    if then is not None:
        part = then(part)
    return await remask(lane, part, frac=frac, shift=shift)


def _weight_part(x: SecretTensor, weight: Weight) -> Words:
    out = np.empty((x.shape[0], weight.shape[1]), dtype=np.uint64)
    columns = out.shape[1]
    if x.role.is_dealer:
        matmul_into(x.lam, _array(weight.lam), out, 0, columns)
        return out
    left = x.a - x.b if x.role is Role.EVALUATOR_A else np.uint64(0) - x.b
    right = np.uint64(0) - x.a
    matmul2_into(left, _array(weight.m), right, _array(weight.lam), out, 0, columns)
    return out


@protocol("table_product")
async def table_product(lane: Lane, x: SecretTensor, table: Table) -> SecretTensor:
    """x @ table^T for x (T, columns): one result a row of the table (a tied language-model head).

    Otherwise as `linear`.
    """
    shift = x.frac + table.frac - FRACTION_BITS
    count = x.shape[0] * table.shape[0]
    if lane.tracing:
        lane.charge("table_product", remask_cost(count, RING_BITS, dealt=True))
        return lane.blank((x.shape[0], table.shape[0]), RING_BITS - shift, FRACTION_BITS)
    part = await lane.run(2 * count * table.shape[1], _table_part, x, table)
    return await remask(lane, part, frac=FRACTION_BITS, shift=shift)


def _table_part(x: SecretTensor, table: Table) -> Words:
    a, b = _array(table.a), _array(table.b)
    if x.role.is_dealer:
        lam = x.lam
        return matmul_rows(lam, a, lam, b)
    left = x.a - x.b if x.role is Role.EVALUATOR_A else np.uint64(0) - x.b
    return matmul_rows(left, a, np.uint64(0) - x.a, b)
