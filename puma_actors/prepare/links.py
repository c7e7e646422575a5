"""Links of prepared steps: one that only deals, and one that has the dealt messages on disk.

    DealtLink       when a unit is made: what is sent is collected for the others' files
    PreparedLink    when it is used: an `InferenceLink` whose dealt messages come from a unit
    unit_keys       the streams of a unit

The streams of a unit belong to it alone: its keys are derived from the secrets of the session that
made it, and a place in it has the path (step, *path). Where both links open a stream, at the
embedding, they draw the same words for the same messages.
"""

import hashlib
import struct
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from anyio.lowlevel import checkpoint

from protocols.base.cost import Traffic
from protocols.base.fields import Buffer
from protocols.base.lane import Path, Settings
from protocols.base.prf import KeyRing, Stream
from protocols.base.shares import Role
from protocols.errors import LocalProtocolError
from puma_actors.base.compute import Compute
from puma_actors.base.concurrency import in_turn
from puma_actors.prepare.file import KEY_BYTES, Entry, Index, UnitFile, entry_of, pack_index
from puma_actors.session.inference import InferenceLink

if TYPE_CHECKING:
    from puma_actors.session.session import RoundScheduler

T = TypeVar("T")
PART_BYTES = 1 << 20
"""Bytes of messages that are sent together."""
_READ_WORK = 4
"""Multiply-adds that reading a byte takes as long as, for `Link.run`."""

Deliver = Callable[[Role, bytes], Awaitable[None]]


def unit_key(secret: bytes, unit: str, number: int) -> bytes:
    """The key of two parties for a unit (32 bytes; keyed BLAKE2b).

    Args:
        secret: theirs, in the session that makes the unit.
        number: of the unit in this session; no two units of a session have the same.
    """
    data = struct.pack("<Q", number) + bytes.fromhex(unit)
    return hashlib.blake2b(data, digest_size=KEY_BYTES, key=secret, person=b"puma unit").digest()


def unit_keys(role: Role, keys: Mapping[Role, bytes]) -> KeyRing:
    """The streams of a unit at a party, from its keys with the others and its own."""
    return KeyRing(role, {str(peer): key for peer, key in keys.items()})


class DealtLink:
    """A `Link` for a program that waits for nobody: the dealer's, and what an evaluator deals.

    What is deferred needs the client, so it is left to the request that uses the unit.

    Args:
        keys: of the unit. step: number of the step in the unit.
        deliver: takes the bytes of messages to a party, in order.
    """

    def __init__(
        self,
        role: Role,
        settings: Settings,
        keys: KeyRing,
        step: int,
        compute: Compute,
        deliver: Deliver,
    ) -> None:
        self.role = role
        self.settings = settings
        self.traffic = Traffic()
        self._keys = keys
        self._step = step
        self._compute = compute
        self._deliver = deliver
        self._waiting: dict[Role, list[bytes]] = {}
        self._sizes: dict[Role, int] = {}
        self._entries: dict[Role, list[Entry]] = {}

    def stream(self, peer: Role, path: Path) -> Stream:
        """As `Link.stream`."""
        return self._keys.stream(peer, (self._step, *path))

    async def send(self, to: Role, tag: Path, data: Sequence[Buffer], *, online: bool) -> int:
        """As `Link.send`."""
        if online:
            raise LocalProtocolError(f"{tag} depends on the client: it cannot be prepared")
        parts: Sequence[Any] = data
        message = b"".join(parts)
        self._entries.setdefault(to, []).append(entry_of(tag, message))
        self._waiting.setdefault(to, []).append(message)
        self._sizes[to] = self._sizes.get(to, 0) + len(message)
        self.traffic.count(len(message), online=False)
        if self._sizes[to] >= PART_BYTES:
            await self._flush(to)
        return len(message)

    async def _flush(self, to: Role) -> None:
        data = b"".join(self._waiting.pop(to, ()))
        self._sizes[to] = 0
        for start in range(0, len(data), PART_BYTES):
            await self._deliver(to, data[start : start + PART_BYTES])
            await checkpoint()  # the loop has others to serve

    async def finish(self, to: Role) -> bytes:
        """Deliver the rest to a party; returns the index of all its messages."""
        await self._flush(to)
        return pack_index(self._entries.get(to, ()))

    async def receive(self, sender: Role, tag: Path) -> Buffer:
        """As `Link.receive`: nothing comes."""
        raise LocalProtocolError(f"a program that only deals waits for message {tag} of {sender}")

    async def gather(self, tasks: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
        """As `Link.gather`, one after the other."""
        return await in_turn(tasks)

    async def defer(self, task: Coroutine[Any, Any, None]) -> None:
        """Leave it out, see above."""
        task.close()

    def run(self, work: int, function: Callable[..., T], *args: Any) -> Coroutine[Any, Any, T]:
        """As `Link.run`."""
        return self._compute.run(work, function, *args)


class PreparedLink(InferenceLink):
    """Its dealt messages are in a unit: those of others are read from it, its own were sent then.

    Args:
        unit: claimed for this request. keys: of the unit. step: number of the step in the unit.
        index: of the unit, for the step.
    """

    prepared = True

    def __init__(
        self,
        scheduler: "RoundScheduler",
        number: int,
        settings: Settings,
        bound: Path,
        unit: UnitFile,
        keys: KeyRing,
        step: int,
        index: Index,
    ) -> None:
        super().__init__(scheduler, number, settings, bound)
        self._unit = unit
        self._keys = keys
        self._step = step
        self._index = index

    def stream(self, peer: Role, path: Path) -> Stream:
        """As `Link.stream`; the client's are those of the session."""
        if peer is Role.CLIENT:
            return super().stream(peer, path)
        return self._keys.stream(peer, (self._step, *path))

    async def send(self, to: Role, tag: Path, data: Sequence[Buffer], *, online: bool) -> int:
        """As `Link.send`."""
        return await super().send(to, tag, data, online=True) if online else 0

    def receive(self, sender: Role, tag: Path) -> Coroutine[Any, Any, Buffer]:
        """As `Link.receive`.

        Raises:
            StoreError: the message is damaged on the disk.
        """
        place = self._index.pop((sender, tag), None)
        if place is None:
            return super().receive(sender, tag)
        self._scheduler.port(sender).mailbox(self.number).skip((self.number, *tag))
        return self.run(_READ_WORK * place.size, self._unit.read, place)
