"""The vocabulary models are written in, and its evaluation under MPC.

A model is one async function over `Ops`. `Secure(lane)` evaluates it on shares; over a tracing lane
the same class predicts its cost. `protocols.plain.Plain` evaluates it in floating point.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from protocols.activations import SILU, activate
from protocols.arithmetic import lift, matmul, mul
from protocols.compare import maximum
from protocols.embedding import embed
from protocols.errors import LocalProtocolError
from protocols.lane import Lane
from protocols.linear import Table, Weight, linear, table_product
from protocols.normalize import NormRange, attend, rms_norm
from protocols.ring import FRACTION_BITS, RESIDUAL_BITS, Words
from protocols.shares import SecretTensor, concat, constant

Tensor: TypeAlias = Any
"""A secret tensor under `Secure`, a float array under `Plain`."""
Parameters: TypeAlias = Mapping[str, Any]
"""Name -> what the driver holds of it: `Weight`, `Table`, `SecretTensor`, or float arrays."""

ARGMAX_FRAC = 12
ARGMAX_WIDTH = 24
"""Logits are compared over 24 bits in steps of 2^-12: differences up to 2^11."""


@dataclass(frozen=True, slots=True)
class Heads:
    """Shape of grouped-query attention.

    Attributes:
        query, key: numbers of heads; query heads are a multiple of key heads.
        size: entries a head.
    """

    query: int
    key: int
    size: int

    @property
    def columns(self) -> int:
        """Columns of the joint projection to queries, keys and values."""
        return (self.query + 2 * self.key) * self.size


@dataclass(frozen=True, slots=True)
class Rotation:
    """RoPE at some positions (RoFormer, arXiv 2104.09864), half-rotation layout.

    Attributes:
        cos, sin: (T, size), the two halves of a row alike.
        frac: fraction bits the ring version spends on them.
    """

    cos: NDArray[np.float64]
    sin: NDArray[np.float64]
    frac: int

    def words(self, angles: NDArray[np.float64]) -> Words:
        return np.rint(angles * 2.0**self.frac).astype(np.int64).view(np.uint64)


def rotate(x: Any, cos: Any, sin: Any) -> Any:
    """Rotate (T, heads, size) by (T, size) angles; works on floats and on ring words."""
    half = x.shape[-1] // 2
    turned = np.concatenate([0 * x[..., half:] - x[..., half:], x[..., :half]], axis=-1)
    return x * cos[:, None, :] + turned * sin[:, None, :]


class Ops(Protocol):
    """Every operation a model may use. Activations are (tokens, features)."""

    async def embed(self, table: Any, count: int) -> Tensor:
        """Rows of the table at the `count` input ids."""

    async def rms_norm(self, x: Tensor, name: str, eps: float, bounds: NormRange | None) -> Tensor:
        """x / sqrt(mean(x^2) + eps), without a gain. `name` says where, for calibration."""

    async def gain(self, x: Tensor, weights: Any) -> Tensor:
        """x times a secret vector."""

    async def linear(self, x: Tensor, weight: Any) -> Tensor:
        """x @ W, for the residual stream."""

    async def project(
        self, x: Tensor, weight: Any, heads: Heads, rotation: Rotation
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (query heads, T, size), keys and values (key heads, T, size); the first two
        rotated.
        """

    async def attention(self, q: Tensor, k: Tensor, v: Tensor, mask: NDArray[np.bool_]) -> Tensor:
        """softmax(q k^T) v over the (T, L) mask, heads side by side: (T, query heads * size)."""

    async def gated_silu(self, x: Tensor, weight: Any) -> Tensor:
        """silu(gate) * up for [gate | up] = x @ W."""

    async def logits(self, x: Tensor, head: Any, *, tied: bool) -> Tensor:
        """x @ head^T for the embedding's table (tied), x @ head for a weight."""

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y."""

    def append(self, past: Tensor | None, new: Tensor) -> Tensor:
        """Join along the axis of positions (1)."""

    def rows(self, x: Tensor, start: int) -> Tensor:
        """x[start:]."""


class Secure:
    """`Ops` on shares. One object drives one lane."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane

    async def embed(self, table: Table, count: int) -> SecretTensor:
        return await embed(self.lane, table, count)

    async def rms_norm(
        self, x: SecretTensor, name: str, eps: float, bounds: NormRange | None
    ) -> SecretTensor:
        if bounds is None or bounds.eps != eps:
            raise LocalProtocolError(f"{name} has no calibrated range: the owner must publish one")
        return await rms_norm(self.lane, x, bounds)

    async def gain(self, x: SecretTensor, weights: SecretTensor) -> SecretTensor:
        return await lift(self.lane, await mul(self.lane, x, weights, FRACTION_BITS))

    async def linear(self, x: SecretTensor, weight: Weight) -> SecretTensor:
        return await lift(self.lane, await linear(self.lane, x, weight, frac=RESIDUAL_BITS))

    async def project(
        self, x: SecretTensor, weight: Weight, heads: Heads, rotation: Rotation
    ) -> tuple[SecretTensor, SecretTensor, SecretTensor]:
        rotated = heads.query + heads.key
        cos, sin = rotation.words(rotation.cos), rotation.words(rotation.sin)

        def turn(words: Words) -> Words:
            split = words.reshape(words.shape[0], -1, heads.size)
            values = split[:, rotated:] << np.uint64(rotation.frac)
            turned = rotate(split[:, :rotated], cos, sin)
            return np.concatenate([turned, values], axis=1).reshape(words.shape)

        joint = await lift(
            self.lane,
            await linear(self.lane, x, weight, then=turn, then_frac=rotation.frac),
        )
        split = joint.reshape(x.shape[0], -1, heads.size).transpose(1, 0, 2)
        return split[: heads.query], split[heads.query : rotated], split[rotated:]

    async def attention(
        self, q: SecretTensor, k: SecretTensor, v: SecretTensor, mask: NDArray[np.bool_]
    ) -> SecretTensor:
        """Groups of key heads run on `settings.lanes` lanes, whose rounds overlap."""
        groups = min(self.lane.settings.lanes, k.shape[0])
        share = q.shape[0] // k.shape[0]
        cuts = [k.shape[0] * i // groups for i in range(groups + 1)]
        parts = await self.lane.parallel(
            [
                lambda strand, lo=lo, hi=hi: _attention(  # type: ignore[misc]
                    strand, q[lo * share : hi * share], k[lo:hi], v[lo:hi], mask
                )
                for lo, hi in itertools.pairwise(cuts)
            ]
        )
        whole = concat(parts, axis=0)
        return whole.transpose(1, 0, 2).reshape(mask.shape[0], -1)

    async def gated_silu(self, x: SecretTensor, weight: Weight) -> SecretTensor:
        joint = await linear(self.lane, x, weight)
        half = weight.shape[1] // 2
        gate, up = await activate(self.lane, joint[:, :half], SILU, beside=joint[:, half:])
        if up is None:
            raise LocalProtocolError("the gate lost its other half")
        return await lift(self.lane, await mul(self.lane, gate, up, FRACTION_BITS))

    async def logits(self, x: SecretTensor, head: Any, *, tied: bool) -> SecretTensor:
        if tied:
            return await table_product(self.lane, x, head)
        return await linear(self.lane, x, head)

    async def argmax(self, logits: SecretTensor) -> SecretTensor:
        """Index of the largest entry of each row of (T, V): ring integers over 24 bits."""
        scores = logits.drop(logits.frac - ARGMAX_FRAC).narrow(ARGMAX_WIDTH)
        places = np.arange(logits.shape[-1], dtype=np.uint64)
        index = constant(scores.role, np.broadcast_to(places, scores.shape).copy(), ARGMAX_WIDTH)
        _, best = await maximum(self.lane, scores, index)
        if best is None:
            raise LocalProtocolError("the maximum lost its index")
        return best

    def add(self, x: SecretTensor, y: SecretTensor) -> SecretTensor:
        return x + y

    def append(self, past: SecretTensor | None, new: SecretTensor) -> SecretTensor:
        return new if past is None else concat([past, new], axis=1)

    def rows(self, x: SecretTensor, start: int) -> SecretTensor:
        return x[start:]


async def _attention(
    lane: Lane, q: SecretTensor, k: SecretTensor, v: SecretTensor, mask: NDArray[np.bool_]
) -> SecretTensor:
    """(H, T, C) queries against (G, L, C) keys and values: (H, T, C)."""
    groups, tokens, size = k.shape[0], q.shape[1], q.shape[2]
    share = q.shape[0] // groups
    stacked = q.reshape(groups, share * tokens, size)
    scores = await matmul(lane, stacked, k.transpose(0, 2, 1), FRACTION_BITS)
    context = await attend(lane, scores, v, np.tile(mask, (share, 1)))
    return context.reshape(q.shape[0], tokens, size)
