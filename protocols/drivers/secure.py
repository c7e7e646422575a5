"""`Ops` on shares: evaluates models under MPC, or predicts their cost on a tracing lane."""

import itertools
from collections.abc import Callable, Coroutine, Hashable, Sequence
from functools import partial
from typing import Any

import numpy as np

from protocols.arithmetic import lift, map_public
from protocols.base.blocks import ACTIVATION_ENTRIES, Piece, in_blocks, score_pieces, waves
from protocols.base.lane import Lane
from protocols.base.ring import FRACTION_BITS, Words
from protocols.base.shares import SecretTensor, concat, constant, stack
from protocols.compare import maximum
from protocols.drivers.attending import Added, Rows, attend_each, attend_piece, seen_by
from protocols.drivers.layout import Turn, rejoined, split_heads, within
from protocols.drivers.ops import (
    Heads,
    Index,
    Rotation,
    Span,
    norm_then_gated,
    norm_then_project,
)
from protocols.drivers.residual import Residual, range_of, with_one
from protocols.drivers.trace import traced_once
from protocols.embedding import embed
from protocols.errors import LocalProtocolError
from protocols.functions.activations import ACTIVATIONS, activate, gate
from protocols.functions.attention import near_dealt
from protocols.functions.late import LateRange, late_norm
from protocols.functions.normalize import Norm, truncated
from protocols.functions.softcap import Cap, softcap
from protocols.linear import AnyTable, AnyWeight, linear, table_product

OUTPUT_WIDTH = 37
"""Bits of a result for the client; 18 of them are fraction bits."""
OUTPUT_LIMIT = 2.0**17
"""Results must stay below this."""
ARGMAX_FRAC = 13
ARGMAX_WIDTH = 32
"""Logits are compared in steps of 2^-13: 32 bits hold all differences below 2 `OUTPUT_LIMIT`."""
_MEAN_FRAC = 22
SCALE_BITS = 16
"""Fraction bits of a public factor."""


class Secure(Residual):
    """See the module docstring. One object drives one lane."""

    async def embed(self, table: AnyTable, count: int, columns: int) -> SecretTensor:
        return (await embed(self.lane, table, count))[:, :columns]

    # -- norms and products ------------------------------------------------------------------------

    async def scaled(self, x: SecretTensor, factor: float) -> SecretTensor:
        word = scale_word(factor)
        product = await map_public(
            self.lane, x, lambda words: words * word, shift=SCALE_BITS, frac=x.frac
        )
        return await lift(self.lane, product)

    async def dense(
        self, x: SecretTensor, weight: AnyWeight, name: str, activation: str
    ) -> SecretTensor:
        async def block(lane: Lane, rows: SecretTensor) -> SecretTensor:
            hidden = await linear(lane, rows, weight)
            return await activate(lane, hidden, ACTIVATIONS[activation])

        key = weight.shape, weight.frac, activation
        return await self._in_blocks(x, weight, weight.shape[1], key, block)

    async def gated(
        self, x: SecretTensor, weight: AnyWeight, name: str, activation: str
    ) -> SecretTensor:
        half = weight.shape[1] // 2
        function = ACTIVATIONS[activation]

        async def block(lane: Lane, rows: SecretTensor) -> SecretTensor:
            joint = await linear(lane, rows, weight)
            return await lift(lane, await gate(lane, joint[:, :half], joint[:, half:], function))

        return await self._in_blocks(
            x, weight, half, (weight.shape, weight.frac, activation), block
        )

    async def normed_gated(
        self,
        x: SecretTensor,
        before: str,
        norm: Norm,
        weight: AnyWeight,
        name: str,
        activation: str,
    ) -> Any:
        late = self._late(name, weight, norm)
        if late is None or late.rope:
            return await norm_then_gated(self, x, before, norm, weight, name, activation)
        return await self.late_gated(x, before, norm, weight, late, name, activation)

    def _late(self, name: str, weight: AnyWeight, norm: Norm) -> LateRange | None:
        """How to normalise after the product, if rounds are to be few and the owner allows it."""
        if self.lane.settings.tree != "rounds" or weight.shape[0] != norm.size or norm.center:
            return None
        return self.ranges.late.get(name)

    async def late_gated(
        self,
        x: SecretTensor,
        before: str,
        norm: Norm,
        weight: AnyWeight,
        late: LateRange,
        name: str,
        activation: str,
    ) -> SecretTensor:
        """`normed_gated` with the norm after the product."""
        bounds, half = range_of(self.ranges.norms, before), weight.shape[1] // 2
        function = ACTIVATIONS[activation]

        async def block(lane: Lane, rows: SecretTensor) -> SecretTensor:
            joint = await late_norm(lane, rows, norm, bounds, weight, late)
            return await lift(lane, await gate(lane, joint[:, :half], joint[:, half:], function))

        x = x if bounds.fit(norm, x.width) else await lift(self.lane, x)
        key = weight.shape, weight.frac, activation, norm, bounds, late
        return await self._in_blocks(x, weight, half, key, block)

    async def _in_blocks(
        self,
        x: SecretTensor,
        weight: AnyWeight,
        columns: int,
        kind: Hashable,
        block: Callable[[Lane, SecretTensor], Coroutine[Any, Any, SecretTensor]],
    ) -> SecretTensor:
        """Compute an activation with this many columns, in blocks of rows; `kind` has what its cost
        depends on, besides the rows.
        """

        async def once(rows: SecretTensor) -> SecretTensor:
            return await traced_once(self.lane, (_kind(rows), kind), lambda lane: block(lane, rows))

        entries = ACTIVATION_ENTRIES * columns
        return await in_blocks(self.lane, with_one(x, weight.shape[0]), entries, once)

    # -- attention ---------------------------------------------------------------------------------

    async def normed_project(
        self,
        x: SecretTensor,
        before: str,
        norm: Norm,
        weight: AnyWeight,
        name: str,
        heads: Heads,
        rotation: Rotation | None = None,
        head_norm: Norm | None = None,
        gains: tuple[SecretTensor, SecretTensor] | None = None,
    ) -> Any:
        late = self._late(f"{name}.qkv", weight, norm)
        if late is None or head_norm is not None or (rotation is None) != (late.rope == 0):
            rest = heads, rotation, head_norm, gains
            return await norm_then_project(self, x, before, norm, weight, name, *rest)
        return await self.late_project(x, before, norm, weight, late, name, heads, rotation)

    async def late_project(
        self,
        x: SecretTensor,
        before: str,
        norm: Norm,
        weight: AnyWeight,
        late: LateRange,
        name: str,
        heads: Heads,
        rotation: Rotation | None,
    ) -> tuple[SecretTensor, SecretTensor, SecretTensor]:
        """`normed_project` with the norm after the product."""
        bounds, rotated = range_of(self.ranges.norms, before), heads.query + heads.key
        turn = None if rotation is None else Turn(rotation, rotated, heads.size, late.rope)
        x = x if bounds.fit(norm, x.width) else await lift(self.lane, x)
        joint = await late_norm(self.lane, x, norm, bounds, weight, late, then=turn)
        split = split_heads(await lift(self.lane, joint), heads.size).transpose(1, 0, 2)
        return split[: heads.query], split[heads.query : rotated], split[rotated:]

    async def project(
        self,
        x: SecretTensor,
        weight: AnyWeight,
        name: str,
        heads: Heads,
        rotation: Rotation | None = None,
        norm: Norm | None = None,
        gains: tuple[SecretTensor, SecretTensor] | None = None,
    ) -> tuple[SecretTensor, SecretTensor, SecretTensor]:
        rotated = heads.query + heads.key
        x = with_one(x, weight.shape[0])
        turn, frac, drop = None, 0, 0
        if rotation is not None:
            bounds = range_of(self.ranges.attention, name)
            frac, drop = bounds.rope_frac, bounds.value_drop
            turn = Turn(rotation, rotated, heads.size, frac, drop)
        if norm is None or gains is None:
            joint = await linear(
                self.lane, x, weight, then=turn, then_frac=frac if turn is not None else 0
            )
            split = split_heads(await lift(self.lane, joint), heads.size)
        else:
            split = await self._normed(x, weight, name, heads, turn, norm, gains)
        split = split.transpose(1, 0, 2)
        values = split[rotated:]
        if drop:
            values = values.reinterpret(values.frac - drop).scale_up(drop)
        return split[: heads.query], split[heads.query : rotated], values

    async def _normed(
        self,
        x: SecretTensor,
        weight: AnyWeight,
        name: str,
        heads: Heads,
        turn: Turn | None,
        norm: Norm,
        gains: tuple[SecretTensor, SecretTensor],
    ) -> SecretTensor:
        """(T, heads, size) with queries and keys normalised, then rotated (Qwen3)."""
        split = split_heads(await self.multiplied(x, weight), heads.size)
        query, rotated = heads.query, heads.query + heads.key
        gain = concat(
            [
                gains[0].reshape(1, -1).broadcast((query, heads.size)),
                gains[1].reshape(1, -1).broadcast((heads.key, heads.size)),
            ],
            axis=0,
        )
        normed = await self.norm(split[:, :rotated], f"{name}.heads", norm, gain)
        values = split[:, rotated:]
        if turn is None:
            narrow = await truncated(self.lane, values, values.frac - FRACTION_BITS)
            return concat([normed, narrow], axis=1)

        async def turned(lane: Lane) -> SecretTensor:
            flat = normed.reshape(normed.shape[0], -1)
            result = await map_public(lane, flat, turn, shift=turn.frac, frac=flat.frac)
            return (await lift(lane, result)).reshape(*normed.shape)

        async def widened(lane: Lane) -> SecretTensor:  # zeros stay zeros, which later norms need
            return await truncated(lane, values, values.frac - FRACTION_BITS)

        return concat(list(await self.lane.both(turned, widened)), axis=1)

    async def attention(
        self,
        q: SecretTensor,
        k: SecretTensor,
        v: SecretTensor,
        name: str,
        spans: Sequence[Span],
    ) -> SecretTensor:
        """Attention on separate lanes for each sequence and each group of its key heads.

        Lanes run together as long as they fit `Settings.block`; longer texts are cut into blocks of
        rows. If there is one row of each sequence, those of all go on one lane.
        """
        bounds = range_of(self.ranges.attention, name)
        groups = min(self.lane.settings.lanes, k.shape[0])
        share, most = q.shape[0] // k.shape[0], self.lane.settings.block
        cuts = [k.shape[0] * i // groups for i in range(groups + 1)]
        rows = Rows.of(spans, most // q.shape[0])
        if rows is not None:
            return await attend_each(self.lane, q, k, v, rows, bounds, cuts)
        cells = [(span, lo, hi) for span in spans for lo, hi in itertools.pairwise(cuts)]
        pieces = [score_pieces(span.mask, (hi - lo) * share, most) for span, lo, hi in cells]
        jobs = [(*cell, piece) for cell, cut in zip(cells, pieces, strict=True) for piece in cut]
        masks = [span.mask for span in spans]
        dealt = near_dealt(self.lane.settings, masks, q.shape[0], bounds.score_bits)

        async def attend_job(span: Span, lo: int, hi: int, at: Piece, lane: Lane) -> SecretTensor:
            heads, rows = slice(lo * share, hi * share), within(span.rows, at.rows)
            seen = within(span.context, at.columns)
            added = Added.of(span, heads, at, q.shape[2])
            mask = span.mask[at.rows, at.columns]
            qkv = q[heads, rows], k[lo:hi, seen], v[lo:hi, seen]
            near = dealt is not None
            key = (*map(_kind, qkv), seen_by(lane, mask), bounds, added.kind, near)
            return await traced_once(
                lane, key, lambda s: attend_piece(s, *qkv, mask, added, bounds, near)
            )

        sizes = [piece.size((hi - lo) * share) for _, lo, hi, piece in jobs]
        found: list[SecretTensor] = []
        for wave in waves(sizes, most):
            found += await self.lane.parallel([partial(attend_job, *job) for job in jobs[wave]])
        return rejoined(found, [len(cut) for cut in pieces], groups)

    # -- for the client ----------------------------------------------------------------------------

    async def output(
        self, x: SecretTensor, weight: Any, name: str, *, tied: bool = False
    ) -> SecretTensor:
        depth = weight.shape[1] if tied else weight.shape[0]
        product = table_product if tied else linear
        return (await product(self.lane, with_one(x, depth), weight)).narrow(OUTPUT_WIDTH)

    async def capped(self, x: SecretTensor, name: str, cap: Cap) -> SecretTensor:
        if self.lane.settings.reveal == "argmax":  # a soft cap keeps the largest logit the largest
            return x

        async def block(rows: SecretTensor) -> SecretTensor:
            key = (*_kind(rows), cap)
            return await traced_once(self.lane, key, lambda lane: softcap(lane, rows, cap))

        return await in_blocks(self.lane, x, ACTIVATION_ENTRIES * x.shape[1], block)

    async def mean(
        self, x: SecretTensor, lengths: Sequence[int], *, inner: bool = False
    ) -> SecretTensor:
        inverse = inverse_lengths(lengths)[:, None]
        total = self.sums(x, lengths)
        shift = total.frac + _MEAN_FRAC - FRACTION_BITS
        mean = await map_public(
            self.lane, total, lambda words: words * inverse, shift=shift, frac=FRACTION_BITS
        )
        return await lift(self.lane, mean) if inner else mean.narrow(OUTPUT_WIDTH)

    def result(self, x: SecretTensor) -> SecretTensor:
        return x.drop(x.frac - FRACTION_BITS).narrow(OUTPUT_WIDTH)

    async def argmax(self, logits: SecretTensor) -> SecretTensor:
        """Index of the largest entry of each row of (T, V): ring integers over 32 bits."""
        places = np.arange(logits.shape[-1], dtype=np.uint64)

        async def block(rows: SecretTensor) -> SecretTensor:
            scores = rows.drop(rows.frac - ARGMAX_FRAC).narrow(ARGMAX_WIDTH)
            every = np.broadcast_to(places, scores.shape).copy()
            _, best = await maximum(self.lane, scores, constant(scores.role, every, ARGMAX_WIDTH))
            if best is None:
                raise LocalProtocolError("the maximum lost its index")
            return best

        return await in_blocks(self.lane, logits, logits.shape[-1], block)

    # -- local -------------------------------------------------------------------------------------

    def sums(self, x: SecretTensor, lengths: Sequence[int]) -> SecretTensor:
        ends = np.cumsum(lengths)
        runs = [x[end - size : end].sum(0) for size, end in zip(lengths, ends, strict=True)]
        return stack(runs, axis=0)

    def append(self, past: SecretTensor | None, new: SecretTensor) -> SecretTensor:
        # The new keys or values are views of an array that also holds the queries; after a copy
        # that array can be freed.
        return new.copy() if past is None else concat([past, new], axis=1)

    def take(self, x: SecretTensor, index: Index) -> SecretTensor:
        return x[index]

    def heads_at(self, x: SecretTensor, index: Index) -> SecretTensor:
        return x[:, index]


def scale_word(factor: float) -> np.uint64:
    """A public factor with `SCALE_BITS` fraction bits."""
    return np.uint64(round(factor * 2**SCALE_BITS))


def inverse_lengths(lengths: Sequence[int]) -> Words:
    """1 / length with 22 fraction bits, rounded to nearest."""
    sizes = np.asarray(lengths, dtype=np.uint64)
    return (np.uint64(1 << _MEAN_FRAC) + sizes // np.uint64(2)) // sizes


def _kind(x: SecretTensor) -> tuple[tuple[int, ...], int, int]:
    """The properties of x that the cost may depend on."""
    return x.shape, x.width, x.frac
