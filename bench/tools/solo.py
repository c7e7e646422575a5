"""One party alone: its part of a program, with messages of the right sizes and no meaning.

A party's work and memory depend on shapes alone, never on values. So its memory can be counted to
the byte, without the other two in the same process.
"""

import os
import tracemalloc
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from protocols.base.cost import Traffic
from protocols.base.fields import Buffer, Field, fields_bytes
from protocols.base.lane import Lane, Path, Settings
from protocols.base.prf import KeyRing, Stream
from protocols.base.ring import Bytes, Words
from protocols.base.shares import COMPUTING, Role
from protocols.drivers.lockstep import Pause, interleave

T = TypeVar("T")


class SoloLink:
    """A `Link` that discards messages sent on it."""

    def __init__(self, role: Role, settings: Settings | None = None) -> None:
        self.role = role
        self.settings = settings or Settings()
        self.traffic = Traffic()
        self.largest = 0
        self.deferred: list[Coroutine[Any, Any, None]] = []
        peers = [peer for peer in (*COMPUTING, Role.CLIENT) if peer is not role]
        self._keys = KeyRing(role, {peer: os.urandom(32) for peer in peers})

    def stream(self, peer: Role, path: Path) -> Stream:
        return self._keys.stream(peer, path)

    async def send(self, to: Role, tag: Path, data: Sequence[Buffer], *, online: bool) -> int:
        message = b"".join(data) if len(data) > 1 else data[0]  # as a real link does
        size = memoryview(message).nbytes
        self.traffic.count(size, online=online)
        self.largest = max(self.largest, size)
        return size

    async def receive(self, sender: Role, tag: Path) -> Buffer:
        raise NotImplementedError("use the lane, which knows how long a message is")

    async def gather(self, tasks: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
        """In turn at the dealer; round by round at an evaluator, as with a real peer."""
        if self.role.is_dealer:
            return [await task for task in tasks]
        return await interleave(tasks)

    async def defer(self, task: Coroutine[Any, Any, None]) -> None:
        self.deferred.append(task)

    async def run(self, work: int, function: Callable[..., T], *args: Any) -> T:
        return function(*args)


class SoloLane(Lane):
    """A lane that receives zeros of the expected length."""

    _expected = 0

    async def share(self, fields: Sequence[Field], values: Sequence[Words] = ()) -> list[Words]:
        self._expected = fields_bytes(fields)
        return await super().share(fields, values)

    async def swap(self, fields: Sequence[Field], values: Sequence[Words]) -> list[Words]:
        self._expected = fields_bytes(fields)
        return await super().swap(fields, values)

    async def open(self, fields: Sequence[Field], values: Sequence[Words]) -> list[Words]:
        self._expected = fields_bytes(fields)
        return await super().open(fields, values)

    async def receive_words(self, sender: Role, fields: Sequence[Field]) -> list[Words]:
        self._expected = fields_bytes(fields)
        return await super().receive_words(sender, fields)

    async def receive_bytes(self, sender: Role, nbytes: int) -> Bytes:
        self._expected = nbytes
        return await super().receive_bytes(sender, nbytes)

    async def _receive(self, sender: Role) -> Buffer:
        self._tag(self._received, sender)
        return bytes(self._expected)

    async def _exchange(self, parts: Sequence[Buffer]) -> Buffer:
        await self._send(self.peer, parts, online=True)
        size = self._expected
        await Pause(moved=True)
        self.clock += 1
        return bytes(size)


def peak_of(
    role: Role,
    program: Callable[[Lane], Coroutine[Any, Any, Any]],
    settings: Settings | None = None,
) -> int:
    """Bytes that a party uses at the peak of a program, beyond those in use before."""
    link = SoloLink(role, settings)

    async def whole() -> None:
        await program(SoloLane(link))
        for task in link.deferred:
            await task

    task = whole()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        try:
            while True:
                task.send(None)
        except StopIteration:
            pass
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
        task.close()
