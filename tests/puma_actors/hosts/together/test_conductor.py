"""Which requests step together, and who waits for whom; without any computation."""

from collections.abc import Callable

import anyio
import pytest
from waiting import in_time, settled, until

from protocols.base.lane import Settings
from protocols.errors import RemoteProtocolError
from puma_actors.hosts.together import conductor
from puma_actors.hosts.together.conductor import Conductor
from puma_actors.hosts.together.messages import AheadMessage, DropMessage, JointMessage, parse
from puma_actors.hosts.together.seats import Place, Seat

USUAL = Settings()


class Stage:
    """A conductor whose steps end when the test says so.

    Attributes:
        taken: the first bytes of the members' sessions, of each step; in the order of `ready` if
            nobody was foretold.
        gone: those of each step that were said to be gone.
        ahead: the members of the step that the dealer was told of, by number.
        right, wrong: the numbers of those that were taken, and of those that were not.
        useless: the members of a step that is dropped because they are all gone.
    """

    def __init__(self, most: int = 8) -> None:
        self.taken: list[list[int]] = []
        self.gone: list[list[int]] = []
        self.ahead: dict[int, list[int]] = {}
        self.right: list[int] = []
        self.wrong: list[int] = []
        self.useless: list[int] = []
        self._numbers: list[int] = []
        self._ends: list[anyio.Event] = []
        self.conductor = Conductor(most, self)

    async def announce(self, message: JointMessage) -> bool:
        who = _members(message)
        assert not self._numbers or message.number not in self._numbers
        self._numbers.append(message.number)
        if message.number in self.ahead:
            assert self.ahead.pop(message.number) == who
            self.right.append(message.number)
        self.taken.append(who)
        self.gone.append([who[place] for place in message.gone])
        self._ends.append(anyio.Event())
        await self._ends[-1].wait()
        return self.taken[-1] != self.useless

    async def foretell(self, message: JointMessage) -> None:
        assert message.number not in (*self.ahead, *self._numbers, *self.wrong)
        self.ahead[message.number] = _members(message)

    async def withdraw(self, number: int) -> None:
        del self.ahead[number]
        self.wrong.append(number)

    @property
    def foretold(self) -> list[list[int]]:
        """The members of the steps that the dealer works for now, in any order."""
        return [sorted(who) for who in self.ahead.values()]

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


def _members(message: JointMessage) -> list[int]:
    return [int(member.session[:2], 16) for member in message.members]


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
        assert stage.taken[1:] == [[1, 2]]  # the dealer has dealt for both
        assert stage.gone[1:] == [[2]]

    await staged(stage, play)


async def test_one_that_was_left_behind_is_not_waited_for_again(
    patient: Callable[[float], None],
) -> None:
    stage = Stage()

    async def play() -> None:
        one, slow = stage.place(1), stage.place(2)
        stage.ready(one)  # nothing is known of how long a step takes: as long as a look-up
        await until(lambda: stage.taken)
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


async def test_a_step_that_is_dropped_says_nothing_of_how_long_steps_take() -> None:
    stage = Stage()
    stage.useless = [1]

    async def play() -> None:
        one = stage.place(1)
        group = stage.conductor._group(one)
        stage.ready(one)
        await until(lambda: stage.taken)
        stage.conductor.leave(one)
        stage.end(0)
        await settled()
        assert group.last is None
        two = stage.place(2)
        stage.ready(two)
        await settled()
        stage.end(1, two)
        await settled()
        assert group.last is not None

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
        assert stage.taken[1:] == [[3, 1]]  # as the dealer was told; the others come first
        stage.end(1, places[2], more[0])
        stage.ready(stage.place(3, 2), stage.place(1, 3))
        await settled()
        assert stage.taken[2:] == [[2, 3]]
        assert not stage.wrong

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
        await until(lambda: stage.taken)
        stage.ready(second)
        stage.conductor.leave(second)
        stage.end(0, first)
        await settled()
        assert stage.taken == [[1]]

    await staged(stage, play)


async def test_before_the_first_step_those_that_begin_together_wait_for_each_other() -> None:
    stage = Stage()

    async def play() -> None:
        one, two = stage.place(1), stage.place(2)
        stage.conductor._group(one).looking[one] -= 1e9  # it has looked up for so long
        stage.ready(one)
        await settled()
        assert not stage.taken
        stage.ready(two)
        await settled()
        assert stage.taken == [[1, 2]]

    await staged(stage, play)


async def test_the_dealer_is_told_of_the_next_step_while_one_runs() -> None:
    stage = Stage()

    async def play() -> None:
        one, two = stage.place(1), stage.place(2)
        await settled()
        assert stage.foretold == [[1, 2]]  # before they are ready
        stage.ready(one, two)
        await settled()
        assert stage.right
        for number in (2, 3):
            assert stage.foretold == [[1, 2]]
            stage.end(number - 2, one, two)
            one, two = stage.place(1, number), stage.place(2, number)
            stage.ready(two, one)
            await settled()
        assert [sorted(who) for who in stage.taken] == [[1, 2]] * 3
        assert len(stage.right) == 3
        assert not stage.wrong

    await staged(stage, play)


async def test_one_that_comes_meanwhile_joins_what_is_foretold() -> None:
    stage = Stage()

    async def play() -> None:
        one = stage.place(1)
        stage.ready(one)
        await settled()
        assert stage.foretold == [[1]]
        two = stage.place(2)
        await settled()
        assert stage.foretold == [[1, 2]]
        stage.ready(two)
        stage.end(0, one)
        stage.ready(stage.place(1, 2))
        await settled()
        assert stage.taken == [[1], [2, 1]]

    await staged(stage, play)


async def test_a_late_one_is_dealt_for_in_vain(patient: Callable[[float], None]) -> None:
    stage = Stage()

    async def play() -> None:
        one, slow = stage.place(1), stage.place(2)
        stage.ready(one, slow)
        await settled()
        patient(0.0)
        stage.end(0, one, slow)
        again, late = stage.place(1, 2), stage.place(2, 2)
        foretold = list(stage.ahead)
        stage.ready(again)
        await until(lambda: stage.taken[1:])
        assert stage.taken[1:] == [[1]]
        assert set(foretold) <= set(stage.wrong)
        assert stage.gone == [[], []]  # it is not gone, and has its turn
        await settled()
        assert stage.foretold == [[1]]
        stage.ready(late)
        await settled()
        assert stage.foretold == [[1, 2]]

    await staged(stage, play)


async def test_nobody_is_dealt_for_after_the_last_step() -> None:
    stage = Stage()

    async def play() -> None:
        last = Place(_seat(1), 1, USUAL, 3, last=True)
        stage.conductor.expect(last)
        stage.ready(last)
        await settled()
        assert stage.taken == [[1]]
        assert not stage.ahead

    await staged(stage, play)


async def test_what_is_foretold_is_dropped_when_all_are_gone_and_at_the_end() -> None:
    stage = Stage()

    async def play() -> None:
        one, other = stage.place(1), stage.place(2, settings=Settings(tree="traffic"))
        stage.ready(one, other)
        await settled()
        assert sorted(stage.foretold) == [[1], [2]]
        stage.end(stage.taken.index([1]), one)
        one.seat.over = lambda number: True
        stage.conductor.note()
        await settled()
        assert stage.foretold == [[2]]
        await stage.conductor.close()
        await settled()
        assert not stage.ahead

    await staged(stage, play)


async def test_the_dealer_works_for_few_settings_at_a_time() -> None:
    stage = Stage()

    async def play() -> None:
        for lanes in range(1, 20):
            stage.place(lanes, settings=Settings(lanes=lanes))
        await settled()
        assert len(stage.ahead) == 8

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
    changes: list[dict[str, object]] = [{}, {"members": other}, {"lanes": 2}, {"gone": [0]}]
    found = [parse(message(**each)) for each in changes]
    assert all(isinstance(each, JointMessage) for each in found)
    bound = [each.binding() for each in found if isinstance(each, JointMessage)]
    assert len(set(bound)) == 3
    assert bound[0] == bound[3]  # who is gone is not known when the dealer begins
    ahead = AheadMessage(step=JointMessage.model_validate(message(lanes=2)))
    assert parse(ahead.header()) == ahead
    assert parse(DropMessage(number=3).header()) == DropMessage(number=3)


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
        {"gone": [1]},
        {"gone": [-1]},
        {"do": "ahead"},
        {"do": "drop"},
        {"block": 0},
        {"tree": "oak"},
        {"do": "other"},
        {"more": 1},
    ],
)
def test_bad_messages(changes: dict[str, object]) -> None:
    with pytest.raises(RemoteProtocolError, match="joint step"):
        parse(message(**changes))
