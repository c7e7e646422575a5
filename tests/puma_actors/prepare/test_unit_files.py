"""The file of a prepared unit: what is written is read, and every damage is found."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from units import UNIT, label_of, write_unit

from protocols.base.shares import COMPUTING, Role
from protocols.errors import RemoteProtocolError, StoreError
from puma_actors.prepare.file import (
    Entry,
    UnitFile,
    UnitWriter,
    entry_of,
    pack_index,
    read_index,
)

D, B = Role.DEALER, Role.EVALUATOR_B
MESSAGES = {(0, D, (1, 1)): b"first", (0, B, (1, 2, 1)): b"", (1, D, (1, 1)): bytes(300)}


def opened(path: Path) -> UnitFile:
    return UnitFile(os.open(path, os.O_RDWR), path.stem)


def contents(file: UnitFile) -> dict[tuple[int, Role, tuple[int, ...]], bytes]:
    return {
        (step, sender, path): bytes(file.read(place))
        for step in range(2)
        for (sender, path), place in file.index(step).items()
    }


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path, keys = write_unit(tmp_path, MESSAGES)
    assert path.stat().st_mode & 0o777 == 0o600
    file = opened(path)
    assert (file.label, file.keys) == (label_of(), keys)
    assert contents(file) == MESSAGES
    file.close()
    file.close()


def test_erased_keys_are_gone_from_the_disk(tmp_path: Path) -> None:
    path, keys = write_unit(tmp_path, MESSAGES)
    file = opened(path)
    assert all(key in path.read_bytes() for key in keys.values())
    file.erase_keys()
    assert not any(key in path.read_bytes() for key in keys.values())
    assert file.keys == keys
    assert contents(file) == MESSAGES
    file.close()
    with pytest.raises(StoreError, match=f"{UNIT} is damaged: its checksum is wrong"):
        opened(path)


def test_any_flipped_byte_is_an_error_by_name(tmp_path: Path) -> None:
    path, _ = write_unit(tmp_path, MESSAGES)
    good = path.read_bytes()
    for at in range(0, len(good), 3):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        file = None
        with pytest.raises(StoreError, match=f"prepared unit {UNIT} is damaged"):
            file = opened(path)
            contents(file)
        if file is not None:
            file.close()


def test_a_file_that_was_cut_is_no_unit(tmp_path: Path) -> None:
    path, _ = write_unit(tmp_path, MESSAGES)
    good = path.read_bytes()
    for size in range(0, len(good), 7):
        path.write_bytes(good[:size])
        with pytest.raises(StoreError, match="is damaged"):
            opened(path)


PATHS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=9).map(tuple)
ENTRIES = st.lists(
    st.builds(Entry, PATHS, st.integers(0, 2**60), st.integers(0, 2**32 - 1)),
    unique_by=lambda entry: entry.path,
)


@given(ENTRIES)
def test_an_index_is_read_as_it_was_packed(entries: list[Entry]) -> None:
    assert read_index(pack_index(entries)) == entries


@settings(max_examples=50)
@given(ENTRIES.filter(bool), st.data())
def test_a_cut_index_is_refused(entries: list[Entry], data: st.DataObject) -> None:
    packed = pack_index(entries)
    cut = data.draw(st.integers(1, 17))
    with pytest.raises(RemoteProtocolError, match=r"cut off|a tag of"):
        read_index(packed[:-cut])


def test_what_a_sender_may_not_do(tmp_path: Path) -> None:
    twice = pack_index([entry_of((1, 1), b"a"), entry_of((1, 1), b"b")])
    with pytest.raises(RemoteProtocolError, match="twice"):
        read_index(twice)
    with pytest.raises(RemoteProtocolError, match="a tag of 65 numbers, at most 64"):
        read_index(pack_index([entry_of((1,) * 65, b"")]))
    keys = {role: bytes(32) for role in COMPUTING}
    writer = UnitWriter(tmp_path, label_of(), keys, 2000)
    writer.write(b"four")
    with pytest.raises(RemoteProtocolError, match="dealer sent other messages than it lists"):
        writer.end_section(0, D, pack_index([entry_of((1, 1), b"fourth")]))
    with pytest.raises(RemoteProtocolError, match="more than the 2000 bytes"):
        writer.write(bytes(2000))
    writer.drop()
    assert list(tmp_path.iterdir()) == []
