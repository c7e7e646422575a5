"""Online messages of one inference on their way to one peer: the sender's half of the budget
described in `puma_actors.session.mailbox`.
"""

from puma_actors.base.concurrency import Signal
from puma_actors.session.credit import CreditWindow
from puma_actors.transports.frames import Tag


class Outbox:
    """Messages that are out, and messages that wait to be requested.

    A message is held no longer than its lane, because its sender waits for the answer. So a sender
    holds only what it has computed anyway.

    Args:
        window: bytes that may be out before the receiver has consumed any.
    """

    def __init__(self, window: CreditWindow) -> None:
        self.window = window
        self.emptied = Signal()
        self._held: dict[Tag, memoryview] = {}

    def hold(self, tag: Tag, payload: memoryview) -> None:
        """Keep a message that the window did not admit; it must be offered."""
        self._held[tag] = payload

    @property
    def holds(self) -> bool:
        """Whether messages wait to be requested."""
        return bool(self._held)

    def taken(self, tag: Tag) -> memoryview | None:
        """The requested message, once; None if none waits under this tag."""
        payload = self._held.pop(tag, None)
        if not self._held:
            self.emptied.notify()
        return payload

    def drop(self) -> None:
        """Drop all held messages: they will not be requested any more."""
        self._held.clear()
        self.emptied.notify()
