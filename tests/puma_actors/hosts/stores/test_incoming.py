"""Uploads that were cut: what is continued is what was sent, and no more is kept than allowed."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import numpy as np
import pytest
from drafts import CONFIG, PLAN, UPLOAD, fill
from hypothesis import given
from hypothesis import strategies as st

from models.programs.families import parameters_of
from models.programs.sharing import SEED_BYTES
from protocols.base.shares import Role
from protocols.errors import StoreError
from puma_actors.hosts import visits
from puma_actors.hosts.stores import draft as drafts
from puma_actors.hosts.stores import incoming
from puma_actors.hosts.stores.draft import Draft
from puma_actors.hosts.stores.journal import JOURNAL
from puma_actors.hosts.stores.manifest import seed_file, words_file
from puma_actors.hosts.stores.store import ModelStore

OTHER = "f" * 32
SEED = bytes(range(SEED_BYTES))
SIZES = [8 * int(np.prod(parameter.shape)) for parameter in parameters_of(CONFIG).values()]
CONTENT = {
    words_file(number): np.random.default_rng(number).bytes(size)
    for number, size in enumerate(SIZES)
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ModelStore]:
    with ModelStore(tmp_path / "store", Role.EVALUATOR_A) as made:
        yield made


@pytest.fixture
def finely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts, "MARK_BYTES", 64)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # the computer stays on, and this takes long


def send(draft: Draft, whole: int, more: int = 0, piece: int = 32) -> None:
    """Write what the draft lacks of the first `whole` tensors, and of `more` bytes behind them."""
    held = draft.begin(PLAN.digest())
    draft.write(seed_file(1), SEED)
    for number, (file, data) in enumerate(CONTENT.items()):
        stop = len(data) if number < whole else more if number == whole else 0
        for start in range(held.get(file, 0), stop, piece):
            draft.write(file, data[start : min(stop, start + piece)])


def die(store: ModelStore) -> ModelStore:
    """As if the process was killed: nothing is cleaned up. The next one begins."""
    store.close()
    return ModelStore(store.folder, store.role).__enter__()


def complete(store: ModelStore, upload: str = UPLOAD) -> None:
    draft = store.draft("tiny", upload)
    send(draft, len(CONTENT))
    draft.finish(PLAN)
    draft.publish()
    draft.keep()
    stored = store.read("tiny")
    for number, (parameter, data) in enumerate(
        zip(parameters_of(CONFIG).values(), CONTENT.values(), strict=True)
    ):
        assert stored.tensor(number, parameter).tobytes() == data
    assert not (store.folder / "tiny" / JOURNAL).exists()
    assert not (store.folder / incoming.FOLDER).exists()


def held(store: ModelStore, upload: str = UPLOAD) -> dict[str, int]:
    draft = store.draft("tiny", upload)
    found = dict(draft.begin(PLAN.digest()))
    draft.suspend()
    found.pop(seed_file(1), None)
    return found


@pytest.mark.usefixtures("finely")
def test_a_killed_party_has_what_was_flushed(store: ModelStore) -> None:
    send(store.draft("tiny", UPLOAD), 2, 150)
    again = die(store)
    assert held(again) == {words_file(0): SIZES[0], words_file(1): SIZES[1], words_file(2): 128}
    complete(again)


def test_a_suspended_upload_has_every_byte(store: ModelStore) -> None:
    draft = store.draft("tiny", UPLOAD)
    send(draft, 2, 150)
    draft.suspend()
    assert store.names() == []
    assert held(store)[words_file(2)] == 150
    complete(store)


@pytest.mark.usefixtures("finely")
@given(data=st.data())
def test_whatever_is_damaged_only_sent_bytes_are_taken_over(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("store") / "s"
    with ModelStore(folder, Role.EVALUATOR_A) as store:
        whole = data.draw(st.integers(0, len(CONTENT) - 1))
        send(store.draft("tiny", UPLOAD), whole, data.draw(st.integers(0, SIZES[whole])))
        for path in sorted((folder / incoming.FOLDER / "tiny").iterdir()):
            content = bytearray(path.read_bytes())
            kind = data.draw(st.sampled_from(["", "flip", "cut", "more"]))
            if kind == "flip" and content:
                content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(
                    st.integers(1, 255)
                )
            elif kind == "cut":
                del content[data.draw(st.integers(0, len(content))) :]
            elif kind == "more":
                content += data.draw(st.binary(max_size=40))
            path.write_bytes(content)
        again = die(store)
        found = held(again)
        for file, size in found.items():
            assert (folder / incoming.FOLDER / "tiny" / file).read_bytes()[:size] == (
                CONTENT[file][:size]
            )
        complete(again)
        again.close()
    shutil.rmtree(folder)


@pytest.mark.parametrize("when", ["before", "while"])
def test_an_attempt_that_ends_early_loses_nothing(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Before it looked at what is there, or while it did."""
    draft = store.draft("tiny", UPLOAD)
    send(draft, 3)
    draft.suspend()
    draft = store.draft("tiny", UPLOAD)
    draft.write("tokenizer.json", b"{}")
    if when == "while":
        with monkeypatch.context() as patch:
            patch.setattr(drafts, "_hashed", lambda *_: Path("/nowhere").stat())
            with pytest.raises(StoreError, match="cannot store model tiny"):
                draft.begin(PLAN.digest())
    draft.suspend()
    assert held(store) == {words_file(number): SIZES[number] for number in range(3)}


def test_a_damaged_file_is_sent_again_and_the_others_are_not(store: ModelStore) -> None:
    draft = store.draft("tiny", UPLOAD)
    send(draft, 4, 16)
    draft.suspend()
    path = store.folder / incoming.FOLDER / "tiny" / words_file(1)
    path.write_bytes(bytes(len(CONTENT[path.name])))
    assert held(store) == {words_file(n): SIZES[n] for n in (0, 2, 3)} | {words_file(4): 16}
    complete(store)


def test_another_upload_or_plan_takes_nothing_over(store: ModelStore) -> None:
    draft = store.draft("tiny", UPLOAD)
    send(draft, 4)
    draft.suspend()
    draft = store.draft("tiny", UPLOAD)
    assert draft.begin("0" * 64) == {}
    draft.discard()
    assert not (store.folder / incoming.FOLDER).exists()
    draft = store.draft("tiny", UPLOAD)
    send(draft, 4)
    draft.suspend()
    assert held(store, OTHER) == {}
    assert held(store) == {}  # the other one has removed it
    complete(store)


def test_another_seed_of_the_same_upload_is_refused(store: ModelStore) -> None:
    draft = store.draft("tiny", UPLOAD)
    send(draft, 1)
    draft.suspend()
    draft = store.draft("tiny", UPLOAD)
    draft.begin(PLAN.digest())
    with pytest.raises(StoreError, match="another seed-1 of this upload: run `puma models remove"):
        draft.write(seed_file(1), bytes(SEED_BYTES))
    draft.suspend()


@pytest.mark.parametrize("restart", [False, True])
def test_a_model_that_others_may_lack_can_be_continued(store: ModelStore, restart: bool) -> None:
    draft = store.draft("tiny", UPLOAD)
    send(draft, len(CONTENT))
    draft.finish(PLAN)
    draft.publish()
    assert store.names() == ["tiny"]
    if restart:
        store = die(store)
    else:
        draft.suspend()
    assert store.names() == []
    assert held(store) == dict(zip(CONTENT, SIZES, strict=True))
    complete(store)


def test_a_kept_model_is_taken_back_by_its_own_upload_alone(store: ModelStore) -> None:
    complete(store)
    with pytest.raises(StoreError, match="has a model 'tiny' already"):
        store.draft("tiny", OTHER)
    assert not store.withdraw("tiny", OTHER)
    assert store.names() == ["tiny"]
    assert held(store) == dict(zip(CONTENT, SIZES, strict=True))
    assert store.names() == []
    complete(store)
    assert store.withdraw("tiny", UPLOAD)
    assert store.incoming.names() == ["tiny"]


def test_a_dealer_keeps_nothing_of_what_is_cut(tmp_path: Path) -> None:
    with ModelStore(tmp_path / "store", Role.DEALER) as store:
        fill(store.draft("tiny", UPLOAD)).suspend()
        assert not (store.folder / incoming.FOLDER).exists()


# -- bounds ----------------------------------------------------------------------------------------


def cut(store: ModelStore, name: str, age: float = 0.0) -> None:
    draft = store.draft(name, UPLOAD)
    send(draft, 1)
    draft.suspend()
    then = time.time() - age
    os.utime(store.folder / incoming.FOLDER / name / JOURNAL, (then, then))


def test_so_many_are_kept(store: ModelStore) -> None:
    for number in range(incoming.MOST + 2):
        cut(store, f"m{number}", 100.0 - number)
    store.incoming.tidy()
    assert store.incoming.names() == [f"m{number}" for number in range(2, incoming.MOST + 2)]


def test_old_ones_go(store: ModelStore) -> None:
    cut(store, "old", incoming.MOST_SECONDS + 60)
    cut(store, "new")
    assert store.incoming.names() == ["new"]
    cut(store, "old", incoming.MOST_SECONDS + 60)
    again = die(store)
    assert again.incoming.names() == ["new"]
    again.close()


async def test_old_ones_go_while_the_party_runs(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(store, "old", incoming.MOST_SECONDS + 60)
    cut(store, "new")
    os.utime(store.folder / incoming.FOLDER / "new" / JOURNAL, (0, 0))
    slept, again = 0, anyio.Event()

    async def sleep(seconds: float) -> None:
        nonlocal slept
        slept += 1
        if slept > 1:
            again.set()
            await anyio.Event().wait()

    monkeypatch.setattr(visits, "anyio", SimpleNamespace(**{**vars(anyio), "sleep": sleep}))
    async with anyio.create_task_group() as group:
        group.start_soon(visits.tidy_uploads, store.incoming)
        await again.wait()
        group.cancel_scope.cancel()
    assert store.incoming.names() == []


def test_so_many_bytes_are_kept(tmp_path: Path) -> None:
    with ModelStore(tmp_path / "store", Role.EVALUATOR_A, unfinished=3 * SIZES[0]) as store:
        for number in range(3):
            cut(store, f"m{number}", 100.0 - number)
        assert store.incoming.names() == ["m2"]  # the journal counts too
    with ModelStore(tmp_path / "store", Role.EVALUATOR_A, unfinished=0) as store:
        assert store.incoming.names() == []
        assert not (store.folder / incoming.FOLDER).exists()


def test_what_is_under_way_stays(tmp_path: Path) -> None:
    with ModelStore(tmp_path / "store", Role.EVALUATOR_A, unfinished=0) as store:
        draft = store.draft("tiny", UPLOAD)
        send(draft, 2, 10)
        store.incoming.tidy()
        assert not store.incoming.remove("tiny")
        draft.discard()
        complete(store)


def test_removal(store: ModelStore) -> None:
    cut(store, "tiny")
    assert store.incoming.remove("tiny")
    assert not store.incoming.remove("tiny")
    assert held(store) == {}


def test_a_full_disk_leaves_what_was_there(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = store.draft("tiny", UPLOAD)
    send(draft, 2)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match=r"its disk is full: .*the same `puma upload` again"):
            draft.finish(PLAN)
    draft.suspend()
    assert held(store)[words_file(0)] == SIZES[0]
    complete(store)
