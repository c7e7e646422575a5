"""The options of `generate` under transformers' names: what they mean here, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypedDict, cast

from models.configs.generation import GenerationSettings
from models.configs.validate import short
from models.drafts.drafter import Drafting
from models.tokens.chat_template import CHAT_OPTIONS, ChatOptions
from models.tokens.sampling_config import SamplingConfig, SamplingOptions, settings_of_model
from protocols.errors import ConfigError

_BEAMS = "one answer is decoded, without beams; leave it out"
_ASSISTED = "use draft='ngram', or draft=PATH with a small model, and draft_tokens"
_PROMPT = (
    "nothing is padded here; give the prompt alone, as the first argument: a text, ids or a chat"
)
_OUTPUTS = "an answer is text; `forward` gives logits and hidden states, `usage` token ids"
_PROCESSORS = (
    "use settings such as repetition_penalty, bad_words_ids, sequence_bias, suppress_tokens"
)
_LEAVE = "leave it out"

_WITHOUT_EFFECT = frozenset(
    (
        *("pad_token_id", "bos_token_id", "decoder_start_token_id"),  # a prompt is one row
        *("early_stopping", "length_penalty"),  # of beams
        *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "low_memory"),
        *("compile_config", "disable_compile", "prefill_chunk_size", "continuous_batching_config"),
        *("renormalize_logits", "synced_gpus"),
        *("transformers_version", "_from_model_config", "_commit_hash"),
    )
)
"""Names in transformers that change no token of an answer here."""
_REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "num_return_sequences": ((1,), "call generate once for each answer"),
    **dict.fromkeys(("num_beams", "num_beam_groups"), ((1,), _BEAMS)),
    "diversity_penalty": ((0,), _BEAMS),
    **dict.fromkeys(("constraints", "force_words_ids"), (([], ()), _BEAMS)),
    "penalty_alpha": ((0,), _LEAVE),
    "guidance_scale": ((1,), _LEAVE),
    "encoder_repetition_penalty": ((1,), "use repetition_penalty"),
    "encoder_no_repeat_ngram_size": ((0,), "use no_repeat_ngram_size"),
    **dict.fromkeys(("remove_invalid_values", "token_healing"), ((False,), _LEAVE)),
    "max_time": ((), "stream the answer, and close the stream in time"),
    "streamer": ((), "use stream(...) of a PrivateModel, or `async for` over a cluster's generate"),
    "stopping_criteria": (([], ()), "use stop=..., or stream the answer and close the stream"),
    "logits_processor": (([], ()), _PROCESSORS),
    "prefix_allowed_tokens_fn": ((), _PROCESSORS),
    **dict.fromkeys(
        ("top_h", "dola_layers", "watermarking_config", "custom_generate"), ((), _LEAVE)
    ),
    **dict.fromkeys(("negative_prompt_ids", "negative_prompt_attention_mask"), ((), _LEAVE)),
    **dict.fromkeys(("tokenizer", "trust_remote_code"), ((), "the model's own tokenizer is used")),
    **dict.fromkeys(
        ("output_scores", "output_logits", "output_attentions", "output_hidden_states"),
        ((False,), _OUTPUTS),
    ),
    "return_dict_in_generate": ((False,), _OUTPUTS),
    **dict.fromkeys(
        (
            *("inputs", "input_ids", "attention_mask", "inputs_embeds", "token_type_ids"),
            *("position_ids", "past_key_values", "cache_position"),
        ),
        ((), _PROMPT),
    ),
    **dict.fromkeys(("is_assistant", "use_mtp"), ((False,), _ASSISTED)),
    **dict.fromkeys(
        (
            *("assistant_model", "assistant_tokenizer", "assistant_early_exit", "speculation_type"),
            *("assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind"),
            *("assistant_ensemble_weight", "num_assistant_tokens", "max_matching_ngram_size"),
            *("num_assistant_tokens_schedule", "prompt_lookup_num_tokens"),
        ),
        ((), _ASSISTED),
    ),
}
"""Names in transformers -> values that change nothing, beside None; and the remedy."""
_OF_DRAFT = ("draft", "draft_tokens")
_OF_CALL = (
    "do_sample",
    "max_length",
    "eos_token_id",
    "stop_strings",
    "generation_config",
    *_OF_DRAFT,
)
_FIELDS = SamplingConfig.__dataclass_fields__
OPTIONS = frozenset((*_FIELDS, *_OF_CALL, *_WITHOUT_EFFECT, *_REFUSED))
"""Every known name, supported or not."""


class DraftOptions(TypedDict, total=False):
    """How tokens are drafted at the client, so that one step can evaluate several.

    draft: None or "none": not at all; "ngram": what followed the same tokens before; a path or a
    name on the Hugging Face hub: a small public model with the same tokenizer; or a
    `models.drafts.drafter.Drafting`. draft_tokens: most tokens proposed a step.
    """

    draft: str | Path | Drafting | None
    draft_tokens: int | None


class GenerateOptions(SamplingOptions, ChatOptions, DraftOptions, total=False):
    """Keywords of `generate`: the fields of a `SamplingConfig`, how a chat is made, and more names
    of transformers.

    do_sample: False for the best token, True for sampling. max_length: most tokens, with those of
    the prompt; `max_new_tokens` wins. eos_token_id: ids that end an answer, instead of the model's
    own; None: none does. stop_strings: as `stop`. generation_config: a `GenerationConfig` of
    transformers, or a dictionary; other keywords win. pad_token_id: without effect.
    num_return_sequences: 1.
    """

    do_sample: bool | None
    max_length: int | None
    eos_token_id: int | Sequence[int] | None
    stop_strings: str | Sequence[str] | None
    generation_config: object
    pad_token_id: int | None
    num_return_sequences: int


def split_options(
    options: GenerateOptions,
) -> tuple[ChatOptions, DraftOptions, GenerateOptions]:
    """The options of the chat template, those of a draft, and the others."""
    chat = {name: each for name, each in options.items() if name in CHAT_OPTIONS}
    draft = {name: each for name, each in options.items() if name in _OF_DRAFT}
    taken = (*CHAT_OPTIONS, *_OF_DRAFT)
    rest = {name: each for name, each in options.items() if name not in taken}
    return cast(ChatOptions, chat), cast(DraftOptions, draft), cast(GenerateOptions, rest)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a call asks for.

    Attributes:
        fields: fields of a `SamplingConfig`; they win over the model's own settings.
        draw: whether tokens are sampled; None: as for `settings_of_model`.
        max_length: the largest number of tokens, with those of the prompt, or None.
        ends: ids that end an answer; None: the model's own.
        untempered: the temperature is 1 if tokens are sampled, whatever the model says.
        undone: settings of the model that are not supported, but which the call turns off.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    draw: bool | None = None
    max_length: int | None = None
    ends: tuple[int, ...] | None = None
    untempered: bool = False
    undone: frozenset[str] = frozenset()

    def sampling(self, settings: GenerationSettings | None, prompt: int) -> SamplingConfig:
        """Complete the fields by the model's settings, for a prompt of so many tokens.

        Raises:
            ConfigError: an unusable value, a setting of the model that is not supported, or a
                `max_length` that leaves no room for an answer.
        """
        chosen = {**self.fields}
        if self.max_length is not None and "max_new_tokens" not in chosen:
            if self.max_length <= prompt:
                raise ConfigError(
                    f"max_length={self.max_length} counts the prompt, which has {prompt} tokens: "
                    "give more, or use max_new_tokens"
                )
            chosen["max_new_tokens"] = self.max_length - prompt
        if settings is not None and self.undone:
            left = (said for said in settings.refused if said.split(":")[0] not in self.undone)
            settings = replace(settings, refused=tuple(left))
        SamplingConfig(**chosen)  # an unusable value of the call is told first
        found = SamplingConfig(**{**chosen, **settings_of_model(settings, chosen, draw=self.draw)})
        if self.untempered and found.temperature > 0:
            found = replace(found, temperature=1.0)
        return found


def read_options(options: Mapping[str, Any]) -> Asked:
    """What the options of a call ask for, those of `GenerateOptions` without `ChatOptions`.

    None for a field of a `SamplingConfig` turns it off, as in transformers.

    Raises:
        ConfigError: an option that is not supported or not known.
    """
    given = {**_of_config(options.get("generation_config")), **options}
    given.pop("generation_config", None)
    for name, value in sorted(given.items()):
        _check_name(name, value)
    fields, untempered = _fields(given), given.get("temperature", 0) is None
    ends = _ids(given["eos_token_id"]) if "eos_token_id" in given else None
    undone = frozenset(given.keys() & _REFUSED.keys())
    return Asked(fields, _draw(given, fields), _length(given), ends, untempered, undone)


def _fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `SamplingConfig` that are given, in its terms."""
    found = {name: value for name, value in given.items() if name in _FIELDS}
    for name in ("temperature", "max_new_tokens"):
        if found.get(name, 0) is None:
            del found[name]
    found = {name: _FIELDS[name].default if v is None else v for name, v in found.items()}
    if isinstance(bias := found.get("sequence_bias"), Mapping):
        found["sequence_bias"] = tuple((tuple(ids), value) for ids, value in bias.items())
    if (stop := given.get("stop_strings")) is not None:
        if found.get("stop"):
            raise ConfigError("stop and stop_strings are the same: give one of them")
        found["stop"] = (stop,) if isinstance(stop, str) else stop
    return found


def _draw(given: Mapping[str, Any], fields: dict[str, Any]) -> bool | None:
    """The value of `do_sample`; without sampling the temperature becomes 0."""
    draw = given.get("do_sample")
    if not isinstance(draw, bool | None):
        raise ConfigError(f"do_sample={short(draw)}: give True or False")
    if draw is False and "temperature" in fields:
        SamplingConfig(temperature=fields["temperature"])
        fields["temperature"] = 0.0
    if draw and fields.get("temperature") == 0:
        raise ConfigError(
            "do_sample=True with temperature=0: give a higher one, or do_sample=False"
        )
    return draw


def _length(given: Mapping[str, Any]) -> int | None:
    limit = given.get("max_length")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise ConfigError(f"max_length={short(limit)}: give a whole number >= 1")
    return limit


def _ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    found = value.tolist() if hasattr(value, "tolist") else value  # arrays, and torch's tensors
    ids = tuple(found) if isinstance(found, list | tuple) else (found,)
    if not ids or not all(type(token) is int and token >= 0 for token in ids):
        raise ConfigError(
            f"eos_token_id={short(value)}: give a token id or a list of them, or None for no end"
        )
    return ids


def _of_config(config: Any) -> dict[str, Any]:
    """The settings in a `GenerationConfig` or a dictionary, without those that it leaves open."""
    if config is None:
        return {}
    listed: Callable[[], dict[str, Any]] | None = getattr(config, "to_diff_dict", None)
    if not isinstance(config, Mapping) and not callable(listed):
        raise ConfigError(
            f"generation_config is {type(config).__name__}: give a GenerationConfig of "
            "transformers, or a dictionary"
        )
    found = config if isinstance(config, Mapping) else listed() if listed else {}
    return {str(name): value for name, value in found.items() if value is not None}


def _check_name(name: str, value: object) -> None:
    """Raise ConfigError unless an option is supported, or has a value that changes nothing."""
    if name in _FIELDS or name in _OF_CALL or name in _WITHOUT_EFFECT:
        return
    if name in _REFUSED:
        neutral, remedy = _REFUSED[name]
        if value is None or any(_equal(value, each) for each in neutral):
            return
        shown = f"={short(value)}" if isinstance(value, bool | int | float | str) else ""
        raise ConfigError(f"{name}{shown} is not supported by generate: {remedy}")
    usual = sorted((*_FIELDS, *_OF_CALL, *CHAT_OPTIONS))
    near = get_close_matches(name, [*usual, *OPTIONS], 1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"generate has no option {name!r}: {meant}It has {', '.join(usual)}")


def _equal(value: object, neutral: object) -> bool:
    same = isinstance(value, bool) == isinstance(neutral, bool)
    return same and isinstance(value, int | float | list | tuple) and value == neutral
