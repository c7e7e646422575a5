"""A piece of attention on shares: scores, terms added to them, and the weighted values."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from protocols.arithmetic import matmul
from protocols.base.blocks import Piece
from protocols.base.lane import Lane
from protocols.base.ring import FRACTION_BITS, RING_BITS, Words, encode
from protocols.base.shares import SecretTensor, concat
from protocols.drivers.ops import Index, Mask, Relative, Span
from protocols.drivers.trace import traced_once
from protocols.functions.attention import AttentionRange, attend, near_dealt, product_width
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


_PADDED = 2
"""Rows of several sequences are worked on at once if that takes at most so many times their
scores: those of a short one are filled up to the longest.
"""


@dataclass(frozen=True, slots=True)
class Rows:
    """One row each of several sequences, with contexts filled up to the longest.

    Attributes:
        index: (sequences, context), the row of keys and values of each entry.
        mask: (sequences, context).
        cap: the soft cap of scores, or None.
    """

    index: Index
    mask: Mask
    cap: Cap | None

    @classmethod
    def of(cls, spans: Sequence[Span], most: int) -> "Rows | None":
        """The rows of several spans; None if these are not such rows, or too different.

        Args:
            most: entries of a head that may be worked on at once.
        """
        if len(spans) < 2 or any(_apart(span, spans[0]) for span in spans):
            return None
        sizes = [span.mask.shape[1] for span in spans]
        longest = max(sizes)
        if longest * len(sizes) > min(most, _PADDED * sum(sizes)):
            return None
        mask = np.zeros((len(spans), longest), dtype=np.bool_)
        index = np.empty(mask.shape, dtype=np.int64)
        for row, (span, size) in enumerate(zip(spans, sizes, strict=True)):
            mask[row, :size] = span.mask[0]
            index[row, :size] = np.arange(span.context.start, span.context.stop)
            index[row, size:] = span.context.start  # anything: it is masked
        return cls(index, mask, spans[0].cap)


def seen_by(lane: Lane, mask: Mask) -> bytes:
    """What the cost of attention under a mask of a known shape depends on, where it is traced."""
    return mask.tobytes() if lane.tracing else b""


def _apart(span: Span, first: Span) -> bool:
    """Whether a span is more than a row, or its scores need terms of their own."""
    terms = span.slopes is not None or span.relative is not None
    return span.mask.shape[0] != 1 or terms or span.cap != first.cap


async def attend_rows(
    lane: Lane,
    q: SecretTensor,
    k: SecretTensor,
    v: SecretTensor,
    rows: Rows,
    bounds: AttentionRange,
    near: bool,
) -> SecretTensor:
    """Attention of (H, B, C) queries, one of each sequence, to (G, context, C) keys and values of
    all sequences: (H, B, C); `near` as in `attend`.
    """
    heads, count, size = q.shape
    groups, longest = k.shape[0], rows.mask.shape[1]
    share = heads // groups
    asked = q.reshape(groups, share, count, size).transpose(0, 2, 1, 3)
    asked = asked.reshape(groups * count, share, size)
    keys, values = (each[:, rows.index].reshape(groups * count, longest, size) for each in (k, v))
    width = RING_BITS if rows.cap is not None else product_width(bounds.score_bits)
    turned = keys.transpose(0, 2, 1).narrow(width)
    scores = await matmul(lane, asked.narrow(width), turned, FRACTION_BITS)
    if rows.cap is not None:
        scores = await softcap(lane, scores, rows.cap)
    mask = np.broadcast_to(rows.mask[:, None], (groups, count, share, longest))
    context = await attend(
        lane, scores, values, mask.reshape(-1, share, longest), bounds, near=near
    )
    context = context.reshape(groups, count, share, size).transpose(0, 2, 1, 3)
    return context.reshape(heads, count, size)


async def attend_each(
    lane: Lane,
    q: SecretTensor,
    k: SecretTensor,
    v: SecretTensor,
    rows: Rows,
    bounds: AttentionRange,
    cuts: Sequence[int],
) -> SecretTensor:
    """`attend_rows` with the key heads cut into groups, each on a lane: (B, H * C)."""
    share = q.shape[0] // k.shape[0]
    masks = [row[None] for row in rows.mask]
    near = near_dealt(lane.settings, masks, q.shape[0], bounds.score_bits) is not None

    async def job(lo: int, hi: int, strand: Lane) -> SecretTensor:
        qkv = q[lo * share : hi * share], k[lo:hi], v[lo:hi]
        kinds = [(each.shape, each.width, each.frac) for each in qkv]
        key = (*kinds, seen_by(lane, rows.mask), rows.cap, bounds, near)
        return await traced_once(
            strand, key, lambda inner: attend_rows(inner, *qkv, rows, bounds, near)
        )

    found = await lane.parallel([partial(job, lo, hi) for lo, hi in pairwise(cuts)])
    whole = concat(found, axis=0).transpose(1, 0, 2)
    return whole.reshape(whole.shape[0], -1)


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
