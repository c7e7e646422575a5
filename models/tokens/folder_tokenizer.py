"""The tokenizer of a folder, made by transformers without importing torch in this process.

If the program has already imported transformers, that is used. Otherwise a separate Python process
in which torch cannot be imported does the work. It takes a second or two, and this process stays
small.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from protocols.errors import ModelError

WHOLE = "tokenizer.*json"
"""`tokenizer.json`, or a variant for one version of transformers, such as tokenizer.4.0.0.json."""
FILES = ("vocab.txt", "vocab.json", "tekken.json")
PATTERNS = (WHOLE, "*.model", "*.tiktoken")
"""Names of files that hold a vocabulary; all other files only say how to use it."""
_READERS = ("sentencepiece", "google.protobuf")

_CHILD = (
    "import sys; sys.modules['torch'] = None; "
    "from models.tokens.auto_tokenizer import main; main(sys.argv[1:])"
)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a vocabulary of any kind."""
    return any((folder / name).is_file() for name in FILES) or any(
        file.is_file() for pattern in PATTERNS for file in folder.glob(pattern)
    )


def parts_of_folder(folder: Path) -> tuple[bytes, dict[str, Any], dict[str, str]]:
    """The folder's tokenizer as `models.tokens.tokenizer_object.parts_of_object` returns it.

    Raises:
        ModelError: there is no tokenizer, it is damaged, or a `tokenizer.json` cannot express it.
    """
    if not has_tokenizer(folder):
        raise ModelError(
            f"{folder / 'tokenizer.json'}: missing; save the tokenizer beside the weights with "
            "transformers' AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER)"
        )
    _check_complete(folder)
    # A program that embeds Python may not know the path of an interpreter.
    here = "transformers" in sys.modules or not sys.executable
    found = _here(folder) if here else _elsewhere(folder)
    return found["tokenizer"].encode(), found["config"], found["templates"]


def _check_complete(folder: Path) -> None:
    """Raise ModelError that names what is missing, in the folder or in this installation.

    The libraries with which transformers reads a SentencePiece model are an optional extra, since
    hardly any folder has such a model without a `tokenizer.json`.
    """
    if any((folder / name).is_file() for name in ("vocab.txt", "tekken.json")):
        return
    if any(folder.glob(WHOLE)):
        return
    if (folder / "vocab.json").is_file():
        if not (folder / "merges.txt").is_file():
            raise ModelError(
                f"{folder}: merges.txt is missing beside vocab.json: copy it there; a tokenizer is "
                "made of both, or of tokenizer.json"
            )
        return
    lacking = [name for name in _READERS if _spec(name) is None]
    if lacking:
        raise ModelError(
            f"{folder}: has no tokenizer.json, and its SentencePiece model needs what is not "
            f"installed here ({', '.join(lacking)}): pip install 'puma-actors[sentencepiece]', or "
            "save the tokenizer as tokenizer.json where transformers reads it "
            "(AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER))"
        )


def _spec(name: str) -> object:
    try:
        return importlib.util.find_spec(name)
    except (ModuleNotFoundError, ValueError):  # its parent package is missing
        return None


def _here(folder: Path) -> dict[str, Any]:
    from models.tokens.auto_tokenizer import convert

    return convert(folder)


def _elsewhere(folder: Path) -> dict[str, Any]:
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    # This interpreter and this code; -P: nothing is imported from the working directory.
    command = [sys.executable, "-P", "-c", _CHILD, str(folder.absolute())]
    ended = subprocess.run(command, capture_output=True, env=environment, check=False)  # noqa: S603
    try:
        found: dict[str, Any] = json.loads(ended.stdout)
    except ValueError:
        lines = ended.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1][:200] if lines else f"exit code {ended.returncode}"
        raise ModelError(
            f"{folder}: transformers, which makes the tokenizer, does not run here ({reason}): "
            "install it again (pip install 'transformers>=5')"
        ) from None
    if "error" in found:
        raise ModelError(found["error"])
    return found
