"""`Ops` in floating point: the reference that secure runs are compared with."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocols.base.ring import Floats
from protocols.drivers.ops import (
    Heads,
    Index,
    Relative,
    Rotation,
    Span,
    norm_then_gated,
    norm_then_project,
    rotate,
)
from protocols.functions.activations import ACTIVATIONS
from protocols.functions.normalize import Norm
from protocols.functions.softcap import Cap

_CHUNK = 1 << 18  # numbers of a matrix that are converted at a time
Record = Callable[[str, Floats], None]


class Plain:
    """Evaluate a model on float arrays.

    Args:
        ids: the input token ids that `embed` reads, which a secure run never sees.
        record: called with a place's name and its value, the counterpart of the secure run's.
    """

    precision: type[np.floating[Any]] = np.float64
    """Precision of activations that are multiplied by weights."""

    def __init__(self, ids: NDArray[np.int64], record: Record | None = None) -> None:
        self._ids = ids
        self._record = record or (lambda name, value: None)

    async def embed(self, table: Floats, count: int, columns: int) -> Floats:
        return table[self._ids[:count], :columns].astype(np.float64)

    async def norm(
        self,
        x: Floats,
        name: str,
        norm: Norm,
        gain: Floats | None = None,
        shift: Floats | None = None,
        *,
        unit: bool = False,
        residual: bool = False,
    ) -> Floats:
        if norm.center:
            x = x - x.mean(axis=-1, keepdims=True)
        mean_square = (x * x).mean(axis=-1, keepdims=True)
        y = x / np.sqrt((mean_square + norm.eps) * (norm.size if unit else 1))
        y = y if gain is None else y * gain
        return self._seen(name, y if shift is None else y + shift)

    async def scaled(self, x: Floats, factor: float) -> Floats:
        return np.asarray(x * factor)

    async def capped(self, x: Floats, name: str, cap: Cap) -> Floats:
        return self._seen(name, self.bent(np.asarray(x, dtype=np.float64), cap))

    async def linear(self, x: Floats, weight: Floats, name: str) -> Floats:
        return self._seen(name, self.product(x, weight))

    async def dense(self, x: Floats, weight: Floats, name: str, activation: str) -> Floats:
        return self._seen(name, self.activated(activation, self.product(x, weight), name))

    async def gated(self, x: Floats, weight: Floats, name: str, activation: str) -> Floats:
        joint = self.product(x, weight)
        half = weight.shape[1] // 2
        gate, up = joint[:, :half], joint[:, half:]
        return self._seen(name, self.activated(activation, gate, name) * up)

    normed_gated, normed_project = norm_then_gated, norm_then_project

    async def project(
        self,
        x: Floats,
        weight: Floats,
        name: str,
        heads: Heads,
        rotation: Rotation | None = None,
        norm: Norm | None = None,
        gains: tuple[Floats, Floats] | None = None,
    ) -> tuple[Floats, Floats, Floats]:
        joint = self.product(x, weight).reshape(x.shape[0], -1, heads.size)
        rotated = heads.query + heads.key
        turned: Floats = joint[:, :rotated]
        values: Floats = joint[:, rotated:]
        if norm is not None and gains is not None:
            gain = np.repeat(np.stack(gains), [heads.query, heads.key], axis=0)
            turned = np.asarray(
                await self.norm(turned, f"{name}.heads", norm, gain), dtype=np.float64
            )
        if rotation is not None:
            turned = rotate(turned, rotation.cos, rotation.sin)
        turned, values = turned.transpose(1, 0, 2), values.transpose(1, 0, 2)
        return turned[: heads.query], turned[heads.query :], values

    async def attention(
        self, q: Floats, k: Floats, v: Floats, name: str, spans: Sequence[Span]
    ) -> Floats:
        share = q.shape[0] // k.shape[0]
        keys, values = np.repeat(k, share, axis=0), np.repeat(v, share, axis=0)
        parts = []
        for span in spans:
            scores = raw_scores(q[:, span.rows], keys[:, span.context], span)
            if span.cap is not None:
                scores = self.bent(scores, span.cap)
            scores = np.where(span.mask, scores, -np.inf)
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            weights /= weights.sum(axis=-1, keepdims=True)
            context = (weights @ values[:, span.context]).transpose(1, 0, 2)
            parts.append(context.reshape(len(span.mask), -1))
        return self._seen(name, np.concatenate(parts))

    async def output(self, x: Floats, weight: Floats, name: str, *, tied: bool = False) -> Floats:
        return self._seen(name, self.product(x, weight.T if tied else weight))

    async def mean(self, x: Floats, lengths: Sequence[int], *, inner: bool = False) -> Floats:
        return np.asarray(self.sums(x, lengths) / np.asarray(lengths)[:, None])

    def result(self, x: Floats) -> Floats:
        return x

    async def residual(self, reader: str, norm: Norm, x: Floats, *parts: Floats) -> Floats:
        return np.asarray(sum(parts, x))

    def add(self, x: Floats, y: Floats) -> Floats:
        return x + y

    def sums(self, x: Floats, lengths: Sequence[int]) -> Floats:
        starts = np.cumsum([0, *lengths[:-1]])
        return np.asarray(np.add.reduceat(x, starts, axis=0))

    def append(self, past: Floats | None, new: Floats) -> Floats:
        return new if past is None else np.concatenate([past, new], axis=1)

    def take(self, x: Floats, index: Index) -> Floats:
        return x[index]

    def heads_at(self, x: Floats, index: Index) -> Floats:
        return x[:, index]

    def product(self, x: Floats, weight: Floats) -> NDArray[np.float64]:
        """x @ W, with the bias if there is one."""
        return affine(x, weight, self.precision)

    def activated(self, activation: str, x: Floats, name: str) -> Floats:
        """Apply an activation function; `name` is the place."""
        return ACTIVATIONS[activation].exact(np.asarray(x, dtype=np.float64))

    def bent(self, x: NDArray[np.float64], cap: Cap) -> NDArray[np.float64]:
        """A soft cap."""
        return cap.exact(x)

    def _seen(self, name: str, value: Any) -> Floats:
        result: Floats = np.asarray(value)
        self._record(name, result)
        return result


def raw_scores(q: Floats, k: Floats, span: Span) -> NDArray[np.float64]:
    """Scores before a soft cap: (heads, T, size) queries against as many heads of keys."""
    scores: NDArray[np.float64] = q @ k.transpose(0, 2, 1)
    if span.bias is not None:
        scores = scores + span.bias
    if span.relative is not None and span.relative.bias is not None:
        scores = scores + span.relative.bias[span.relative.index].transpose(2, 0, 1)
    if span.relative is not None and span.relative.keys is not None:
        scores = scores + _positional(q, k, span.relative)
    return scores


def _positional(q: Floats, k: Floats, relative: Relative) -> NDArray[np.float64]:
    heads, asked, size = q.shape
    own, seen = np.arange(asked)[:, None], np.arange(k.shape[1])
    keys, queries = (
        np.asarray(rows).reshape(-1, heads, size).transpose(1, 2, 0)
        for rows in (relative.keys, relative.queries)
    )
    content: NDArray[np.float64] = (q @ keys)[:, own, relative.index]
    position: NDArray[np.float64] = (k @ queries)[:, seen, relative.index]
    return content + position


def affine(
    x: Floats, weight: Floats, precision: type[np.floating[Any]] = np.float64
) -> NDArray[np.float64]:
    """x @ W, plus the bias in the last row if there is one; both are converted to a precision, the
    matrix in parts: in float64 it may be larger than all the rest of a large model's pass.
    """
    features, width = x.shape[1], weight.shape[1]
    given = np.asarray(x, dtype=precision)
    product = np.empty((len(x), width))
    step = max(1, _CHUNK // max(1, features))
    for start in range(0, width, step):
        part = slice(start, start + step)
        product[:, part] = given @ weight[:features, part].astype(precision, copy=False)
    return product if len(weight) == features else product + weight[features]
