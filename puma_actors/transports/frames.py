"""Frames and their wire form. No I/O happens here.

    Frame(kind, session, tag, header, buffers)   what actors exchange
    wire_bytes(frame) -> int                     the length of its wire form
    encode(frame, limits) -> list[memoryview]    the buffers themselves, between a head and padding
    Decoder(limits).feed(data) -> list[Frame]    incremental; buffers are slices of one payload
    Decoder.space(least), Decoder.filled(n)      the same for bytes that are read in place
    Decoder.finish()                             the stream ended: raises if inside a frame

Wire form, little endian:

    prelude   magic 4s | version B | kind B | buffers H | head size I | payload size Q | session 16s
    head      MessagePack [tag, sizes, header]
    payload   the buffers, each padded to a multiple of 8 bytes: words can be read in place

For any input, `feed` raises only `RemoteProtocolError`, and every announced length is checked
against `Limits` before memory is allocated for it.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum, auto
from typing import Any, TypeAlias

import msgpack  # type: ignore[import-untyped]
import numpy as np

from protocols.errors import LocalProtocolError, RemoteProtocolError
from puma_actors.transports.msgpack_guard import check_structure, suspicious

Tag: TypeAlias = tuple[int, ...]

MAGIC = b"PUMA"
VERSION = 1
SESSION_BYTES = 16
NO_SESSION = bytes(SESSION_BYTES)
_PRELUDE = struct.Struct("<4sBBHIQ16s")
_ALIGN = 8
_PADDING = memoryview(bytes(_ALIGN))
_LAZY = 64 << 10
"""Space for more bytes than this is allocated untouched: it costs nothing until they arrive."""
_MESSAGE_TAG = 64
"""Most numbers in the tag of a message. Programs stay far below, and each costs memory."""
HEAD_WEIGHT = 16
"""A decoded head takes up to this many times its bytes."""


class Kind(IntEnum):
    """The purpose of a frame."""

    HELLO = 1  # handshake: version, role, public key
    CONFIRM = 2  # handshake: proof that the same key was derived
    DATA = 3  # one message, or a chunk of one
    BATCH = 4  # messages that became ready together
    CREDIT = 5  # the receiver has consumed a number of bytes
    CONTROL = 6  # a request between roles
    ERROR = 7  # the sender has failed
    GOODBYE = 8  # the sender has finished
    # Between the two ends of a stream; actors neither send nor see them.
    ALIVE = 9  # the sender is alive, and has nothing else to send
    END = 10  # the sender sends no more
    CLOSE = 11  # the sender sends no more, and accepts no more
    # Between the two ends of a connection that many sessions share.
    LINK = 12  # about a session: its window, its end; or a measurement
    # For messages that would arrive before they are requested, and exceed the budget.
    OFFER = 13  # a message waits at its sender
    ASK = 14  # the receiver wants it sent, or dropped


@dataclass(slots=True)
class Frame:
    """One unit of exchange.

    Attributes:
        kind: its purpose.
        session: 16 bytes that name the session.
        tag: place in the program, or () if there is none.
        header: str keys; values that MessagePack supports.
        buffers: bytes-like objects, which must not change once they are in a frame.
        head: bytes of its head, if it came over a wire.
    """

    kind: Kind
    session: bytes = NO_SESSION
    tag: Tag = ()
    header: dict[str, Any] = field(default_factory=dict)
    buffers: Sequence[Any] = ()
    head: int = field(default=0, compare=False)

    @property
    def nbytes(self) -> int:
        """Bytes in the buffers."""
        total = 0  # a loop, because it takes no call
        for buffer in self.buffers:
            total += memoryview(buffer).nbytes
        return total

    @property
    def weight(self) -> int:
        """Approximate bytes of memory that it takes; the same at both ends."""
        sizes = [memoryview(buffer).nbytes for buffer in self.buffers]
        return sum(sizes) + HEAD_WEIGHT * (self.head or len(_pack(self, sizes)))


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on what a peer may make us hold. Lengths in bytes; `nesting` counts nested containers,
    `items` all elements of a head's containers.
    """

    header: int = 1 << 20
    buffers: int = 1 << 14
    frame: int = 1 << 30
    string: int = 1 << 20
    nesting: int = 8
    items: int = 1 << 17
    tag: int = 256


# -- encoding -------------------------------------------------------------------------------------


def flat(buffer: Any) -> memoryview:
    """A view of a contiguous buffer's bytes."""
    view = memoryview(buffer)
    if view.nbytes == 0:
        return memoryview(b"")
    return view if view.ndim == 1 and view.format == "B" else view.cast("B")


def encode(frame: Frame, limits: Limits | None = None) -> list[memoryview]:
    """The frame's wire form, in pieces to be written in order.

    Raises:
        LocalProtocolError: it exceeds the limits or contains values that MessagePack cannot
        represent.
    """
    limits = limits or Limits()
    views = [flat(buffer) for buffer in frame.buffers]
    sizes = [view.nbytes for view in views]
    payload = _padded(sizes)
    head = _pack_head(frame, sizes, limits)
    _within(len(views), limits.buffers, "buffers", LocalProtocolError)
    _within(len(head), limits.header, "header bytes", LocalProtocolError)
    _within(payload, limits.frame, "payload bytes", LocalProtocolError)
    if len(frame.session) != SESSION_BYTES:
        raise LocalProtocolError(f"session id has {len(frame.session)} bytes; use {SESSION_BYTES}")
    prelude = _PRELUDE.pack(
        MAGIC, VERSION, frame.kind, len(views), len(head), payload, frame.session
    )
    pieces = [memoryview(prelude + head)]
    for view in views:
        if view.nbytes:
            pieces.append(view)
        if rest := -view.nbytes % _ALIGN:
            pieces.append(_PADDING[:rest])
    return pieces


def wire_bytes(frame: Frame) -> int:
    """The length of the frame's wire form, without building it.

    Raises:
        LocalProtocolError: it contains values that MessagePack cannot represent.
    """
    sizes = [memoryview(buffer).nbytes for buffer in frame.buffers]
    return _PRELUDE.size + len(_pack(frame, sizes)) + _padded(sizes)


def _padded(sizes: list[int]) -> int:
    return sum(size + -size % _ALIGN for size in sizes)


def _pack(frame: Frame, sizes: list[int]) -> bytes:
    try:
        return bytes(msgpack.packb([frame.tag, sizes, frame.header], use_bin_type=True))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise LocalProtocolError(f"frame header cannot be packed: {error}") from error


def _pack_head(frame: Frame, sizes: list[int], limits: Limits) -> bytes:
    """Pack the head, and make sure that the other side will accept it."""
    head = _pack(frame, sizes)
    try:
        if suspicious(head, limits.nesting):
            check_structure(head, limits.nesting, limits.items)
    except RemoteProtocolError as error:
        raise LocalProtocolError(f"frame header cannot be packed: {error}") from error
    if len(frame.tag) > limits.tag or not _naturals(list(frame.tag)):
        raise LocalProtocolError(f"tag {frame.tag} must be a short tuple of numbers >= 0")
    if not all(type(key) is str for key in frame.header):
        raise LocalProtocolError("the keys of a frame header must be text")
    return head


def _within(value: int, limit: int, what: str, error: type[Exception]) -> None:
    if value > limit:
        raise error(f"frame with {value} {what}, the limit is {limit}: split it or raise the limit")


# -- decoding -------------------------------------------------------------------------------------


class State(Enum):
    """The part of a frame that a decoder waits for."""

    PRELUDE = auto()
    HEAD = auto()
    PAYLOAD = auto()
    BROKEN = auto()


class Decoder:
    """Bytes in, frames out. After an error it stays `BROKEN` and repeats that error."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.state = State.PRELUDE
        self._steps: dict[State, Callable[[], Frame | None]] = {
            State.PRELUDE: self._read_prelude,  # -> HEAD
            State.HEAD: self._read_head,  # -> PAYLOAD
            State.PAYLOAD: self._read_payload,  # -> PRELUDE, and a frame
            State.BROKEN: self._read_nothing,  # -> BROKEN
        }
        self._error = ""
        self._kind, self._session = Kind.GOODBYE, NO_SESSION
        self._count = self._payload = self._head = 0
        self._tag: Tag = ()
        self._sizes: list[int] = []
        self._header: dict[str, Any] = {}
        self._expect(_PRELUDE.size)

    def feed(self, data: Any) -> list[Frame]:
        """Take bytes as they arrive; return the frames that they complete.

        Raises:
            RemoteProtocolError: the bytes are not a sequence of frames within the limits.
        """
        frames: list[Frame] = []
        rest = flat(data)
        while True:
            taken = min(len(rest), len(self._part) - self._filled)
            self._part[self._filled : self._filled + taken] = rest[:taken]
            self._filled += taken
            rest = rest[taken:]
            if not self._step(frames):
                return frames

    def space(self, least: int) -> memoryview | None:
        """The place for the next bytes, if at least `least` bytes are missing there; otherwise
        None. After writing n bytes to its beginning, call `filled(n)` before anything else.
        """
        if len(self._part) - self._filled < least:
            return None
        return memoryview(self._part)[self._filled :]

    def filled(self, size: int) -> list[Frame]:
        """`size` bytes were written to `space`; returns and raises as `feed`."""
        frames: list[Frame] = []
        self._filled += size
        while self._step(frames):
            pass
        return frames

    def _step(self, frames: list[Frame]) -> bool:
        """Go on if all expected bytes are there; False if some are missing."""
        if self._filled < len(self._part):
            return False
        try:
            frame = self._steps[self.state]()
        except RemoteProtocolError as error:
            self.state, self._error = State.BROKEN, str(error)
            self._expect(0)
            raise
        if frame is not None:
            frames.append(frame)
        return True

    def finish(self) -> None:
        """Check that the stream ended between frames.

        Raises:
            RemoteProtocolError: it ended inside a frame, or was broken before.
        """
        if self.state is State.BROKEN:
            self._read_nothing()
        if self.state is not State.PRELUDE or self._filled:
            raise RemoteProtocolError(
                f"the stream ended inside a frame ({self.state.name.lower()})"
            )

    def _expect(self, size: int) -> None:
        self._part: bytearray | memoryview
        self._part = bytearray(size) if size <= _LAZY else np.empty(size, np.uint8).data
        self._filled = 0

    def _read_nothing(self) -> None:
        raise RemoteProtocolError(f"the stream was broken before: {self._error}")

    def _read_prelude(self) -> None:
        magic, version, kind, count, head, payload, session = _PRELUDE.unpack(self._part)
        if magic != MAGIC:
            raise RemoteProtocolError("not a frame: the peer does not speak this protocol")
        if version != VERSION:
            raise RemoteProtocolError(
                f"the peer speaks version {version}, this side version {VERSION}: install the same"
            )
        if kind not in _KINDS:
            raise RemoteProtocolError(f"unknown kind of frame: {kind}")
        _within(count, self.limits.buffers, "buffers", RemoteProtocolError)
        _within(head, self.limits.header, "header bytes", RemoteProtocolError)
        _within(payload, self.limits.frame, "payload bytes", RemoteProtocolError)
        self._kind, self._session = Kind(kind), session
        self._count, self._payload, self._head = count, payload, head
        self.state = State.HEAD
        self._expect(head)

    def _read_head(self) -> None:
        self._tag, self._sizes, self._header = unpack_head(bytes(self._part), self.limits)
        if len(self._sizes) != self._count:
            raise RemoteProtocolError(
                f"frame announces {self._count} buffers and lists {len(self._sizes)}"
            )
        if _padded(self._sizes) != self._payload:
            raise RemoteProtocolError(f"buffer sizes do not add up to {self._payload} bytes")
        self.state = State.PAYLOAD
        self._expect(self._payload)

    def _read_payload(self) -> Frame:
        payload, start = memoryview(self._part).toreadonly(), 0
        buffers = []
        for size in self._sizes:
            buffers.append(payload[start : start + size])
            start += size + -size % _ALIGN
        frame = Frame(self._kind, self._session, self._tag, self._header, buffers, self._head)
        self.state = State.PRELUDE
        self._expect(_PRELUDE.size)
        return frame


_KINDS = frozenset(int(kind) for kind in Kind)


def unpack_head(data: bytes, limits: Limits) -> tuple[Tag, list[int], dict[str, Any]]:
    """Tag, buffer sizes and header of a frame.

    Raises:
        RemoteProtocolError: the bytes are not a head within the limits.
    """
    if suspicious(data, limits.nesting):
        check_structure(data, limits.nesting, limits.items)
    try:
        head = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_str_len=limits.string,
            max_bin_len=limits.string,
            max_array_len=len(data),
            max_map_len=len(data),
            max_ext_len=0,
        )
    except Exception as error:  # MessagePack raises half a dozen unrelated classes
        raise RemoteProtocolError(f"frame header is malformed: {type(error).__name__}") from error
    if type(head) is not list or len(head) != 3:
        raise RemoteProtocolError("frame header is not [tag, sizes, header]")
    tag, sizes, header = head
    if not (_naturals(tag) and _naturals(sizes) and len(tag) <= limits.tag):
        raise RemoteProtocolError("tag and sizes of a frame must be short lists of numbers >= 0")
    if type(header) is not dict or not all(type(key) is str for key in header):
        raise RemoteProtocolError("frame header is not a map with text keys")
    return tuple(tag), sizes, header


def _naturals(value: Any) -> bool:
    return type(value) is list and all(type(item) is int and item >= 0 for item in value)


def message_tag(raw: Any) -> Tag:
    """The tag of a message that came through the codec, which turns tuples into lists."""
    if not _naturals(raw):
        raise RemoteProtocolError("malformed tag of a message")
    tag: Tag = tuple(raw)
    if not 2 <= len(tag) <= _MESSAGE_TAG:
        raise RemoteProtocolError(f"the tag of a message must have 2 to {_MESSAGE_TAG} numbers")
    return tag
