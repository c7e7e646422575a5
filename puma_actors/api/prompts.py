"""What a language model is to continue, a text, a chat or token ids, and how: checked before any
work.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from models.configs.architecture import ModelConfig
from models.configs.encoders.encoder import EncoderConfig
from models.programs.program import Batch
from models.texts.requested import GenerateOptions, read_options
from models.tokens.chat_template import ChatOptions, Message, check_messages
from models.tokens.sampling import SamplingConfig
from models.tokens.tokenizer import Tokenizer
from protocols.errors import ConfigError
from puma_actors.api.ids import token_ids

Prompt = str | Sequence[int] | Sequence[Message]
"""A text, token ids, or a chat: messages with "role" and "content"."""

_WANTED = "the prompt is neither text, a chat nor token ids"


def encode_prompt(
    tokenizer: Tokenizer | None,
    prompt: Any,
    *,
    raw: bool,
    missing: str,
    **options: Unpack[ChatOptions],
) -> list[int]:
    """Token ids of a prompt, see `Requests.encode`. They are not checked.

    Args:
        missing: why there is no tokenizer, if there is none.

    Raises:
        ConfigError: an unusable prompt or option. ModelError: the template rejects the chat.
    """
    if not isinstance(raw, bool):
        raise ConfigError(f"raw is {type(raw).__name__}: give True or False")
    chat = prompt if isinstance(prompt, str) else _messages(prompt)
    _check_options(options, raw=raw, ids=chat is None)
    if chat is None:
        return token_ids(_row(prompt), _WANTED)
    if isinstance(chat, str) and not chat.strip():
        raise ConfigError("the prompt is empty: give some text")
    if tokenizer is None:
        raise ConfigError(f"no tokenizer, so only token ids can be given ({missing})")
    if not raw:
        return tokenizer.chat(chat, **options)
    if not isinstance(chat, str):
        raise ConfigError("a chat needs the chat template, which raw leaves out: give a text")
    return tokenizer.encode(chat)


def _check_options(options: ChatOptions, *, raw: bool, ids: bool) -> None:
    """Raise ConfigError if options of the chat template are given where none is used."""
    for name in [name for name, value in options.items() if value is not None]:
        if raw:
            raise ConfigError(f"{name} is for the chat template, which raw leaves out: not both")
        if ids:
            raise ConfigError(f"{name} is for a text or a chat, and token ids were given")


def _messages(prompt: Any) -> list[Message] | None:
    """The messages of a chat; None if the prompt is none. Raises ConfigError."""
    if prompt is None:
        raise ConfigError("there is no prompt: give a text, a chat or token ids first")
    if isinstance(prompt, Mapping):
        what = "its input_ids" if "input_ids" in prompt else "a list of messages"
        raise ConfigError(f"{_WANTED}, but a dictionary: give {what}")
    if not isinstance(prompt, list | tuple) or not prompt:
        return None
    if isinstance(prompt[0], str):
        raise ConfigError("the prompt is a list of texts: give one text at a time")
    if isinstance(prompt[0], list | tuple) and prompt[0] and isinstance(prompt[0][0], Mapping):
        raise ConfigError("the prompt is a list of chats: give one chat at a time")
    return check_messages(prompt) if isinstance(prompt[0], Mapping) else None


def _row(prompt: Any) -> Any:
    """The ids of a batch of one row, as transformers makes it; anything else as it is."""
    found = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    if not isinstance(found, list | tuple) or not found or not isinstance(found[0], list | tuple):
        return prompt
    if len(found) > 1:
        raise ConfigError(f"the prompt has {len(found)} rows of ids: give one at a time")
    return found[0]


def check_ids(config: ModelConfig, ids: Sequence[int]) -> None:
    """Refuse token ids that a model cannot take, before any work starts.

    Raises:
        ConfigError: there are none or too many, or one is outside the vocabulary.
    """
    ids = token_ids(ids)
    if not ids:
        raise ConfigError("the prompt is empty: give at least one token")
    for token in ids:
        if not 0 <= token < config.vocab_size:
            raise ConfigError(
                f"token id {token} is not in the model's vocabulary of {config.vocab_size}"
            )
    if len(ids) > config.max_positions:
        raise ConfigError(
            f"{len(ids)} prompt tokens do not fit the model's {config.max_positions} "
            "positions: shorten the prompt"
        )
    # RoBERTa only counts positions of the other tokens.
    if config.skipped_token is not None and config.skipped_token in ids:
        raise ConfigError(
            f"token id {config.pad_token_id} is this model's padding, which is never needed: "
            "sequences of different lengths can be batched without it"
        )


def check_last(config: ModelConfig, ids: Sequence[int]) -> None:
    """Raise ConfigError if the last token is padding: a decoder's classifier would not read it."""
    causal = not isinstance(config, EncoderConfig)
    if config.head == "sequence-classification" and causal and ids[-1] == config.pad_token_id:
        raise ConfigError(
            f"a sequence ends with token id {ids[-1]}, this model's padding, which its "
            "classifier ignores: leave it out"
        )


def check_types(config: ModelConfig, batch: Batch) -> None:
    """Raise ConfigError if the model does not have a batch's token types."""
    known = max(1, int(getattr(config, "type_vocab_size", 1)))
    if batch.types is not None and not 0 <= min(batch.types) <= max(batch.types) < known:
        raise ConfigError(f"token types of this model are 0 to {known - 1}")


def check_ends(config: ModelConfig, ends: Sequence[int] | None) -> None:
    """Raise ConfigError if ids that are to end an answer are not in the model's vocabulary."""
    for token in ends or ():
        if token >= config.vocab_size:
            raise ConfigError(
                f"eos_token_id={token} is not in the model's vocabulary of {config.vocab_size}: "
                "give another, or None for no end"
            )


def check_sampling(config: ModelConfig, sampling: SamplingConfig, *, secret: bool) -> None:
    """Raise ConfigError unless the model generates text, and the sampling does without the logits
    if they stay secret.
    """
    if config.head != "causal-lm":
        raise ConfigError(
            f"a model with head {config.head!r} generates no text: it needs 'causal-lm'"
        )
    if secret and (needing := sampling.of_logits()):
        raise ConfigError(
            "with secret logits only the best token is revealed: use temperature 0 and no "
            f"repetition penalty or other change of the logits (now: {', '.join(needing)}; "
            "options not given come from the model's generation_config.json)"
        )


def chosen_sampling(
    config: ModelConfig, sampling: SamplingConfig | None, options: GenerateOptions, prompt: int
) -> tuple[SamplingConfig, set[int] | None]:
    """The sampling that was given, in either way, and the ids that end the answer, if they are not
    the model's own. Raises ConfigError for unusable ones, and if both ways were used.
    """
    if sampling is None:
        asked = read_options(options)
        check_ends(config, asked.ends)
        ends = None if asked.ends is None else set(asked.ends)
        return asked.sampling(config.generation, prompt), ends
    if options or not isinstance(sampling, SamplingConfig):
        raise ConfigError("sampling: give a SamplingConfig, or its fields as keywords, not both")
    return sampling, None


def check_logits(config: ModelConfig) -> None:
    """Raise ConfigError if the model does not predict next tokens."""
    if config.head != "causal-lm":
        raise ConfigError(
            f"a model with head {config.head!r} predicts no next tokens: likelihoods and "
            "perplexity need head 'causal-lm'"
        )


def ends_of(config: ModelConfig, tokenizer: Tokenizer | None) -> set[int]:
    """Tokens that end a text. The tokenizer may add some to the model's own, unless the model's
    settings say that it has none; transformers follows that too.
    """
    if tokenizer is None or (config.generation is not None and config.generation.endless):
        return set(config.eos_token_ids)
    return {*config.eos_token_ids, *tokenizer.eos_token_ids}
