"""Workloads for timing the protocols: inputs, the program of each party, and the exact result."""

from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import numpy as np

from bench.tools.harness import Errors
from bench.tools.parties import Program
from bench.tools.reference import SPU, Reference
from bench.tools.sharing import (
    Reals,
    Shared,
    rebuild,
    rebuild_bits,
    share,
    share_bits,
    share_table,
    share_weight,
)
from protocols.arithmetic import lift, matmul, mul
from protocols.base.lane import APPROXIMATIONS, Lane
from protocols.base.ring import FRACTION_BITS, RESIDUAL_BITS, RING_BITS, WEIGHT_BITS, encode
from protocols.base.shares import COMPUTING, Role, SecretTensor
from protocols.compare import less
from protocols.drivers.ops import Ranges
from protocols.drivers.secure import Secure
from protocols.embedding import embed, request_rows
from protocols.functions.activations import GELU, SILU, Activation, activate
from protocols.functions.attention import AttentionRange, attend
from protocols.functions.elementary import Scaled, exp_negative, reciprocal, rsqrt
from protocols.functions.normalize import Norm, NormRange, norm_range, normalize
from protocols.linear import linear
from protocols.selection import Term, select

Function = Callable[..., Coroutine[Any, Any, Any]]
Check = Callable[[Shared], Errors]

NARROW = RING_BITS - WEIGHT_BITS
"""Ring width after a product with a weight; activations and attention read it directly."""
ATTENTION = AttentionRange(score_bits=11, value_bits=6, rope_frac=0)
"""Scores below 2,048, as the demo model needs."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Attributes:
    function: the program of each computing party: `function(lane, *own inputs)`.
    inputs: shared values, or values that all parties have.
    check: results by role -> distance from float64.
    work, unit: amount of work, for rates per second.
    tree: as in `Settings`; "balanced" takes least time for many rows and no network between.
    client: the client's program, if it takes part.
    reference: another system's figures for the same work.
    """

    case: str
    function: Function
    inputs: tuple[Any, ...]
    check: Check
    work: float
    unit: str = "elements"
    approximation: str = ""
    tree: str = "balanced"
    client: Program | None = None
    reference: Reference | None = None
    note: str = ""

    def programs(self) -> dict[Role, Program]:
        """One program per role."""

        def of(role: Role) -> Program:
            own = [value[role] if isinstance(value, dict) else value for value in self.inputs]
            return lambda lane: self.function(lane, *own)

        programs = {role: of(role) for role in COMPUTING}
        return {**programs, Role.CLIENT: self.client} if self.client else programs


def _rng() -> np.random.Generator:
    return np.random.default_rng(2307_12533)


def away_from(exact: Reals, value: Callable[[Shared], Reals] = rebuild) -> Check:
    def check(results: Shared) -> Errors:
        distance = np.abs(value(results) - exact)
        return Errors(float(distance.max()), float(distance.mean()))

    return check


def _relative_to(exact: Reals, value: Callable[[Shared], Reals]) -> Check:
    def check(results: Shared) -> Errors:
        distance = np.abs(value(results) / exact - 1)
        return Errors(float(distance.max()), float(distance.mean()), "relative")

    return check


# -- products --------------------------------------------------------------------------------------


def product(small: bool) -> Iterator[Workload]:
    count = 20_000 if small else 1_000_000
    x, y = _rng().uniform(-8, 8, (2, count))

    async def narrow(lane: Lane, x: SecretTensor, y: SecretTensor) -> SecretTensor:
        return await mul(lane, x, y, FRACTION_BITS)

    async def whole(lane: Lane, x: SecretTensor, y: SecretTensor) -> SecretTensor:
        return await lift(lane, await narrow(lane, x, y))

    base = Workload(f"{count:,}, lifted", whole, (share(x), share(y)), away_from(x * y), count)
    yield replace(base, reference=None if small else SPU["product"])
    yield replace(base, case=f"{count:,}, narrow", function=narrow)


def matrix_product(small: bool) -> Iterator[Workload]:
    shapes = [(8, 64, 32)] if small else [(128, 768, 3072), (1024, 1024, 1024)]
    for rows, depth, columns in shapes:
        cube = rows == depth == columns
        case = f"{rows}^3" if cube else f"{rows}x{depth} @ {depth}x{columns}"
        x = _rng().normal(size=(rows, depth))
        w = _rng().normal(size=(depth, columns)) / sqrt(depth)
        exact = x @ w
        base = Workload(
            f"{case}, weight",
            _with_weight,
            (share(x), share_weight(w)),
            away_from(exact),
            float(rows * depth * columns),
            "multiply-adds",
            reference=SPU.get(f"matmul {case}"),
        )
        yield base
        secrets = share(x[None]), share(w[None])
        check = away_from(exact[None])
        yield replace(
            base, case=f"{case}, secrets", function=_of_secrets, inputs=secrets, check=check
        )


async def _with_weight(lane: Lane, x: SecretTensor, weight: Any) -> SecretTensor:
    return await lift(lane, await linear(lane, x, weight))


async def _of_secrets(lane: Lane, x: SecretTensor, y: SecretTensor) -> SecretTensor:
    return await lift(lane, await matmul(lane, x, y, FRACTION_BITS))


# -- comparison and selection ----------------------------------------------------------------------


def comparison(small: bool) -> Iterator[Workload]:
    count = 20_000 if small else 1_000_000
    x = _rng().uniform(-8, 8, count)

    def check(results: Shared) -> Errors:
        wrong = np.where(rebuild_bits(results) != (x < 0), np.abs(x), 0.0)
        return Errors(float(wrong.max()), float(wrong.mean()), "largest |x| decided wrongly")

    async def exact(lane: Lane, x: SecretTensor) -> Any:
        return await less(lane, x, digits=RING_BITS // 4)

    async def coarse(lane: Lane, x: SecretTensor) -> Any:
        return await less(lane, x, digits=5, shift=FRACTION_BITS - 4)

    base = Workload(f"{count:,}, 64 bits", exact, (share(x),), check, count)
    yield replace(base, reference=None if small else SPU["comparison"])
    yield replace(base, case=f"{count:,}, 64 bits, least traffic", tree="traffic")
    note = "as activations use it: steps of 1/16, range 2^15"
    yield replace(base, case=f"{count:,}, 20 bits", function=coarse, note=note)


def selection(small: bool) -> Iterator[Workload]:
    count = 20_000 if small else 1_000_000
    bits, y = _rng().integers(0, 2, count, dtype=np.uint8), _rng().uniform(-8, 8, count)

    async def pick(lane: Lane, bit: Any, y: SecretTensor) -> SecretTensor:
        return await select(lane, [Term((bit,), y)], width=y.width, frac=y.frac, shape=y.shape)

    yield Workload(f"{count:,}", pick, (share_bits(bits), share(y)), away_from(bits * y), count)


# -- elementary functions --------------------------------------------------------------------------


def _activation(activation: Activation, small: bool) -> Iterator[Workload]:
    shape = (8, 64) if small else (128, 3072)
    x = _rng().uniform(-12, 12, shape)

    async def function(lane: Lane, x: SecretTensor) -> SecretTensor:
        return await activate(lane, x, activation)

    for approximation in APPROXIMATIONS:
        yield Workload(
            "x".join(map(str, shape)),
            function,
            (share(x, width=NARROW),),
            away_from(activation.exact(x)),
            x.size,
            approximation=approximation,
            reference=None if small else SPU.get(activation.name),
        )


def gelu(small: bool) -> Iterator[Workload]:
    yield from _activation(GELU, small)


def silu(small: bool) -> Iterator[Workload]:
    yield from _activation(SILU, small)


def exponential(small: bool) -> Iterator[Workload]:
    count = 2_000 if small else 200_000
    x = -_rng().uniform(0, 20, count)
    for approximation in APPROXIMATIONS:
        yield Workload(
            f"{count:,}, x <= 0",
            exp_negative,
            (share(x, width=32),),
            away_from(np.exp(x)),
            count,
            approximation=approximation,
        )


def _power(function: Function, low: int, high: int, power: float, small: bool) -> Workload:
    """v^power for numbers spread over [4^low, 4^high) of the ring's smallest unit."""
    count = 256 if small else 16_384
    v = 4.0 ** _rng().uniform(low + 0.01, high - 0.01, count) / 2**FRACTION_BITS

    def value(results: Shared) -> Reals:
        parts = [{role: getattr(results[role], name) for role in COMPUTING} for name in _SCALED]
        return rebuild(parts[0]) * rebuild(parts[1])

    case = f"{count:,}, {v.min():.1g} .. {v.max():.1g}"
    exact = (encode(v) / 2.0**FRACTION_BITS) ** power

    async def powers(lane: Lane, v: SecretTensor) -> Scaled:
        scaled: Scaled = await function(lane, v, low, high)
        return scaled

    return Workload(case, powers, (share(v),), _relative_to(exact, value), count)


_SCALED = ("value", "scale")


def inverse(small: bool) -> Iterator[Workload]:
    yield _power(reciprocal, 8, 15, -1.0, small)


def inverse_root(small: bool) -> Iterator[Workload]:
    yield _power(rsqrt, 4, 23, -0.5, small)


# -- rows ------------------------------------------------------------------------------------------


def softmax(small: bool) -> Iterator[Workload]:
    heads, length, size = (2, 8, 8) if small else (12, 128, 64)
    scores = _rng().normal(size=(heads, length, length)) * 3
    odds = np.exp(scores - scores.max(-1, keepdims=True))
    odds /= odds.sum(-1, keepdims=True)
    mask = np.ones((length, length), dtype=np.bool_)
    identity = np.broadcast_to(np.eye(length), scores.shape)
    values = _rng().normal(size=(heads, length, size))
    for approximation in APPROXIMATIONS:
        base = Workload(
            f"{heads * length}x{length}",
            attend,
            (share(scores, width=NARROW), share(identity), mask, ATTENTION),
            away_from(odds),
            scores.size,
            approximation=approximation,
            reference=None if small else SPU["softmax"],
            note="attention with the identity for values, which includes that product",
        )
        yield base
        if approximation == APPROXIMATIONS[0]:
            yield replace(
                base,
                case=f"{base.case} @ {heads}x{length}x{size}",
                inputs=(base.inputs[0], share(values), mask, ATTENTION),
                check=away_from(odds @ values),
                reference=None,
                note="",
            )


def norm(small: bool) -> Iterator[Workload]:
    rows, size = (4, 64) if small else (128, 768)
    gain, shift = _rng().normal(size=(2, size))
    for center, deviation in ((False, 1), (False, 1000), (True, 1), (True, 1000)):
        x = _rng().normal(size=(rows, size)) * deviation
        kind = Norm(size, 1e-5, center)
        largest = 2.0 * deviation * sqrt(size)
        affine = (share(gain), share(shift, RESIDUAL_BITS)) if center else ()
        exact = x - x.mean(-1, keepdims=True) if center else x
        exact = exact / np.sqrt((exact * exact).mean(-1, keepdims=True) + kind.eps)
        compared = center and deviation == 1 and not small
        yield Workload(
            f"{rows}x{size}, {'LayerNorm' if center else 'RMSNorm'}, deviation {deviation}",
            _norm,
            (
                share(x, RESIDUAL_BITS),
                kind,
                norm_range(kind, largest, float(abs(gain).max())),
                *affine,
            ),
            away_from(exact * gain + shift if center else exact),
            x.size,
            reference=SPU["norm"] if compared else None,
        )


async def _norm(
    lane: Lane, x: SecretTensor, kind: Norm, bounds: NormRange, *affine: SecretTensor
) -> SecretTensor:
    if not affine:
        return await normalize(lane, x, kind, bounds)
    gain, shift = affine
    return await normalize(lane, x, kind, bounds, gain=gain, shift=shift, frac=RESIDUAL_BITS)


def embedding(small: bool) -> Iterator[Workload]:
    tokens, rows, columns = (4, 200, 16) if small else (128, 30522, 768)
    table = _rng().normal(size=(rows, columns)) * 0.1
    ids = _rng().integers(0, rows, tokens)
    yield Workload(
        f"{tokens} tokens, {rows}x{columns}",
        lambda lane, held: embed(lane, held, tokens),
        (share_table(table),),
        away_from(table[ids]),
        tokens,
        "tokens",
        client=lambda lane: request_rows(lane, ids, rows),
        reference=None if small else SPU["embedding"],
        note="including the wait for the client",
    )


def largest(small: bool, vocabulary: int = 49_152) -> Iterator[Workload]:
    vocabulary = 300 if small else vocabulary
    logits = _rng().normal(size=(1, vocabulary)) * 8

    def check(results: Shared) -> Errors:
        chosen = rebuild(results).astype(np.int64)
        lost = logits.max(-1) - logits[np.arange(len(logits)), chosen]
        return Errors(float(lost.max()), float(lost.mean()), "largest logit minus the chosen one")

    yield Workload(
        f"1x{vocabulary}",
        lambda lane, x: Secure(lane, Ranges({}, {})).argmax(x),
        (share(logits, width=RING_BITS - RESIDUAL_BITS),),
        check,
        vocabulary,
    )
