"""Settings in a model's `generation_config.json` that affect the choice of tokens.

They are public and are published with the model's configuration. So clients of a cluster get
answers chosen as the model's makers intended, like users who run the model locally.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.configs.validate import check_flag, short
from protocols.errors import ModelError

Setting = bool | int | float | str | tuple["Setting", ...]

SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
)
"""Settings that have an effect only if tokens are sampled."""
APPLIED = (
    *SAMPLING,
    "do_sample",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "sequence_bias",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "min_length",
    "min_new_tokens",
    "exponential_decay_length_penalty",
    "stop_strings",
)
"""Settings that the client applies.

Settings that are neither here nor in `_REFUSED` do not change any token (caches, outputs, options
of beam search or assistants), or are part of every request (`max_new_tokens`).
"""
# Unsupported setting -> values with which it has no effect, like absent and null.
_REFUSED: dict[str, tuple[object, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "diversity_penalty": (0,),
    "constraints": ([],),
    "force_words_ids": ([],),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "guidance_scale": (1,),
    "watermarking_config": (),
    "encoder_repetition_penalty": (1,),
    "encoder_no_repeat_ngram_size": (0,),
    "token_healing": (False,),
    "top_h": (),
    "max_time": (),
    "custom_generate": (),
}
_MAX_NUMBERS = 1 << 16
_MAX_TEXT = 1 << 12


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """The generation settings of a model. Raises ModelError on construction.

    Attributes:
        values: name and value of each setting of `APPLIED` that is present, with lists as tuples.
            Whether a value is usable is checked when it is applied.
        refused: unsupported settings and values that are present, such as "num_beams: 4".
        endless: the model declares no end token, so the tokenizer's end token does not end a text
            either.
    """

    values: tuple[tuple[str, Setting], ...] = ()
    refused: tuple[str, ...] = ()
    endless: bool = False

    def __post_init__(self) -> None:
        names = [name for name, _ in self.values]
        if not set(names) <= set(APPLIED) or len(set(names)) != len(names):
            raise ModelError(f"generation: {short(names)} are not settings of a generation")
        if _size(self.values) > _MAX_NUMBERS:
            raise ModelError(f"generation: more than {_MAX_NUMBERS} values")
        known = len(self.refused) <= len(_REFUSED) + len(APPLIED)
        if not known or not all(isinstance(t, str) and len(t) < 200 for t in self.refused):
            raise ModelError(f"generation: {short(self.refused)} is not a list of settings")
        check_flag("generation: endless", self.endless)

    def to_public(self) -> dict[str, Any]:
        """The settings as JSON types."""
        values = {name: _listed(value) for name, value in self.values}
        return {"values": values, "refused": list(self.refused), "endless": self.endless}

    @classmethod
    def from_public(cls, data: object) -> GenerationSettings:
        """Inverse of `to_public`, for data from a peer. Raises ModelError."""
        if not isinstance(data, Mapping) or data.keys() != {"values", "refused", "endless"}:
            raise ModelError(f"generation: {short(data)} is not a description of settings")
        values, refused = data["values"], data["refused"]
        if not isinstance(values, Mapping) or not isinstance(refused, list):
            raise ModelError(f"generation: {short(data)} is not a description of settings")
        found = tuple((str(name), _frozen(str(name), each)) for name, each in values.items())
        return cls(found, tuple(refused), data["endless"])


def read_generation(data: Mapping[str, Any], *, endless: bool = False) -> GenerationSettings | None:
    """Read the settings from a `generation_config.json`, or from an older `config.json`.

    Returns None if it has none that matter here.
    """
    values, refused = [], []
    for name in APPLIED:
        if data.get(name) is None:
            continue
        try:
            values.append((name, _frozen(name, data[name])))
        except ModelError:
            refused.append(f"{name}: {short(data[name])}")
    for name, neutral in _REFUSED.items():
        if data.get(name) is not None and data[name] not in neutral:
            refused.append(f"{name}: {short(data[name])}")
    found = GenerationSettings(tuple(values), tuple(refused), endless)
    return None if found == GenerationSettings() else found


def _frozen(name: str, value: object, depth: int = 0) -> Setting:
    """A value with its lists as tuples. Raises ModelError."""
    if isinstance(value, list | tuple) and depth < 4:
        return tuple(_frozen(name, each, depth + 1) for each in value)
    if isinstance(value, str) and len(value) <= _MAX_TEXT:
        return value
    if isinstance(value, bool | int | float) and (isinstance(value, int) or math.isfinite(value)):
        return value
    raise ModelError(f"generation: {name}: {short(value)} is not usable")


def _listed(value: Setting) -> Any:
    return [_listed(each) for each in value] if isinstance(value, tuple) else value


def _size(value: object) -> int:
    return sum(map(_size, value)) if isinstance(value, tuple) else 1
