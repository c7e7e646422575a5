"""Rotary positions: base and scaling, read from a `config.json`, and the angles."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, localcontext
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.configs.validate import (
    check_choice,
    check_flag,
    check_size,
    number,
    short,
    unsupported,
)
from protocols.base.precise import PI, PRECISE
from protocols.base.ring import Words
from protocols.errors import ModelError

_MAX_FACTOR = 65536.0
_MAX_POSITIONS = 1 << 24
# Kind -> fields of RopeScaling that it needs.
_FIELDS = {
    "linear": ("factor",),
    "dynamic": ("factor", "original_max_positions"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_positions"),
    "yarn": (
        "factor",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "truncate",
        "original_max_positions",
    ),
    "longrope": ("attention_factor", "factors", "original_max_positions"),
}
_LEAST = {"factor": 1.0}
_TINY = 2.0**-16
_MAX_FACTORS = 1 << 9


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched for contexts longer than in training.

    Fields that a kind does not use are None. Raises ModelError on construction.

    Attributes:
        kind: `linear` (all frequencies divided by factor), `dynamic` (a base that grows once the
            sequence is longer than original_max_positions), `llama3` (low frequencies divided,
            high ones kept, a smooth transition between), `yarn` (the same with a transition that
            is linear in the index of the frequency; arXiv 2309.00071) or `longrope` (each frequency
            divided by a separate factor; arXiv 2402.13753).
        original_max_positions: context length in training, in tokens.
        attention_factor: factor on rotated queries and keys.
        factors: one divisor per frequency.
    """

    kind: str
    factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_positions: int | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    truncate: bool | None = None
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
            else:
                object.__setattr__(self, field.name, _checked(field.name, value))
        if self.kind == "llama3" and not self.high_freq_factor > self.low_freq_factor:  # type: ignore[operator]
            raise ModelError("rope_scaling: high_freq_factor must be above low_freq_factor")

    def to_public(self) -> dict[str, Any]:
        """The scaling as JSON types."""
        return asdict(self)

    @classmethod
    def from_public(cls, data: object) -> RopeScaling:
        """Inverse of `to_public`, for data from a peer. Raises ModelError."""
        if not isinstance(data, Mapping) or data.keys() != {f.name for f in fields(cls)}:
            raise ModelError(f"rope_scaling: {short(data)} is not a rotary scaling or null")
        factors = data["factors"]
        return cls(**{**data, "factors": tuple(factors) if isinstance(factors, list) else factors})


def _checked(name: str, value: object) -> Any:
    """Check and return a required setting of a scaling. Raises ModelError."""
    where = f"rope_scaling.{name}"
    if name == "truncate":
        check_flag(where, value)
    elif name == "original_max_positions":
        check_size(where, value, _MAX_POSITIONS)
    elif name == "factors":
        if not isinstance(value, tuple) or not 0 < len(value) <= _MAX_FACTORS:
            raise ModelError(f"{where}: {short(value)} is not a list of numbers")
        return tuple(number(where, each, _TINY, _MAX_FACTOR) for each in value)
    else:
        return number(where, value, _LEAST.get(name, _TINY), _MAX_FACTOR)
    return value


def rotary_turns(theta: float, size: int, scaling: RopeScaling | None, length: int) -> Words:
    """Angle per position of each pair of entries of a head, in 2^-64 of a turn: (size // 2,).

    The product with a position, modulo 2^64, is the angle at that position, off by at most
    position * 2^-65 of a turn. Both evaluators get the same words (see `protocols.base.precise`).

    length: number of tokens in the sequence so far; only the kind `dynamic` depends on it. The
    formulas are those of transformers' `modeling_rope_utils`.
    """
    least = 0  # only `dynamic` depends on the length, and only beyond the training context
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
    turns.flags.writeable = False  # all callers share one array
    return turns


def _rates(theta: Decimal, size: int, scaling: RopeScaling | None, length: int) -> list[Decimal]:
    """Angle per position of each pair of entries, in radians."""
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
    if scaling.kind == "yarn":
        return _yarn(rates, log, size, scaling)
    return [_llama3(rate, scaling) for rate in rates]


def _yarn(rates: list[Decimal], log: Decimal, size: int, scaling: RopeScaling) -> list[Decimal]:
    assert scaling.factor is not None and scaling.original_max_positions is not None
    assert scaling.beta_fast is not None and scaling.beta_slow is not None
    original = scaling.original_max_positions

    def entry(turns: float) -> Decimal:
        """Index of the frequency that makes this many turns in the training context."""
        return size * (original / (Decimal(turns) * 2 * PI)).ln() / (2 * log)

    low, high = entry(scaling.beta_fast), entry(scaling.beta_slow)
    if scaling.truncate:
        low, high = low.to_integral_value(ROUND_FLOOR), high.to_integral_value(ROUND_CEILING)
    low, high = max(low, Decimal(0)), min(high, Decimal(size - 1))
    if low == high:
        high += Decimal("0.001")
    slowed = [min(max((i - low) / (high - low), Decimal(0)), Decimal(1)) for i in range(len(rates))]
    factor = Decimal(scaling.factor)
    return [r * (1 - part + part / factor) for r, part in zip(rates, slowed, strict=True)]


def _llama3(rate: Decimal, scaling: RopeScaling) -> Decimal:
    assert scaling.low_freq_factor is not None and scaling.high_freq_factor is not None
    assert scaling.original_max_positions is not None and scaling.factor is not None
    low, high = Decimal(scaling.low_freq_factor), Decimal(scaling.high_freq_factor)
    turns = scaling.original_max_positions * rate / (2 * PI)  # within the training context
    kept = min(max((turns - low) / (high - low), Decimal(0)), Decimal(1))
    return rate * (kept + (1 - kept) / Decimal(scaling.factor))


class Rope(NamedTuple):
    """Rotary positions as a `config.json` describes them.

    Attributes:
        theta: base of the frequencies.
        fraction: fraction of a head's entries that are rotated.
    """

    theta: Any
    scaling: RopeScaling | None
    fraction: Any = 1.0

    def context(self, positions: int) -> int:
        """The longest sequence of a model whose `max_position_embeddings` is `positions`."""
        if self.scaling is not None and self.scaling.kind == "dynamic":
            assert self.scaling.factor is not None
            return int(positions * self.scaling.factor)
        if self.scaling is not None and self.scaling.kind == "longrope":
            # Beyond the training context the frequencies change, and keys in the cache cannot be
            # rotated again.
            assert self.scaling.original_max_positions is not None
            return min(positions, self.scaling.original_max_positions)
        return positions


def read_rope(data: Mapping[str, Any], positions: int, *, partial: bool = False) -> Rope:
    """Read the base of the frequencies and their scaling from a `config.json`.

    transformers 5 writes `rope_parameters`; earlier versions wrote `rope_theta` and `rope_scaling`.
    positions: the configuration's `max_position_embeddings`; partial: the family may rotate only
    part of a head. Raises ModelError for unsupported kinds.
    """
    where = "rope_scaling" if data.get("rope_scaling") else "rope_parameters"
    return _rope(data, where, _flat(where, data.get(where) or {}), positions, partial)


def read_layer_ropes(data: Mapping[str, Any], positions: int) -> tuple[Rope, Rope]:
    """Read the rotary positions of full-attention layers and of sliding-window layers.

    The two kinds of layers have separate bases (Gemma 3, ModernBERT). Raises ModelError.
    """
    given = data.get("rope_parameters") or {}
    if not isinstance(given, Mapping):
        raise unsupported("rope_parameters", given, "a mapping")
    theta, near_theta = data.get("rope_theta"), data.get("rope_local_base_freq")
    wide = {"rope_theta": 1e6 if theta is None else theta}
    wide.update(given.get("full_attention") or {})
    near = {"rope_theta": 1e4 if near_theta is None else near_theta}
    near.update(given.get("sliding_attention") or {})
    if given and not given.keys() <= {"full_attention", "sliding_attention"}:
        raise unsupported("rope_parameters", dict(given), "one mapping a kind of layer")
    if data.get("rope_scaling"):
        wide.update(_flat("rope_scaling", data["rope_scaling"]))
    found = [_rope({}, "rope_parameters", rope, positions, False) for rope in (wide, near)]
    return found[0], found[1]


def rotary_order(size: int, rotated: int) -> NDArray[np.int64]:
    """An order of a head's entries in which the two entries of each pair are half a head apart.

    The first `rotated` entries of the head form pairs that are rotated; the others form pairs that
    are not.
    """
    entries, half, rest = np.arange(size), rotated // 2, (size - rotated) // 2
    first = [entries[:half], entries[rotated : rotated + rest]]
    second = [entries[half:rotated], entries[rotated + rest :]]
    return np.concatenate([*first, *second])


def _rope(
    data: Mapping[str, Any], where: str, rope: Mapping[str, Any], positions: int, partial: bool
) -> Rope:
    fraction = rope.get("partial_rotary_factor", data.get("partial_rotary_factor"))
    if fraction not in (None, 1) and not partial:
        raise unsupported("partial_rotary_factor", fraction, "1.0")
    theta = rope.get("rope_theta", data.get("rope_theta"))
    scaling = _scaling(data, where, rope, positions)
    return Rope(10000.0 if theta is None else theta, scaling, 1.0 if fraction is None else fraction)


def _scaling(
    data: Mapping[str, Any], where: str, rope: Mapping[str, Any], positions: int
) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    kind = "longrope" if kind == "su" else kind  # its former name
    original = rope.get("original_max_position_embeddings")
    check_choice(f"{where}.rope_type", kind, ("default", *_FIELDS))
    _check_former_name(where, rope, kind)
    if kind == "default":
        return None
    if kind == "dynamic" and original not in (None, positions):
        name = f"{where}.original_max_position_embeddings"
        raise unsupported(name, original, f"max_position_embeddings {positions} for kind 'dynamic'")
    if kind in ("llama3", "yarn", "longrope"):
        # The places where transformers looks for it, in order of precedence.
        found = (data.get("original_max_position_embeddings"), original, positions)
        original = next(value for value in found if value is not None)
    if kind in _READERS:
        check_size("original_max_position_embeddings", original, _MAX_POSITIONS, least=2)
        return _READERS[kind](where, rope, positions, original)
    values: dict[str, Any] = {
        name: rope.get(name) for name in _FIELDS[kind] if name != "original_max_positions"
    }
    if kind != "linear":
        values["original_max_positions"] = positions if kind == "dynamic" else original
    return RopeScaling(kind=kind, **values)


def _check_former_name(where: str, rope: Mapping[str, Any], kind: str) -> None:
    """Raise ModelError if `type`, the former name of `rope_type`, says something else."""
    former = rope.get("type", kind)
    if former not in ((kind, "su") if kind == "longrope" else (kind,)):
        raise unsupported(f"{where}.type", former, f"the same as rope_type: {kind}")


def _read_yarn(where: str, rope: Mapping[str, Any], positions: int, original: int) -> RopeScaling:
    factor = rope.get("factor")
    factor = positions / original if factor is None else factor
    factor = number(f"{where}.factor", factor, 1, _MAX_FACTOR)
    given, scales = rope.get("attention_factor"), (rope.get("mscale"), rope.get("mscale_all_dim"))
    if given is None:
        one, two = scales if all(scales) else (1, None)
        given = _grown(where, factor, one) / (1.0 if two is None else _grown(where, factor, two))
    return RopeScaling(
        kind="yarn",
        factor=factor,
        attention_factor=given,
        beta_fast=rope.get("beta_fast") or 32,
        beta_slow=rope.get("beta_slow") or 1,
        truncate=rope.get("truncate", True),
        original_max_positions=original,
    )


def _grown(where: str, factor: float, scale: object) -> float:
    return 0.1 * number(f"{where}.mscale", scale, 0, _MAX_FACTOR) * math.log(factor) + 1.0


def _read_longrope(
    where: str, rope: Mapping[str, Any], positions: int, original: int
) -> RopeScaling:
    """The scaling for sequences up to the training context; `Rope.context` allows no others."""
    factor, given = rope.get("factor"), rope.get("attention_factor")
    factor = positions / original if factor is None else factor
    factor = number(f"{where}.factor", factor, _TINY, _MAX_FACTOR)
    if given is None:
        given = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    short_factor = rope.get("short_factor")
    factors = tuple(short_factor) if isinstance(short_factor, list | tuple) else short_factor
    return RopeScaling(
        kind="longrope", attention_factor=given, factors=factors, original_max_positions=original
    )


_READERS: dict[str, Callable[[str, Mapping[str, Any], int, Any], RopeScaling]] = {
    "yarn": _read_yarn,
    "longrope": _read_longrope,
}


def _flat(where: str, rope: object) -> Mapping[str, Any]:
    """The parameters as one mapping; they may be repeated for each type of layer."""
    if not isinstance(rope, Mapping):
        raise unsupported(where, rope, "a mapping with rope_type")
    nested = [value for value in rope.values() if isinstance(value, Mapping)]
    if not nested:
        return rope
    if len(nested) != len(rope) or any(value != nested[0] for value in nested):
        raise unsupported(where, dict(rope), "the same rotary positions in every layer")
    return nested[0]
