"""Chat templates as transformers renders them, in Jinja's sandbox.

A template comes with the checkpoint, so it is untrusted code: it runs without access to attributes
of Python objects, sees plain data only, cannot change its arguments, and has a few seconds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from difflib import get_close_matches
from typing import Any, NoReturn, TypedDict

from jinja2 import TemplateError, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from protocols.errors import ConfigError, ModelError

Message = Mapping[str, Any]
DEFAULT = "default"
"""Name of the template that is used unless another is asked for."""


class ChatOptions(TypedDict, total=False):
    """How a text or a chat is put into a model's chat template, as keywords.

    system: a system message in front. template_args: variables for the template. chat_template: the
    name of one of the model's templates, or a template.
    """

    system: str | None
    template_args: Mapping[str, Any] | None
    chat_template: str | None


CHAT_OPTIONS = frozenset(ChatOptions.__annotations__)

# A template may also fail like any Python expression, e.g. with a TypeError.
_FAULTS = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
    MemoryError,
)
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names under which messages hold a model's thoughts; templates read the first, or `thinking`."""
_ARGUMENTS = frozenset(
    (
        *("messages", "conversation", "tools", "documents", "chat_template"),
        *("add_generation_prompt", "continue_final_message", "tokenize", "padding", "truncation"),
        *("max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
        *("sanitize_control_tokens", "tokenizer_kwargs"),
    )
)
"""Arguments of transformers' `apply_chat_template`, which are no variables of a template there."""


SECONDS = 5.0
"""How long a template may take: usual ones take milliseconds."""
_LARGEST = 1 << 22
"""Characters, items or bits that one multiplication or power may make."""


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, for one rendering that begins now. It ends a template that takes too long:
    it looks at the clock at every call and every turn of a loop. What takes long in one operation
    is refused before.
    """

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        self._until = time.monotonic() + SECONDS

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            turn = nodes.ExprStmt(nodes.Call(nodes.Const(None), [], [], None, None))
            loop.body.insert(0, turn.set_lineno(loop.lineno))
        return tree

    def call(self, context: Context, obj: Any, /, *arguments: Any, **named: object) -> Any:
        """As `Environment.call`; None, which `_parse` has put into loops, does nothing."""
        if time.monotonic() > self._until:
            raise TemplateError(f"it takes longer than {SECONDS:g} s")
        return None if obj is None else super().call(context, obj, *arguments, **named)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """As `SandboxedEnvironment.call_binop`."""
        if _size(operator, left, right) > _LARGEST:
            raise TemplateError(f"{operator} makes a value that is too large")
        return super().call_binop(context, operator, left, right)


def _size(operator: str, left: Any, right: Any) -> int:
    """Characters, items or bits of a product or power; 0 for other values than integers and
    sequences.
    """
    if isinstance(left, int) and isinstance(right, int):
        if operator == "**":
            return left.bit_length() * abs(right)
        return left.bit_length() + right.bit_length()
    for sequence, count in ((left, right), (right, left)):
        if isinstance(sequence, str | list | tuple) and isinstance(count, int):
            return len(sequence) * count
    return 0


class _Generation(Extension):
    """`{% generation %}` marks text for training; here its contents are rendered unchanged."""

    tags = {"generation"}  # noqa: RUF012 - the type that Jinja declares

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_contents"), [], [], body).set_lineno(line)

    def _contents(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """`dict` of templates, without the attributes of Python's."""

    def __call__(self, *arguments: Any, **entries: object) -> dict[Any, Any]:
        return dict(*arguments, **entries)

    def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
        return dict.fromkeys(*arguments)


class _Namespace(Namespace):
    """`namespace` of templates, without names that Python uses itself."""

    def __init__(*arguments: Any, **entries: object) -> None:
        self, *rest = arguments
        found = dict(*rest, **entries)
        for name in found:
            _check_name(name)
        Namespace.__init__(self, found)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def render_chat(
    template: str,
    messages: Sequence[Message],
    special_tokens: Mapping[str, str],
    variables: Mapping[str, Any] | None = None,
) -> str:
    """Render the text of a chat, up to the start of the model's answer.

    Args:
        special_tokens: `bos_token`, `eos_token` and so on, as variables for the template.
        variables: more of them, which win over those.

    Raises:
        ConfigError: a variable that the template does not have, or data that is not plain.
        ModelError: the template is faulty or rejects the messages.
    """
    environment = _environment()
    given = _plain({} if variables is None else variables)
    chat = [_prepared(message) for message in messages]
    try:
        if given:
            _check_variables(given, meta.find_undeclared_variables(environment.parse(template)))
        return environment.from_string(template).render(
            messages=chat,
            tools=None,
            documents=None,
            add_generation_prompt=True,
            **{**special_tokens, **given},
        )
    except ConfigError:
        raise
    except _FAULTS as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"the model's chat template failed ({reason}); change the messages, or pass the prompt "
            "as plain text with --raw"
        ) from None


def choose_template(templates: Mapping[str, str], wanted: str | None) -> str:
    """One of the templates by its name, or a template that is given as such.

    Raises:
        ConfigError: there is no such template, or none is named `default` and none is asked for.
    """
    known = ", ".join(sorted(templates))
    if wanted is None:
        if DEFAULT not in templates:
            raise ConfigError(
                f"the model has several chat templates and no default: name one of {known} with "
                "chat_template=NAME, or --chat-template NAME"
            )
        return templates[DEFAULT]
    if not isinstance(wanted, str):
        raise ConfigError(f"chat_template is {type(wanted).__name__}: give a name or a template")
    if wanted in templates:
        return templates[wanted]
    if not any(mark in wanted for mark in ("{{", "{%", "{#")):
        has = f"it has {known}" if known else "it has none"
        raise ConfigError(f"the model has no chat template {wanted[:40]!r}: {has}")
    return wanted


def with_system(messages: Sequence[Message], system: str) -> list[Message]:
    """The messages after a system message. Raises ConfigError if there is one already."""
    if not isinstance(system, str) or not system.strip():
        raise ConfigError("the system prompt is empty or no text: give some text, or leave it out")
    if any(message.get("role") == "system" for message in messages):
        raise ConfigError("the chat has a system message: leave it out there, or leave out system")
    return [{"role": "system", "content": system}, *messages]


def check_messages(given: Sequence[Any]) -> list[Message]:
    """The messages of a chat that waits for the assistant's answer.

    Raises:
        ConfigError: there are none, one is of another form, or the last one is an answer.
    """
    for message in given:
        if not isinstance(message, Mapping) or "role" not in message:
            raise ConfigError('every message of a chat needs a "role" and a "content"')
        _check_content(message)
    if not given:
        raise ConfigError("the chat is empty: give at least one message")
    if given[-1]["role"] == "assistant":
        raise ConfigError(
            "the chat ends with the assistant's message: leave it out, the model generates it"
        )
    return list(given)


def _check_content(message: Message) -> None:
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return
    if content is None:
        raise ConfigError('every message of a chat needs a "role" and a "content"')
    parts = content if isinstance(content, list | tuple) else [{"type": "text", "text": content}]
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise ConfigError(
                f"a message's content has a part of type {str(kind)[:40]!r}: only text is supported"
            )
    texts = [part.get("text") for part in parts]
    if not texts or not all(isinstance(text, str) for text in (message["role"], *texts)):
        raise ConfigError('the "role" and the "content" of a chat\'s message must be strings')


def _prepared(message: Message) -> dict[str, Any]:
    """A message as templates get it from transformers: nothing for None, and thoughts by all names.

    Templates print None for a key without a value, but know what to do without the key.
    """
    found = {key: _plain(value) for key, value in message.items() if value is not None}
    thoughts = next((found[name] for name in _REASONING if name in found), None)
    if thoughts is not None:
        found = {"thinking": thoughts, **found, "reasoning_content": thoughts}
    return found


def _plain(value: Any, depth: int = 0) -> Any:
    """Copy data of JSON's types, so that a template sees no other objects. Raises ConfigError."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if depth > 32:
        raise ConfigError("a chat or a template's variable has data nested too deeply: flatten it")
    if isinstance(value, Mapping):
        return {_plain(key, depth + 1): _plain(each, depth + 1) for key, each in value.items()}
    if isinstance(value, list | tuple):
        copy = [_plain(each, depth + 1) for each in value]
        return copy if isinstance(value, list) else tuple(copy)
    raise ConfigError(
        f"a chat or a template's variable holds {type(value).__name__}: give strings, numbers, "
        "lists and dictionaries"
    )


def _check_variables(given: Iterable[str], known: set[str]) -> None:
    for name in given:
        if name in _ARGUMENTS:
            raise ConfigError(
                f"template variable {name!r}: that is an argument of apply_chat_template, which "
                "cannot be set here"
            )
        if name not in known:
            near = get_close_matches(str(name), known, 1)
            meant = f"did you mean {near[0]!r}?" if near else "leave it out"
            has = ", ".join(sorted(known - _ARGUMENTS)) or "none"
            raise ConfigError(
                f"the chat template has no variable {name!r} ({meant}); it reads: {has}"
            )


def _environment() -> ImmutableSandboxedEnvironment:
    environment = _Sandbox()
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _now
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    return environment


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot have the attribute {name!r}")


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
