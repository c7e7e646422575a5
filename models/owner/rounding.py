"""The effect of fixed-point numbers: `Plain` with the secure run's roundings and approximations.

The noise comes from a fixed hash, so it is the same on every machine.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocols.base.ring import FRACTION_BITS, RESIDUAL_BITS, WEIGHT_BITS, Floats
from protocols.drivers.ops import Heads, Index, Ranges, Rotation, Span
from protocols.drivers.plain import Plain, affine
from protocols.functions.activations import ACTIVATIONS
from protocols.functions.attention import most_spare
from protocols.functions.normalize import Norm, NormRange
from protocols.functions.softcap import CAP_ROUNDING, Cap

SPLINE_ERROR = 5e-5
"""Error of a spline (`protocols.spline`, `protocols.functions.elementary`)."""
_EXP_ERROR = 2.0**-15
"""Error of a softmax numerator, including the error of its score."""
_ACTIVATION_ROUNDING = 2.0**-16
"""Error in addition to that of the approximation itself."""
_CHUNK = 1 << 16  # weights are rounded in chunks that fit the processor's cache


def noise(shape: tuple[int, ...], seed: int) -> NDArray[np.float64]:
    """Numbers in [-1, 1), the same on every machine (splitmix64, Steele et al., OOPSLA 2014)."""
    size = int(np.prod(shape, dtype=np.int64))
    x = np.arange(size, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x += np.uint64((seed + 1) * 0xD1B54A32D192ED03 % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return ((x >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0).reshape(shape)


class Rounded(Plain):
    """`Plain` with the secure run's rounding noise, weights, tables and approximations.

    The noise is one unit in the last place wherever the secure run truncates.

    Args:
        seed: different seeds give different noise.
        places: the number of places that are rounded, in the order of the program; None: all.

    Attributes:
        places: names of the places reached so far.
    """

    def __init__(
        self, ids: Any, ranges: Ranges, seed: int = 0, *, places: int | None = None
    ) -> None:
        super().__init__(ids)
        self.places: list[str] = []
        self._ranges, self._until = ranges, places
        self._seeds = count(seed << 32)
        self._active = True
        self._frac = WEIGHT_BITS

    def _enter(self, name: str) -> bool:
        self._active = self._until is None or len(self.places) < self._until
        self.places.append(name)
        return self._active

    def _shifted(self, x: Floats, step: Any) -> Floats:
        """Add the noise of shifting shares: even a 0 comes out up to a step off."""
        return np.asarray(x + step * noise(np.shape(x), next(self._seeds)))

    def _noisy(self, x: Floats, step: Any, active: bool = True) -> Floats:
        """Add the noise of truncation: a 0 stays 0."""
        return self._shifted(x, step * (x != 0)) if active else x

    def _nearest(self, x: Floats, frac: int) -> Floats:
        if not self._active:
            return x
        return np.asarray(np.rint(np.asarray(x, dtype=np.float64) * 2.0**frac) * 2.0**-frac)

    def product(self, x: Floats, weight: Floats) -> NDArray[np.float64]:
        if not self._active:
            return affine(x, weight, self.precision)
        features, scale = x.shape[1], np.float32(2.0**self._frac)
        given = np.asarray(x, dtype=self.precision)
        if len(weight) > features:
            given = np.concatenate([given, np.ones((len(given), 1), dtype=given.dtype)], axis=1)
        total = np.zeros((len(x), weight.shape[1]))
        across = weight.flags.f_contiguous and not weight.flags.c_contiguous
        length, width = weight.shape[::-1] if across else weight.shape
        step = max(1, _CHUNK // width)
        for start in range(0, length, step):
            part = slice(start, start + step)
            if across:
                total[:, part] = given @ (np.rint(weight[:, part].T * scale) / scale).T
            else:
                total += given[:, part] @ (np.rint(weight[part] * scale) / scale)
        return total

    async def embed(self, table: Floats, count: int, columns: int) -> Floats:
        self._enter("table")
        return self._nearest(await super().embed(table, count, columns), RESIDUAL_BITS)

    def take(self, x: Floats, index: Index) -> Floats:
        return self._nearest(super().take(x, index), RESIDUAL_BITS)

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
        if not self._enter(name):
            return await super().norm(x, name, norm, gain, shift, unit=unit, residual=residual)
        bounds: NormRange = self._ranges.norms[name]
        unit_step = 2.0**-RESIDUAL_BITS / norm.stretch
        moved = x - x.mean(axis=-1, keepdims=True) if norm.center else x
        live = np.abs(moved).max(axis=-1, keepdims=True) > 2.0**-40  # otherwise only float errors
        moved = np.where(live, moved, 0.0)
        coarse = moved
        if norm.extra + bounds.drop:
            coarse = self._shifted(moved, 1.5 * unit_step * 2.0**bounds.drop)
        if norm.steady:
            moved = self._noisy(moved, unit_step)
        elif norm.center:
            moved = self._shifted(moved, 1.5 * unit_step) if bounds.drop else coarse
        scale = 4.0 ** (bounds.drop - RESIDUAL_BITS) / norm.stretch**2
        found = (coarse**2).sum(-1, keepdims=True) + float(bounds.eps_word(norm)) * scale
        root = 1 / np.sqrt(found)
        root = self._noisy(root, root * (2.0**-bounds.frac + SPLINE_ERROR))
        y = self._noisy(moved * root * (1.0 if unit else norm.size**0.5), 2.0**-FRACTION_BITS)
        if gain is not None:
            y = self._noisy(y * self._nearest(gain, FRACTION_BITS), 2.0**-FRACTION_BITS)
        return y if shift is None else y + self._nearest(shift, RESIDUAL_BITS)

    async def scaled(self, x: Floats, factor: float) -> Floats:
        return self._noisy(await super().scaled(x, factor), 2.0**-RESIDUAL_BITS, self._active)

    async def capped(self, x: Floats, name: str, cap: Cap) -> Floats:
        self._enter(name)
        return await super().capped(x, name, cap)

    def bent(self, x: NDArray[np.float64], cap: Cap) -> NDArray[np.float64]:
        if not self._active:
            return super().bent(x, cap)
        return np.asarray(self._shifted(cap.tightly(x), cap.value * CAP_ROUNDING))

    async def linear(self, x: Floats, weight: Floats, name: str) -> Floats:
        active = self._enter(name)
        return self._noisy(await super().linear(x, weight, name), 2.0**-RESIDUAL_BITS, active)

    async def dense(self, x: Floats, weight: Floats, name: str, activation: str) -> Floats:
        active = self._enter(name)
        x = self._noisy(self.product(x, weight), 2.0**-FRACTION_BITS, active)
        return self.activated(activation, x, name)

    async def normed_gated(
        self, x: Floats, before: str, norm: Norm, weight: Floats, name: str, activation: str
    ) -> Floats:
        y = self._late(x, await self.norm(x, before, norm), norm, name)
        return await self.gated(y, weight, name, activation)

    async def normed_project(
        self, x: Floats, before: str, norm: Norm, weight: Floats, name: str, *rest: Any
    ) -> tuple[Floats, Floats, Floats]:
        y = self._late(x, await self.norm(x, before, norm), norm, f"{name}.qkv")
        return await self.project(y, weight, name, *rest)

    def _late(self, x: Floats, y: Floats, norm: Norm, name: str) -> Floats:
        """y with the noise of a norm after the product: of what is dropped from x, and of the
        product, of which it is as if each entry of y had its share.
        """
        late = self._ranges.late.get(name)
        if late is None or not self._active:
            return y
        step = 1.5 * 2.0 ** (late.drop - RESIDUAL_BITS) * (late.drop > 0)
        step += 2.0**-late.frac / norm.size**0.5
        size = np.sqrt((x**2).mean(-1, keepdims=True) + norm.eps)
        relative = 2.0**-late.root + (2.0**-late.rope if late.rope else 0.0)
        blur = self._shifted if late.drop else self._noisy  # only a shift moves a row of zeros
        noisy = blur(y, step / size)
        return np.asarray(noisy * (1 + relative * noise((len(y), 1), next(self._seeds))))

    async def gated(self, x: Floats, weight: Floats, name: str, activation: str) -> Floats:
        active = self._enter(name)
        joint = self._noisy(self.product(x, weight), 2.0**-FRACTION_BITS, active)
        half = weight.shape[1] // 2
        y = self.activated(activation, joint[:, :half], name) * joint[:, half:]
        return self._noisy(y, 2.0**-FRACTION_BITS, active)

    def activated(self, activation: str, x: Floats, name: str) -> Floats:
        if not self._active:
            return super().activated(activation, x, name)
        found = ACTIVATIONS[activation].tightly(np.asarray(x, dtype=np.float64))
        return self._shifted(np.asarray(found), _ACTIVATION_ROUNDING)

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
        active = self._enter(name)
        q, k, v = await super().project(x, weight, name, heads, rotation, norm, gains)
        if not active:
            return q, k, v
        bounds = self._ranges.attention[name]
        step, angle = 2.0**-FRACTION_BITS, 2.0 ** -(bounds.rope_frac or FRACTION_BITS)
        q, k = (self._noisy(part, step + angle * np.abs(part)) for part in (q, k))
        return q, k, self._noisy(v, 2.0**bounds.value_drop * step)

    async def attention(
        self, q: Floats, k: Floats, v: Floats, name: str, spans: Sequence[Span]
    ) -> Floats:
        active = self._enter(f"{name}.attention")
        y = await super().attention(q, k, v, name, [self._tabled(span) for span in spans])
        if not active:
            return y
        bounds = self._ranges.attention[name]
        spare = most_spare(bounds.score_bits, bounds.value_bits, v.shape[1])
        size = np.repeat(np.abs(v).max(axis=1, initial=0.0), q.shape[0] // k.shape[0], axis=0)
        size = size.reshape(-1)
        step = _EXP_ERROR * size + 2.0 ** (spare - FRACTION_BITS)
        return self._noisy(y, step + SPLINE_ERROR * np.abs(y))

    def _tabled(self, span: Span) -> Span:
        """The span with relative position weights rounded as they are when shared."""
        if (held := span.relative) is None:
            return span
        bias, keys, queries = (
            None if value is None else self._nearest(value, FRACTION_BITS)
            for value in (held.bias, held.keys, held.queries)
        )
        return replace(span, relative=replace(held, bias=bias, keys=keys, queries=queries))

    async def output(self, x: Floats, weight: Floats, name: str, *, tied: bool = False) -> Floats:
        active = self._enter(name)
        self._frac = RESIDUAL_BITS if tied else WEIGHT_BITS
        y = await super().output(x, weight, name, tied=tied)
        return self._noisy(y, 2.0**-FRACTION_BITS, active)
