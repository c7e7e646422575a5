"""The steps of a request in order, as its client and every party count them.

    turns = Turns(request)
    turn = turns.following()                      no draft: each step decodes one token
    turn = turns.drafted(accepted, proposed)      a draft: the client says how the next step begins

How many proposed tokens a step evaluates, and how many of them stay, are public facts. They shape
the caches and all that is dealt, so a step with a draft begins once the client has announced them.
Every step has a number of its own, and with it keys of its own: what is evaluated at a position
that was given up is masked anew. The numbers' streams are also bound to all announcements so far:
parties that were told different things draw unrelated masks.
"""

import hashlib
import struct
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from models.programs.program import Batch, next_batch
from protocols.errors import ConfigError, RemoteProtocolError
from puma_actors.base.concurrency import Signal
from puma_actors.roles.messages import InferMessage, NextMessage


@dataclass(frozen=True, slots=True)
class Turn:
    """One step.

    Attributes:
        number: its inference number.
        batch: what it evaluates.
        kept: how many tokens of the cache the batch follows; the others are forgotten.
        bound: data that goes into the key of every stream.
    """

    number: int
    batch: Batch
    kept: int
    bound: tuple[int, ...]


class Turns:
    """See the module docstring.

    Args:
        request: the request.

    Attributes:
        first: the step that evaluates the request's own batch.
        drafts: whether the client announces each further step.
        next: number of the next step.
    """

    def __init__(self, request: InferMessage) -> None:
        self.first = Turn(request.number, request.batch(), 0, request.binding())
        self.drafts = request.draft > 0
        self.next = request.number + 1
        self._most = request.draft
        self._stop = request.number + request.steps
        self._last = self.first
        self._room = sum(request.lengths) + request.steps - 1  # tokens of the whole request

    def following(self) -> Turn:
        """The next step of a request without a draft."""
        return self._to(self._held, 0, self._last.bound)

    def drafted(self, accepted: int, proposed: int) -> Turn:
        """The next step of a request with a draft.

        Args:
            accepted: how many tokens that the last step's draft proposed stay, the first of them.
            proposed: how many tokens follow the last one of the answer in this step.

        Raises:
            ConfigError: more are accepted than were proposed, or the request has no such step.
        """
        offered = self._last.batch.tokens - 1 if self._last is not self.first else 0
        if not self.drafts:
            raise ConfigError("the request has no draft, so its steps are not announced")
        if self.next >= self._stop:
            raise ConfigError(f"step {self.next} is announced, the last is {self._stop - 1}")
        if not 0 <= accepted <= offered:
            raise ConfigError(f"{accepted} accepted of {offered} proposed tokens")
        if not 0 <= proposed <= self._most:
            raise ConfigError(f"{proposed} proposed tokens, the request allows {self._most}")
        kept = self._held - offered + accepted
        if kept + 1 + proposed > self._room:
            raise ConfigError(
                f"a step up to token {kept + 1 + proposed} of a request of {self._room}"
            )
        bound = _bound(*self._last.bound, self.next, accepted, proposed)
        return self._to(kept, proposed, bound)

    @property
    def _held(self) -> int:
        """Tokens in the cache after the last step."""
        return self._last.kept + self._last.batch.tokens

    def _to(self, kept: int, proposed: int, bound: tuple[int, ...]) -> Turn:
        self._last = Turn(self.next, next_batch(proposed), kept, bound)
        self.next += 1
        return self._last


class Announced:
    """The steps of a request at a party, which may have to wait for the client's announcements.

    Args:
        request: the request, which has been checked.
    """

    def __init__(self, request: InferMessage) -> None:
        self._turns = Turns(request)
        self._steps = request.steps
        self._waiting: Turn | None = None  # announced, but not begun
        self._changed = Signal()

    def take(self, message: NextMessage) -> None:
        """Take the client's announcement of the next step.

        Raises:
            RemoteProtocolError: it is not the one that may come now, or says what cannot be.
        """
        turns = self._turns
        if self._waiting is not None:
            raise RemoteProtocolError(
                f"step {message.number} was announced before step {self._waiting.number} began"
            )
        if message.number != turns.next:
            raise RemoteProtocolError(
                f"step {message.number} was announced, step {turns.next} comes next"
            )
        try:
            self._waiting = turns.drafted(message.accepted, message.proposed)
        except ConfigError as error:
            raise RemoteProtocolError(f"the client's draft is unusable: {error}") from None
        self._changed.notify()

    async def steps(self) -> AsyncGenerator[Turn, None]:
        """Every step, as soon as this party may begin it."""
        yield self._turns.first
        for _ in range(self._steps - 1):
            if not self._turns.drafts:
                yield self._turns.following()
                continue
            while (turn := self._waiting) is None:
                await self._changed.wait()
            self._waiting = None
            yield turn


def _bound(*facts: int) -> tuple[int, ...]:
    """Four words that represent the facts, each below 2^64 (SHA-256)."""
    return struct.unpack("<4Q", hashlib.sha256(struct.pack(f"<{len(facts)}Q", *facts)).digest())
