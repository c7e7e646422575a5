"""A party's store: whole models or none, and nothing that was changed is served."""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drafts import CONFIG, PLAN, UPLOAD, fill, put
from waiting import HANG

from models.programs.families import parameters_of
from models.programs.sharing import SEED_BYTES
from protocols.base.shares import Role
from protocols.errors import ConfigError, StoreError
from puma_actors.hosts.stores.checksums import Checksums
from puma_actors.hosts.stores.manifest import MANIFEST, seed_file, words_file
from puma_actors.hosts.stores.store import ModelStore


@pytest.fixture(params=[Role.EVALUATOR_A, Role.DEALER])
def store(request: Any, tmp_path: Path) -> Iterator[ModelStore]:
    with ModelStore(tmp_path / "store", request.param) as made:
        yield made


@pytest.fixture
def evaluator(tmp_path: Path) -> Iterator[ModelStore]:
    with ModelStore(tmp_path / "store", Role.EVALUATOR_A) as made:
        yield made


def left_over(store: ModelStore) -> list[str]:
    return [path.name for path in store.folder.iterdir() if path.name not in (".lock", "tiny")]


def test_what_is_put_comes_back_after_a_restart(store: ModelStore) -> None:
    put(store)
    store.close()
    with ModelStore(store.folder, store.role) as again:
        assert again.names() == ["tiny"]
        stored = again.read("tiny")
        assert stored.plan == PLAN
        assert stored.manifest.upload == UPLOAD
        assert stored.public_files() == {"tokenizer.json": b"{}"}
        assert set(stored.seeds()) == ({1, 2} if store.role is Role.DEALER else {1})
        if store.role is not Role.DEALER:
            for number, parameter in enumerate(parameters_of(CONFIG).values()):
                words = stored.tensor(number, parameter)
                assert words.shape == parameter.shape
                assert not words.flags.writeable
                assert (words.reshape(-1) == np.arange(words.size) + number).all()


def test_only_its_user_can_read_it(store: ModelStore) -> None:
    put(store)
    assert store.folder.stat().st_mode & 0o777 == 0o700
    assert (store.folder / "tiny").stat().st_mode & 0o777 == 0o700
    for path in (store.folder / "tiny").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_draft_is_no_model_until_it_is_published(store: ModelStore) -> None:
    draft = fill(store.draft("tiny", UPLOAD))
    assert "tiny" not in store
    draft.finish(PLAN)
    assert store.names() == []
    draft.publish()
    assert store.names() == ["tiny"]
    assert left_over(store) == []
    draft.keep()
    draft.discard()
    assert store.names() == ["tiny"]


def test_a_draft_that_is_given_up_leaves_nothing(store: ModelStore) -> None:
    fill(store.draft("tiny", UPLOAD)).discard()
    assert left_over(store) == []


def test_a_model_that_was_removed_cannot_be_kept(store: ModelStore) -> None:
    draft = fill(store.draft("tiny", UPLOAD))
    draft.finish(PLAN)
    draft.publish()
    store.remove("tiny")
    with pytest.raises(StoreError, match="cannot store model tiny"):
        draft.keep()
    draft.suspend()
    assert store.names() == left_over(store) == []


def test_a_draft_that_lacks_something_is_refused(evaluator: ModelStore) -> None:
    draft = evaluator.draft("tiny", UPLOAD)
    draft.write(seed_file(1), bytes(SEED_BYTES))
    with pytest.raises(StoreError, match="files are not those of its plan"):
        draft.finish(PLAN)
    draft.discard()
    assert left_over(evaluator) == []


def test_a_taken_name(store: ModelStore) -> None:
    rival = fill(store.draft("tiny", UPLOAD))
    rival.finish(PLAN)
    with pytest.raises(StoreError, match=r"'tiny' is being uploaded to .* already"):
        store.draft("tiny", "f" * 32)
    (store.folder / "tiny").mkdir()
    with pytest.raises(StoreError, match="already"):
        rival.publish()
    rival.discard()
    (store.folder / "tiny").rmdir()
    put(store)
    with pytest.raises(StoreError, match="puma models remove tiny"):
        store.draft("tiny", "f" * 32)
    assert left_over(store) == []


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".hidden", "a" * 65, "ä", "a b"])
def test_a_bad_name(evaluator: ModelStore, name: str) -> None:
    with pytest.raises(ConfigError, match="bad model name"):
        evaluator.draft(name, UPLOAD)


def test_every_flipped_byte_is_found(evaluator: ModelStore) -> None:
    put(evaluator)
    for path in sorted((evaluator.folder / "tiny").iterdir()):
        good = path.read_bytes()
        for at in (0, len(good) // 2, len(good) - 1):
            path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
            with pytest.raises(
                StoreError, match=r"model tiny at evaluator-a: .*models remove tiny"
            ):
                evaluator.read("tiny")
        path.write_bytes(good)
    evaluator.read("tiny")


def test_truncated_and_missing_files(evaluator: ModelStore) -> None:
    put(evaluator)
    for path in sorted((evaluator.folder / "tiny").iterdir()):
        good = path.read_bytes()
        path.write_bytes(good[:-1])
        with pytest.raises(StoreError, match=r"bytes instead of|damaged"):
            evaluator.read("tiny", verify=False)
        path.unlink()
        with pytest.raises(StoreError, match=f"{path.name} is missing; run"):
            evaluator.read("tiny", verify=False)
        path.write_bytes(good)
        path.chmod(0o600)
    evaluator.read("tiny")


def test_without_verification_only_sizes_are_compared(evaluator: ModelStore) -> None:
    put(evaluator)
    path = evaluator.folder / "tiny" / words_file(0)
    path.write_bytes(bytes(path.stat().st_size))
    evaluator.read("tiny", verify=False)


def test_what_is_read_is_what_was_verified(evaluator: ModelStore) -> None:
    """A file that changed before it was read is refused; afterwards it does not matter."""
    put(evaluator)
    first, second = list(parameters_of(CONFIG).values())[:2]
    stored = evaluator.read("tiny")
    words = stored.tensor(0, first)
    kept = words.copy()
    for number in (0, 1):
        path = evaluator.folder / "tiny" / words_file(number)
        with path.open("r+b") as file:  # in place: a mapping would see it
            file.write(b"\xff" * 8)
    assert np.array_equal(words, kept)
    with pytest.raises(StoreError, match=r"model tiny at evaluator-a: 00001.words is damaged"):
        stored.tensor(1, second)
    (evaluator.folder / "tiny" / words_file(0)).write_bytes(b"")  # a mapping would end the process
    assert np.array_equal(words, kept)
    with pytest.raises(StoreError, match=r"00000.words has 0 bytes instead of"):
        stored.tensor(0, first)
    (evaluator.folder / "tiny" / seed_file(1)).write_bytes(bytes(SEED_BYTES))
    with pytest.raises(StoreError, match="seed-1 is damaged"):
        stored.seeds()
    (evaluator.folder / "tiny" / "tokenizer.json").write_bytes(b"[]")
    with pytest.raises(StoreError, match=r"tokenizer.json is damaged"):
        stored.public_files()


def test_what_was_found_of_a_file_is_known_until_it_changes(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store)
    assert store.inspect("tiny")[1] is False  # nothing was read yet, and there was no time to
    assert store.inspect("tiny", seconds=HANG)[1] is True
    with monkeypatch.context() as patch:  # not again
        patch.setattr(Checksums, "check", None)
        patch.setattr(Checksums, "read", None)
        assert store.inspect("tiny", seconds=HANG)[1] is True
    path = store.folder / "tiny" / seed_file(1)
    good = path.read_bytes()
    path.write_bytes(bytes(SEED_BYTES))
    assert store.inspect("tiny")[1] is False
    with pytest.raises(StoreError, match="seed-1 is damaged"):
        store.inspect("tiny", seconds=HANG)
    with pytest.raises(StoreError, match="seed-1 is damaged"):  # known by now
        store.inspect("tiny")
    path.write_bytes(good)
    assert store.inspect("tiny", seconds=HANG)[1] is True
    store.remove("tiny")
    put(store)
    assert store.inspect("tiny")[1] is False


def test_a_file_that_changes_while_it_is_read(
    evaluator: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(evaluator)
    entry = evaluator.manifest("tiny").files[words_file(0)]
    path, usual = evaluator.folder / "tiny" / words_file(0), os.readv

    def cut(handle: int, rooms: Any) -> int:
        path.write_bytes(b"")
        return usual(handle, rooms)

    with monkeypatch.context() as patch:
        patch.setattr(os, "readv", cut)
        with pytest.raises(StoreError, match="became shorter while it was read"):
            evaluator.checksums.read(path, entry)


def test_a_store_at_the_root_of_a_disk(tmp_path: Path) -> None:
    """A store with foreign folders in it, some of which it cannot read."""
    (tmp_path / "store").mkdir(mode=0o700)
    (tmp_path / "store" / "lost+found").mkdir(mode=0)
    with ModelStore(tmp_path / "store", Role.DEALER) as store:
        put(store)
        assert store.names() == ["tiny"]


def test_files_that_cannot_be_deleted(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *_, **__: None)
        with pytest.raises(StoreError, match=r"serves model tiny no more, but could not delete"):
            store.remove("tiny")
    assert not store.remove("tiny")


def test_a_file_that_others_can_read(evaluator: ModelStore) -> None:
    put(evaluator)
    (evaluator.folder / "tiny" / seed_file(1)).chmod(0o644)
    with pytest.raises(StoreError, match="seed-1 can be read by others"):
        evaluator.read("tiny")


def forge(store: ModelStore, **changes: Any) -> None:
    """Change a manifest, and its checksum with it."""
    path = store.folder / "tiny" / MANIFEST
    manifest = store.manifest("tiny")
    path.write_bytes(manifest.model_copy(update=changes).to_json())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"digest": "0" * 64}, "does not have the digest"),
        ({"role": "evaluator-b"}, "holds the shares of evaluator-b"),
        ({"name": "other"}, "stored as 'other'"),
        ({"format": 2}, "format 2, not 1"),
        ({"files": {}}, "not those of its plan"),
        ({"plan": {}}, "a model plan must have"),
        ({"upload": "x"}, "damaged"),
    ],
)
def test_a_manifest_that_does_not_fit(
    evaluator: ModelStore, changes: dict[str, Any], reason: str
) -> None:
    put(evaluator)
    forge(evaluator, **changes)
    with pytest.raises(StoreError, match=reason) as info:
        evaluator.read("tiny")
    assert "puma models remove tiny" in str(info.value)


def test_a_manifest_cannot_name_files_elsewhere(evaluator: ModelStore) -> None:
    put(evaluator)
    files = dict(evaluator.manifest("tiny").files)
    files["../seed"] = files[seed_file(1)]
    forge(evaluator, files=files)
    with pytest.raises(StoreError, match="damaged"):
        evaluator.manifest("tiny")


def test_removal(store: ModelStore) -> None:
    put(store)
    stored = store.read("tiny")
    words = (
        None
        if store.role is Role.DEALER
        else stored.tensor(0, next(iter(parameters_of(CONFIG).values())))
    )
    assert store.remove("tiny")
    assert not store.remove("tiny")
    assert store.names() == left_over(store) == []
    if words is not None:
        assert words.reshape(-1)[1] == 1  # who has it loaded can go on
    with pytest.raises(StoreError, match="no model 'tiny'"):
        store.read("tiny")
    put(store)


def test_a_full_disk(evaluator: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = evaluator.draft("tiny", UPLOAD)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"evaluator-a cannot store model tiny \(its disk is full"):
        fill(draft)
    monkeypatch.undo()
    draft.discard()
    assert evaluator.names() == left_over(evaluator) == []


def test_two_parties_cannot_share_a_store(evaluator: ModelStore) -> None:
    with (
        pytest.raises(ConfigError, match="in use by another party"),
        ModelStore(evaluator.folder, Role.EVALUATOR_B),
    ):
        pass


def test_an_open_store_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with (
        pytest.raises(ConfigError, match=f"chmod 700 {tmp_path}"),
        ModelStore(tmp_path, Role.DEALER),
    ):
        pass


def test_a_store_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    with (
        pytest.raises(ConfigError, match="cannot be used"),
        ModelStore(tmp_path / "store", Role.DEALER),
    ):
        pass


def test_the_manifest_is_plain_json_without_secrets(evaluator: ModelStore) -> None:
    put(evaluator)
    seed = evaluator.read("tiny").seeds()[1]
    text = (evaluator.folder / "tiny" / MANIFEST).read_text()
    assert json.loads(text)["digest"] == PLAN.digest()
    assert seed.hex() not in text
