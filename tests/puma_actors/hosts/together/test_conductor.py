"""Which requests step together, and who waits for whom; without any computation."""

from collections.abc import Callable

import anyio
import pytest
from waiting import in_time, settled

from protocols.base.lane import Settings
from protocols.errors import RemoteProtocolError
from puma_actors.hosts.together import conductor
from puma_actors.hosts.together.conductor import Conductor
from puma_actors.hosts.together.messages import JointMessage, parse
from puma_actors.hosts.together.seats import Place, Seat

USUAL = Settings()


class Stage:
    """A conductor whose steps end when the test says so.

    Attributes:
        taken: the first bytes of the members' sessions, of each step.
    """

    def __init__(self, most: int = 8) -> None:
        self.taken: list[list[int]] = []
        self._ends: list[anyio.Event] = []
        self.conductor = Conductor(most, self._announce)

    async def _announce(self, message: JointMessage) -> None:
        self.taken.append([int(member.session[:2], 16) for member in message.members])
        self._ends.append(anyio.Event())
        await self._ends[-1].wait()

    def place(self, who: int, number: int = 1, settings: Settings = USUAL) -> Place:
        """A step that looks up its input."""
        place = Place(_seat(who), number, settings, 3)
        self.conductor.expect(place)
        return place

    def ready(self, *places: Place) -> None:
        for place in places:
            self.conductor.ready(place)

    def end(self, step: int, *places: Place) -> None:
        """End a step; its members have their results."""
        for place in places:
            place.finish(object())  # type: ignore[arg-type]
            self.conductor.leave(place)
        self._ends[step].set()


_SEATS: dict[int, Seat] = {}


def _seat(who: int) -> Seat:
    return _SEATS.setdefault(who, Seat(bytes([who]) * 16))


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Those that are ready wait forever for those that may be ready soon."""
    _SEATS.clear()
    monkeypatch.setattr(conductor, "PATIENCE", 1e12)
    return lambda value: monkeypatch.setattr(conductor, "PATIENCE", value)


async def staged(stage: Stage, play: Callable[[], object]) -> None:
    with in_time():
        async with anyio.create_task_group() as group:
            group.start_soon(stage.conductor.run)
            await play()  # type: ignore[misc]
            group.cancel_scope.cancel()


async def test_those_that_are_ready_step_together() -> None:
    stage = Stage()

    async def play() -> None:
        one, two = stage.place(1), stage.place(2)
        stage.ready(one, two)
        await settled()
        assert stage.taken == [[1, 2]]
        three = stage.place(3)
        stage.ready(three)
        await settled()
        assert len(stage.taken) == 1  # the step that runs comes first
        stage.end(0, one, two)
        await settled()
        assert len(stage.taken) == 1  # the others are between two steps
        again = stage.place(1, 2), stage.place(2, 2)
        stage.ready(*again)
        await settled()
        assert stage.taken[1:] == [[3, 1, 2]]

    await staged(stage, play)


async def test_one_that_is_over_is_not_waited_for() -> None:
    stage = Stage()

    async def play() -> None:
        one, two = stage.place(1), stage.place(2)
        stage.ready(one, two)
        await settled()
        stage.end(0, one, two)
        stage.ready(stage.place(1, 2))
        await settled()
        assert len(stage.taken) == 1
        two.seat.over = lambda number: True
        stage.conductor.note()
        await settled()
        assert stage.taken[1:] == [[1]]

    await staged(stage, play)


async def test_one_that_was_left_behind_is_not_waited_for_again(
    patient: Callable[[float], None],
) -> None:
    stage = Stage()

    async def play() -> None:
        one, slow = stage.place(1), stage.place(2)
        stage.ready(one)  # nothing is known of how long a step takes: it begins at once
        await settled()
        assert stage.taken == [[1]]
        stage.end(0, one)
        again = stage.place(1, 2)
        stage.ready(again)
        await settled()
        assert stage.taken[1:] == [[1]]
        stage.end(1, again)
        last = stage.place(1, 3)
        stage.ready(slow)  # but it waits for the other, which has just stepped
        await settled()
        assert len(stage.taken) == 2
        stage.ready(last)
        await settled()
        assert stage.taken[2:] == [[2, 1]]

    await staged(stage, play)


async def test_nobody_waits_longer_than_a_part_of_a_step(
    patient: Callable[[float], None],
) -> None:
    patient(0.0)
    stage = Stage()

    async def play() -> None:
        one, two = stage.place(1), stage.place(2)
        stage.ready(one, two)
        await settled()
        stage.end(0, one, two)
        stage.ready(stage.place(1, 2))
        await settled()
        assert stage.taken == [[1, 2], [1]]

    await staged(stage, play)


async def test_at_most_so_many() -> None:
    stage = Stage(most=2)

    async def play() -> None:
        places = [stage.place(who) for who in (1, 2, 3)]
        stage.ready(*places)
        await settled()
        assert stage.taken == [[1, 2]]
        stage.end(0, *places[:2])
        more = stage.place(1, 2), stage.place(2, 2)
        stage.ready(more[1], more[0])
        await settled()
        assert stage.taken[1:] == [[3, 2]]  # first come, first served

    await staged(stage, play)


async def test_other_settings_step_apart_and_at_the_same_time() -> None:
    stage = Stage()

    async def play() -> None:
        stage.ready(stage.place(1), stage.place(2, settings=Settings(tree="traffic")))
        await settled()
        assert sorted(stage.taken) == [[1], [2]]

    await staged(stage, play)


async def test_one_that_is_given_up_before_its_step() -> None:
    stage = Stage()

    async def play() -> None:
        first, second = stage.place(1), stage.place(2)
        stage.ready(first)
        await settled()
        stage.ready(second)
        stage.conductor.leave(second)
        stage.end(0, first)
        await settled()
        assert stage.taken == [[1]]

    await staged(stage, play)


async def test_settings_of_clients_do_not_pile_up() -> None:
    stage = Stage()
    for lanes in range(1, 1000):
        stage.conductor.leave(stage.place(1, settings=Settings(lanes=lanes)))
    assert len(stage.conductor._groups) <= 64


def message(**changes: object) -> dict[str, object]:
    member = {"session": "00" * 16, "number": 1, "context": 3}
    return {"do": "joint", "number": 0, "members": [member], **changes}


def test_what_a_message_says_is_bound_to_its_masks() -> None:
    other = [{"session": "00" * 16, "number": 1, "context": 4}]
    found = {parse(message(**each)).binding() for each in ({}, {"members": other}, {"lanes": 2})}
    assert len(found) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"members": []},
        {"members": [message()["members"][0]] * 2},  # type: ignore[index]
        {"members": [{"session": "00", "number": 1, "context": 3}]},
        {"members": [{"session": "00" * 16, "number": 1, "context": 1 << 20}]},
        {"members": [{"session": "00" * 16, "number": 1}]},
        {"members": [message()["members"][0]] * 1025},  # type: ignore[index]
        {"number": -1},
        {"block": 0},
        {"tree": "oak"},
        {"do": "other"},
        {"more": 1},
    ],
)
def test_bad_messages(changes: dict[str, object]) -> None:
    with pytest.raises(RemoteProtocolError, match="joint step"):
        parse(message(**changes))
