"""text-generation: continue prompts and chats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.tokens.chat_template import Message, check_messages
from models.tokens.tokenizer import Tokenizer
from protocols.errors import ConfigError


@dataclass(frozen=True, slots=True, repr=False)
class Prompt:
    """The input to continue: a text, or a chat that waits for the assistant's answer."""

    content: str | list[Message]

    def ids(self, tokenizer: Tokenizer) -> list[int]:
        """Its token ids. A text is used unchanged; a chat goes through the chat template."""
        if isinstance(self.content, str):
            return tokenizer.encode(self.content)
        return tokenizer.chat(self.content)

    def result(self, text: str, *, full: bool) -> list[dict[str, Any]]:
        """The output for an answer, with the prompt in front if `full`."""
        if not full:
            return [{"generated_text": text}]
        if isinstance(self.content, str):
            return [{"generated_text": self.content + text}]
        answer = {"role": "assistant", "content": text}
        return [{"generated_text": [*self.content, answer]}]


def read_prompts(inputs: Any) -> tuple[list[Prompt], bool]:
    """The prompts, and whether the input was a single prompt, not a list.

    inputs: a text, a list of texts, a chat (a list of messages with "role" and "content"), or a
    list of chats. Raises ConfigError.
    """
    if isinstance(inputs, str):
        return [_prompt(inputs)], True
    if not isinstance(inputs, Sequence) or not inputs:
        raise ConfigError("nothing was given: give a prompt, a chat, or a list of them")
    if isinstance(inputs[0], Mapping):
        return [_prompt(inputs)], True
    return [_prompt(item) for item in inputs], False


def _prompt(item: Any) -> Prompt:
    if isinstance(item, str):
        if not item.strip():
            raise ConfigError("a prompt is empty: give some text")
        return Prompt(item)
    if not isinstance(item, list | tuple) or not item:
        raise ConfigError("a prompt is neither text nor a list of messages")
    return Prompt(check_messages(item))
