"""The public shape of one evaluation: its tokens, their positions and the rows of the result."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import numpy as np

from models.configs.architecture import ModelConfig
from models.configs.tasks.dense import Pooling
from models.configs.validate import short
from protocols.base.precise import cosines
from protocols.base.ring import Words
from protocols.drivers.ops import Index, Mask, Ops, Relative, Rotation, Slopes, Span, Tensor
from protocols.errors import ConfigError
from protocols.functions.softcap import Cap

Rows = Literal["all", "last", "first", "mean", "unit", "unit-first", "unit-last"]
"""Which results to compute: for every token, for each sequence's last or first token, or for the
mean of its last hidden states (`unit`: scaled to length 1).
"""
UNIT_ROWS: Mapping[Pooling, Rows] = {"mean": "unit", "first": "unit-first", "last": "unit-last"}
"""The same results scaled to length 1."""
_LAST, _FIRST = ("last", "unit-last"), ("first", "unit-first")


@dataclass(frozen=True)
class Batch:
    """Public facts about an input: nothing here depends on the tokens themselves.

    Sequences follow each other without padding, which would cost extra. No sequence can change the
    result of another one.

    Attributes:
        lengths: number of tokens of each sequence.
        rows: which results are wanted.
        types: token types (0 or 1 for the second text of a pair), or None for zeros.
        one_by_one: each token is evaluated as if those after it did not exist yet. This matters
            for rotary angles that depend on the length of the sequence.
    """

    lengths: tuple[int, ...]
    rows: Rows = "all"
    types: tuple[int, ...] | None = None
    one_by_one: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.rows, str):
            known = ", ".join(get_args(Rows))
            raise ConfigError(f"rows: {short(self.rows)} is not a name: use one of {known}")
        if not self.lengths or min(self.lengths) < 1:
            raise ConfigError("an input is empty: give at least one token")
        if self.types is not None and len(self.types) != self.tokens:
            raise ConfigError(f"{len(self.types)} token types for {self.tokens} tokens")

    @property
    def tokens(self) -> int:
        """Number of tokens of all sequences together."""
        return sum(self.lengths)

    @property
    def takes_one(self) -> bool:
        """Whether one token of each sequence is needed, its first or its last."""
        return self.rows in (*_LAST, *_FIRST)

    @property
    def wanted(self) -> Index:
        """Indices of the tokens whose last hidden states are needed."""
        ends = np.cumsum(self.lengths)
        if self.rows in _LAST:
            return ends - 1
        return ends - np.asarray(self.lengths) if self.rows in _FIRST else np.arange(self.tokens)

    @property
    def results(self) -> int:
        """Number of result rows."""
        return self.tokens if self.rows == "all" else len(self.lengths)

    def positions(self, start: int = 0) -> Index:
        """Position of every token in its sequence."""
        return np.concatenate([np.arange(start, start + size) for size in self.lengths])


class Drafted(NamedTuple):
    """A decoding step with a draft: how many tokens were proposed, and how many accepted."""

    proposed: int
    accepted: int


def next_batch(proposed: int = 0) -> Batch:
    """The batch of a decoding step: the last token of the answer, and the tokens proposed to follow
    it. Its results are the logits after each of them.
    """
    if proposed == 0:
        return Batch((1,), "last")
    return Batch((1 + proposed,), "all", one_by_one=True)


def norm_after(config: ModelConfig, layer: int) -> str:
    """The norm that reads what a layer leaves, where norms come before blocks."""
    last = layer == config.num_layers - 1
    return "norm" if last else f"layers.{layer + 1}.attention_norm"


@dataclass
class Cache:
    """Shared keys and values of the tokens so far, a pair per layer: (key heads, tokens, size)."""

    keys: list[Tensor | None] = field(default_factory=list)
    values: list[Tensor | None] = field(default_factory=list)
    length: int = 0

    @classmethod
    def empty(cls, layers: int) -> "Cache":
        return cls([None] * layers, [None] * layers)

    def extend(self, ops: Ops, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add the new tokens' keys and values of a layer; returns those of all tokens."""
        self.keys[layer] = ops.append(self.keys[layer], k)
        self.values[layer] = ops.append(self.values[layer], v)
        return self.keys[layer], self.values[layer]

    def keep(self, ops: Ops, length: int) -> None:
        """Forget all tokens but the first `length`."""
        index = np.arange(length)
        for half in (self.keys, self.values):
            for layer, tensor in enumerate(half):  # one at a time, so that memory stays bounded
                if tensor is not None and tensor.shape[1] > length:
                    half[layer] = ops.heads_at(tensor, index)
        self.length = length


def spans_of(
    batch: Batch,
    start: int = 0,
    *,
    causal: bool,
    wanted: Index | None = None,
    window: int | None = None,
    slopes: Slopes | None = None,
    relative: Callable[[Index], Relative] | None = None,
    cap: Cap | None = None,
) -> list[Span]:
    """Attention of tokens to their own sequence.

    Args:
        start: number of tokens of the (only) sequence that are already in the cache.
        causal: a token attends to itself and those before it; otherwise to all.
        wanted: indices of the query tokens (default: all).
        window: a token sees at most this many tokens back, including itself; without `causal`, also
            at most this many ahead.
        slopes, cap: see `Span`.
        relative: maps distances, key minus query, (queries, context), to what they add to scores.
    """
    spans, row, first = [], 0, 0
    for size in batch.lengths:
        asking = np.arange(size)
        if wanted is not None:
            asking = wanted[(wanted >= first) & (wanted < first + size)] - first
        own, seen = (start + asking)[:, None], np.arange(start + size)
        # Positions are compared directly: their differences would take eight bytes per entry.
        mask: Mask = seen <= own if causal else np.ones((len(own), len(seen)), dtype=np.bool_)
        if window is not None:
            mask &= seen > own - window
            if not causal:
                mask &= seen < own + window
        rows = slice(row, row + len(asking))
        added = None if relative is None else relative(seen - own)
        spans.append(Span(rows, slice(first, first + start + size), mask, slopes, added, cap))
        row, first = row + len(asking), first + size
    return spans


def rotation_of(turns: Callable[[int], Words], batch: Batch, start: int) -> Rotation:
    """Rotary angles of every token.

    Args:
        turns: number of tokens in the sequence -> angles per position, (head size / 2,), in 2^-64
            of a turn.
        start: number of tokens of the (only) sequence that are already in the cache.
    """
    if batch.one_by_one:
        places = range(start, start + batch.tokens)
        steps = [np.uint64(place) * turns(place + 1)[None] for place in places]
    else:
        steps = [
            np.arange(start, start + size, dtype=np.uint64)[:, None] * turns(start + size)
            for size in batch.lengths
        ]
    parts = cosines(np.concatenate(steps))
    return Rotation(*(np.concatenate([part, part], axis=1) for part in parts))


def batch_of(sequences: Sequence[Sequence[int]], rows: Rows = "all") -> Batch:
    """The batch of the given token sequences."""
    return Batch(tuple(len(sequence) for sequence in sequences), rows)
