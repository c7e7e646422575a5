"""Rotary positions: their base and scaling, read from a `config.json`, and their angles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from decimal import Decimal, localcontext
from functools import lru_cache
from typing import Any

import numpy as np

from models.configs.validate import check_choice, check_size, number, short, unsupported
from protocols.base.precise import PI, PRECISE
from protocols.base.ring import Words
from protocols.errors import ModelError

_MAX_FACTOR = 65536.0
_MAX_POSITIONS = 1 << 24
_COMMON_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
# Kind -> fields of RopeScaling that it needs.
_FIELDS = {
    "linear": ("factor",),
    "dynamic": ("factor", "original_max_positions"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_positions"),
    "longrope": ("attention_factor", "factors"),
}
_READ = ("default", "linear", "dynamic", "llama3")  # from a config.json
_MAX_FACTORS = 1 << 9


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched for contexts longer than those of the training.

    A field that the kind does not have is None. Raises ModelError on construction.

    Attributes:
        kind: `linear` (all frequencies divided by factor), `dynamic` (a base that grows once the
            sequence is longer than original_max_positions), `llama3` (low frequencies divided,
            high ones kept, a smooth transition between) or `longrope` (each frequency divided by
            a factor of its own).
        original_max_positions: context of the training, in tokens.
        attention_factor: what rotated queries and keys are multiplied by: 1.
        factors: a number for each frequency.
    """

    kind: str
    factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_positions: int | None = None
    attention_factor: float | None = None
    factors: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_choice("rope_scaling.kind", self.kind, _FIELDS)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "kind":
                continue
            if field.name not in _FIELDS[self.kind]:
                if value is not None:
                    raise ModelError(f"rope_scaling of kind {self.kind!r} has no {field.name}")
            elif field.name == "original_max_positions":
                check_size("rope_scaling.original_max_positions", value, _MAX_POSITIONS)
            elif field.name == "factors":
                object.__setattr__(self, "factors", _factors(value))
            else:
                low = 1.0 if field.name == "factor" else 2.0**-16
                value = number(f"rope_scaling.{field.name}", value, low, _MAX_FACTOR)
                object.__setattr__(self, field.name, value)
        if self.attention_factor not in (None, 1.0):
            raise unsupported("rope_scaling.attention_factor", self.attention_factor, "1.0")
        if self.kind == "llama3" and not self.high_freq_factor > self.low_freq_factor:  # type: ignore[operator]
            raise ModelError("rope_scaling: high_freq_factor must be above low_freq_factor")

    def to_public(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self)

    @classmethod
    def from_public(cls, data: object) -> RopeScaling:
        """Inverse of `to_public`, for data from a peer. Raises ModelError."""
        if not isinstance(data, Mapping) or data.keys() != {f.name for f in fields(cls)}:
            raise ModelError(f"rope_scaling: {short(data)} is not a rotary scaling or null")
        factors = data["factors"]
        return cls(**{**data, "factors": tuple(factors) if isinstance(factors, list) else factors})


def _factors(value: object) -> tuple[float, ...]:
    if not isinstance(value, tuple) or not 0 < len(value) <= _MAX_FACTORS:
        raise ModelError(f"rope_scaling.factors: {short(value)} is not a list of numbers")
    return tuple(number("rope_scaling.factors", each, 2.0**-16, _MAX_FACTOR) for each in value)


def rotary_turns(theta: float, size: int, scaling: RopeScaling | None, length: int) -> Words:
    """Angle per position of each pair of entries of a head, in 2^-64 of a turn: (size // 2,).

    Times a position, modulo 2^64, it is the angle there, off by position * 2^-65 of a turn: both
    evaluators get the same (see `protocols.base.precise`).

    length: tokens of the sequence so far, on which the kind `dynamic` depends. The formulas are
    those of transformers' `modeling_rope_utils`.
    """
    least = 0  # all shorter sequences have the same angles
    if scaling is not None and scaling.kind == "dynamic":
        least = max(length, scaling.original_max_positions or 0)
    return _turns(theta, size, scaling, least)


@lru_cache(maxsize=64)
def _turns(theta: float, size: int, scaling: RopeScaling | None, length: int) -> Words:
    with localcontext(PRECISE):
        turn = 2 * PI
        rates = _rates(Decimal(theta), size, scaling, length)
        words = [round(rate / turn * 2**64) % 2**64 for rate in rates]
    turns = np.array(words, dtype=np.uint64)
    turns.flags.writeable = False  # everybody gets the same array
    return turns


def _rates(theta: Decimal, size: int, scaling: RopeScaling | None, length: int) -> list[Decimal]:
    """Radians per position."""
    if scaling is not None and scaling.kind == "dynamic":
        assert scaling.original_max_positions is not None and scaling.factor is not None
        original, factor = scaling.original_max_positions, Decimal(scaling.factor)
        ratio = Decimal(length) / original
        grown = factor * ratio - (factor - 1)
        theta *= (grown.ln() * size / (size - 2)).exp()
    log = theta.ln()
    rates = [(-log * i / size).exp() for i in range(0, size, 2)]
    if scaling is None or scaling.kind == "dynamic":
        return rates
    if scaling.kind == "longrope":
        assert scaling.factors is not None
        return [r / Decimal(f) for r, f in zip(rates, scaling.factors, strict=True)]
    assert scaling.factor is not None
    if scaling.kind == "linear":
        return [rate / Decimal(scaling.factor) for rate in rates]
    return [_llama3(rate, scaling) for rate in rates]


def _llama3(rate: Decimal, scaling: RopeScaling) -> Decimal:
    assert scaling.low_freq_factor is not None and scaling.high_freq_factor is not None
    assert scaling.original_max_positions is not None and scaling.factor is not None
    low, high = Decimal(scaling.low_freq_factor), Decimal(scaling.high_freq_factor)
    turns = scaling.original_max_positions * rate / (2 * PI)  # in the training's context
    kept = min(max((turns - low) / (high - low), Decimal(0)), Decimal(1))
    return rate * (kept + (1 - kept) / Decimal(scaling.factor))


def read_rope(data: Mapping[str, Any], positions: int) -> tuple[Any, RopeScaling | None]:
    """Base of the frequencies and their scaling from a `config.json`.

    transformers 5 writes `rope_parameters`; before, there were `rope_theta` and `rope_scaling`.
    positions: the configuration's `max_position_embeddings`. Raises ModelError for kinds that are
    not supported.
    """
    where = "rope_scaling" if data.get("rope_scaling") else "rope_parameters"
    rope = _flat(where, data.get(where) or {})
    partial = rope.get("partial_rotary_factor", data.get("partial_rotary_factor"))
    if partial not in (None, 1):
        raise unsupported("partial_rotary_factor", partial, "1.0")
    theta = rope.get("rope_theta", data.get("rope_theta"))
    return 10000.0 if theta is None else theta, _scaling(data, where, rope, positions)


def _scaling(
    data: Mapping[str, Any], where: str, rope: Mapping[str, Any], positions: int
) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    original = rope.get("original_max_position_embeddings")
    check_choice(f"{where}.rope_type", kind, _READ)
    known = {*_FIELDS.get(kind, ()), "original_max_position_embeddings", *_COMMON_KEYS}
    for name in rope.keys() - known:
        if rope[name] not in (None, 1):
            raise unsupported(f"{where}.{short(name)}", rope[name], f"null for kind {kind!r}")
    if kind == "default":
        return None
    if kind == "dynamic" and original not in (None, positions):
        name = f"{where}.original_max_position_embeddings"
        raise unsupported(name, original, f"max_position_embeddings {positions} for kind 'dynamic'")
    if kind == "llama3":
        # Where transformers finds it, in the order of precedence.
        found = (data.get("original_max_position_embeddings"), original, positions)
        original = next(value for value in found if value is not None)
    values: dict[str, Any] = {
        name: rope.get(name) for name in _FIELDS[kind] if name != "original_max_positions"
    }
    if kind != "linear":
        values["original_max_positions"] = positions if kind == "dynamic" else original
    return RopeScaling(kind=kind, **values)


def _flat(where: str, rope: object) -> Mapping[str, Any]:
    """One mapping of parameters, also where they are repeated for each type of layer."""
    if not isinstance(rope, Mapping):
        raise unsupported(where, rope, "a mapping with rope_type")
    nested = [value for value in rope.values() if isinstance(value, Mapping)]
    if not nested:
        return rope
    if len(nested) != len(rope) or any(value != nested[0] for value in nested):
        raise unsupported(where, dict(rope), "the same rotary positions in every layer")
    return nested[0]
