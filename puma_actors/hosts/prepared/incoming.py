"""What a party gets of a unit while it is made.

The dealer's words go to the file as they come. Those of the evaluators are few (for the embedding
alone), so they wait in memory until their step is complete, and are written at the end.
"""

from collections.abc import Sequence

from protocols.base.shares import COMPUTING, Role
from protocols.errors import RemoteProtocolError
from puma_actors.prepare.file import UnitWriter


class _Sender:
    """The messages of one party: steps come one after the other."""

    def __init__(self) -> None:
        self.steps = 0  # complete ones
        self.words = bytearray()  # of the step that is arriving
        self.index = bytearray()


class Incoming:
    """Args:
    role: this party. steps: of the unit.
    most: bytes that may wait in memory, of both indices and of evaluators' words.
    """

    def __init__(self, role: Role, writer: UnitWriter, steps: int, most: int) -> None:
        self._writer = writer
        self._steps = steps
        self._most = most
        self._held = 0
        self._senders = {other: _Sender() for other in COMPUTING if other is not role}
        self._waiting: list[tuple[int, Role, bytes, bytes]] = []

    @property
    def complete(self) -> bool:
        """Whether all steps of all senders have come."""
        return all(sender.steps == self._steps for sender in self._senders.values())

    def _sender(self, role: Role, step: int, buffers: Sequence[memoryview]) -> _Sender:
        sender = self._senders[role]
        if step != sender.steps or step >= self._steps or len(buffers) != 1:
            raise RemoteProtocolError(f"{role} sent words of step {step} of a unit out of turn")
        return sender

    def _hold(self, size: int) -> None:
        self._held += size
        if self._held > self._most:
            raise RemoteProtocolError(
                f"a prepared unit has more than {self._most} bytes besides the dealer's words"
            )

    def words(self, role: Role, step: int, buffers: Sequence[memoryview]) -> None:
        """Take a part of the messages of a step.

        Raises:
            RemoteProtocolError: it is out of turn, or too much. StoreError: it cannot be written.
        """
        sender = self._sender(role, step, buffers)
        if sender.index:
            raise RemoteProtocolError(f"{role} sent words of step {step} after their index")
        if role.is_dealer:
            self._writer.write(buffers[0])
        else:
            self._hold(buffers[0].nbytes)
            sender.words += buffers[0]

    def index(self, role: Role, step: int, buffers: Sequence[memoryview], last: bool) -> None:
        """Take a part of the index of a step. Errors as for `words`."""
        sender = self._sender(role, step, buffers)
        self._hold(buffers[0].nbytes)
        sender.index += buffers[0]
        if not last:
            return
        words, index = bytes(sender.words), bytes(sender.index)
        sender.words, sender.index = bytearray(), bytearray()
        sender.steps += 1
        if role.is_dealer:
            self._held -= len(index)
            self._writer.end_section(step, role, index)
        else:
            self._waiting.append((step, role, words, index))

    def finish(self) -> None:
        """Write the rest. Errors as for `words`."""
        for step, role, words, index in self._waiting:
            self._writer.write(words)
            self._writer.end_section(step, role, index)
        self._writer.finish()
