"""The operations that models are built from.

A model is one async function over `Ops`. It can be evaluated in three ways:
`protocols.drivers.secure.Secure` works on shares (over a tracing lane it predicts the cost),
`protocols.drivers.plain.Plain` in floating point, and `models.owner.bounds.Bounds` on bounds of
rows, to find the ranges that the owner publishes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from protocols.functions.attention import AttentionRange
from protocols.functions.late import LateRange
from protocols.functions.normalize import Norm, NormRange
from protocols.functions.softcap import Cap

Tensor: TypeAlias = Any
"""A secret tensor, a float array or a bound, depending on the driver."""
Parameters: TypeAlias = Mapping[str, Any]
"""Parameters by name, as the driver holds them: `Weight` or `Table`, their public counterparts,
`SecretTensor`, or arrays.
"""
Index: TypeAlias = NDArray[np.int64]
Mask: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Heads:
    """Shape of grouped-query attention.

    Attributes:
        query, key: numbers of heads; the first is a multiple of the second.
        size: entries per head.
    """

    query: int
    key: int
    size: int

    @property
    def columns(self) -> int:
        """Columns of the joint projection to queries, keys and values, in this order."""
        return (self.query + 2 * self.key) * self.size


@dataclass(frozen=True, slots=True)
class Rotation:
    """RoPE at some positions (RoFormer, arXiv 2104.09864), half-rotation layout.

    Attributes:
        cos, sin: (T, size), the halves of a row are equal; from `protocols.base.precise.cosines`.
    """

    cos: NDArray[np.float64]
    sin: NDArray[np.float64]


def rotate(x: Any, cos: Any, sin: Any) -> Any:
    """Rotate (T, heads, size) by (T, size) angles; works on floats and on ring words."""
    half = x.shape[-1] // 2
    turned = np.concatenate([0 * x[..., half:] - x[..., half:], x[..., :half]], axis=-1)
    return x * cos[:, None, :] + turned * sin[:, None, :]


@dataclass(frozen=True, slots=True)
class Span:
    """The attention of one sequence: its query rows and its context rows.

    Attributes:
        rows: rows of the queries.
        context: rows of the keys and values.
        mask: (queries, context), True where a query may attend.
        slopes: how much each position adds to each head's scores, or None.
        relative: what the distance between two tokens adds to their scores, or None.
        cap: the soft cap of scores, or None.
    """

    rows: slice
    context: slice
    mask: Mask
    slopes: "Slopes | None" = None
    relative: "Relative | None" = None
    cap: Cap | None = None

    @property
    def bias(self) -> NDArray[np.float64] | None:
        """(heads, 1, context) public numbers that are added to the scores, or None."""
        return None if self.slopes is None else self.slopes.bias(self.mask.shape[1])


@dataclass(frozen=True, slots=True)
class Slopes:
    """ALiBi (arXiv 2108.12409) as transformers computes it.

    The bias is slope times position, with the slope and the product rounded to bfloat16, and then
    scaled like the scores.
    """

    slopes: NDArray[np.float64]
    scale: float

    def bias(self, context: int) -> NDArray[np.float64]:
        """The biases of the first `context` positions: (heads, 1, context)."""
        steps = _bfloat16(self.slopes)[:, None, None] * np.arange(context)
        return _bfloat16(steps) * self.scale


@dataclass(frozen=True, slots=True)
class Relative:
    """Secret weights that add to the scores of two tokens, by their public distance.

    Attributes:
        index: (queries, context), the row of weights for each pair.
        bias: (rows, heads), added to the scores, or None.
        keys, queries: (rows, hidden), or None for both. Head by head, queries are multiplied by
            `keys` and keys by `queries`.
    """

    index: Index
    bias: Tensor | None = None
    keys: Tensor | None = None
    queries: Tensor | None = None


def _bfloat16(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round to 8 significant bits, ties to even."""
    words = np.asarray(values, dtype=np.float32).view(np.uint32)
    odd = (words >> np.uint32(16)) & np.uint32(1)
    rounded = (words + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32).astype(np.float64)


@dataclass(frozen=True)
class Ranges:
    """All exponents that the owner publishes, by the program's name for the place.

    `late` has the products that can be normalised late, by the name of the product.
    """

    norms: Mapping[str, NormRange]
    attention: Mapping[str, AttentionRange]
    late: Mapping[str, LateRange] = field(default_factory=dict)


class Ops(Protocol):
    """Every operation a model may use.

    Activations are (tokens, features). A weight that ends in a bias has one more row than its input
    has features. `name` is the place in the model, used to look up ranges.
    """

    async def embed(self, table: Any, count: int, columns: int) -> Tensor:
        """The first `columns` columns of the table's rows for the `count` secret input ids."""

    async def norm(
        self,
        x: Tensor,
        name: str,
        norm: Norm,
        gain: Any = None,
        shift: Any = None,
        *,
        unit: bool = False,
        residual: bool = False,
    ) -> Tensor:
        """x / sqrt(mean(x^2) + eps) times gain plus shift.

        `unit`: scale rows to length 1; `residual`: the result is added to the residual stream.
        """

    async def scaled(self, x: Tensor, factor: float) -> Tensor:
        """x, in the residual stream, times a public factor (see `scale_word`)."""

    async def capped(self, x: Tensor, name: str, cap: Cap) -> Tensor:
        """Apply a soft cap to the result of `output`, for the client."""

    async def linear(self, x: Tensor, weight: Any, name: str) -> Tensor:
        """x @ W, to be read by `norm` or `residual`."""

    async def residual(self, reader: str, norm: Norm, x: Tensor, *parts: Tensor) -> Tensor:
        """The residual stream: x plus results of `linear` or `norm`.

        `norm` and `residual` may read the sum, and if `reader` is "" everything may. Otherwise
        `reader` names the first norm that reads it, which is like `norm`.
        """

    async def dense(self, x: Tensor, weight: Any, name: str, activation: str) -> Tensor:
        """activation(x @ W)."""

    async def gated(self, x: Tensor, weight: Any, name: str, activation: str) -> Tensor:
        """activation(gate) * up for [gate | up] = x @ W."""

    async def normed_gated(
        self, x: Tensor, before: str, norm: Norm, weight: Any, name: str, activation: str
    ) -> Tensor:
        """`gated` of `norm` at the place `before`, which nothing else reads."""

    async def normed_project(
        self,
        x: Tensor,
        before: str,
        norm: Norm,
        weight: Any,
        name: str,
        heads: Heads,
        rotation: Rotation | None = None,
        head_norm: Norm | None = None,
        gains: tuple[Any, Any] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`project` of `norm` at the place `before`, which nothing else reads."""

    async def project(
        self,
        x: Tensor,
        weight: Any,
        name: str,
        heads: Heads,
        rotation: Rotation | None = None,
        norm: Norm | None = None,
        gains: tuple[Any, Any] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (query heads, T, size), keys and values (key heads, T, size).

        Queries and keys are normalised head by head (with `norm` and `gains`), then rotated.
        """

    async def attention(
        self, q: Tensor, k: Tensor, v: Tensor, name: str, spans: Sequence[Span]
    ) -> Tensor:
        """softmax(q k^T + bias) v for each span, heads concatenated: (T, query heads * size)."""

    async def output(self, x: Tensor, weight: Any, name: str, *, tied: bool = False) -> Tensor:
        """x @ W for the client (`tied`: x @ table^T)."""

    async def mean(self, x: Tensor, lengths: Sequence[int], *, inner: bool = False) -> Tensor:
        """Mean of each run of `lengths` rows, for the client or, with `inner`, for a layer."""

    def result(self, x: Tensor) -> Tensor:
        """x itself, for the client."""

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y."""

    def sums(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """Sum of each run of `lengths` rows."""

    def append(self, past: Tensor | None, new: Tensor) -> Tensor:
        """Join along the axis of positions (axis 1)."""

    def take(self, x: Tensor, index: Index) -> Tensor:
        """Rows of x at public indices."""

    def heads_at(self, x: Tensor, index: Index) -> Tensor:
        """Entries of x (heads, T, size) at public indices along T."""


async def norm_then_gated(
    ops: Any, x: Tensor, before: str, norm: Norm, weight: Any, name: str, activation: str
) -> Any:
    """`Ops.normed_gated` as its two parts."""
    return await ops.gated(await ops.norm(x, before, norm), weight, name, activation)


async def norm_then_project(
    ops: Any, x: Tensor, before: str, norm: Norm, weight: Any, name: str, *rest: Any
) -> Any:
    """`Ops.normed_project` as its two parts."""
    return await ops.project(await ops.norm(x, before, norm), weight, name, *rest)
