"""The queue behind every channel: order, sizes, ends, and who is woken by what."""

import asyncio
from collections.abc import Callable, Coroutine

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from waiting import settled

from protocols.errors import LocalProtocolError, RemoteProtocolError, TransportError
from puma_actors.transports import ChannelEnded
from puma_actors.transports.frame_queue import FrameQueue
from puma_actors.transports.frames import Frame, Kind


def numbered(index: int) -> Frame:
    return Frame(Kind.DATA, tag=(index,))


def filled(count: int, eased: Callable[[int], None] = lambda size: None) -> FrameQueue:
    """Frames 0, 1, ... of 10 bytes each."""
    queue = FrameQueue("left", eased)
    for index in range(count):
        queue.put(numbered(index), 10)
    return queue


ENDS: dict[str, Callable[[FrameQueue], None]] = {
    "end": FrameQueue.end,
    "lose": lambda queue: queue.lose(TransportError("the cable")),
    "fail": lambda queue: queue.fail(RemoteProtocolError("nonsense")),
    "close": FrameQueue.close,
}
REASONS = {
    "end": (ChannelEnded, "left has finished"),
    "lose": (TransportError, "the cable"),
    "fail": (RemoteProtocolError, "nonsense"),
    "close": (TransportError, "this side has closed the channel"),
}


async def test_frames_are_taken_in_order_and_counted():
    eased: list[int] = []
    queue = filled(3, eased.append)
    assert (len(queue), queue.held) == (3, 30)
    assert [(await queue.take()).tag[0] for _ in range(3)] == [0, 1, 2]
    assert (len(queue), queue.held, eased) == (0, 0, [10, 10, 10])


@pytest.mark.parametrize("name", ENDS)
async def test_an_end_wakes_everybody(name):
    queue = filled(0)
    takers = [asyncio.ensure_future(queue.take()) for _ in range(3)]
    pump = asyncio.ensure_future(queue.pump(lambda frame: None))
    await settled()
    assert not any(each.done() for each in (*takers, pump))
    ENDS[name](queue)
    await settled()
    kind, text = REASONS[name]
    for each in takers if name == "end" else (*takers, pump):
        with pytest.raises(kind, match=text):
            each.result()
    if name == "end":
        assert pump.result() is None
    assert queue.over


@pytest.mark.parametrize("name", ENDS)
async def test_what_waits_is_kept_by_an_end_in_order_and_a_loss_alone(name):
    eased: list[int] = []
    queue = filled(2, eased.append)
    ENDS[name](queue)
    if name in ("end", "lose"):
        assert [(await queue.take()).tag[0] for _ in range(2)] == [0, 1]
        assert not queue.refusing
    else:
        assert (len(queue), queue.held, eased) == (0, 0, [0])
        assert queue.refusing
    for _ in range(2):
        with pytest.raises(REASONS[name][0], match=REASONS[name][1]):
            await queue.take()


@pytest.mark.parametrize("name", ["lose", "fail", "close"])
def test_what_comes_too_late_is_dropped(name):
    queue = filled(0)
    ENDS[name](queue)
    queue.put(numbered(0), 10)
    assert (len(queue), queue.held) == (0, 0)


def test_a_frame_after_the_last_one_is_malformed():
    queue = filled(1)
    queue.end()
    with pytest.raises(RemoteProtocolError, match="DATA frame after the last one"):
        queue.put(numbered(1), 10)
    assert len(queue) == 1


@pytest.mark.parametrize(
    ("ends", "shown"),
    [
        (["lose", "end"], "lose"),
        (["end", "lose"], "end"),
        (["end", "fail"], "fail"),
        (["lose", "fail"], "fail"),
        (["lose", "close"], "close"),
        (["fail", "close"], "fail"),
        (["close", "fail"], "close"),
    ],
)
def test_which_reason_is_shown(ends, shown):
    queue = filled(0)
    for name in ends:
        ENDS[name](queue)
    with pytest.raises(REASONS[shown][0], match=REASONS[shown][1]):
        queue.check()


@pytest.mark.parametrize("name", ["lose", "fail"])
def test_the_first_error_stays(name):
    queue = filled(0)
    ENDS[name](queue)
    getattr(queue, name)(TransportError("another"))
    with pytest.raises(REASONS[name][0], match=REASONS[name][1]):
        queue.check()


async def test_a_cancelled_taker_leaves_no_hole():
    """Not even one that was woken by a frame already."""
    queue = filled(0)
    first, second = (asyncio.ensure_future(queue.take()) for _ in range(2))
    await settled()
    queue.put(numbered(0), 10)
    first.cancel()
    await settled()
    assert first.cancelled()
    assert second.result().tag == (0,)
    queue.put(numbered(1), 10)
    assert (await queue.take()).tag == (1,)


async def test_a_cancelled_pump_leaves_the_rest():
    queue, got = filled(1), []
    pump = asyncio.ensure_future(queue.pump(lambda frame: got.append(frame.tag[0])))
    await settled()
    queue.put(numbered(1), 10)
    pump.cancel()
    queue.put(numbered(2), 10)  # the pump has not noticed yet
    await settled()
    assert not queue.pumped
    queue.put(numbered(3), 10)
    assert got == [0, 1, 2]
    assert (await queue.take()).tag == (3,)


async def test_a_second_pump_is_refused_and_does_not_stop_the_first():
    queue, got = filled(0), []
    first = asyncio.ensure_future(queue.pump(got.append))
    await settled()
    with pytest.raises(LocalProtocolError, match="pumped already"):
        await queue.pump(lambda frame: None)
    queue.put(numbered(0), 10)
    assert len(got) == 1
    queue.end()
    await first


async def test_frames_that_a_sink_brings_about_do_not_overtake():
    """Over memory:// a sink may answer, and be answered, in the same call."""
    queue, got = filled(3), []

    def sink(frame: Frame) -> None:
        got.append(frame.tag[0])
        if len(got) < 3:
            queue.put(numbered(10 + len(got)), 10)

    pump = asyncio.ensure_future(queue.pump(sink))
    await settled()
    assert got == [0, 1, 2, 11, 12]
    queue.end()
    await pump


@pytest.mark.parametrize("early", [True, False])
async def test_what_a_sink_raises_is_raised_by_the_pump_alone(early):
    """Even if the connection is lost behind the frame it fails on."""
    queue = filled(2 if early else 0)
    if early:
        queue.lose(TransportError("the cable"))

    def sink(frame: Frame) -> None:
        raise ValueError("indigestible")

    pump = asyncio.ensure_future(queue.pump(sink))
    await settled()
    if not early:
        queue.put(numbered(0), 10)
        await settled()
    with pytest.raises(ValueError, match="indigestible"):
        pump.result()
    assert queue.refusing
    assert len(queue) == 0


async def test_room_is_told_before_a_sink_gets_the_frame():
    events: list[str] = []
    queue = filled(1, lambda size: events.append(f"eased {size}"))
    pump = asyncio.ensure_future(queue.pump(lambda frame: events.append(f"frame {frame.tag[0]}")))
    await settled()
    queue.put(numbered(1), 7)
    assert events == ["eased 10", "frame 0", "eased 7", "frame 1"]
    queue.close()
    with pytest.raises(TransportError):
        await pump


class Queues(RuleBasedStateMachine):
    """Any order of frames, takers, pumps, cancellations and ends. All frames that were accepted are
    given out once and in order, but for those that a failure or `close` drops.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.eased: list[int] = []
        self.queue = FrameQueue("left", self.eased.append)
        self.sizes: list[int] = []
        self.taken: list[int] = []
        self.dropped = False
        self.takers: list[asyncio.Task[None]] = []
        self.pump: asyncio.Task[None] | None = None

    def turn(self) -> None:
        """Everybody does what they can."""
        self.loop.run_until_complete(settled())

    def begin(self, work: Coroutine[None, None, None]) -> "asyncio.Task[None]":
        task = self.loop.create_task(work)
        self.turn()
        return task

    async def one(self) -> None:
        self.taken.append((await self.queue.take()).tag[0])

    @precondition(lambda self: not self.queue.over)
    @rule(sizes=st.lists(st.integers(0, 100), min_size=1, max_size=4))
    def come(self, sizes):
        for size in sizes:
            self.queue.put(numbered(len(self.sizes)), size)
            self.sizes.append(size)
        self.turn()

    @precondition(lambda self: self.pump is None)
    @rule()
    def take(self):
        self.takers.append(self.begin(self.one()))

    @precondition(lambda self: self.pump is None and not self.takers)
    @rule()
    def begin_pump(self):
        self.pump = self.begin(self.queue.pump(lambda frame: self.taken.append(frame.tag[0])))

    @rule(data=st.data(), size=st.integers(0, 100), woken=st.booleans())
    def cancel(self, data, size, woken):
        running = [*self.takers, *([self.pump] if self.pump else [])]
        if not running:
            return
        if woken and not self.queue.over:
            self.queue.put(numbered(len(self.sizes)), size)
            self.sizes.append(size)
        data.draw(st.sampled_from(running)).cancel()
        self.turn()

    @rule(name=st.sampled_from(sorted(ENDS)))
    def finish(self, name):
        self.dropped |= name in ("fail", "close")
        ENDS[name](self.queue)
        self.turn()

    @invariant()
    def frames_are_given_out_once_and_in_order(self):
        assert self.taken == list(range(len(self.taken)))
        if not self.dropped:
            assert len(self.taken) + len(self.queue) == len(self.sizes)

    @invariant()
    def sizes_add_up(self):
        assert sum(self.eased) == sum(self.sizes[: len(self.taken)])
        waiting = [] if self.dropped else self.sizes[len(self.taken) :]
        assert self.queue.held == sum(waiting)

    @invariant()
    def nobody_waits_in_vain(self):
        self.takers = [each for each in self.takers if not self.ended(each)]
        if self.pump is not None and self.ended(self.pump):
            self.pump = None
        if self.takers or self.pump is not None:
            assert len(self.queue) == 0
            assert not self.queue.over
        assert self.queue.pumped == (self.pump is not None)

    def ended(self, task: "asyncio.Task[None]") -> bool:
        """What it raised, it may raise."""
        if task.done() and not task.cancelled() and task.exception() is not None:
            assert isinstance(task.exception(), TransportError | RemoteProtocolError)
            assert self.queue.over
        return task.done()

    def teardown(self) -> None:
        for task in [*self.takers, *([self.pump] if self.pump else [])]:
            task.cancel()
        self.turn()
        self.loop.close()


TestQueues = Queues.TestCase
TestQueues.settings = settings(max_examples=50, stateful_step_count=20, deadline=None)
