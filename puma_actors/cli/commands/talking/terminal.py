"""Talks with a model until the user has had enough.

The model runs on an event loop in a thread of its own, so that a session with remote parties lives
on while the main thread waits for a line. Ctrl-C reaches the main thread: during an answer it ends
the answer at every party, and the conversation goes on.
"""

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from protocols.errors import (
    ConfigError,
    PeerFailed,
    PumaError,
    RemoteProtocolError,
    TransportError,
)
from puma_actors.api.life import Cluster
from puma_actors.base.background import Background
from puma_actors.base.texts import printable
from puma_actors.cli.commands.talking.conversation import Conversation, cost_line
from puma_actors.cli.output import stderr, stdout, tell

QUICKLY = 1.0
"""Seconds within which a second Ctrl-C ends the program."""
_BROKEN = (PeerFailed, RemoteProtocolError, TransportError)
_HELP = """\
/clear      forget what was said, and begin a new conversation
/save FILE  write the conversation to a new file that only you can read
/help       show this
Ctrl-C stops the answer; pressed twice quickly, or Ctrl-D, it ends the chat."""

Opener = Callable[[], AbstractAsyncContextManager[Cluster]]
Read = Callable[[], str]
"""Returns the next line; raises EOFError after the last one."""


class Session:
    """An open model, which is opened again after it was lost.

    Args:
        opener: opens the model.

    Raises (from every method): what the opener raises.
    """

    def __init__(self, opener: Opener) -> None:
        self._opener = opener
        self._background: Background | None = None
        self._cluster: Cluster | None = None

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        background, self._background = self._background, None
        if background is not None:
            background.stop(error)

    def answer(self, conversation: Conversation, text: str) -> None:
        """Print the answer to a message, and what it took. A session that was lost meanwhile (the
        parties end those that are idle for long) is replaced once, if nothing was said yet.

        Raises:
            KeyboardInterrupt: the user stopped the answer. PumaError: there is none.
        """
        if self._background is None:
            self._open()
        try:
            self._ask(conversation, text)
        except _BROKEN:
            self._drop()
            if conversation.said:
                raise
            self._open()
            self._ask(conversation, text)

    def _open(self) -> None:
        entered = _Entered(self._opener())
        self._background = Background(entered)
        self._cluster = entered.cluster

    def _drop(self) -> None:
        background, self._background = self._background, None
        if background is not None:
            with suppress(PumaError):  # why it was lost is known
                background.stop()

    def _ask(self, conversation: Conversation, text: str) -> None:
        background, cluster = self._background, self._cluster
        assert background is not None and cluster is not None
        before = cluster.usage
        try:
            background.call(conversation.answer, cluster, text)
        finally:
            if cluster.usage is not before:
                if not cluster.usage.stop_reason and conversation.said:
                    stdout.print()  # the answer's line was cut off
                stderr.print(cost_line(cluster.usage), style="dim", soft_wrap=True)


class _Entered(AbstractAsyncContextManager[Cluster]):
    """Keeps what a context manager returned when it was entered."""

    cluster: Cluster

    def __init__(self, manager: AbstractAsyncContextManager[Cluster]) -> None:
        self._manager = manager

    async def __aenter__(self) -> Cluster:
        self.cluster = await self._manager.__aenter__()
        return self.cluster

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        return await self._manager.__aexit__(kind, error, trace)


def terminal_lines() -> Read:
    """Lines from the terminal, edited and recalled with readline if Python has it."""
    with suppress(ImportError):
        import readline  # noqa: F401 - `input` uses it once it is imported
    return lambda: input("> ")


def talk(session: Session, conversation: Conversation, first: str | None, read: Read) -> None:
    """Answer messages until the lines end, or Ctrl-C was pressed twice quickly. What cannot be
    answered is told, and the conversation goes on.

    Args:
        first: a message to begin with.
    """
    tell("Ctrl-C stops an answer, Ctrl-D ends the chat, /help shows more.")
    given, pressed = first, float("-inf")
    while True:
        try:
            line, given = (read() if given is None else given), None
            if line.startswith("/"):
                _obey(line, conversation)
            elif line.strip():
                _check(line)
                session.answer(conversation, line)
        except EOFError:
            tell("")
            return
        except KeyboardInterrupt as error:
            twice = isinstance(error.__context__, KeyboardInterrupt)
            tell("")
            if twice or time.monotonic() - pressed < QUICKLY:
                return
            pressed = time.monotonic()
        except PumaError as error:
            tell(f"error: {printable(str(error))}")


def _check(line: str) -> None:
    """Refuse a line if the terminal sent bytes that are no text."""
    try:
        line.encode()
    except UnicodeEncodeError:
        raise ConfigError("the line is not UTF-8 text: check the terminal's encoding") from None


def _obey(line: str, conversation: Conversation) -> None:
    name, _, rest = line.strip().partition(" ")
    if name == "/clear":
        conversation.clear()
        tell("a new conversation")
    elif name == "/save" and rest.strip():
        file = Path(rest.strip()).expanduser()
        conversation.save(file)
        tell(f"saved in {printable(str(file))}")
    elif name == "/help":
        tell(_HELP)
    elif name == "/save":
        raise ConfigError("/save: name a new file: /save FILE")
    else:
        raise ConfigError(
            f"there is no command {name[:40]}: /help shows them; a space before it makes it a "
            "message"
        )
