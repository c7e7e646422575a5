"""Read and check the frames of a session; malformed ones raise RemoteProtocolError."""

from typing import Any, NamedTuple

from protocols.errors import RemoteProtocolError
from puma_actors.transports.frames import Frame, Tag, message_tag


class Part(NamedTuple):
    """A message, or a part of one: its bytes from `offset` on."""

    tag: Tag
    offset: int
    total: int
    dealt: bool
    buffer: Any


def read_part(frame: Frame) -> Part:
    """The part in a DATA frame."""
    offset, total, dealt = map(frame.header.get, ("offset", "total", "dealt"))
    tag = message_tag(list(frame.tag))
    if type(offset) is not int or type(total) is not int or type(dealt) is not bool:
        raise RemoteProtocolError("malformed part of a message")
    if len(frame.buffers) != 1 or not 0 <= offset <= total:
        raise RemoteProtocolError("malformed part of a message")
    return Part(tag, offset, total, dealt, frame.buffers[0])


def read_offer(frame: Frame) -> tuple[Tag, int]:
    """Tag and size of a message that waits at its sender."""
    total = frame.header.get("total")
    if type(total) is not int or total < 0:
        raise RemoteProtocolError("malformed offer of a message")
    return message_tag(list(frame.tag)), total


def read_ask(frame: Frame) -> tuple[Tag, bool]:
    """Tag of an offered message, and whether it is wanted."""
    wanted = frame.header.get("wanted")
    if type(wanted) is not bool:
        raise RemoteProtocolError("malformed request for a message")
    return message_tag(list(frame.tag)), wanted


def read_credit(frame: Frame) -> tuple[int, bool]:
    """Number of bytes consumed, and whether they were dealt."""
    size, dealt = map(frame.header.get, ("bytes", "dealt"))
    if type(size) is not int or type(dealt) is not bool:
        raise RemoteProtocolError("malformed credit")
    return size, dealt
