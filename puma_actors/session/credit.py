"""Flow control by credit: bytes that were sent and that the receiver has not consumed yet.

CreditWindow     the sender's count
CreditAccount    the receiver's, which decides when to acknowledge
"""

from collections.abc import Callable
from dataclasses import dataclass

from protocols.errors import RemoteProtocolError
from puma_actors.base.concurrency import Signal

MESSAGE_OVERHEAD = 256
"""Bytes that each message counts in addition to its content, so that empty ones are bounded too."""


class CreditWindow:
    """Bytes sent and not yet consumed. `peak` is the most there were at any time."""

    def __init__(self, limit: int, check: Callable[[], None]) -> None:
        self.limit = limit
        self.outstanding = 0
        self.peak = 0
        self.changed = Signal()
        self._check = check

    async def acquire(self, size: int) -> None:
        """Wait while more than the limit is out, then count `size` bytes (and the overhead) as
        sent.

        One message is always allowed to exceed the limit, so that a large one cannot wait forever.
        """
        while self.outstanding > self.limit:
            await self.changed.wait()
            self._check()
        self.outstanding += size + MESSAGE_OVERHEAD
        self.peak = max(self.peak, self.outstanding)

    def admit(self, size: int) -> bool:
        """Count `size` bytes (and the overhead) as sent, if they stay within the limit."""
        total = self.outstanding + size + MESSAGE_OVERHEAD
        if total > self.limit:
            return False
        self.outstanding = total
        if total > self.peak:
            self.peak = total
        return True

    def release(self, size: int) -> None:
        """The receiver consumed `size` bytes.

        Raises:
            RemoteProtocolError: more than were sent.
        """
        if not 0 < size <= self.outstanding:
            raise RemoteProtocolError(f"credit for {size} bytes while {self.outstanding} are out")
        self.outstanding -= size
        self.changed.notify()


@dataclass(slots=True)
class CreditAccount:
    """The receiver's side: counts bytes that have arrived, and decides when to acknowledge."""

    limit: int
    acknowledge: Callable[[int], None]
    held: int = 0
    owed: int = 0

    def arrived(self, size: int) -> None:
        """Raises:
        RemoteProtocolError: the sender did not wait for credit.
        """
        if self.held > self.limit:
            raise RemoteProtocolError(
                f"more than {self.limit} bytes sent ahead: all parties must use one `Flow`"
            )
        self.held += size + MESSAGE_OVERHEAD

    def consumed(self, size: int) -> None:
        """Count a message as consumed; acknowledge once a quarter of the window has added up."""
        self.held -= size + MESSAGE_OVERHEAD
        self.owed += size + MESSAGE_OVERHEAD
        if 4 * self.owed >= self.limit:
            self._pay()

    def close(self) -> None:
        """Acknowledge everything."""
        self.owed += self.held
        self.held = 0
        self._pay()

    def _pay(self) -> None:
        if self.owed:
            owed, self.owed = self.owed, 0
            self.acknowledge(owed)
