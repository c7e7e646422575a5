"""Settings of sentence-transformers' cross-encoders: how the logit of a pair becomes a score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from models.configs.tasks.sentences import MODULES, SETTINGS
from models.configs.validate import check_choice, check_keys, check_size, check_text, short
from models.files.locate import read_json
from protocols.errors import ModelError

_ACTIVATIONS = ("identity", "sigmoid", "tanh")
_MAX_REFUSAL = 1 << 10


@dataclass(frozen=True, slots=True)
class RankingSettings:
    """How a query and a document become a score. Public: the owner publishes them in the plan.

    Attributes:
        activation: the function that the logit goes through.
        max_length: longer pairs are cut to this many tokens; None: to the tokenizer's limit, or to
            the model's positions.
        refusal: why this model cannot rank documents; "" if it can.
    """

    activation: str = "sigmoid"
    max_length: int | None = None
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
        data = check_keys("ranking", data, {each.name for each in fields(cls)})
        check_choice("ranking: activation", data["activation"], _ACTIVATIONS)
        if data["max_length"] is not None:
            check_size("ranking: max_length", data["max_length"])
        check_text("ranking: refusal", data["refusal"], _MAX_REFUSAL)
        return cls(**data)


def ranking_settings(
    config: Mapping[str, Any], folder: Path | None = None
) -> RankingSettings | None:
    """The settings of a model, from its `config.json` and the files of sentence-transformers; None
    if they are those that CrossEncoder assumes without any.

    What is not supported becomes a `refusal`: such a model can still do other tasks.

    Args:
        config: the contents of `config.json`.
        folder: where `modules.json` is, if there is one.
    """
    if folder is not None and not (folder / MODULES).is_file():
        folder = None  # sentence-transformers does not read the other files then
    try:
        own = _read(folder, SETTINGS)
        if own.get("default_prompt_name") is not None:
            raise ModelError(
                f"{SETTINGS}: default_prompt_name is not supported for ranking: set it to null, "
                "and put the prompt before the query"
            )
        limit = _read(folder, "sentence_bert_config.json").get("max_seq_length")
        if limit is not None:
            check_size("sentence_bert_config.json: max_seq_length", limit)
        found = RankingSettings(_activation(config, own), limit)
        return None if found == RankingSettings() else found
    except ModelError as error:
        said = str(error).replace(f"{folder}/", "")
        return RankingSettings(refusal=said[:_MAX_REFUSAL])


def _read(folder: Path | None, name: str) -> Mapping[str, Any]:
    found = None if folder is None else folder / name
    return read_json(found) if found is not None and found.is_file() else {}


def _activation(config: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """The function that sentence-transformers applies, by the first setting that names one.

    It only takes classes of torch from there, and a sigmoid in place of others.
    """
    section = config.get("sentence_transformers")
    section = section if isinstance(section, Mapping) else {}
    places = {
        f"{SETTINGS}: activation_fn": own.get("activation_fn"),
        "config.json: sentence_transformers.activation_fn": section.get("activation_fn"),
        "config.json: sbert_ce_default_activation_function": None
        if "activation_fn" in section
        else config.get("sbert_ce_default_activation_function"),
    }
    for place, named in places.items():
        if not isinstance(named, str) or not named.startswith("torch."):
            continue
        name = named.rpartition(".")[2].lower()
        if name not in _ACTIVATIONS:
            raise ModelError(
                f"{place}: {short(named)} is not supported; supported are Sigmoid, Identity and "
                "Tanh of torch.nn"
            )
        return name
    return "sigmoid"
