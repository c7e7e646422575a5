"""Answers in the forms that OpenAI's clients read."""

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from models.tokens.tokenizer import Tokenizer
from protocols.base.ring import Floats
from puma_actors.api.usage import Token, Usage

_REASONS = {"end of text": "stop", "stop string": "stop"}


def finish_reason(usage: Usage) -> str:
    """`stop` for the end of the text or a stop string, `length` for a limit or a full context."""
    return _REASONS.get(usage.stop_reason, "length")


def usage_of(usage: Usage) -> dict[str, Any]:
    """Numbers of tokens, and under `puma` what the answer cost."""
    prompt, new, total = len(usage.prompt_ids), len(usage.token_ids), usage.total
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "puma": {
            "rounds": total.rounds,
            "online_bytes": total.online,
            "offline_bytes": total.offline,
            "seconds": {phase: round(spent, 3) for phase, spent in usage.seconds.items()},
        },
    }


def log_probabilities(logits: Floats) -> Floats:
    """Natural logarithms of the probabilities that the model gives each token."""
    shifted = np.asarray(logits, dtype=np.float64) - np.max(logits)
    found: Floats = shifted - np.log(np.exp(shifted).sum())
    return found


def best(logits: Floats, count: int) -> list[int]:
    """The `count` most likely tokens, the best first."""
    return [int(token) for token in np.argsort(-logits, kind="stable")[:count]]


class Form(ABC):
    """One answer, whole or in chunks.

    Args:
        model: its public name. fingerprint: of the model's plan.
        tokenizer: for the spelling of tokens. top: how many of the best tokens are shown beside
            each token; None: no probabilities.
    """

    prefix: str
    whole_object: str
    chunk_object: str

    def __init__(
        self, model: str, fingerprint: str, tokenizer: Tokenizer | None, top: int | None
    ) -> None:
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._tokenizer = tokenizer
        self._top = top
        self._shown: list[dict[str, Any]] = []
        self._sent = 0
        self._begun = False
        self.text = ""

    def add(self, token: Token) -> None:
        """Take the next token."""
        self.text += token.text
        if self._top is not None and token.id is not None and token.logits is not None:
            self._shown.append(self.entry(token.id, token.logits, self._top))

    @property
    def fresh(self) -> bool:
        """Whether probabilities have been added since the last chunk."""
        return len(self._shown) > self._sent

    def chunk(self, text: str) -> dict[str, Any]:
        """What has been added since the last chunk; `text`: its text."""
        fresh, first = self._shown[self._sent :], not self._begun
        self._sent, self._begun = len(self._shown), True
        shown = self.logprobs(fresh) if self._top is not None else None
        return self._chunk([self.piece(text, first, shown)])

    def last(self, usage: Usage) -> dict[str, Any]:
        """The chunk that says why the answer ended."""
        return self._chunk([{**self.piece("", False, None), "finish_reason": finish_reason(usage)}])

    def usage(self, usage: Usage) -> dict[str, Any]:
        """The chunk that says what the answer used."""
        return {**self._chunk([]), "usage": usage_of(usage)}

    def whole(self, usage: Usage) -> dict[str, Any]:
        """The whole answer."""
        shown = self.logprobs(self._shown) if self._top is not None else None
        choice = {"index": 0, **self.content(), "logprobs": shown}
        return {
            **self._head,
            "object": self.whole_object,
            "choices": [{**choice, "finish_reason": finish_reason(usage)}],
            "usage": usage_of(usage),
        }

    def _chunk(self, choices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": self.chunk_object, "choices": list(choices)}

    def _spelt(self, token: int) -> str:
        if self._tokenizer is None:
            return str(token)
        return self._tokenizer.decode([token], special_tokens=True)

    @abstractmethod
    def piece(self, text: str, first: bool, shown: Any) -> dict[str, Any]:
        """A choice of a chunk."""

    @abstractmethod
    def content(self) -> dict[str, Any]:
        """The text of the whole answer, as a part of its choice."""

    @abstractmethod
    def entry(self, token: int, logits: Floats, top: int) -> dict[str, Any]:
        """The probabilities at one token."""

    @abstractmethod
    def logprobs(self, entries: list[dict[str, Any]]) -> dict[str, Any]:
        """The probabilities at several tokens."""


class ChatForm(Form):
    """An answer of `/v1/chat/completions`."""

    prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def piece(self, text: str, first: bool, shown: Any) -> dict[str, Any]:
        delta = {"content": text} if text or first else {}
        if first:
            delta = {"role": "assistant", **delta}
        return {"index": 0, "delta": delta, "logprobs": shown, "finish_reason": None}

    def content(self) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": self.text, "refusal": None}}

    def entry(self, token: int, logits: Floats, top: int) -> dict[str, Any]:
        chances = log_probabilities(logits)

        def shown(each: int) -> dict[str, Any]:
            text = self._spelt(each)
            return {"token": text, "logprob": float(chances[each]), "bytes": list(text.encode())}

        return {**shown(token), "top_logprobs": [shown(each) for each in best(logits, top)]}

    def logprobs(self, entries: list[dict[str, Any]]) -> dict[str, Any]:
        return {"content": entries, "refusal": None}


class CompletionForm(Form):
    """An answer of `/v1/completions`."""

    prefix = "cmpl"
    whole_object = chunk_object = "text_completion"

    def piece(self, text: str, first: bool, shown: Any) -> dict[str, Any]:
        return {"index": 0, "text": text, "logprobs": shown, "finish_reason": None}

    def content(self) -> dict[str, Any]:
        return {"text": self.text}

    def entry(self, token: int, logits: Floats, top: int) -> dict[str, Any]:
        chances = log_probabilities(logits)
        shown = {self._spelt(each): float(chances[each]) for each in best(logits, top)}
        text = self._spelt(token)
        at = self._shown[-1]["offset"] + len(self._shown[-1]["token"]) if self._shown else 0
        return {"token": text, "logprob": float(chances[token]), "top": shown, "offset": at}

    def logprobs(self, entries: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "tokens": [entry["token"] for entry in entries],
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": [entry["top"] for entry in entries],
            "text_offset": [entry["offset"] for entry in entries],
        }
