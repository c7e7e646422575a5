"""Settings for choosing tokens, from a request and from the model itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypedDict

from models.configs.generation import SAMPLING, GenerationSettings
from protocols.errors import ConfigError

Words = tuple[tuple[int, ...], ...]
Biases = tuple[tuple[tuple[int, ...], float], ...]
_USUAL_TOP_K = 50  # transformers' default for a model that samples without setting it
_OF_REQUEST = ("seed", "stop", "max_new_tokens")


@dataclass(frozen=True)
class SamplingConfig:
    """How to choose tokens and when to stop. Raises ConfigError that names an unusable value.

    Temperature 0 is greedy decoding; then the settings from top_k to eta_cutoff have no effect.
    The names are those of transformers' `GenerationConfig`; the defaults turn each step off.
    `frequency_penalty` and `presence_penalty` are OpenAI's: they are subtracted from the logit of
    each token of the answer so far, the first as often as it occurred, the second once.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: Words = ()
    sequence_bias: Biases = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | tuple[int, ...] | None = None
    min_length: int = 0
    min_new_tokens: int = 0
    exponential_decay_length_penalty: tuple[int, float] | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        for name, (holds, wanted) in _CHECKS.items():
            value = getattr(self, name)
            if isinstance(value, list):
                value = _tuples(value)
                object.__setattr__(self, name, value)
            if not holds(value):
                raise ConfigError(f"{name}: {_shown(value)} is not usable; it must be {wanted}")

    def of_logits(self) -> list[str]:
        """Names of the settings in use that need all logits, not only the best token."""
        greedy = self.temperature == 0
        return [
            field.name
            for field in fields(self)
            if field.name not in _OF_REQUEST
            and not (greedy and field.name in SAMPLING)
            and getattr(self, field.name) != field.default
        ]


class ChoiceOptions(TypedDict, total=False):
    """The fields of a `SamplingConfig`, as keywords; all except `top_k`, which also means something
    else to some tasks.
    """

    temperature: float
    top_p: float
    min_p: float
    typical_p: float
    epsilon_cutoff: float
    eta_cutoff: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    no_repeat_ngram_size: int
    bad_words_ids: Words
    sequence_bias: Biases
    suppress_tokens: tuple[int, ...]
    begin_suppress_tokens: tuple[int, ...]
    forced_bos_token_id: int | None
    forced_eos_token_id: int | tuple[int, ...] | None
    min_length: int
    min_new_tokens: int
    exponential_decay_length_penalty: tuple[int, float] | None
    seed: int | None
    stop: tuple[str, ...]
    max_new_tokens: int


class SamplingOptions(ChoiceOptions, total=False):
    """The fields of a `SamplingConfig`, as keywords."""

    top_k: int


def settings_of_model(
    settings: GenerationSettings | None, options: Mapping[str, Any], *, draw: bool | None = None
) -> dict[str, Any]:
    """The model's own settings for the fields of a `SamplingConfig` that are not in `options`.

    draw: whether tokens are sampled (`do_sample` in transformers, whose top-k of 50 then holds
    too); None: decided by the options' temperature, or else by the model. Raises ConfigError for an
    unsupported setting.
    """
    if settings is None:
        settings = GenerationSettings()
    if settings.refused:
        raise ConfigError(
            f"the model's generation_config.json says {settings.refused[0]}, which is not "
            "supported: remove it there, or use none of its settings: --ignore-generation-config, "
            "or sampling=SamplingConfig(...)"
        )
    values: dict[str, Any] = dict(settings.values)
    if "stop_strings" in values:
        stop = values.pop("stop_strings")
        values["stop"] = (stop,) if isinstance(stop, str) else stop
    draws = bool(values.pop("do_sample", False))
    usual_top_k = draws if draw is None else draw
    if draw is None:
        draw = options["temperature"] > 0 if "temperature" in options else draws
    values = _for_draw(values, usual_top_k) if draw else _for_best(values)
    usual = {field.name: field.default for field in fields(SamplingConfig)}
    return {k: v for k, v in values.items() if k not in options and v != usual[k]}


def _for_best(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in SAMPLING}


def _for_draw(values: Mapping[str, Any], usual_top_k: bool) -> dict[str, Any]:
    """The values for sampling; `usual_top_k`: with transformers' top-k, unless they name one."""
    return {"temperature": 1.0, **({"top_k": _USUAL_TOP_K} if usual_top_k else {}), **values}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _tuples(value: Any) -> Any:
    """Turn lists into tuples, at every depth."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _shown(value: object) -> str:
    return repr(value)[:80]


def _all(value: object, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, tuple) and all(map(holds, value))


def _is_id(value: object) -> bool:
    return _is_whole(value) and value >= 0  # type: ignore[operator]


def _is_word(value: object) -> bool:
    return _all(value, _is_id) and bool(value)


def _is_bias(value: object) -> bool:
    pair = isinstance(value, tuple) and len(value) == 2
    return pair and _is_word(value[0]) and _is_number(value[1])  # type: ignore[index]


def _is_decay(value: object) -> bool:
    pair = isinstance(value, tuple) and len(value) == 2
    return pair and _is_whole(value[0]) and _is_number(value[1]) and value[1] > 0  # type: ignore[index]


Check = tuple[Callable[[Any], bool], str]
_SHARE: Check = (lambda v: _is_number(v) and 0 <= v < 1, "in [0, 1)")
_MASS: Check = (lambda v: _is_number(v) and 0 < v <= 1, "in (0, 1]")
_COUNT: Check = (lambda v: _is_whole(v) and v >= 0, "a whole number >= 0")
_OFFSET: Check = (lambda v: _is_number(v) and -2 <= v <= 2, "in [-2, 2]")
_IDS: Check = (lambda v: _all(v, _is_id), "a list of token ids")
_CHECKS: dict[str, Check] = {
    "temperature": (lambda v: _is_number(v) and v >= 0, ">= 0"),
    "top_k": _COUNT,
    "top_p": _MASS,
    "min_p": (lambda v: _is_number(v) and 0 <= v <= 1, "in [0, 1]"),
    "typical_p": _MASS,
    "epsilon_cutoff": _SHARE,
    "eta_cutoff": _SHARE,
    "repetition_penalty": (lambda v: _is_number(v) and v > 0, "> 0"),
    "frequency_penalty": _OFFSET,
    "presence_penalty": _OFFSET,
    "no_repeat_ngram_size": _COUNT,
    "bad_words_ids": (lambda v: _all(v, _is_word), "a list of lists of token ids"),
    "sequence_bias": (lambda v: _all(v, _is_bias), "a list of pairs: token ids, and a number"),
    "suppress_tokens": _IDS,
    "begin_suppress_tokens": _IDS,
    "forced_bos_token_id": (lambda v: v is None or _is_id(v), "a token id or none"),
    "forced_eos_token_id": (
        lambda v: v is None or _is_id(v) or _is_word(v),
        "a token id, a list of them, or none",
    ),
    "min_length": _COUNT,
    "min_new_tokens": _COUNT,
    "exponential_decay_length_penalty": (
        lambda v: v is None or _is_decay(v),
        "a pair: tokens, and a factor",
    ),
    "seed": (lambda v: v is None or _is_whole(v), "a whole number or none"),
    "stop": (
        lambda v: isinstance(v, tuple) and all(s and isinstance(s, str) for s in v),
        "a tuple of strings that are not empty",
    ),
    "max_new_tokens": (lambda v: _is_whole(v) and v >= 1, "a whole number >= 1"),
}
"""Field -> a check of its value, and a description of usable values."""
