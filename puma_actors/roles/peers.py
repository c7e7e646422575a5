"""What a party exchanges with each of the others, and how long it waits for them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from protocols.base.fields import Buffer
from protocols.base.lane import Lane, Link
from protocols.base.shares import Role


@dataclass(frozen=True, slots=True)
class Exchanged:
    """With one peer.

    Attributes:
        sent, received: payload bytes, frame headers not included.
        waited: seconds in which this party needed a message of that peer to go on.
    """

    sent: int = 0
    received: int = 0
    waited: float = 0.0

    def __add__(self, other: "Exchanged") -> "Exchanged":
        return Exchanged(
            self.sent + other.sent, self.received + other.received, self.waited + other.waited
        )

    def __sub__(self, other: "Exchanged") -> "Exchanged":
        return Exchanged(
            self.sent - other.sent, self.received - other.received, self.waited - other.waited
        )


Peers = dict[Role, Exchanged]


class CountingLane(Lane):
    """A lane that counts in `peers`, which its forks share."""

    peers: Peers

    @classmethod
    def first(cls, link: Link, peers: Peers) -> Self:
        """The lane on which a program begins."""
        lane = cls(link)
        lane.peers = peers
        return lane

    def fork(self, count: int) -> list[Lane]:
        lanes = super().fork(count)
        for lane in lanes:
            assert isinstance(lane, CountingLane)
            lane.peers = self.peers
        return lanes

    async def _send(self, to: Role, parts: Sequence[Buffer], *, online: bool) -> None:
        await self.link.send(to, self._tag(self._sent, to), parts, online=online)
        self._count(to, Exchanged(sent=sum(len(part) for part in parts)))

    async def _receive(self, sender: Role) -> Buffer:
        began, tag = time.monotonic(), self._expect(sender)
        try:
            buffer = await self.link.receive(sender, tag)
        finally:
            self._busy = False
            self._count(sender, Exchanged(waited=time.monotonic() - began))
        self._count(sender, Exchanged(received=len(buffer)))
        return buffer

    def _count(self, peer: Role, more: Exchanged) -> None:
        self.peers[peer] = self.peers.get(peer, Exchanged()) + more
