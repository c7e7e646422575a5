"""Check token ids from callers: only integers, before anything is counted or sent."""

from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np

from protocols.errors import ConfigError

_SHOWN = 40
_WANTED = "give whole numbers, as a list or an array"


def token_ids(given: Any, what: str = "token ids") -> list[int]:
    """One sequence of ids, from any ordered collection of whole numbers.

    Raises:
        ConfigError: it contains anything else (True and 1.0 are not ids), or is not a sequence.
    """
    items = _items(given, what)
    for item in items:
        if not _is_whole(item):
            raise ConfigError(f"{what}: {_described(item)} is not a token id: {_WANTED}")
    return [int(item) for item in items]


def whole(value: Any, what: str) -> int:
    """`value` as an int. Raises ConfigError if it is not a whole number."""
    if not _is_whole(value):
        raise ConfigError(f"{what}: {_described(value)} is not a whole number")
    return int(value)


def token_sequences(given: Any) -> list[list[int]]:
    """One list of ids per sequence, from ids, lists of ids, or arrays of up to two axes.

    Raises:
        ConfigError: as `token_ids`, or the input is empty.
    """
    items = _items(given, "input_ids")
    if not items:
        raise ConfigError("the input is empty: give at least one token")
    if any(isinstance(item, list | tuple | range | np.ndarray) for item in items):
        return [token_ids(item, "input_ids") for item in items]
    return [token_ids(items, "input_ids")]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool | np.bool_)


def _items(given: Any, what: str) -> list[Any]:
    found = given.tolist() if hasattr(given, "tolist") else given  # arrays, and torch's tensors
    unordered = isinstance(found, str | bytes | bytearray | memoryview | Mapping | Set)
    if unordered or not isinstance(found, Iterable):
        raise ConfigError(f"{what}: {_described(given)} is not a list of token ids: {_WANTED}")
    return list(found)


def _described(value: Any) -> str:
    text = repr(value)
    text = text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
    return text if value is None else f"{type(value).__name__} {text}"
