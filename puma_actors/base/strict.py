"""Tables that are checked before anything acts on them: our own files, and messages of others.

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
    """A table without unknown keys, whose values have the very types that are declared. It cannot
    be changed.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one value of a table.

    Attributes:
        keys: the way to it, keys and numbers of entries. place: the same, joined by dots.
        kind: pydantic's name for it.
        value: it, as it stands in Python, cut to 80 characters.
        problem: pydantic's words, which may quote a value only if `kind` is "union_tag_invalid" or
            a validator of ours does.
    """

    keys: tuple[str, ...]
    kind: str
    value: str
    problem: str

    @property
    def place(self) -> str:
        return ".".join(self.keys)


def first_fault(error: ValidationError) -> Fault:
    """Of all that pydantic found."""
    first = error.errors(include_url=False)[0]
    keys = tuple(str(part) for part in first["loc"])
    return Fault(keys, first["type"], repr(first["input"])[:_SHOWN], first["msg"])


def config_error(fault: Fault, where: str, keys: str, values: str = "") -> ConfigError:
    """The error that tells people about a fault.

    Args:
        where: the file (or what else it stands in).
        keys: what to do about a key that is unknown or missing.
        values: what to do about a value; default: what pydantic says of it.
    """
    if fault.kind == "extra_forbidden":
        return ConfigError(f"{where}: unknown key {fault.place}: {keys}")
    if fault.kind == "missing":
        return ConfigError(f"{where}: {fault.place} is missing: {keys}")
    remedy = values or fault.problem[:1].lower() + fault.problem[1:]
    return ConfigError(f"{where}: {fault.place} = {fault.value}: {remedy}")


def read_toml(path: Path, about: str = "", remedy: str = "") -> dict[str, Any]:
    """The tables of a TOML file.

    Args:
        about: what stands before the text of an error. remedy: for a file that cannot be read.

    Raises:
        ConfigError: it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        then = f": {remedy}" if remedy else ""
        raise ConfigError(f"{about}cannot read {path} ({error.strerror}){then}") from None
    except ValueError as error:  # what is wrong with the TOML, or bytes that are not UTF-8
        raise ConfigError(f"{about}{path} is not TOML: {error}") from None
