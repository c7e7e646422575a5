"""Digests of the public numbers that a plan uses in addition to those common to all models."""

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np

from models.configs.decoders.falcon import FalconConfig
from models.configs.decoders.llama import LlamaConfig
from models.configs.encoders.modernbert import ModernBertConfig
from models.programs.families import forward, parameters_of
from models.programs.head_layers import proven_rows
from models.programs.plan import Plan
from models.programs.program import Batch, Cache
from protocols.base.precise import cosines
from protocols.base.ring import FRACTION_BITS, encode
from protocols.drivers.attending import bias_words
from protocols.drivers.ops import (
    Heads,
    Index,
    Ranges,
    Rotation,
    Slopes,
    Span,
    norm_then_gated,
    norm_then_project,
)
from protocols.drivers.public import Number, cap_words, digest, spline_words
from protocols.drivers.secure import scale_word
from protocols.drivers.trace import run_now
from protocols.errors import LocalProtocolError
from protocols.functions.elementary import gained_spline, power_spline
from protocols.functions.normalize import Norm
from protocols.functions.softcap import Cap

_MOST_BIASES = 4096
"""Number of positions whose biases go into the digest; the others follow from the same slopes."""


def plan_digests(plan: Plan) -> dict[str, str]:
    """Digests of the public numbers, by their name (see `protocols.drivers.public`).

    For rotary positions, the digest covers the angles per position and the words at every power of
    two. All other angles follow from these by integer arithmetic.

    Raises:
        LocalProtocolError: the plan lacks a range.
    """
    config = plan.config
    places = _Places(plan.ranges)
    for rows in proven_rows(config):
        batch = Batch((1,), rows)
        parameters: dict[str, None] = dict.fromkeys(parameters_of(config))
        run_now(forward(places, config, parameters, batch, Cache.empty(config.num_layers)))
    return {
        "norms": digest(places.norms),
        "powers": digest(_powers(places.gains)),
        "rotary": digest(_rotary(plan) if places.rotates else ()),
        "biases": digest(_biases(places.slopes, config.max_positions)),
        "factors": digest(places.factors),
        "caps": digest(word for cap in sorted(places.caps) for word in cap_words(Cap(cap))),
    }


def _powers(gains: set[float]) -> Iterator[Number]:
    yield from spline_words(power_spline(2, 1.0))
    for gain in sorted(gains):
        spline, exponent = gained_spline(1, gain)
        yield from spline_words(spline)
        yield exponent


def _rotary(plan: Plan) -> Iterator[Number]:
    config = plan.config
    assert isinstance(config, LlamaConfig | FalconConfig | ModernBertConfig)
    last = config.max_positions
    steps = np.uint64(1) << np.arange(last.bit_length(), dtype=np.uint64)
    kinds = ("global",) if isinstance(config, FalconConfig) else config.rotary_kinds()
    lengths = sorted({1, 1 + last // 2, last})  # one kind of scaling depends on the length
    for length, kind in product(lengths, kinds):
        turns = config.turns(length, kind)
        yield turns
        for part in cosines(steps[:, None] * turns):
            yield encode(part, FRACTION_BITS)


def _biases(slopes: Slopes | None, positions: int) -> Iterator[Number]:
    if slopes is not None:
        yield bias_words(slopes.bias(min(positions, _MOST_BIASES)))


class _Places:
    """`Ops` that computes nothing and records the public numbers of every place."""

    def __init__(self, ranges: Ranges) -> None:
        self._ranges = ranges
        self.norms: list[Number] = []
        self.gains: set[float] = set()  # of inverse roots
        self.factors: list[Number] = []
        self.caps: set[float] = set()
        self.rotates = False
        self.slopes: Slopes | None = None

    async def embed(self, table: Any, count: int, columns: int) -> None:
        return None

    async def norm(
        self,
        x: None,
        name: str,
        norm: Norm,
        gain: Any = None,
        shift: Any = None,
        *,
        unit: bool = False,
        residual: bool = False,
    ) -> None:
        bounds = self._ranges.norms.get(name)
        if bounds is None:
            raise LocalProtocolError(f"{name} has no range: the owner must publish one")
        self.norms.append(bounds.eps_word(norm))
        self.gains.add(1.0 if unit else math.sqrt(norm.size))

    async def scaled(self, x: None, factor: float) -> None:
        self.factors.append(scale_word(factor))

    async def capped(self, x: None, name: str, cap: Cap) -> None:
        self.caps.add(cap.value)

    async def linear(self, x: None, weight: Any, name: str) -> None:
        return None

    async def dense(self, x: None, weight: Any, name: str, activation: str) -> None:
        return None

    async def gated(self, x: None, weight: Any, name: str, activation: str) -> None:
        return None

    normed_gated, normed_project = norm_then_gated, norm_then_project

    async def project(
        self,
        x: None,
        weight: Any,
        name: str,
        heads: Heads,
        rotation: Rotation | None = None,
        norm: Norm | None = None,
        gains: Any = None,
    ) -> tuple[None, None, None]:
        self.rotates = self.rotates or rotation is not None
        if norm is not None:
            await self.norm(None, f"{name}.heads", norm)
        return None, None, None

    async def attention(self, q: None, k: None, v: None, name: str, spans: Sequence[Span]) -> None:
        self.slopes = spans[0].slopes
        self.caps |= {span.cap.value for span in spans if span.cap is not None}

    async def output(self, x: None, weight: Any, name: str, *, tied: bool = False) -> None:
        return None

    async def mean(self, x: None, lengths: Sequence[int], *, inner: bool = False) -> None:
        return None

    async def residual(self, reader: str, norm: Norm, x: None, *parts: None) -> None:
        return None

    def result(self, x: None) -> None:
        return None

    def add(self, x: None, y: None) -> None:
        return None

    def sums(self, x: None, lengths: Sequence[int]) -> None:
        return None

    def append(self, past: None, new: None) -> None:
        return None

    def take(self, x: Any, index: Index) -> None:
        return None

    def heads_at(self, x: None, index: Index) -> None:
        return None
