"""What was said so far, and how the next answer is made from it."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from models.texts.requested import DraftOptions, GenerateOptions
from models.tokens.chat_template import ChatOptions
from models.tokens.sampling import SamplingConfig, SamplingOptions
from protocols.errors import ConfigError
from puma_actors.api.life import Cluster
from puma_actors.api.usage import Usage
from puma_actors.base.keyfiles import write_new
from puma_actors.base.texts import printable
from puma_actors.cli.commands.generate import stream
from puma_actors.cli.commands.reading import Reader, template_of
from puma_actors.cli.output import amount, tell

_NAMES = {"user": "You", "assistant": "Answer"}
_ENDS = {"length": "token limit", "context": "context full"}


class Conversation:
    """A chat with one model. It is kept in memory only, until `save` is called.

    Args:
        choice: how tokens are chosen; the model's own settings fill in what is missing.
        chat: as for `Requests.encode`; `chat_template` may also be a file.

    Attributes:
        messages: what was said so far, without the system prompt.
        said: parts of the last answer.
    """

    def __init__(
        self, choice: SamplingConfig | SamplingOptions, chat: ChatOptions, draft: DraftOptions
    ) -> None:
        self.messages: list[Mapping[str, str]] = []
        self.said: list[str] = []
        self._choice = choice
        self._chat = chat
        self._draft = draft
        self._checked = False

    def check(self, cluster: Cluster) -> None:
        """Check everything that can be checked before the first message.

        Raises:
            ConfigError: the model cannot chat, or an option is unusable.
        """
        if self._checked:
            return
        cluster.check_sampling(self._sampling(cluster))
        tokenizer = cluster.tokenizer
        known = tokenizer.chat_templates if tokenizer is not None else {}
        self._chat["chat_template"] = template_of(
            [*known], self._chat.get("chat_template"), Reader()
        )
        cluster.encode([{"role": "user", "content": "Hello"}], **self._chat)
        cluster.find_draft(self._draft)
        if tokenizer is not None and tokenizer.note:
            tell(f"note: {printable(tokenizer.note)}")
        self._checked = True

    def _sampling(self, cluster: Cluster) -> SamplingConfig:
        if isinstance(self._choice, SamplingConfig):
            return self._choice
        return cluster.sampling(cast(GenerateOptions, self._choice))

    async def answer(self, cluster: Cluster, text: str) -> None:
        """Print the answer to a message as it grows. If it is cut off, what was said stays.

        Raises:
            ConfigError: the conversation has become too long. PumaError: see `Requests.generate`.
        """
        self.said = []
        asked = [*self.messages, {"role": "user", "content": text}]
        assert cluster.tokenizer is not None  # `check` has used it
        ids = cluster.tokenizer.chat(asked, **self._chat)
        room = cluster.most_new_tokens(len(ids))
        if room < 1:
            raise ConfigError(
                f"the conversation has {len(ids)} tokens, {1 - room} too many: "
                f"{cluster.limit_text()}; /clear begins a new one"
            )
        try:
            await stream(cluster, ids, self._sampling(cluster), self._draft, self.said)
        finally:
            if self.said:
                self.messages = [*asked, {"role": "assistant", "content": "".join(self.said)}]

    def clear(self) -> None:
        """Forget what was said."""
        self.messages, self.said = [], []

    def save(self, file: Path) -> None:
        """Write what was said to a new file that only its owner can read.

        Raises:
            ConfigError: nothing was said, the file exists, or it cannot be written.
        """
        if not self.messages:
            raise ConfigError("nothing was said yet: there is nothing to save")
        parts = [f"## {_NAMES[each['role']]}\n\n{each['content']}\n" for each in self.messages]
        write_new(file, "\n".join(parts).encode(), 0o600)


def cost_line(usage: Usage) -> str:
    """What an answer took, in one line."""
    total, count = usage.total, len(usage.token_ids)
    spent = sum(usage.seconds.values())
    parts = [
        f"{count} token{'s' * (count != 1)} in {spent:.1f} s",
        f"{total.rounds:,} rounds",
        f"{amount(total.online)} online",
        f"{amount(total.offline)} dealt ahead",
    ]
    if usage.stop_reason in _ENDS:
        parts.append(f"stopped: {_ENDS[usage.stop_reason]}")
    return " · ".join(parts)
