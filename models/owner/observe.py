"""A model's evaluation with every value visible: a debugging aid for the owner of the model.

The three computing parties' programs run here, in one process and one thread, on the owner's own
weights and texts; after each operation the drivers below report their values under the place's
name, and the parties' shares are combined. A computing party must never be able to do that, so the
code is kept apart from theirs: nothing under `puma_actors` that runs a party may import this module
(a contract of the linter), and no message of a session asks for it.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.configs.architecture import ModelConfig
from models.owner.bounds import ACTIVATION_LIMIT
from models.owner.rotary import product_limit
from models.programs.families import forward, parameters_of
from models.programs.plan import Plan
from models.programs.program import Batch, Cache
from models.programs.sharing import SEED_BYTES, hold_parameter, mask_parameter
from protocols.base.cost import Cost
from protocols.base.lane import Lane, Settings
from protocols.base.ring import RESIDUAL_BITS, WEIGHT_BITS, Floats, decode
from protocols.base.shares import COMPUTING, EVALUATORS, Role, SecretTensor
from protocols.drivers.lockstep import Pause, combine, run_parties
from protocols.drivers.ops import (
    Heads,
    Ranges,
    Rotation,
    Span,
    norm_then_gated,
    norm_then_project,
)
from protocols.drivers.plain import Plain, affine, raw_scores
from protocols.drivers.secure import OUTPUT_LIMIT, OUTPUT_WIDTH, Secure
from protocols.drivers.trace import run_now
from protocols.embedding import LOOKUP_BITS, request_rows
from protocols.errors import LocalProtocolError
from protocols.functions.normalize import Norm, NormRange, longest_centred
from protocols.functions.softcap import Cap

RESULT = "result"
"""Name of the place of the model's result for the client."""
Sizes = Mapping[str, float]
"""Name of a limited value at a place -> its largest size (in plaintext), or limit (on shares)."""
Held = dict[Role, dict[str, Any]]
"""Each computing party's share of a model, by name."""
_Driver: Any = object  # the real driver is the next base class


class _Watched(_Driver):  # type: ignore[misc]
    """Reports the inputs and outputs of operations; subclasses define `_show`, `_norm`, `_product`
    and `_attention`.
    """

    async def embed(self, table: Any, count: int, columns: int) -> Any:
        x = await super().embed(table, count, columns)
        await self._show("embedding", x, self._entries(x, 2.0 ** (LOOKUP_BITS - 2 - RESIDUAL_BITS)))
        return x

    async def norm(
        self, x: Any, name: str, norm: Norm, gain: Any = None, shift: Any = None, **options: bool
    ) -> Any:
        sizes = self._norm(x, name, norm)
        y = await super().norm(x, name, norm, gain, shift, **options)
        await self._show(name, y, sizes)
        return y

    async def linear(self, x: Any, weight: Any, name: str) -> Any:
        sizes = self._product(x, weight)
        y = await super().linear(x, weight, name)
        await self._show(name, y, sizes)
        return y

    async def dense(self, x: Any, weight: Any, name: str, activation: str) -> Any:
        sizes = self._product(x, weight, ACTIVATION_LIMIT)
        y = await super().dense(x, weight, name, activation)
        await self._show(name, y, sizes)
        return y

    async def gated(self, x: Any, weight: Any, name: str, activation: str) -> Any:
        sizes = self._product(x, weight, ACTIVATION_LIMIT)
        y = await super().gated(x, weight, name, activation)
        await self._show(name, y, sizes)
        return y

    # Step by step, so that each place is shown.
    normed_gated, normed_project = norm_then_gated, norm_then_project

    async def project(
        self,
        x: Any,
        weight: Any,
        name: str,
        heads: Heads,
        rotation: Rotation | None = None,
        *norms: Any,
    ) -> tuple[Any, Any, Any]:
        turned = rotation is not None and not any(norms)
        sizes = self._product(x, weight, turned=name if turned else "")
        q, k, v = await super().project(x, weight, name, heads, rotation, *norms)
        await self._show(f"{name}.queries", q, sizes)
        await self._show(f"{name}.keys", k, {})
        await self._show(f"{name}.values", v, {})
        return q, k, v

    async def attention(self, q: Any, k: Any, v: Any, name: str, spans: Sequence[Span]) -> Any:
        sizes = self._attention(q, k, v, name, spans)
        y = await super().attention(q, k, v, name, spans)
        await self._show(f"{name}.attention", y, sizes)
        return y

    async def scaled(self, x: Any, factor: float) -> Any:
        y = await super().scaled(x, factor)
        await self._show("embedding.scaled", y, {})
        return y

    async def capped(self, x: Any, name: str, cap: Cap) -> Any:
        y = await super().capped(x, name, cap)
        await self._show(name, y, self._entries(x, cap.limit(OUTPUT_WIDTH)))
        return y

    async def output(self, x: Any, weight: Any, name: str, *, tied: bool = False) -> Any:
        sizes = self._product(x, weight, tied=tied)
        y = await super().output(x, weight, name, tied=tied)
        await self._show(name, y, {**sizes, **self._entries(y, OUTPUT_LIMIT)})
        return y


# -- in plaintext ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """The plaintext run's value at a place.

    Attributes:
        sizes: the largest sizes of values with a declared range there.
    """

    name: str
    value: Floats
    sizes: Sizes


class PlainWatched(_Watched, Plain):
    """`Plain` that keeps all values, in the order of the program."""

    def __init__(self, ids: Any) -> None:
        super().__init__(ids)
        self.places: list[Place] = []

    async def _show(self, name: str, value: Floats, sizes: Sizes) -> None:
        self.places.append(Place(name, np.asarray(value), sizes))

    def _entries(self, x: Floats, limit: float) -> Sizes:
        return {"entries": _largest(x)}

    def _norm(self, x: Floats, name: str, norm: Norm) -> Sizes:
        centred = x - x.mean(axis=-1, keepdims=True) if norm.center else x
        return {"row lengths": _largest(np.linalg.norm(centred, axis=-1))}

    def _product(
        self, x: Floats, weight: Floats, *limits: float, tied: bool = False, **_: str
    ) -> Sizes:
        return {"products": _largest(affine(x, weight.T if tied else weight))}

    def _attention(
        self, q: Floats, k: Floats, v: Floats, name: str, spans: Sequence[Span]
    ) -> Sizes:
        share, largest = q.shape[0] // k.shape[0], 0.0
        for span in spans:
            keys = np.repeat(k[:, span.context], share, axis=0)
            scores = raw_scores(q[:, span.rows], keys, span)
            if span.cap is not None:
                scores = span.cap.exact(scores)
            largest = max(largest, _largest(scores[:, span.mask]))
        return {"scores": largest, "values": _largest(v)}


def _largest(x: Floats) -> float:
    return float(np.abs(x).max(initial=0.0))


def run_plain(
    config: ModelConfig, parameters: Mapping[str, Floats], batch: Batch, ids: Sequence[int]
) -> list[Place]:
    """Every value of an evaluation in float64, in the order of the program; the last is the
    model's result.
    """
    ops = PlainWatched(np.asarray(ids, dtype=np.int64))
    cache = Cache.empty(config.num_layers)
    result = run_now(_forward(ops, config, parameters, batch, cache))
    return [*ops.places, Place(RESULT, np.asarray(result), {"entries": _largest(result)})]


async def _forward(ops: Any, *args: Any) -> Any:
    return await forward(ops, *args)


# -- on shares -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rebuilt:
    """The value rebuilt from the parties' shares at a place.

    Attributes:
        limits: the limits of values with a declared range there.
        agreed: whether each summand was the same at the two parties that hold it.
    """

    name: str
    value: Floats
    limits: Sizes
    agreed: bool


Judge = Callable[[Rebuilt], None]


class _Meeting:
    """Where the three parties hand in their shares of a place. None goes on before the place is
    judged, so only one place's shares are kept at a time, and the dealer cannot run far ahead.
    """

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._shares: dict[Role, SecretTensor] = {}
        self._judged = 0

    async def bring(self, name: str, x: SecretTensor, limits: Sizes) -> None:
        place = self._judged
        self._shares[x.role] = x
        if len(self._shares) == len(COMPUTING):
            shares, self._shares = self._shares, {}
            self._judged += 1
            self._judge(_rebuild(name, shares, limits))
        moved = True
        while self._judged == place:
            await Pause(moved=moved)
            moved = False


def _rebuild(name: str, shares: dict[Role, SecretTensor], limits: Sizes) -> Rebuilt:
    left = shares[Role.EVALUATOR_A]
    try:
        words, agreed = combine(shares), True
    except LocalProtocolError:  # this is what the comparison looks for: report it
        dealer = shares[Role.DEALER]
        words, agreed = left.a - dealer.a - dealer.b, False
    return Rebuilt(name, decode(words, left.frac, left.width), limits, agreed)


class SecureWatched(_Watched, Secure):
    """`Secure` that hands all its shares to a meeting: only for one's own model and texts."""

    def __init__(self, lane: Lane, ranges: Ranges, meeting: _Meeting) -> None:
        super().__init__(lane, ranges)
        self._meeting = meeting

    async def _show(self, name: str, value: SecretTensor, limits: Sizes) -> None:
        await self._meeting.bring(name, value, limits)

    def _entries(self, x: SecretTensor, limit: float) -> Sizes:
        return {"entries": limit}

    def _norm(self, x: SecretTensor, name: str, norm: Norm) -> Sizes:
        return {"row lengths": longest_row(norm, self.ranges.norms[name])}

    def _product(
        self, x: SecretTensor, weight: Any, *limits: float, tied: bool = False, turned: str = ""
    ) -> Sizes:
        frac = x.frac
        if turned:
            bounds = self.ranges.attention[turned]
            frac += bounds.rope_frac - bounds.value_drop
        frac += RESIDUAL_BITS - WEIGHT_BITS if tied else 0
        return {"products": min(product_limit(frac), *limits, math.inf)}

    def _attention(
        self, q: Any, k: Any, v: SecretTensor, name: str, spans: Sequence[Span]
    ) -> Sizes:
        bounds = self.ranges.attention[name]
        return {"scores": 2.0**bounds.score_bits, "values": 2.0**bounds.value_bits}


def longest_row(norm: Norm, bounds: NormRange) -> float:
    """Euclidean length below which a row (less its mean, if the norm subtracts it) fits a norm's
    declared range.
    """
    squared = 2.0 ** (bounds.high + bounds.drop - RESIDUAL_BITS) / norm.stretch
    return min(squared, longest_centred(norm))


def hold_all(config: ModelConfig, parameters: dict[str, Floats]) -> Iterator[tuple[str, Held]]:
    """Share a model's parameters (which are consumed) among three parties in this process, one by
    one: yields the name, and each party's share.

    Raises:
        RangeError: a weight does not fit the ring.
    """
    seeds = {which: os.urandom(SEED_BYTES) for which, _ in enumerate(EVALUATORS, start=1)}
    known = {role: {which: seeds[which]} for which, role in enumerate(EVALUATORS, start=1)}
    for number, (name, parameter) in enumerate(parameters_of(config).items()):
        m = mask_parameter(name, number, parameter.kind, parameters.pop(name), [*seeds.values()])
        held = {
            role: {name: hold_parameter(role, number, parameter, m, known[role])}
            for role in EVALUATORS
        }
        held[Role.DEALER] = {name: hold_parameter(Role.DEALER, number, parameter, None, seeds)}
        yield name, held


def run_secure(
    plan: Plan,
    held: Held,
    batch: Batch,
    ids: Sequence[int],
    judge: Judge,
    settings: Settings | None = None,
) -> Cost:
    """Evaluate a batch on shares and pass every place to `judge`, in the order of the program; the
    last is the model's result. Returns the cost.
    """
    config, meeting = plan.config, _Meeting(judge)

    async def party(lane: Lane) -> None:
        ops = SecureWatched(lane, plan.ranges, meeting)
        cache = Cache.empty(config.num_layers)
        result = await _forward(ops, config, held[lane.role], batch, cache)
        await meeting.bring(RESULT, result, {"entries": OUTPUT_LIMIT})

    async def client(lane: Lane) -> None:
        await request_rows(lane, np.asarray(ids, dtype=np.int64), config.vocab_size)

    programs: dict[Role, Any] = {**dict.fromkeys(COMPUTING, party), Role.CLIENT: client}
    return run_parties(programs, settings, record=False).cost
