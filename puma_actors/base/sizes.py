"""Amounts of memory as people write them."""

import re

from protocols.errors import ConfigError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([kmgt]i?)?b?", re.IGNORECASE)


def parse_size(text: str, name: str) -> int:
    """The bytes of "16GB", "1.5 GiB" or "800000000".

    Args:
        name: of the option, for errors.

    Raises:
        ConfigError: it is none of these.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None or float(found[1]) == 0:
        raise ConfigError(f"{name} {text[:40]!r} is not a size: give one like 16GB or 800MB")
    return int(float(found[1]) * {**_UNITS, **_BINARY}[(found[2] or "").lower()])
