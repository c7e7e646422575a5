"""The units of a party: which fit, who gets the last one, and what is left after a restart."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from units import ORIGIN, SHAPE, UNIT, fill, fresh_keys, label_of, write_unit

from protocols.base.lane import Settings
from protocols.base.shares import Role
from protocols.errors import Busy, RemoteProtocolError, StoreError
from puma_actors.prepare import shelf as shelf_module
from puma_actors.prepare.shelf import Shelf
from puma_actors.prepare.unit import Origin, Shape, shape_of

A, D = Role.EVALUATOR_A, Role.DEALER
ONE = {(0, D, (1, 1)): b"one"}
UPLOADS = {ORIGIN.upload}


def shelf_in(folder: Path, limit: int = 1 << 30, **options: object) -> Shelf:
    made = Shelf(folder, A, limit, **options)  # type: ignore[arg-type]
    made.open(UPLOADS)
    return made


def name(number: int) -> str:
    return f"{number:032x}"


def fill_folder(folder: Path, count: int, shape: Shape = SHAPE) -> None:
    for number in range(count):
        write_unit(folder, ONE, label_of(name(number), shape=shape))


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": 4},
        {"rows": "all"},
        {"approximation": "fast"},
        {"tree": "traffic"},
        {"further_lanes": 2},
        {"reveal": "argmax"},
        {"steps": 3},
    ],
)
def test_a_unit_serves_its_shape_alone(tmp_path: Path, change: dict[str, object]) -> None:
    fill_folder(tmp_path, 1)
    shelf = shelf_in(tmp_path)
    assert shelf.find(ORIGIN, SHAPE) == name(0)
    assert shelf.find(ORIGIN, SHAPE.model_copy(update={"steps": 1})) == name(0)
    other = SHAPE.model_copy(update=change)
    assert shelf.find(ORIGIN, other) is None
    with pytest.raises(Busy, match="has no prepared unit"):
        shelf.claim(name(0), ORIGIN, other)


def test_the_unit_with_the_fewest_steps_left_over_is_taken(tmp_path: Path) -> None:
    for number, steps in enumerate((9, 4, 5)):
        shape = SHAPE.model_copy(update={"steps": steps})
        write_unit(tmp_path, ONE, label_of(name(number), shape=shape))
    shelf = shelf_in(tmp_path)
    assert shelf.find(ORIGIN, SHAPE.model_copy(update={"steps": 3})) == name(1)
    assert shelf.find(ORIGIN, SHAPE.model_copy(update={"steps": 6})) == name(0)


def test_a_unit_is_taken_once_even_by_many_at_once(tmp_path: Path) -> None:
    fill_folder(tmp_path, 1)
    claimed: list[str] = []
    shelf = shelf_in(tmp_path, claimed=claimed.append)

    def take(_: int) -> bool:
        try:
            shelf.claim(name(0), ORIGIN, SHAPE).close()
        except Busy:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(take, range(8))) == [False] * 7 + [True]
    assert claimed == [name(0)]
    assert list(tmp_path.iterdir()) == []
    assert shelf_in(tmp_path).find(ORIGIN, SHAPE) is None


def test_the_name_is_gone_for_good_before_the_keys_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_folder(tmp_path, 1)
    shelf = shelf_in(tmp_path)
    done: list[str] = []

    def note(what: str) -> object:
        real = getattr(shelf_module, what, None) or getattr(os, what)

        def call(*args: object) -> object:
            done.append(what)
            return real(*args)

        return call

    for module, what in ((os, "unlink"), (shelf_module, "sync_folder"), (shelf_module, "UnitFile")):
        monkeypatch.setattr(module, what, note(what))
    shelf.claim(name(0), ORIGIN, SHAPE).close()
    assert done == ["unlink", "sync_folder", "UnitFile"]


def test_a_damaged_unit_is_refused_by_name_and_never_offered_again(tmp_path: Path) -> None:
    fill_folder(tmp_path, 1)
    shelf = shelf_in(tmp_path)
    path = tmp_path / f"{name(0)}.unit"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(StoreError, match=f"prepared unit {name(0)} is damaged"):
        shelf.claim(name(0), ORIGIN, SHAPE)
    assert shelf.find(ORIGIN, SHAPE) is None
    assert list(tmp_path.iterdir()) == []


def test_a_unit_put_in_the_place_of_another_is_refused(tmp_path: Path) -> None:
    fill_folder(tmp_path, 2)
    shelf = shelf_in(tmp_path)
    (tmp_path / f"{name(1)}.unit").rename(tmp_path / f"{name(0)}.unit")
    with pytest.raises(StoreError, match="it was replaced by another one"):
        shelf.claim(name(0), ORIGIN, SHAPE)


def test_what_is_of_no_use_is_removed_at_the_start(tmp_path: Path) -> None:
    fill_folder(tmp_path, 1)
    other = {"upload": "c" * 32, "program": "d" * 32}
    for number, (key, value) in enumerate(other.items(), start=1):
        origin = ORIGIN.model_copy(update={key: value})
        write_unit(tmp_path, ONE, label_of(name(number), origin=origin))
    write_unit(tmp_path, ONE, label_of(name(3), role=Role.EVALUATOR_B))
    writer = shelf_in(tmp_path).begin(label_of(name(4)), fresh_keys(), 1000)
    fill(writer, ONE)  # finished, but not published
    (tmp_path / f"{name(5)}.unit").write_bytes(b"not a unit")
    (tmp_path / f"{name(6)}.unit").symlink_to(tmp_path / f"{name(0)}.unit")
    shelf = shelf_in(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{name(0)}.unit"]
    assert {shape: count for shape, (count, _) in shelf.stock(ORIGIN.upload).items()} == {SHAPE: 1}
    writer.drop()


def test_room_is_checked_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "units"
    shelf = shelf_in(folder, limit=1000)
    with pytest.raises(StoreError, match=r"do not fit at evaluator-a: .* raise limits.prepared"):
        shelf.begin(label_of(), fresh_keys(), 1001)
    assert not folder.exists()
    writer = shelf.begin(label_of(), fresh_keys(), 900)
    assert folder.stat().st_mode & 0o777 == 0o700
    with pytest.raises(StoreError, match="do not fit"):
        shelf.begin(label_of(name(1)), fresh_keys(), 101)
    fill(writer, ONE)
    shelf.publish(writer)
    shelf.abandon(writer, 900)
    assert shelf.used == writer.size == (folder / f"{UNIT}.unit").stat().st_size
    with pytest.raises(RemoteProtocolError, match="there is a prepared unit"):
        shelf.begin(label_of(), fresh_keys(), 10)
    monkeypatch.setattr(shelf_module, "SPARE_BYTES", 1 << 62)
    with pytest.raises(StoreError, match=r"do not fit on the disk of evaluator-a"):
        shelf.check_room(1)


def test_units_end_with_their_model(tmp_path: Path) -> None:
    fill_folder(tmp_path, 2)
    shelf = shelf_in(tmp_path)
    shelf.keep_only(UPLOADS)
    assert len(list(tmp_path.iterdir())) == 2
    shelf.keep_only(set())
    assert list(tmp_path.iterdir()) == []
    assert shelf.find(ORIGIN, SHAPE) is None
    assert shelf.used == 0


def test_the_shape_of_a_request() -> None:
    from models.programs.program import Batch
    from models.programs.steps import RequestSettings, StepSettings

    chosen = StepSettings(Settings(tree="rounds", lanes=2), Settings(tree="traffic", lanes=1))
    shape = shape_of(Batch((5,), "last"), 3, chosen)
    assert shape is not None
    assert (shape.batch(), shape.settings()) == (Batch((5,), "last"), chosen)
    assert shape_of(Batch((5, 2), "last"), 1, chosen) is None
    assert shape_of(Batch((2,), "last", (0, 1)), 1, chosen) is None
    assert shape_of(Batch((5,), "last"), 3, chosen, draft=4) is None
    assert not shape.allowed(RequestSettings(tree="rounds"))
    assert shape.allowed(RequestSettings())
    assert not shape.allowed(RequestSettings(approximation="fast"))
    assert Origin.model_validate(ORIGIN.model_dump()) == ORIGIN
