"""Frames: round trip, malformed input, limits."""

import contextlib
import struct
import tracemalloc
from typing import Any

import hypothesis.strategies as st
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings

from protocols.errors import LocalProtocolError, RemoteProtocolError
from puma_actors.transports.frames import (
    MAGIC,
    VERSION,
    Decoder,
    Frame,
    Kind,
    Limits,
    State,
    encode,
)
from puma_actors.transports.msgpack_guard import check_structure

SMALL = Limits(header=4096, buffers=8, frame=1 << 16, string=1024)

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=10)
    | st.binary(max_size=10)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=10,
)
tags = st.lists(st.integers(0, 2**64 - 1), max_size=8).map(tuple)
frames = st.builds(
    Frame,
    st.sampled_from(Kind),
    st.binary(min_size=16, max_size=16),
    tags,
    st.dictionaries(st.text(max_size=8), values, max_size=4),
    st.lists(st.binary(max_size=200), max_size=5),
)


def wire(frame: Frame) -> bytes:
    return b"".join(encode(frame, Limits(nesting=32)))


def prelude(**changes: Any) -> bytes:
    fields = {
        "magic": MAGIC,
        "version": VERSION,
        "kind": int(Kind.DATA),
        "buffers": 0,
        "head": 0,
        "payload": 0,
        "session": bytes(16),
    }
    fields.update(changes)
    return struct.pack("<4sBBHIQ16s", *fields.values())


def with_head(head: bytes, **changes: Any) -> bytes:
    return prelude(head=len(head), **changes) + head


@given(st.lists(frames, max_size=4), st.data())
def test_round_trip_split_at_arbitrary_points(sent: list[Frame], data: st.DataObject) -> None:
    stream = b"".join(wire(frame) for frame in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    decoder = Decoder(Limits(nesting=32))
    got: list[Frame] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += decoder.feed(stream[start:end])
    decoder.finish()
    assert got == sent


@given(st.lists(frames, max_size=4), st.integers(1, 9), st.integers(1, 40))
def test_reading_into_place_is_the_same(sent: list[Frame], least: int, step: int) -> None:
    rest = b"".join(wire(frame) for frame in sent)
    decoder = Decoder(Limits(nesting=32))
    got: list[Frame] = []
    while rest:
        piece, space = rest[:step], decoder.space(least)
        if space is None:
            got += decoder.feed(piece)
        else:
            assert len(space) >= least
            piece = piece[: len(space)]
            space[: len(piece)] = piece
            got += decoder.filled(len(piece))
        rest = rest[len(piece) :]
    decoder.finish()
    assert got == sent


@given(st.binary(max_size=400))
def test_arbitrary_bytes_raise_only_the_protocol_error(data: bytes) -> None:
    for start in (b"", prelude()[:6], prelude(head=max(len(data) - 1, 0))):
        decoder = Decoder(SMALL)
        try:
            decoder.feed(start + data)
            decoder.finish()
        except RemoteProtocolError:
            continue


@settings(max_examples=300)
@given(frames, st.data())
def test_mutated_frames_raise_only_the_protocol_error(frame: Frame, data: st.DataObject) -> None:
    stream = bytearray(wire(frame))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(stream) - 1))
        change = data.draw(st.sampled_from(["flip", "drop", "insert"]))
        if change == "flip":
            stream[at] = data.draw(st.integers(0, 255))
        elif change == "drop" and len(stream) > 1:
            del stream[at]
        else:
            stream.insert(at, data.draw(st.integers(0, 255)))
    decoder = Decoder(SMALL)
    try:
        decoder.feed(bytes(stream))
        decoder.finish()
    except RemoteProtocolError as error:
        assert "\n" not in str(error)


@given(st.binary(max_size=300))
def test_structure_check_agrees_with_the_library(data: bytes) -> None:
    try:
        check_structure(data, 64, len(data))
    except RemoteProtocolError:
        return
    # What passes is one complete value: the library may dislike its text or keys, never its length.
    with contextlib.suppress(TypeError):  # an unhashable key
        msgpack.unpackb(data, raw=True, strict_map_key=False)


def test_buffers_are_not_copied_and_are_aligned() -> None:
    words = np.arange(5, dtype=np.uint64)
    pieces = encode(Frame(Kind.DATA, buffers=[b"abc", words]))
    assert any(np.shares_memory(np.frombuffer(piece, np.uint8), words) for piece in pieces)
    (frame,) = Decoder().feed(b"".join(pieces))
    got = np.frombuffer(frame.buffers[1], dtype=np.uint64)
    assert got.tolist() == words.tolist()
    assert got.ctypes.data % 8 == 0
    assert not got.flags.writeable
    assert frame.buffers[0].obj is frame.buffers[1].obj


@pytest.mark.parametrize(
    ("stream", "text"),
    [
        (prelude(magic=b"HTTP"), "does not speak this protocol"),
        (prelude(version=9), f"version 9, this side version {VERSION}"),
        (prelude(kind=99), "unknown kind of frame: 99"),
        (prelude(head=1 << 31), "header bytes, the limit is 4096"),
        (prelude(payload=1 << 62), "payload bytes, the limit is 65536"),
        (prelude(buffers=60000), "buffers, the limit is 8"),
        (prelude(), "malformed"),
        (with_head(msgpack.packb([[], []])), "not \\[tag, sizes, header\\]"),
        (with_head(msgpack.packb({"a": 1})), "not \\[tag, sizes, header\\]"),
        (with_head(msgpack.packb([[-1], [], {}])), "numbers >= 0"),
        (with_head(msgpack.packb([[True], [], {}])), "numbers >= 0"),
        (with_head(msgpack.packb([[0] * 257, [], {}])), "short lists"),
        (with_head(msgpack.packb([[], [8], {}])), "announces 0 buffers and lists 1"),
        (with_head(msgpack.packb([[], [8], {}]), buffers=1), "do not add up to 0"),
        (with_head(msgpack.packb([[], [], {b"k": 1}])), "text keys"),
        (with_head(msgpack.packb([[], [], {1: 1}])), "malformed"),
        (with_head(msgpack.packb([[], [], []])), "text keys"),
        (with_head(msgpack.packb([[], [], {"s": "x" * 1500}])), "malformed"),
        (with_head(msgpack.packb([[], [], {}]) + b"\x00"), "malformed"),
        (with_head(b"\x93\x90\x90\x81\xa1k\xc7\x01\x05x"), "malformed"),
        (with_head(b"\x93\x90\x90\x81\xa1k" + b"\x91" * 20 + b"\x00"), "nested deeper than 8"),
        (with_head(b"\x91" * 4000), "nested deeper than 8"),
        (with_head(b"\xdd\x7f\xff\xff\xff"), "announces more than it holds"),
        (with_head(b"\x93\x90\x90\x81\xa1k\xa2\xff\xfe"), "malformed"),
    ],
)
def test_malformed_frames_are_named(stream: bytes, text: str) -> None:
    decoder = Decoder(SMALL)
    with pytest.raises(RemoteProtocolError, match=text):
        decoder.feed(stream)
    assert decoder.state is State.BROKEN
    with pytest.raises(RemoteProtocolError, match="broken before"):
        decoder.feed(b"more")
    with pytest.raises(RemoteProtocolError, match="broken before"):
        decoder.finish()


@pytest.mark.parametrize(
    "stream",
    [
        prelude(head=(1 << 32) - 1),
        prelude(payload=(1 << 64) - 1),
        with_head(b"\xdd\xff\xff\xff\xff"),
        with_head(b"\xdc\xff\xff" * 1000),
        with_head(b"\xdf\x00\x0f\xff\xff" * 500),
        with_head(b"\xdb\xff\xff\xff\xff"),
        with_head(msgpack.packb([[], [1 << 40], {}]), buffers=1, payload=1 << 12),
    ],
)
def test_announced_lengths_allocate_nothing(stream: bytes) -> None:
    decoder = Decoder(SMALL)
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            decoder.feed(stream)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < SMALL.frame


def test_end_inside_a_frame() -> None:
    stream = wire(Frame(Kind.DATA, buffers=[b"x" * 20]))
    for end in (1, 37, len(stream) - 1):
        decoder = Decoder()
        assert decoder.feed(stream[:end]) == []
        with pytest.raises(RemoteProtocolError, match="ended inside a frame"):
            decoder.finish()


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (Frame(Kind.DATA, header={"x": object()}), "cannot be packed"),
        (Frame(Kind.DATA, header={"x": 1 << 70}), "cannot be packed"),
        (Frame(Kind.DATA, header={"x": [[[[[[[[[[1]]]]]]]]]]}), "nested deeper"),
        (Frame(Kind.DATA, header={1: 1}), "must be text"),  # type: ignore[dict-item]
        (Frame(Kind.DATA, tag=(-1,)), "numbers >= 0"),
        (Frame(Kind.DATA, session=b"short"), "session id has 5 bytes"),
        (Frame(Kind.DATA, buffers=[b"x" * (1 << 17)]), "payload bytes, the limit is 65536"),
        (Frame(Kind.DATA, buffers=[b""] * 9), "9 buffers, the limit is 8"),
        (Frame(Kind.DATA, header={"x": "y" * 5000}), "header bytes, the limit is 4096"),
    ],
)
def test_what_the_other_side_would_refuse_is_not_sent(frame: Frame, text: str) -> None:
    with pytest.raises(LocalProtocolError, match=text):
        encode(frame, SMALL)
