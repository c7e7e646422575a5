"""The manifest of a stored model's folder: a checked description, and the names of the files."""

import hashlib
import json
import re
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from protocols.errors import ConfigError, StoreError
from puma_actors.base.strict import Strict

FORMAT = 1
MANIFEST = "manifest.json"
PUBLIC_FILES = ("tokenizer.json", "tokenizer_config.json")
"""Files that an owner may publish with a model."""
PUBLIC_BYTES = 48 << 20
"""The most bytes of all published files together."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FILE = r"^(?:[0-9]{5}\.(?:words|matrix)|seed-[12]|tokenizer\.json|tokenizer_config\.json)$"

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=_FILE)]


class FileEntry(Strict):
    """A file's size and SHA-256."""

    bytes: int = Field(ge=0)
    sha256: Digest


class Manifest(Strict):
    """A stored model.

    Attributes:
        upload: the id that all parties' shares of one upload have in common; shares of different
            uploads do not fit together, even of one model.
        plan, digest: the public plan and its digest.
    """

    format: Literal[1] = 1
    name: str
    role: str
    upload: str = Field(pattern=r"^[0-9a-f]{32}$")
    created: str
    plan: dict[str, Any]
    digest: Digest
    files: dict[FileName, FileEntry]

    def to_json(self) -> bytes:
        """The manifest as JSON, with a checksum over everything else."""
        content = self.model_dump()
        text = json.dumps({**content, "checksum": _checksum(content)}, indent=1, sort_keys=True)
        return text.encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Manifest":
        """Read a manifest; the inverse of `to_json`.

        Raises:
            StoreError: it is damaged, or of another format.
        """
        try:
            content = json.loads(data)
            checksum = content.pop("checksum")
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            raise StoreError("its manifest is damaged") from None
        if content.get("format") != FORMAT:
            raise StoreError(f"it was stored in format {content.get('format')!r}, not {FORMAT}")
        if checksum != _checksum(content):
            raise StoreError("its manifest is damaged")
        try:
            return cls.model_validate(content)
        except ValidationError:
            raise StoreError("its manifest is damaged") from None


def _checksum(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def is_name(name: str) -> bool:
    """Whether a model can have this name."""
    return _NAME.fullmatch(name) is not None


def check_name(name: str) -> str:
    """Return the name of a model after checking it.

    Raises:
        ConfigError: it is not a valid folder name everywhere.
    """
    if not is_name(name):
        raise ConfigError(
            f"bad model name {name[:64]!r}: use up to 64 letters, digits, '.', '_' and '-', "
            "with a letter or digit first"
        )
    return name


def words_file(number: int) -> str:
    """The file name of a masked tensor."""
    return f"{number:05}.words"


def matrix_file(number: int) -> str:
    """The file name of a tensor of public weights."""
    return f"{number:05}.matrix"


def seed_file(which: int) -> str:
    """The file name of a seed."""
    return f"seed-{which}"
