"""Loads a folder's tokenizer with transformers' AutoTokenizer and turns it into plain data.

Which files in a folder count, and what each setting does, depends on the class that transformers
chooses and on its version, so its own code is used. `convert` imports transformers, and with it
torch if that is installed. `models.tokens.folder_tokenizer` decides in which process it runs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import tokenizers

from models.tokens.cleaning import clean, cleans
from models.tokens.folder_tokenizer import WHOLE
from models.tokens.tokenizer_object import parts_of_object
from protocols.errors import ConfigError, ModelError

# transformers accepts these files for any class that can read `tokenizer.json`.
_ANY_CLASS = ("tokenizer.model", "tiktoken.model", "tekken.json")
# Classes treat these differently: case, accents, spaces, digits, special tokens, scripts.
_PROBES: tuple[tuple[str, str | None], ...] = (
    ("Hello, World! It's a TEST; they've 1234567890 reasons.", None),
    ("  two  spaces\tand\n\n lines ", None),
    ("Zażółć gęślą, naïve ﬁ Ⅷ 日本語 中文 한국어 हिन्दी 🙂👍🏽", None),
    ("A question?", "and its Context."),
)


def convert(folder: Path) -> dict[str, Any]:
    """Load the folder's tokenizer and return what `parts_of_object` finds in it, as JSON types.

    Raises:
        ModelError: transformers has no tokenizer for the folder, or its tokenizer does more than
            its fast form.
    """
    auto: Any = import_module("transformers").AutoTokenizer
    try:
        found = auto.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    # A damaged or incomplete folder can raise any kind of exception here.
    except Exception as error:
        raise _unreadable(error, folder) from None
    kind = type(found).__name__
    try:
        data, config, templates = parts_of_object(found)
    except ConfigError as error:
        raise ModelError(f"{folder}: {error}") from None
    _check_files(folder, kind, getattr(type(found), "vocab_files_names", {}))
    backend = tokenizers.Tokenizer.from_buffer(data)
    backend.no_truncation()
    backend.no_padding()
    try:
        cleaned = cleans(found, backend)
        same = all(_same(found, backend, *probe, cleaned=cleaned) for probe in _probes(found))
    except Exception as error:  # the library raises bare Exception
        raise _unreadable(error, folder) from None
    if not same:
        raise ModelError(
            f"{folder}: {kind} of transformers does more in Python than its tokenizer.json says, "
            "which is not supported: give token ids"
        )
    return {"tokenizer": data.decode(), "config": config, "templates": templates}


def _unreadable(error: Exception, folder: Path) -> ModelError:
    text = " ".join(str(error).replace(str(folder), "the folder").split())
    file = folder / "tokenizer.json"
    return ModelError(
        f"{file if file.is_file() else folder}: cannot be read as a tokenizer (transformers says "
        f"{type(error).__name__}: {text[:200]}); save it beside the weights with "
        "AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER)"
    )


def _check_files(folder: Path, kind: str, names: dict[str, str]) -> None:
    """Raise ModelError if files are missing: a class then silently makes up a few tokens."""
    needed = [name for key, name in names.items() if key != "tokenizer_file"]
    if any((folder / name).is_file() for name in _ANY_CLASS) or any(folder.glob(WHOLE)):
        return
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{folder}: a {kind} is made of tokenizer.json, or of {' and '.join(needed)}; "
            f"{' and '.join(missing)} is missing: copy it there, or correct tokenizer_class in "
            "tokenizer_config.json"
        )


def _probes(found: Any) -> list[tuple[str, str | None]]:
    special = "".join(f"{token} x{token}" for token in list(found.all_special_tokens)[:16])
    return [*_PROBES, (f"a{special} b", None)]


def _same(
    found: Any, backend: tokenizers.Tokenizer, text: str, pair: str | None, *, cleaned: bool
) -> bool:
    """Whether a tokenizer gives the same ids and text as its fast form; `cleaned`: see `clean`."""
    theirs = found(text, pair, return_token_type_ids=True)
    ours = backend.encode(text, pair)
    ids, types = list(theirs["input_ids"]), list(theirs["token_type_ids"])
    if ours.ids != ids or ours.type_ids != types:
        return False
    text = backend.decode(ids)
    return bool(found.decode(ids, skip_special_tokens=True) == (clean(text) if cleaned else text))


def main(arguments: Sequence[str]) -> None:
    """Print the parts of the tokenizer in a folder, or `{"error": TEXT}`, as one JSON object."""
    out, sys.stdout = sys.stdout, sys.stderr  # the libraries may print to stdout
    try:
        found = convert(Path(arguments[0]))
    except ModelError as error:
        found = {"error": str(error)}
    json.dump(found, out)
    out.flush()
