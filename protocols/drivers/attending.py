"""A piece of attention on shares: scores, terms added to them, and the weighted values."""

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocols.arithmetic import matmul
from protocols.base.blocks import Piece
from protocols.base.lane import Lane
from protocols.base.ring import FRACTION_BITS, RING_BITS, Words, encode
from protocols.base.shares import SecretTensor
from protocols.drivers.ops import Index, Mask, Relative, Span
from protocols.functions.attention import AttentionRange, attend, product_width
from protocols.functions.disentangled import disentangled_scores
from protocols.functions.softcap import Cap, softcap


def bias_words(bias: NDArray[np.float64]) -> Words:
    """Biases of scores as ring words: one float64 rounding, the same on every machine."""
    return encode(bias, FRACTION_BITS)


@dataclass(frozen=True, slots=True)
class Added:
    """Terms added to a piece's scores (heads, T, L), and their soft cap.

    Attributes:
        public: (heads, 1, L) words to add, or None.
        bias: (heads, T, L) shares to add, or None.
        cap: the soft cap of scores, or None.
        positional: keys and queries of positions, (heads, R, size), and the row of each pair; or
            None.
    """

    public: Words | None
    bias: SecretTensor | None
    cap: Cap | None
    positional: tuple[SecretTensor, SecretTensor, Index] | None

    @classmethod
    def of(cls, span: Span, heads: slice, at: Piece, size: int) -> "Added":
        public = None if span.bias is None else bias_words(span.bias[heads, :, at.columns])
        relative, bias = span.relative, None
        if relative is not None and relative.bias is not None:
            index = relative.index[at.rows, at.columns]
            bias = relative.bias[index][..., heads].transpose(2, 0, 1)
        return cls(public, bias, span.cap, _positional(relative, heads, at, size))

    @property
    def kind(self) -> Hashable:
        """The properties that the cost may depend on."""
        return self.public is None, self.bias is None, self.cap, self.positional is None

    async def to(self, lane: Lane, scores: SecretTensor) -> SecretTensor:
        """The scores with biases added and the soft cap applied."""
        if self.public is not None:
            scores = scores.add_public(self.public)
        if self.bias is not None:
            scores = scores + self.bias.narrow(scores.width)
        return scores if self.cap is None else await softcap(lane, scores, self.cap)


def _positional(
    relative: Relative | None, heads: slice, at: Piece, size: int
) -> tuple[SecretTensor, SecretTensor, Index] | None:
    if relative is None or relative.keys is None or relative.queries is None:
        return None
    keys, queries = (
        rows.reshape(rows.shape[0], -1, size).transpose(1, 0, 2)[heads]
        for rows in (relative.keys, relative.queries)
    )
    return keys, queries, relative.index[at.rows, at.columns]


async def attend_piece(
    lane: Lane,
    q: SecretTensor,
    k: SecretTensor,
    v: SecretTensor,
    mask: Mask,
    added: Added,
    bounds: AttentionRange,
    near: bool,
) -> SecretTensor:
    """Attention of (H, T, C) queries to (G, L, C) keys and values: (H, T, C); `near` as in
    `attend`.
    """
    groups, tokens, size = k.shape[0], q.shape[1], q.shape[2]
    share = q.shape[0] // groups
    if added.positional is not None:
        scores = await disentangled_scores(lane, q, k, *added.positional)
    else:
        stacked = q.reshape(groups, share * tokens, size)
        width = RING_BITS if added.cap is not None else product_width(bounds.score_bits)
        keys = k.transpose(0, 2, 1).narrow(width)
        scores = await matmul(lane, stacked.narrow(width), keys, FRACTION_BITS)
    scores = await added.to(lane, scores.reshape(q.shape[0], tokens, -1))
    scores = scores.reshape(groups, share * tokens, -1)
    tiled = np.tile(mask, (share, 1))
    context = await attend(lane, scores, v, tiled, bounds, near=near)
    return context.reshape(q.shape[0], tokens, size)
