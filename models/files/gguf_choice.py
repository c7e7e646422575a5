"""Choose one of several GGUF files by a part of its name, such as `Q4_K_M`."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from protocols.errors import ModelError

SHOWN = 40
"""How many files a message names."""
PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
"""The end of the name of a part of a split file."""
_PROJECTOR = "mmproj"  # turns images into embeddings; many text models come with one


def is_gguf_model(path: str) -> bool:
    """Whether a file may be a GGUF model; of a split model, only the first part counts."""
    name = PurePosixPath(path).name
    part = PART.search(name)
    first = part is None or name[part.start() :].startswith("-00001-")
    return name.endswith(".gguf") and first and not name.lower().startswith(_PROJECTOR)


def has_tag(path: str, tag: str) -> bool:
    """Whether the name contains the tag as a whole word: Q4_K does not match Q4_K_M."""
    name = PurePosixPath(path).name
    word = rf"(?<![A-Za-z0-9]){re.escape(tag)}(?![A-Za-z0-9_])"
    return tag in (name, name.removesuffix(".gguf")) or bool(re.search(word, name, re.IGNORECASE))


def tag_of(path: str) -> str:
    """The text to write after the colon: the quantisation in the name, or the whole name."""
    name = PurePosixPath(path).name
    found = re.search(r"(?<![A-Za-z0-9])(I?Q\d\w*|B?F(16|32))(?=[.-])", name, re.IGNORECASE)
    return found[0] if found else name


def amount(size: int) -> str:
    """Format a number of bytes for people: 1.5 MB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} B"


def gguf_of_folder(folder: Path, tag: str = "") -> Path | None:
    """The GGUF model in a folder, or the one of them with the tag; None: there is none.

    Raises:
        ModelError: there are several, or none with the tag; the message lists them with sizes.
    """
    held = sorted(file for file in folder.glob("*.gguf") if is_gguf_model(file.name))
    found = [file for file in held if not tag or has_tag(file.name, tag)]
    if len(found) == 1:
        return found[0]
    if not held and not tag:
        return None
    if not held:
        raise ModelError(f"{folder}: holds no GGUF file, and {tag!r} names one of several")
    some = found or held
    missing = "" if found else f", and none whose name has {tag!r}"
    listed = ", ".join(f"{file.name} ({amount(file.stat().st_size)})" for file in some[:SHOWN])
    rest = f" and {len(some) - SHOWN} more" if len(some) > SHOWN else ""
    raise ModelError(
        f"{folder}: holds {len(some)} GGUF files{missing} ({listed}{rest}); give the path of one, "
        f"as {folder}:{tag_of(some[0].name)} or {some[0]}"
    )
