"""Settings of sentence-transformers models: how a text's hidden states become one vector."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from models.configs.tasks.dense import POOLINGS, DenseHead, Pooling, read_dense
from models.configs.validate import (
    check_choice,
    check_flag,
    check_keys,
    check_size,
    check_text,
)
from models.files.locate import read_json
from protocols.errors import ModelError

MODULES = "modules.json"
SETTINGS = "config_sentence_transformers.json"
_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


_POOLINGS: dict[str, Pooling] = {"mean": "mean", "cls": "first", "lasttoken": "last"}
_PACKAGE = "sentence_transformers."
_MAX_PROMPT = 1 << 14


@dataclass(frozen=True, slots=True)
class SentenceSettings:
    """Settings for the text before tokenization and for the last hidden states.

    They are public: the owner publishes them in the model's plan.

    Attributes:
        pooling: the mean over a text's tokens, or the first or last token.
        normalize: whether vectors are scaled to length 1.
        max_length: longer texts are cut to this many tokens; None: to the tokenizer's limit, or
            to the model's positions.
        lower: whether texts are lower-cased first.
        prompt: text that is put before every input.
        refusal: why this model cannot turn texts into vectors; "" if it can.
    """

    pooling: Pooling = "mean"
    normalize: bool = True
    max_length: int | None = None
    lower: bool = False
    prompt: str = ""
    refusal: str = ""

    def to_public(self) -> dict[str, Any]:
        """The settings as JSON types."""
        return asdict(self)

    @classmethod
    def from_public(cls, data: object) -> Self:
        """Inverse of `to_public`, for data from a peer.

        Raises:
            ModelError: something is missing, of a wrong type or out of bounds.
        """
        data = check_keys("sentences", data, {each.name for each in fields(cls)})
        check_choice("sentences: pooling", data["pooling"], POOLINGS)
        for name in ("normalize", "lower"):
            check_flag(f"sentences: {name}", data[name])
        if data["max_length"] is not None:
            check_size("sentences: max_length", data["max_length"])
        for name in ("prompt", "refusal"):
            check_text(f"sentences: {name}", data[name], _MAX_PROMPT)
        return cls(**data)


@dataclass(frozen=True, slots=True)
class SentenceModules:
    """What a folder says about sentences.

    Attributes:
        settings: of all modules together.
        dense: the layers of the Dense modules, if there are any.
        folders: the folder of each of these.
    """

    settings: SentenceSettings
    dense: DenseHead | None = None
    folders: tuple[Path, ...] = ()


def sentence_settings(path: Path) -> SentenceSettings:
    """Read the settings from a model's folder, or from the folder of a file.

    Without a `modules.json`, they are the defaults: the mean, scaled to length 1.

    Raises:
        ModelError: a module or the kind of pooling is not supported.
    """
    return _read(path).settings


def described_sentences(path: Path) -> SentenceModules:
    """The settings and Dense layers in a folder. An unsupported one becomes a `refusal`.

    Such a model can still do other tasks.
    """
    try:
        return _read(path)
    except ModelError as error:
        return SentenceModules(SentenceSettings(refusal=str(error)[:_MAX_PROMPT]))


def _read(path: Path) -> SentenceModules:
    folder = path if path.is_dir() else path.parent
    if not (folder / MODULES).is_file():
        return SentenceModules(SentenceSettings())
    found = _modules(folder / MODULES)
    kinds, places = [kind for kind, _ in found], [place for _, place in found]
    normalize = kinds[2:][-1:] == ["Normalize"]
    expected = ["Transformer", "Pooling", *["Dense"] * (len(kinds) - 2 - normalize)]
    for number, (kind, wanted) in enumerate(zip(kinds, expected, strict=False)):
        if kind != wanted:
            raise ModelError(
                f"{folder / MODULES}: part {number}, {kind}, is not supported; supported are a "
                "Transformer, a Pooling, any number of Dense and an optional Normalize, in this "
                "order"
            )
    if len(kinds) < 2:
        raise ModelError(f"{folder / MODULES}: has no Pooling; download the model again")
    prompt = _default_prompt(folder / SETTINGS)
    mode = _pooling(folder / places[1] / "config.json", bool(prompt))
    limit, lower = _limits(folder / places[0] / "sentence_bert_config.json")
    settings = SentenceSettings(mode, normalize, limit, lower, prompt)
    folders = tuple(folder / place for place in places[2 : len(expected)])
    if not folders:
        return SentenceModules(settings)
    layers = tuple(map(read_dense, folders))
    try:
        return SentenceModules(settings, DenseHead(mode, layers), folders)
    except ModelError as error:
        raise ModelError(f"{folder / MODULES}: {error}") from None


def is_sentence_model(path: Path) -> bool:
    """Whether a folder, or the folder of a file, has a model of sentence-transformers that turns
    texts into vectors. Cross-encoders do not: they rank pairs.
    """
    folder = path if path.is_dir() else path.parent
    if not (folder / MODULES).is_file():
        return False
    settings = folder / SETTINGS
    return not settings.is_file() or read_json(settings).get("model_type") != "CrossEncoder"


def transformer_folder(path: Path) -> Path:
    """The folder of the model itself: `path`, or the one inside it that `modules.json` names.

    Raises:
        ModelError: `modules.json` is damaged.
    """
    if not (path / MODULES).is_file():
        return path
    kind, place = next(iter(_modules(path / MODULES)), ("", ""))
    return path / place if kind == "Transformer" else path


def _modules(file: Path) -> list[tuple[str, str]]:
    """Class and folder of every module, in order."""
    try:
        entries = json.loads(file.read_bytes())
        found = [(_kind(str(e["type"])), str(e.get("path", ""))) for e in entries]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelError(f"{file}: cannot be read as a list of modules ({error})") from None
    for _, place in found:
        # A file from the hub must not point outside its folder.
        if Path(place).name != place:
            raise ModelError(f"{file}: {place[:80]!r} is not the name of a folder beside it")
    return found


def _kind(name: str) -> str:
    """The class of a module. What other packages call Dense may compute something else."""
    kind = name.rpartition(".")[2]
    return name if kind == "Dense" and not name.startswith(_PACKAGE) else kind


def _pooling(file: Path, prompted: bool) -> Pooling:
    config = read_json(file)
    modes = [name for key, name in _MODES.items() if config.get(key)]
    named = config.get("pooling_mode")
    if isinstance(named, str):
        modes = [named]
    if prompted and not config.get("include_prompt", True):
        raise ModelError(f"{file}: include_prompt false is not supported: use a model without it")
    found = " + ".join(modes) or "none"
    if found not in _POOLINGS:
        wanted = ", ".join(map(repr, _POOLINGS))
        raise ModelError(f"{file}: pooling {found!r} is not supported; supported: {wanted}")
    return _POOLINGS[found]


def _limits(file: Path) -> tuple[int | None, bool]:
    """The longest input in tokens, or None, and whether inputs are lower-cased."""
    config: Mapping[str, Any] = read_json(file) if file.is_file() else {}
    limit = config.get("max_seq_length")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise ModelError(f"{file}: max_seq_length: {str(limit)[:40]} is not a number of tokens")
    return limit, bool(config.get("do_lower_case", False))


def _default_prompt(file: Path) -> str:
    config: Mapping[str, Any] = read_json(file) if file.is_file() else {}
    name, prompts = config.get("default_prompt_name"), config.get("prompts")
    if name is None:
        return ""
    prompt = prompts.get(name) if isinstance(prompts, Mapping) else None
    if not isinstance(prompt, str):
        raise ModelError(
            f"{file}: default_prompt_name {str(name)[:40]!r} is not one of the prompts"
        )
    return prompt
