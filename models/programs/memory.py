"""How much memory a computing party needs for a request, from shapes alone.

    need = footprint(plan.config, Batch((700,), "last"), steps=64, dealer=False)
    need.work       bytes in use at the peak: activations, scores, logits, and the cache
    need.waiting    bytes that may have been dealt ahead and wait to be used (or sent)

The model's own program is run over `Ops` whose tensors are shapes. The peak memory of an operation
is a number of bytes per entry, measured once (`bench/memory.py` measures again: predicted and
measured values stay within a quarter of each other).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Any, TypeAlias

from models.configs.architecture import ModelConfig
from models.programs.families import forward, parameters_of, shallow
from models.programs.program import Batch, Cache, next_batch
from models.programs.rates import (
    DEALER,
    DEALT,
    DEALT_LATE,
    DEALT_WAVE,
    DEALT_WIDE,
    EVALUATOR,
    LARGEST,
    LARGEST_WAVE,
    MANY_ARGMAX,
    MANY_ATTEND,
    MASK,
    NEAR_BUCKET,
    TRAFFIC_ATTEND,
)
from models.programs.steps import StepSettings
from protocols.base.blocks import ACTIVATION_ENTRIES, MANY, row_blocks, score_pieces, waves
from protocols.base.lane import Settings
from protocols.drivers.ops import (
    Heads,
    Index,
    Mask,
    Rotation,
    Span,
    norm_then_gated,
    norm_then_project,
)
from protocols.drivers.trace import run_now
from protocols.embedding import domain_bits
from protocols.functions.activations import ACTIVATIONS
from protocols.functions.attention import most_score_bits, near_plan
from protocols.functions.normalize import Norm
from protocols.functions.softcap import CAP_WAVES, Cap

SHARE = 16
"""Bytes per entry: two words."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes at one party; see the module docstring."""

    work: int
    waiting: int

    @property
    def total(self) -> int:
        """All together."""
        return self.work + self.waiting


Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Scores:
    """A piece of attention: its scores, the bytes of its mask; and of the histograms of its rows
    the bytes in use, dealt, and of the largest message.
    """

    scores: int
    mask: int
    work: float = 0
    dealt: int = 0
    largest: int = 0


@dataclass(frozen=True, slots=True)
class _Sized:
    shape: Shape

    @property
    def bytes(self) -> int:
        return SHARE * prod(self.shape)


class Sizes:
    """`Ops` on shapes. `peak`: the most bytes in use at once, without the cache; `dealt`: bytes
    that the dealer sent to both evaluators; `largest`: the largest of these messages.
    """

    def __init__(self, settings: Settings, *, dealer: bool) -> None:
        self.settings = settings
        self._rates = DEALER if dealer else EVALUATOR
        self._dealer = dealer
        self._residual = 0
        self.peak = self.dealt = self.largest = 0

    def _took(self, *inputs: Any, work: float, dealt: float, largest: float = 0) -> None:
        held = self._residual + sum(SHARE * prod(each.shape) for each in inputs)
        self.peak = max(self.peak, held + int(work))
        self.dealt += int(dealt)
        self.largest = max(self.largest, int(largest))

    async def embed(self, table: Any, count: int, columns: int) -> _Sized:
        rows, width = table.shape
        look_up = rows + (1 << domain_bits(rows))  # the chosen rows, one byte each
        work = count * max(self._rates.embed * width, look_up + 100 * width)
        self._took(work=work, dealt=DEALT["embed"] * count * width, largest=8 * count * width)
        self._residual = SHARE * count * columns
        return _Sized((count, columns))

    async def norm(
        self,
        x: Any,
        name: str,
        norm: Norm,
        gain: Any = None,
        shift: Any = None,
        *,
        unit: bool = False,
        residual: bool = False,
    ) -> _Sized:
        rate = self._rates.centred if norm.center else self._rates.norm
        if gain is not None and self.settings.tree == "rounds":
            rate = self._rates.gained  # the product of three reads narrow entries
        size = prod(x.shape)
        self._took(work=rate * size, dealt=DEALT["norm"] * size, largest=SHARE * size)
        return _Sized(x.shape)

    async def scaled(self, x: Any, factor: float) -> _Sized:
        return self._product(x, prod(x.shape), x.shape[1], self._rates.linear)

    async def capped(self, x: Any, name: str, cap: Cap) -> _Sized:
        if self.settings.reveal == "argmax":  # which does without
            return _Sized(x.shape)
        return self._blocks(x, x.shape[1], self._cap())

    def _cap(self) -> tuple[float, float, float]:
        """Of a soft cap: bytes an entry, dealt, and of the largest message."""
        count, rates = CAP_WAVES, self._rates
        work = max(rates.centre + rates.wave * count, rates.sign)
        return work, DEALT["centre"] + DEALT_WAVE * count, max(LARGEST, LARGEST_WAVE * count)

    async def linear(self, x: Any, weight: Any, name: str) -> _Sized:
        return self._product(x, x.shape[0] * weight.shape[1], weight.shape[1], self._rates.linear)

    def _product(self, x: Any, size: int, columns: int, rate: int) -> _Sized:
        self._took(x, work=rate * size, dealt=DEALT["linear"] * size, largest=8 * size)
        return _Sized((x.shape[0], columns))

    async def dense(self, x: Any, weight: Any, name: str, activation: str) -> _Sized:
        return self._activated(x, weight.shape[1], activation, gated=False)

    async def gated(self, x: Any, weight: Any, name: str, activation: str) -> _Sized:
        return self._activated(x, weight.shape[1] // 2, activation, gated=True)

    def _activated(self, x: Any, columns: int, activation: str, *, gated: bool) -> _Sized:
        rate, dealt, largest = self._activation(activation)
        if gated:
            rate, dealt = rate + self._rates.gated, dealt + 26
        elif self.settings.tree == "rounds":  # which selects over the whole ring
            exact = ACTIVATIONS[activation].tight is None  # and lifts x, not x / 2 and the waves
            rate, dealt = rate + self._rates.wide // (1 + exact), dealt + DEALT_WIDE
        return self._blocks(x, columns, (rate, dealt, largest))

    def _blocks(self, x: Any, columns: int, costs: tuple[float, float, float]) -> _Sized:
        rate, dealt, largest = costs
        entries = ACTIVATION_ENTRIES * columns
        blocks = row_blocks(x.shape[0], entries, self.settings.block)
        most = columns * max(block.stop - block.start for block in blocks)
        result, kept = _Sized((x.shape[0], columns)), len(blocks) > 1
        work = max(rate * most + result.bytes * kept, 2 * result.bytes * kept)
        self._took(x, work=work, dealt=dealt * prod(result.shape), largest=largest * most)
        return result

    def _activation(self, name: str) -> tuple[float, float, float]:
        """Bytes per entry, dealt bytes, and bytes of the largest message."""
        kind, function, rates = self.settings.approximation, ACTIVATIONS[name], self._rates
        centre = function.fast if kind == "fast" else function.tight
        if kind == "tight" and self.settings.tree == "traffic" and function.folded is not None:
            centre = function.folded
        if kind == "puma" and function.paper is not None:
            return rates.pieces, 135, LARGEST
        if centre is None:
            return rates.sign, 41, LARGEST
        count = centre.waves.count
        rate = max(rates.centre + rates.wave * count, rates.sign)
        return rate, DEALT["centre"] + DEALT_WAVE * count, max(LARGEST, LARGEST_WAVE * count)

    async def normed_gated(
        self, x: Any, before: str, norm: Norm, weight: Any, name: str, activation: str
    ) -> Any:
        self._late(x, norm, weight)
        return await norm_then_gated(self, x, before, norm, weight, name, activation)

    async def normed_project(
        self, x: Any, before: str, norm: Norm, weight: Any, name: str, *rest: Any
    ) -> Any:
        self._late(x, norm, weight)
        return await norm_then_project(self, x, before, norm, weight, name, *rest)

    def _late(self, x: Any, norm: Norm, weight: Any) -> None:
        """What a norm after the product takes, whether or not the plan allows it."""
        if self.settings.tree == "rounds" and not norm.center:
            size = x.shape[0] * weight.shape[1]
            self._took(x, work=self._rates.late * size, dealt=DEALT_LATE * size)

    async def project(
        self,
        x: Any,
        weight: Any,
        name: str,
        heads: Heads,
        rotation: Rotation | None = None,
        norm: Norm | None = None,
        gains: tuple[Any, Any] | None = None,
    ) -> tuple[_Sized, _Sized, _Sized]:
        rate = self._rates.project if norm is None else self._rates.normed
        self._product(x, x.shape[0] * weight.shape[1], weight.shape[1], rate)
        shapes = [(count, x.shape[0], heads.size) for count in (heads.query, heads.key, heads.key)]
        q, k, v = map(_Sized, shapes)
        return q, k, v

    async def attention(self, q: Any, k: Any, v: Any, name: str, spans: Sequence[Span]) -> _Sized:
        heads, rows, size = q.shape
        most = self.settings.block
        groups = min(self.settings.lanes, k.shape[0])
        share = -(-k.shape[0] // groups) * (heads // k.shape[0])
        near = most_score_bits(self.settings, [span.mask for span in spans], heads)
        masks = _score_masks(spans, share, most, groups)
        pieces = [self._piece(count, mask, near) for count, mask in masks]
        runs = [pieces[run] for run in waves([piece.scores for piece in pieces], most)]
        if self._dealer:  # which runs one piece after another
            runs = [[piece] for piece in pieces]
        rate, dealt, largest = self._score_costs(spans, many=pieces[0].scores >= MANY)
        work = max(sum(max(rate * p.scores, p.work) + p.mask for p in run) for run in runs)
        held = sum(span.mask.nbytes for span in spans)
        result = _Sized((rows, heads * size))
        work += held + result.bytes * (len(runs) > 1)
        self._took(
            q,
            work=max(work, held + 3 * result.bytes),
            dealt=sum(max(dealt * piece.scores, piece.dealt) for piece in pieces),
            largest=max(max(largest * piece.scores, piece.largest) for piece in pieces),
        )
        return result

    def _piece(self, heads: int, mask: Mask, near: int | None) -> _Scores:
        """A piece's sizes."""
        found = _Scores(heads * mask.size, MASK * mask.size)
        if near is None:
            return found
        plan = near_plan(mask, heads, near)
        buckets, tables = plan.rows * plan.asked, plan.dealt()[0].nbytes
        if self._dealer:
            work = max(NEAR_BUCKET[0] * buckets, 3.8 * tables + 4 * buckets)
        else:
            work = max(NEAR_BUCKET[1] * buckets, 1.95 * plan.dealt_bytes)
        return replace(found, work=work, dealt=plan.dealt_bytes, largest=tables)

    def _score_costs(self, spans: Sequence[Span], *, many: bool) -> tuple[float, float, float]:
        """Of a score: bytes an entry, dealt, and of the largest message."""
        bent = self._cap() if any(span.cap is not None for span in spans) else (0.0, 0.0, 0.0)
        traffic = self._dealer and self.settings.tree == "traffic"
        rate = TRAFFIC_ATTEND if traffic else self._rates.attend
        if many and self.settings.tree != "rounds":
            rate = MANY_ATTEND[not self._dealer]
        return max(rate, bent[0]), DEALT["attend"] + bent[1], max(LARGEST, bent[2])

    async def output(self, x: Any, weight: Any, name: str, *, tied: bool = False) -> _Sized:
        columns = weight.shape[0 if tied else 1]
        return self._product(x, x.shape[0] * columns, columns, self._rates.output)

    async def mean(self, x: Any, lengths: Sequence[int], *, inner: bool = False) -> _Sized:
        return self._product(x, len(lengths) * x.shape[1], x.shape[1], self._rates.output)

    async def argmax(self, logits: Any) -> None:
        """The index of each row's best column."""
        rows, columns = logits.shape
        blocks = row_blocks(rows, columns, self.settings.block)
        most = columns * max(block.stop - block.start for block in blocks)
        dealt = DEALT["argmax"] * rows * columns
        pairs = most >= MANY and self.settings.tree != "rounds"
        rate = MANY_ARGMAX[not self._dealer] if pairs else self._rates.argmax
        self._took(logits, work=rate * most, dealt=dealt, largest=LARGEST * most)

    async def residual(self, reader: str, norm: Norm, x: Any, *parts: Any) -> _Sized:
        return _Sized(x.shape)

    # -- local -------------------------------------------------------------------------------------

    def result(self, x: Any) -> _Sized:
        return _Sized(x.shape)

    def add(self, x: Any, y: Any) -> _Sized:
        return _Sized(x.shape)

    def sums(self, x: Any, lengths: Sequence[int]) -> _Sized:
        return _Sized((len(lengths), x.shape[1]))

    def append(self, past: Any, new: Any) -> _Sized:
        before = 0 if past is None else past.shape[1]
        return _Sized((new.shape[0], before + new.shape[1], new.shape[2]))

    def take(self, x: Any, index: Index) -> _Sized:
        return _Sized((len(index), *x.shape[1:]))

    def heads_at(self, x: Any, index: Index) -> _Sized:
        return _Sized((x.shape[0], len(index), x.shape[2]))


@lru_cache(maxsize=256)
def footprint(
    config: ModelConfig,
    batch: Batch,
    steps: int = 1,
    settings: Settings | StepSettings | None = None,
    *,
    dealer: bool,
    window: int = 256 << 20,
    draft: int = 0,
) -> Footprint:
    """The memory of a request of `steps` steps that begins with a batch.

    It is kept for later requests of the same shape: to walk through one of 2,048 tokens takes a
    tenth of a second, for which a party's event loop stands still.

    Args:
        dealer: whether the party is the dealer, or an evaluator.
        window: bytes that may be dealt ahead, to each evaluator.
        draft: how many tokens a later step may propose.
    """
    chosen = StepSettings.of(settings)
    sizes = Sizes(chosen.first, dealer=dealer)
    short = shallow(config)
    parameters = parameters_of(short)
    cache = Cache.empty(short.num_layers)
    _evaluate(sizes, short, parameters, batch, cache)
    if steps > 1:
        proposed = min(draft, steps - 2)  # a step makes at most as many tokens as are wanted
        before = batch.tokens + steps - 2 - proposed
        keys, values = (
            [_grown(each, before) for each in half] for half in (cache.keys, cache.values)
        )
        cache = Cache(keys, values, before)
        sizes.settings = chosen.further
        _evaluate(sizes, short, parameters, next_batch(proposed), cache)
    held = sum(each.bytes for each in (*cache.keys, *cache.values) if each is not None)
    layers = config.num_layers / short.num_layers
    # Every layer deals the same amount, and no more can wait than is dealt in total.
    waiting = min(int(sizes.dealt * layers) // 2, window + sizes.largest)
    return Footprint(int(held * layers) + sizes.peak, 2 * sizes.largest if dealer else waiting)


def _evaluate(
    sizes: Sizes, config: ModelConfig, parameters: Any, batch: Batch, cache: Cache
) -> None:
    async def program() -> None:
        result = await forward(sizes, config, parameters, batch, cache)
        if sizes.settings.reveal == "argmax":
            await sizes.argmax(result)

    run_now(program())


def _score_masks(
    spans: Sequence[Span], share: int, most: int, groups: int
) -> list[tuple[int, Mask]]:
    """Heads and mask of every piece that attention is cut into."""
    return [
        (share, span.mask[piece.rows, piece.columns])
        for span in spans
        for piece in score_pieces(span.mask, share, most)
        for _ in range(groups)
    ]


def _grown(tensor: Any, length: int) -> _Sized | None:
    if tensor is None:
        return None
    heads, _, size = tensor.shape
    return _Sized((heads, length, size))
