"""Bodies of requests, and what they mean for the model."""

from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.texts.requested import GenerateOptions
from puma_actors.serve.errors import BAD, ApiError

Body = TypeVar("Body", bound=BaseModel)
_Text = Annotated[str, Field(max_length=1 << 20)]
_Bias = Annotated[float, Field(ge=-100, le=100)]
_MESSAGES = 1024
DEFAULT_TOKENS = 256
"""Tokens of an answer if a request names no limit."""

_REFUSED: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
    "prompt_embeds": (),
    "use_beam_search": (False,),
}
"""Fields that would change the answer and are not supported -> values that change nothing, beside
null. Other fields that are not known are ignored, as clients expect.
"""


class _Asked(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, hide_input_in_errors=True)
    refused: ClassVar[dict[str, tuple[object, ...]]] = _REFUSED

    model: Annotated[str, Field(min_length=1, max_length=256)]

    @model_validator(mode="after")
    def _supported(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            harmless = self.refused.get(name)
            if harmless is not None and value is not None and value not in harmless:
                raise ValueError(f"{name} is not supported: leave it out")
        return self


class StreamOptions(BaseModel):
    """`stream_options`."""

    model_config = ConfigDict(extra="ignore", strict=True, hide_input_in_errors=True)
    include_usage: bool | None = None


class _Generation(_Asked):
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    logit_bias: dict[str, _Bias] | None = None
    seed: int | None = None
    stop: _Text | Annotated[list[_Text], Field(max_length=16)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def wanted(self) -> int:
        """Tokens of the answer at most."""
        return self.max_tokens or DEFAULT_TOKENS

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with what it used."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def shown_logprobs(self) -> int | None:
        """How many of the best tokens are shown beside each token; None: no probabilities."""
        return None

    def options(self) -> GenerateOptions:
        """As options of `generate`; what is not given is left to the model's own settings."""
        named = {
            name: getattr(self, name)
            for name in (
                *("temperature", "top_p", "min_p", "seed"),
                *("frequency_penalty", "presence_penalty", "repetition_penalty"),
            )
        }
        found: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
        if self.top_k is not None:
            found["top_k"] = max(0, self.top_k)  # -1: all, as in vLLM
        if self.min_tokens:
            found["min_new_tokens"] = self.min_tokens
        if self.stop is not None:
            stops = [self.stop] if isinstance(self.stop, str) else self.stop
            found["stop"] = tuple(stop for stop in stops if stop)
        if self.logit_bias:
            found["sequence_bias"] = tuple(
                ((_token(name),), float(bias)) for name, bias in self.logit_bias.items()
            )
        if self.ignore_eos:
            found["eos_token_id"] = None
        return cast(GenerateOptions, {**found, "max_new_tokens": self.wanted})


def _token(name: str) -> int:
    if not (name.isascii() and name.isdecimal()):
        raise ApiError(BAD, "logit_bias: its names are token ids", param="logit_bias")
    return int(name)


class Part(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="ignore", strict=True, hide_input_in_errors=True)
    type: str
    text: _Text | None = None


class Message(BaseModel):
    """A message of a chat."""

    model_config = ConfigDict(extra="ignore", strict=True, hide_input_in_errors=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: _Text | Annotated[list[Part], Field(max_length=_MESSAGES)] | None = None

    def plain(self) -> dict[str, str]:
        """As the chat template takes it.

        Raises:
            ApiError: it contains something else than text.
        """
        role = "system" if self.role == "developer" else self.role
        if not isinstance(self.content, list):
            return {"role": role, "content": self.content or ""}
        for part in self.content:
            if part.type not in {"text", "input_text"} or part.text is None:
                raise ApiError(
                    BAD,
                    f"messages: a part of type {part.type[:40]!r}: this model reads text only",
                    param="messages",
                )
        return {"role": role, "content": "".join(part.text or "" for part in self.content)}


class ChatAsked(_Generation):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def wanted(self) -> int:
        return self.max_completion_tokens or super().wanted

    @property
    def shown_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionAsked(_Generation):
    """`POST /v1/completions`."""

    prompt: (
        _Text
        | Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=1 << 20)]
        | Annotated[list[_Text], Field(min_length=1, max_length=1)]
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def shown_logprobs(self) -> int | None:
        return self.logprobs


class EmbeddingsAsked(_Asked):
    """`POST /v1/embeddings`."""

    input: _Text | Annotated[list[Any], Field(min_length=1, max_length=256)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None

    def texts(self) -> list[str]:
        """The texts.

        Raises:
            ApiError: token ids, or an empty text, were given.
        """
        given = [self.input] if isinstance(self.input, str) else self.input
        if not all(isinstance(item, str) for item in given):
            raise ApiError(
                BAD,
                "input: give texts, not token ids, which depend on the client's own tokenizer; "
                "with LangChain, set check_embedding_ctx_length=False",
                param="input",
            )
        if not all(item.strip() for item in given):
            raise ApiError(BAD, "input: a text is empty", param="input")
        return [str(item) for item in given]


def read(kind: type[Body], body: bytes) -> Body:
    """A request's body.

    Raises:
        ApiError: it is no JSON, or a field is missing, of a wrong type, out of range or not
        supported. The message names the field and never repeats its value.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        path = [str(part) for part in first["loc"] if isinstance(part, int) or part.isidentifier()]
        field = ".".join(path)
        message = first["msg"].removeprefix("Value error, ")
        raise ApiError(
            BAD, f"{field}: {message}" if field else message, param=path[0] if path else None
        ) from None
