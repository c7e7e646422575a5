"""Online messages on their way to one peer, of one inference: the sender's half of the budget that
`puma_actors.session.mailbox` describes.
"""

from puma_actors.base.concurrency import Signal
from puma_actors.session.mailbox import CreditWindow
from puma_actors.transports.frames import Tag


class Outbox:
    """What is out, and what waits to be asked for.

    A message is held no longer than its lane: who sends it waits for the answer. So a sender holds
    what it has computed anyway, and no more.

    Args:
        window: bytes that may be out before the receiver has consumed any.
    """

    def __init__(self, window: CreditWindow) -> None:
        self.window = window
        self.emptied = Signal()
        self._held: dict[Tag, memoryview] = {}

    def admit(self, tag: Tag, payload: memoryview) -> bool:
        """Whether a message may leave; else it is held and must be offered."""
        if self.window.admit(payload.nbytes):
            return True
        self._held[tag] = payload
        return False

    @property
    def holds(self) -> bool:
        """Messages wait to be asked for."""
        return bool(self._held)

    def taken(self, tag: Tag) -> memoryview | None:
        """The message that was asked for, once; None: none waits under this tag."""
        payload = self._held.pop(tag, None)
        if not self._held:
            self.emptied.notify()
        return payload

    def drop(self) -> None:
        """Nobody will ask."""
        self._held.clear()
        self.emptied.notify()
