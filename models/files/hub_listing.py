"""Parse a name on the Hugging Face hub, and choose the files there that make up one model.

Only the files chosen here are fetched: a hub repository often holds the same weights several times,
in different formats, precisions and quantisations.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from models.files.gguf_choice import PART, SHOWN, amount, has_tag, is_gguf_model, tag_of
from models.files.locate import (
    ADAPTER,
    ADAPTER_CONFIG,
    PICKLES,
    SAFETENSORS,
    SAFETENSORS_INDEX,
)
from protocols.errors import ModelError

MAX_SETTINGS = 256_000_000
"""Maximum bytes of a file other than weights; the largest known `tokenizer.json` has 34 MB."""

_PREFIX = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/")
_NAME = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?)(?P<file>/[^:]+)?(?::(?P<tag>[\w.-]+))?"
)
_WEIGHTS = (".gguf", ".safetensors")
_OTHER_WEIGHTS = (*PICKLES, ".onnx", ".h5", ".msgpack", ".ot", ".mlmodel", ".tflite", ".xml")
_SETTINGS = (".json", ".jinja")
_SKIPPED = (".index.json", "trainer_state.json")
_TOKENIZERS = frozenset(
    (
        *("vocab.txt", "merges.txt", "dict.txt", "bpe.codes"),
        *("tokenizer.model", "spiece.model", "spm.model"),
        *("sentencepiece.bpe.model", "sentencepiece.model"),
    )
)
_TEMPLATES = "additional_chat_templates"


@dataclass(frozen=True, slots=True)
class HubName:
    """A repository, and in it the file `file`, or the GGUF file with `tag` in its name."""

    repo: str
    file: str = ""
    tag: str = ""


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository, with its size in bytes, if known."""

    path: str
    size: int | None = None

    def __str__(self) -> str:
        return f"{self.path} ({amount(self.size)})" if self.size is not None else self.path


@dataclass(frozen=True, slots=True)
class Selection:
    """The files to fetch: settings first, then weights if the settings are accepted.

    Attributes:
        opened: the path to open, within the repository; "" is the repository itself.
        config: the path of the `config.json`; "" if there is none to read first.
        settings: small files, including the configuration, an index of shards and the weights of
            further modules.
        weights: the weights of one model, without the shards that `index` names.
        index: the path of an index of shards, or "".
    """

    opened: str
    config: str
    settings: tuple[HubFile, ...]
    weights: tuple[HubFile, ...]
    index: str = ""


def parse_hub_name(text: str) -> HubName | None:
    """Parse a name on the hub; None if the text cannot be one.

    Names are `owner/repo`, `repo`, `owner/repo:Q4_K_M` or `owner/repo/file.gguf`, optionally after
    `https://huggingface.co/` or `hf.co/`.
    """
    address = _PREFIX.match(text)
    found = _NAME.fullmatch(text[address.end() :] if address else text)
    if found is None:
        return None
    repo, file = found["repo"], (found["file"] or "")[1:]
    if repo.endswith((*PICKLES, *_WEIGHTS)) or ".." in repo:
        return None
    if file and (found["tag"] or not _is_inside(file) or not _is_weights(file)):
        return None
    return HubName(repo, file, found["tag"] or "")


def choose(name: HubName, files: Sequence[HubFile], modules: Sequence[str] = ()) -> Selection:
    """Choose the one set of weights that a name means, and its settings.

    Args:
        modules: the folders that a `modules.json` names, the model's folder first, if there is one.

    Raises:
        ModelError: nothing can be read, or there are several GGUF files and none is named.
    """
    held = {file.path: file for file in files if _is_inside(file.path)}
    if name.file:
        return _named(name, held)
    ggufs = [file for file in held.values() if is_gguf_model(file.path)]
    if name.tag:
        return _gguf(name, [f for f in ggufs if has_tag(f.path, name.tag)], ggufs)
    folder = f"{modules[0]}/" if modules and modules[0] else ""
    if (found := _in_folder(name, held, folder, modules)) is not None:
        return found
    if ggufs:
        return _gguf(name, ggufs, ggufs)
    raise _nothing(name, held)


def _in_folder(
    name: HubName, held: dict[str, HubFile], folder: str, modules: Sequence[str]
) -> Selection | None:
    """A model in safetensors and its adapter, or an adapter alone; None if there is neither."""
    adapter = _adapter(folder, held)
    settings = _settings(held, (folder, *(f"{each}/" for each in modules if each)))
    settings += tuple(held[path] for path in _of_modules(modules[1:]) if path in held)
    if f"{folder}{SAFETENSORS}" in held:
        weights = (held[f"{folder}{SAFETENSORS}"], *adapter)
        return Selection("", _config(name, folder, held), settings, weights)
    if (index := f"{folder}{SAFETENSORS_INDEX}") in held:
        config = _config(name, folder, held)
        return Selection("", config, (*settings, held[index]), adapter, index)
    return Selection("", "", settings, adapter) if adapter else None


def _adapter(folder: str, held: dict[str, HubFile]) -> tuple[HubFile, ...]:
    weights = held.get(f"{folder}{ADAPTER}")
    return (weights,) if weights and f"{folder}{ADAPTER_CONFIG}" in held else ()


def _named(name: HubName, held: dict[str, HubFile]) -> Selection:
    path = name.file
    if path not in held:
        raise ModelError(f"{name.repo} has no file {path}; it has {_listed(held, path)}")
    if path.endswith(PICKLES):
        raise _nothing(name, {path: held[path]})
    if path.endswith(".gguf"):
        return _gguf(name, [held[path]], [held[path]])
    folder = path[: path.rfind("/") + 1]
    config = _config(name, folder, held)
    return Selection(path, config, _settings(held, (folder,)), (held[path],))


def _config(name: HubName, folder: str, held: dict[str, HubFile]) -> str:
    path = f"{folder}config.json"
    if path not in held:
        raise ModelError(f"{name.repo} has no {path}: its weights alone do not tell what they are")
    return path


def _gguf(name: HubName, found: list[HubFile], all_of_them: list[HubFile]) -> Selection:
    if not all_of_them:
        raise ModelError(f"{name.repo} holds no GGUF file, and {name.tag!r} names one of several")
    if len(found) != 1:
        missing = f", and none whose name has {name.tag!r}" if name.tag and not found else ""
        some = found or all_of_them
        raise ModelError(
            f"{name.repo} holds {len(some)} GGUF files{missing}; nothing was fetched. Name one, "
            f"as {name.repo}:{tag_of(some[0].path)} or {name.repo}/{some[0].path}: "
            f"{_shortened(some)}"
        )
    if PART.search(found[0].path):
        raise ModelError(
            f"{name.repo}: {found[0]} is part of a split GGUF; download the parts and join them "
            "with `llama-gguf-split --merge`, or name one that is whole"
        )
    return Selection(found[0].path, "", (), (found[0],))


def _nothing(name: HubName, held: dict[str, HubFile]) -> ModelError:
    """The error that explains why no file is a model. For pickles it suggests a conversion."""
    others = [file for file in held.values() if file.path.endswith((*_WEIGHTS, *_OTHER_WEIGHTS))]
    pickled = [file for file in others if file.path.endswith(PICKLES)]
    if pickled:
        return ModelError(
            f"{name.repo} holds pickled weights only ({_shortened(pickled)}), which can run code "
            "when read and are refused; nothing was fetched. Where you trust them, "
            f"`puma convert {name.repo} FOLDER` writes them as safetensors"
        )
    wanted = f"expected {SAFETENSORS}, {SAFETENSORS_INDEX} or a .gguf file"
    has = f"; it has {_shortened(others)}" if others else ""
    named = next((f.path for f in others if f.path.endswith(".safetensors")), "")
    remedy = f": if that is the model, name it, {name.repo}/{named}" if named else ""
    return ModelError(f"{name.repo} holds no model that can be read: {wanted}{has}{remedy}")


def _settings(held: dict[str, HubFile], folders: Iterable[str]) -> tuple[HubFile, ...]:
    """The small files in some folders (names end in "/"; "" is the repository itself). Raises
    ModelError for a file that is too large for settings.
    """
    wanted = {*folders, ""}
    found = [
        file for path, file in held.items() if _folder(path) in wanted and _is_setting(path)
    ] + [file for path, file in held.items() if path.startswith(f"{_TEMPLATES}/")]
    for file in found:
        if (file.size or 0) > MAX_SETTINGS:
            raise ModelError(f"{file} is larger than a file of settings may be: {MAX_SETTINGS}")
    return tuple(found)


def _is_setting(path: str) -> bool:
    name = PurePosixPath(path).name
    return name in _TOKENIZERS or (name.endswith(_SETTINGS) and not name.endswith(_SKIPPED))


def _of_modules(folders: Sequence[str]) -> list[str]:
    """The weights of the sentence-transformers modules that follow the model. They are small, and
    fetched with the settings: whether they are there decides whether the model is supported.
    """
    return [f"{folder}/{SAFETENSORS}" for folder in folders if folder]


def _is_inside(path: str) -> bool:
    parts = path.split("/")
    return all(part not in ("", ".", "..") for part in parts) and "\\" not in path


def _is_weights(path: str) -> bool:
    return path.endswith((*_WEIGHTS, *PICKLES))


def _folder(path: str) -> str:
    return path[: path.rfind("/") + 1]


def _listed(held: dict[str, HubFile], like: str) -> str:
    suffix = PurePosixPath(like).suffix
    return _shortened([f for f in held.values() if f.path.endswith(suffix)]) or f"no {suffix}"


def _shortened(files: Sequence[HubFile]) -> str:
    shown = ", ".join(map(str, files[:SHOWN]))
    return shown if len(files) <= SHOWN else f"{shown} and {len(files) - SHOWN} more"
