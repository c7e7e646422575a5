"""`Ops` in floating point: the reference and the owner's calibration run."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from protocols.normalize import NormRange
from protocols.ops import Heads, Rotation, rotate
from protocols.ring import Floats

Record = Callable[[str, Floats], None]


class Plain:
    """Evaluate a model on float arrays.

    Args:
        ids: the input token ids that `embed` reads, which a secure run never sees.
        record: called with a name and a float value where a range must be known in advance.
    """

    def __init__(self, ids: NDArray[np.int64], record: Record | None = None) -> None:
        self._ids = ids
        self._record = record or (lambda name, value: None)

    async def embed(self, table: Floats, count: int) -> Floats:
        return table[self._ids[:count]].astype(np.float64)

    async def rms_norm(self, x: Floats, name: str, eps: float, bounds: NormRange | None) -> Floats:
        mean_square = (x * x).mean(axis=-1, keepdims=True)
        self._record(name, mean_square)
        return np.asarray(x / np.sqrt(mean_square + eps))

    async def gain(self, x: Floats, weights: Floats) -> Floats:
        return x * weights

    async def linear(self, x: Floats, weight: Floats) -> Floats:
        return np.asarray(x @ weight)

    async def project(
        self, x: Floats, weight: Floats, heads: Heads, rotation: Rotation
    ) -> tuple[Floats, Floats, Floats]:
        joint = (x @ weight).reshape(x.shape[0], -1, heads.size)
        self._record("projection", joint)
        rotated = heads.query + heads.key
        turned = rotate(joint[:, :rotated], rotation.cos, rotation.sin).transpose(1, 0, 2)
        values = joint[:, rotated:].transpose(1, 0, 2)
        return turned[: heads.query], turned[heads.query :], values

    async def attention(self, q: Floats, k: Floats, v: Floats, mask: NDArray[np.bool_]) -> Floats:
        share = q.shape[0] // k.shape[0]
        keys, values = np.repeat(k, share, axis=0), np.repeat(v, share, axis=0)
        scores = np.where(mask, q @ keys.transpose(0, 2, 1), -np.inf)
        self._record("scores", np.where(mask, scores, 0))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return np.asarray((weights @ values).transpose(1, 0, 2).reshape(mask.shape[0], -1))

    async def gated_silu(self, x: Floats, weight: Floats) -> Floats:
        joint = x @ weight
        half = weight.shape[1] // 2
        gate, up = joint[:, :half], joint[:, half:]
        self._record("gate", gate)
        return np.asarray(gate * up / (1 + np.exp(-gate)))

    async def logits(self, x: Floats, head: Floats, *, tied: bool) -> Floats:
        return np.asarray(x @ (head.T if tied else head))

    def add(self, x: Floats, y: Floats) -> Floats:
        return x + y

    def append(self, past: Floats | None, new: Floats) -> Floats:
        return new if past is None else np.concatenate([past, new], axis=1)

    def rows(self, x: Floats, start: int) -> Floats:
        return x[start:]
