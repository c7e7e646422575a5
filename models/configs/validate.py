"""Checks of configuration values that may come from a damaged file or an untrusted peer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from protocols.errors import ModelError


def required(data: Mapping[str, Any], *names: str) -> Any:
    """The value of a setting under any of `names`. Raises ModelError when none is present, or when
    two of them disagree.
    """
    found = {name: data[name] for name in names if data.get(name) is not None}
    if not found:
        raise ModelError(f"the model's configuration lacks {names[0]!r}; the file is incomplete")
    values = list(found.values())
    if any(value != values[0] for value in values):
        raise ModelError(f"the model's configuration contradicts itself: {short(found)}")
    return values[0]


def check_size(name: str, value: object, limit: int = 1 << 24, *, least: int = 1) -> None:
    """Raise ModelError unless `value` is an integer from `least` to `limit`."""
    if type(value) is not int or not least <= value <= limit:
        raise ModelError(f"{name}: {short(value)} is not a whole number from {least} to {limit}")


def check_flag(name: str, value: object) -> None:
    """Raise ModelError unless `value` is a bool."""
    if type(value) is not bool:
        raise ModelError(f"{name}: {short(value)} is not true or false")


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise ModelError unless `value` is one of `choices`."""
    choices = tuple(choices)
    if not isinstance(value, str) or value not in choices:
        raise unsupported(name, value, ", ".join(choices))


def number(name: str, value: object, low: float, high: float) -> float:
    """`value` as a float in [low, high], zero excluded. Raises ModelError."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        found = float(value) if abs(value) < 1e300 else high * 2
        if found > 0 and low <= found <= high:  # false for NaN
            return found
    raise ModelError(f"{name}: {short(value)} is not a number from {low} to {high}")


def check_divides(name: str, divisor: int, of: str, value: int) -> None:
    """Raise ModelError unless `divisor` divides `value`; both were checked to be positive."""
    if value % divisor:
        raise ModelError(f"{name} {divisor} does not divide {of} {value}")


def refuse_unless_neutral(
    data: Mapping[str, Any], neutral: Mapping[str, tuple[object, ...]]
) -> None:
    """Raise ModelError naming the first setting that is neither absent, null nor neutral."""
    for name, values in neutral.items():
        value = data.get(name)
        if value is not None and value not in values:
            wanted = " or ".join(repr(v).lower() for v in values) or "null"
            raise unsupported(name, value, wanted)


def token_ids(value: object) -> tuple[int, ...]:
    """`eos_token_id` of Hugging Face: nothing, one id or a list of ids (not yet checked)."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list | tuple) else (value,)  # type: ignore[return-value]


def unsupported(name: str, value: object, supported: str) -> ModelError:
    """The error for a setting that is well-formed but not supported."""
    return ModelError(f"{name}: {short(value)} is not supported; supported: {supported}")


def short(value: object) -> str:
    """`repr`, cut to a length that is safe to print even if a peer sent the value."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def check_text(name: str, value: object, most: int) -> None:
    """Raise ModelError unless a value is a text of at most `most` characters."""
    if not isinstance(value, str) or len(value) > most:
        raise ModelError(f"{name}: {short(value)} is not a text of up to {most} characters")


def check_keys(name: str, data: object, wanted: set[str]) -> Mapping[str, Any]:
    """The mapping, if it has exactly these keys. Raises ModelError."""
    if not isinstance(data, Mapping) or data.keys() != wanted:
        raise ModelError(f"{name}: must have {', '.join(sorted(wanted))}")
    return data
