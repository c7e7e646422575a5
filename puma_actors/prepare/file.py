"""The file of a party's part of a unit.

    writer = UnitWriter(folder, label, keys, most)
    writer.write(data)                               what the dealer sends, as it comes
    writer.end_section(step, sender, index)          and which messages those bytes were
    writer.finish(); writer.publish(); writer.drop()
    unit = UnitFile(handle, path.name)               of a finished file: label, keys, words
    unit.index(step)                                 (sender, path) -> place
    unit.read(place)

    head      magic, length of the label, label (JSON), three keys of 32 bytes
    sections  for each step and sender: messages, one after the other, and an index of them
    tail      JSON: the sections, with a SHA-256 of each index; SHA-256 of head and tail; length;
              magic. A file without a tail is not a unit.

Each message has a CRC-32 in its index, which is compared when it is read. That finds what disks do;
somebody who can write to the file has the party's secrets anyway. Mode 0600.
"""

import hashlib
import os
import struct
import weakref
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, NamedTuple, TypeAlias

from pydantic import Field, ValidationError

from protocols.base.lane import Path as LanePath
from protocols.base.shares import COMPUTING, Role
from protocols.errors import RemoteProtocolError, StoreError
from puma_actors.base.keyfiles import sync_folder
from puma_actors.base.strict import Strict
from puma_actors.prepare.unit import MOST_STEPS, Label

KEY_BYTES = 32
PART, WHOLE = ".part", ".unit"
_START, _END = b"PUMAUNI1", b"UNITDONE"
_MOST_LABEL = 16 << 10
_MOST_TAIL = 64 << 20
_MOST_INDEX = 1 << 30
_DEPTH = 64
"""Most numbers in a tag."""
_LENGTH = struct.Struct("<I")
_SUM = 32


class Place(NamedTuple):
    """Where a message is in a file: first byte, bytes, CRC-32."""

    at: int
    size: int
    crc: int


Index: TypeAlias = dict[tuple[Role, LanePath], Place]


class _Section(Strict):
    """Messages of one sender for one step: bytes `at` to `at` + `size`, then an index."""

    step: int = Field(ge=0, lt=MOST_STEPS)
    sender: Role = Field(strict=False)
    at: int = Field(ge=0)
    size: int = Field(ge=0)
    index: int = Field(ge=0, le=_MOST_INDEX)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class _Tail(Strict):
    sections: Annotated[list[_Section], Field(max_length=2 * MOST_STEPS)]


class Entry(NamedTuple):
    """A message in an index: its tag in the step, bytes, CRC-32."""

    path: LanePath
    size: int
    crc: int


def entry_of(path: LanePath, data: bytes) -> Entry:
    """The entry of a message."""
    return Entry(path, len(data), zlib.crc32(data))


def pack_index(entries: Iterable[Entry]) -> bytes:
    """An index as bytes."""
    return b"".join(
        struct.pack(f"<H{len(path)}IQI", len(path), *path, size, crc) for path, size, crc in entries
    )


def read_index(data: bytes) -> list[Entry]:
    """The inverse of `pack_index`.

    Raises:
        RemoteProtocolError: it is no index.
    """
    entries, at = [], 0
    try:
        while at < len(data):
            (depth,) = struct.unpack_from("<H", data, at)
            if depth > _DEPTH:
                raise RemoteProtocolError(f"a tag of {depth} numbers, at most {_DEPTH}")
            *path, size, crc = struct.unpack_from(f"<{depth}IQI", data, at + 2)
            entries.append(Entry(tuple(path), size, crc))
            at += 2 + 4 * depth + 12
    except struct.error:
        raise RemoteProtocolError("the index of a prepared step is cut off") from None
    if len({entry.path for entry in entries}) != len(entries):
        raise RemoteProtocolError("a message of a prepared step came twice")
    return entries


class UnitWriter:
    """See the module docstring. `drop` it unless it was published.

    Raises: OSError. Its methods: StoreError if the disk does not take it.

    Args:
        keys: by peer, and the party's own.
        most: bytes that it may take; RemoteProtocolError if others send more.
    """

    def __init__(self, folder: Path, label: Label, keys: Mapping[Role, bytes], most: int) -> None:
        self.label = label
        self.size = 0
        self._folder = folder
        self._part = folder / f"{label.unit}{PART}"
        self._most = most
        self._sections: list[_Section] = []
        self._begun = 0
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._handle = os.open(self._part, flags, 0o600)
        self._head = _head(label, keys)
        self.write(self._head)
        self._begun = self.size

    def write(self, data: bytes | memoryview) -> None:
        """Append to the messages of the section."""
        view = memoryview(data).cast("B")
        if self.size + view.nbytes > self._most:
            raise RemoteProtocolError(
                f"a prepared unit has more than the {self._most} bytes that were predicted"
            )
        self.size += view.nbytes
        with self._writing():
            while view.nbytes:
                view = view[os.write(self._handle, view) :]

    def end_section(self, step: int, sender: Role, index: bytes) -> None:
        """Complete the messages of a sender for a step.

        Raises:
            RemoteProtocolError: the index is not one of what was written.
        """
        at, size = self._begun, self.size - self._begun
        if sum(entry.size for entry in read_index(index)) != size:
            raise RemoteProtocolError(f"{sender} sent other messages than it lists")
        self.write(index)
        self._sections.append(
            _Section(
                step=step,
                sender=sender,
                at=at,
                size=size,
                index=len(index),
                sha256=hashlib.sha256(index).hexdigest(),
            )
        )
        self._begun = self.size

    def finish(self) -> None:
        """Write the tail, and flush everything to the disk."""
        tail = _Tail(sections=self._sections).model_dump_json().encode()
        digest = hashlib.sha256(self._head + tail).digest()
        self.write(tail + digest + _LENGTH.pack(len(tail)) + _END)
        with self._writing():
            os.fsync(self._handle)

    def publish(self) -> None:
        """Give it the name of a unit, for good; and close it."""
        with self._writing():
            self._part.rename(self._part.with_suffix(WHOLE))
            sync_folder(self._folder)
        self._close()

    def drop(self) -> None:
        """Remove it, unless it was published."""
        if self._handle >= 0:
            self._close()
            self._part.unlink(missing_ok=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"prepared unit {self.label.unit} cannot be written ({error.strerror}): check the "
                f"disk of {self.label.role}"
            ) from None

    def _close(self) -> None:
        os.close(self._handle)
        self._handle = -1


def _head(label: Label, keys: Mapping[Role, bytes]) -> bytes:
    text = label.model_dump_json().encode()
    return _START + _LENGTH.pack(len(text)) + text + b"".join(keys[role] for role in COMPUTING)


class UnitFile:
    """A finished file. It stays open, whatever becomes of its name, until it is closed or not used
    any more.

    Args:
        handle: of the file, for reading; closed if this fails.
        name: for errors.

    Raises:
        StoreError: it is damaged, or not finished.
    """

    def __init__(self, handle: int, name: str) -> None:
        self.name = name
        self._handle = handle
        self._end = weakref.finalize(self, os.close, handle)
        try:
            self.size = os.fstat(handle).st_size
            self._read_ends()
        except BaseException:
            self.close()
            raise

    def _read_ends(self) -> None:
        end = _LENGTH.size + len(_END)
        last = self._bytes(max(0, self.size - end), min(end, self.size))
        if last[_LENGTH.size :] != _END:
            raise self._damaged("its end is missing")
        (tail_size,) = _LENGTH.unpack(last[: _LENGTH.size])
        start = self._bytes(0, len(_START) + _LENGTH.size)
        (label_size,) = _LENGTH.unpack(start[len(_START) :])
        if start[: len(_START)] != _START or label_size > _MOST_LABEL or tail_size > _MOST_TAIL:
            raise self._damaged("its head is unreadable")
        self._keys_at = len(start) + label_size
        head = self._bytes(0, self._keys_at + KEY_BYTES * len(COMPUTING))
        tail = self._bytes(self.size - end - _SUM - tail_size, tail_size + _SUM)
        if hashlib.sha256(head + tail[:-_SUM]).digest() != tail[-_SUM:]:
            raise self._damaged("its checksum is wrong")
        try:
            self.label = Label.model_validate_json(head[len(start) : self._keys_at])
            self._sections = _Tail.model_validate_json(tail[:-_SUM]).sections
        except ValidationError:
            raise self._damaged("it was written by another version") from None
        keys = head[self._keys_at :]
        self.keys = {
            role: keys[KEY_BYTES * i : KEY_BYTES * (i + 1)] for i, role in enumerate(COMPUTING)
        }

    def erase_keys(self) -> None:
        """Overwrite the keys in the file (`keys` stays); it needs a handle for writing."""
        os.pwrite(self._handle, bytes(KEY_BYTES * len(COMPUTING)), self._keys_at)
        os.fsync(self._handle)

    def index(self, step: int) -> Index:
        """The messages of a step, which are read ahead from now on.

        Raises:
            StoreError: the index is damaged.
        """
        found: Index = {}
        for section in self._sections:
            if section.step != step:
                continue
            with suppress(OSError):  # only advice
                os.posix_fadvise(self._handle, section.at, section.size, os.POSIX_FADV_WILLNEED)
            data = self._bytes(section.at + section.size, section.index)
            if hashlib.sha256(data).hexdigest() != section.sha256:
                raise self._damaged(f"the index of step {step} has a wrong checksum")
            at = section.at
            for path, size, crc in read_index(data):
                found[section.sender, path] = Place(at, size, crc)
                at += size
        return found

    def read(self, place: Place) -> memoryview:
        """A message.

        Raises:
            StoreError: it is damaged.
        """
        data = self._bytes(place.at, place.size)
        if zlib.crc32(data) != place.crc:
            raise self._damaged(f"the message at byte {place.at} has a wrong checksum")
        return memoryview(data)

    def _bytes(self, at: int, size: int) -> bytes:
        if at < 0 or at + size > self.size:
            raise self._damaged("it is too short")
        parts = []
        while size:
            try:
                part = os.pread(self._handle, size, at)
            except OSError as error:
                raise self._damaged(f"it cannot be read ({error.strerror})") from None
            if not part:
                raise self._damaged("it became shorter while it was read")
            parts.append(part)
            at, size = at + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _damaged(self, why: str) -> StoreError:
        return StoreError(
            f"prepared unit {self.name} is damaged: {why}. It is not used again; check the disk, "
            "and run `puma prepare` for new ones"
        )

    def close(self) -> None:
        """Close the file: if it has no name any more, its room is free."""
        self._end()
        self._handle = -1  # the number may soon be another file's
