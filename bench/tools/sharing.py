"""Sharing inputs and rebuilding results, outside the timed part."""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocols.base.prf import Stream
from protocols.base.ring import FRACTION_BITS, RESIDUAL_BITS, RING_BITS, WEIGHT_BITS, decode, encode
from protocols.base.shares import COMPUTING, Role, SecretBits
from protocols.drivers.lockstep import combine, deal
from protocols.linear import Table, Weight

Shared = dict[Role, Any]
Reals = NDArray[np.float64]


def share(values: Reals, frac: int = FRACTION_BITS, width: int = RING_BITS) -> Shared:
    """Share real numbers as `SecretTensor`s."""
    return dict(deal(encode(values, frac, width), width, frac))


def share_bits(values: NDArray[np.uint8]) -> Shared:
    """Share bits as `SecretBits`."""
    stream = Stream(os.urandom(16))
    one, two = stream.bits(values.shape), stream.bits(values.shape)
    public = values ^ one ^ two
    return {
        Role.DEALER: SecretBits(Role.DEALER, one, two),
        Role.EVALUATOR_A: SecretBits(Role.EVALUATOR_A, public, one),
        Role.EVALUATOR_B: SecretBits(Role.EVALUATOR_B, public, two),
    }


def share_weight(values: Reals) -> Shared:
    """Share a fixed matrix as `Weight` handles."""
    return {role: Weight.of(tensor) for role, tensor in share(values, WEIGHT_BITS).items()}


def share_table(values: Reals) -> Shared:
    """Share an embedding table as `Table` handles."""
    return {role: Table.of(tensor) for role, tensor in share(values, RESIDUAL_BITS).items()}


def rebuild(shares: Shared) -> Reals:
    """The real numbers of a `SecretTensor`, on which the parties must agree."""
    tensor = shares[Role.EVALUATOR_A]
    return decode(combine({role: shares[role] for role in COMPUTING}), tensor.frac, tensor.width)


def rebuild_bits(shares: Shared) -> NDArray[np.uint8]:
    """The bits of a `SecretBits`."""
    left, right = shares[Role.EVALUATOR_A], shares[Role.EVALUATOR_B]
    bits: NDArray[np.uint8] = left.a ^ left.b ^ right.b
    return bits
