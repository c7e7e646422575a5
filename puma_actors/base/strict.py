"""Tables that are checked before use: our own files, and messages from others.

class Limits(Strict): ...                          a table: its keys, their types and bounds
data = read_toml(path, "network: ")                ConfigError if it cannot be read
except ValidationError as error:
    raise config_error(first_fault(error), str(path), "use sessions, memory")
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from protocols.errors import ConfigError

_SHOWN = 80
"""Characters of a value in an error."""


class Strict(BaseModel):
    """An immutable table that accepts only declared keys, with values of exactly their types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault in one value of a table.

    Attributes:
        keys: the path to the value: keys and numbers of entries. place: the same, joined by dots.
        kind: pydantic's name for the fault.
        value: the value's `repr`, cut to 80 characters.
        problem: pydantic's message; it can quote a value only if `kind` is "union_tag_invalid" or
            one of our validators does so.
    """

    keys: tuple[str, ...]
    kind: str
    value: str
    problem: str

    @property
    def place(self) -> str:
        return ".".join(self.keys)


def first_fault(error: ValidationError) -> Fault:
    """The first fault that pydantic found."""
    first = error.errors(include_url=False)[0]
    keys = tuple(str(part) for part in first["loc"])
    return Fault(keys, first["type"], repr(first["input"])[:_SHOWN], first["msg"])


def config_error(fault: Fault, where: str, keys: str, values: str = "") -> ConfigError:
    """The error that describes a fault to the user.

    Args:
        where: the file, or another place that the table came from.
        keys: what to do about an unknown or missing key.
        values: what to do about a bad value; default: pydantic's message.
    """
    if fault.kind == "extra_forbidden":
        return ConfigError(f"{where}: unknown key {fault.place}: {keys}")
    if fault.kind == "missing":
        return ConfigError(f"{where}: {fault.place} is missing: {keys}")
    remedy = values or fault.problem[:1].lower() + fault.problem[1:]
    return ConfigError(f"{where}: {fault.place} = {fault.value}: {remedy}")


def read_toml(path: Path, about: str = "", remedy: str = "") -> dict[str, Any]:
    """Read the tables of a TOML file.

    Args:
        about: a prefix for error messages. remedy: what to do if the file cannot be read.

    Raises:
        ConfigError: the file cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        then = f": {remedy}" if remedy else ""
        raise ConfigError(f"{about}cannot read {path} ({error.strerror}){then}") from None
    except ValueError as error:  # invalid TOML, or bytes that are not UTF-8
        raise ConfigError(f"{about}{path} is not TOML: {error}") from None
