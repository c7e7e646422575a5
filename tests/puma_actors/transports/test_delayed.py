"""Delayed channels, by a clock that stands still while anything can happen (see `clock`): times are
exact. What every transport promises is tested in test_transports.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import numpy as np
import pytest
from clock import Clock, standing
from hypothesis import given
from hypothesis import strategies as st
from reference import save_model, save_tokenizer
from scheduling import PROGRAMS, on_lane, run, schedulers
from waiting import in_time, settled

from protocols.base.shares import COMPUTING, Role
from protocols.errors import RemoteProtocolError, TransportError
from puma_actors.api import requests
from puma_actors.api.local import LocalCluster
from puma_actors.roles.actor import Actor, connect_all
from puma_actors.transports import ChannelEnded
from puma_actors.transports.delay.alarm import Alarm, _LoopTimer
from puma_actors.transports.delay.channel import PIPE_BYTES, DelayedChannel, Line, delay
from puma_actors.transports.delay.network import Network, Route
from puma_actors.transports.frames import Frame, Kind, encode, wire_bytes
from puma_actors.transports.memory import memory_pair

A, B, D = Role.EVALUATOR_A, Role.EVALUATOR_B, Role.DEALER
PROMPT = "I see the red cat"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return standing(monkeypatch)


@asynccontextmanager
async def slow_pair(
    route: Route, *, codec: bool = False
) -> AsyncIterator[tuple[DelayedChannel, DelayedChannel]]:
    one, two = memory_pair(codec=codec)
    async with DelayedChannel(one, Line(route)) as left, DelayedChannel(two, Line(route)) as right:
        yield left, right
    assert len(asyncio.all_tasks()) == 1


def frame(index: int = 0, size: int = 0) -> Frame:
    return Frame(Kind.DATA, tag=(index,), buffers=[bytes(size)])


# -- arithmetic ------------------------------------------------------------------------------------


def test_a_frame_takes_its_length_and_the_latency() -> None:
    line = Line(Route(round_trip=0.5, bandwidth=8000))  # 1000 bytes a second
    assert line.arrival(10.0, 500) == 10.0 + 0.5 + 0.25
    # The link is busy until 10.5: this one starts then, and the next right behind it.
    assert line.arrival(10.25, 1000) == 10.5 + 1.0 + 0.25
    assert line.arrival(10.25, 0) == 11.5 + 0.25
    # Idle since 11.5: time that was not used is not saved up.
    assert line.arrival(20.0, 1000) == 20.0 + 1.0 + 0.25
    assert line.under_way == 250


def test_directions_do_not_share_and_no_bandwidth_is_no_bound() -> None:
    route = Route(round_trip=0.5, bandwidth=8000)
    there, back = Line(route), Line(route)
    there.arrival(0.0, 1000)
    assert back.arrival(0.0, 1000) == 1.25
    free = Line(Route(round_trip=0.5))
    assert [free.arrival(1.0, size) for size in (1 << 40, 0)] == [1.25, 1.25]
    assert free.under_way == 0


@given(
    gaps=st.lists(st.tuples(st.floats(0, 0.01), st.integers(0, 100_000)), max_size=50),
    seed=st.text(max_size=3),
)
def test_jitter_never_reorders_and_is_bounded(gaps: list[tuple[float, int]], seed: str) -> None:
    route = Route(round_trip=0.002, bandwidth=1e8, jitter=0.02)
    line, still = Line(route, seed), Line(Route(0.002, 1e8))
    now, before, latest = 100.0, 0.0, 0.0
    for gap, size in gaps:
        now += gap
        arrival, without = line.arrival(now, size), still.arrival(now, size)
        assert arrival >= before
        assert without <= arrival <= max(before, without + route.jitter / 2)
        before, latest = arrival, without
    assert before <= latest + route.jitter / 2


def test_equal_seeds_draw_equal_jitter() -> None:
    route = Route(jitter=0.01)

    def draws(seed: str) -> list[float]:
        line = Line(route, seed)
        return [line.arrival(float(moment), 0) for moment in range(20)]

    assert draws("1") == draws("1") != draws("2")
    assert len({arrival - moment for moment, arrival in enumerate(draws("1"))}) == 20
    network = Network("x", route, seed=5)

    async def of(sender: Role, receiver: Role) -> list[float]:
        async with delay(memory_pair()[0], network, sender=sender, receiver=receiver) as channel:
            return [channel._line.arrival(float(moment), 0) for moment in range(5)]

    there, again, back = (asyncio.run(of(*ends)) for ends in ((A, B), (A, B), (B, A)))
    assert there == again != back


@pytest.mark.parametrize(
    "sample",
    [
        frame(),
        Frame(Kind.BATCH, b"s" * 16, (1, 2**40), {"tags": [(1, 2)], "dealt": True}, [b"abc"]),
        Frame(Kind.DATA, buffers=[np.zeros((3, 5), np.uint8), b"", np.arange(7)]),
    ],
)
def test_frames_are_charged_their_wire_form(sample: Frame) -> None:
    assert wire_bytes(sample) == sum(piece.nbytes for piece in encode(sample))


# -- channels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("latency", [0.00025, 0.003, 0.03])
async def test_a_frame_is_delivered_after_the_latency(latency: float, clock: Clock) -> None:
    async with slow_pair(Route(2 * latency)) as (left, right):
        for _ in range(3):
            began = clock.now
            await left.send(frame())
            await right.receive()
            assert clock.now == began + latency


@pytest.mark.parametrize("latency", [0.00025, 0.003])
async def test_no_frame_is_early_by_the_real_clock(latency: float) -> None:
    async with slow_pair(Route(2 * latency)) as (left, right):
        began = time.monotonic()
        await left.send(frame())
        await right.receive()
        assert time.monotonic() - began >= latency


async def test_a_frame_that_waits_unread_travels_meanwhile(clock: Clock) -> None:
    async with slow_pair(Route(0.2)) as (left, right):
        began = clock.now
        await left.send(frame())
        await right._queue.changed.wait()
        assert clock.now == began + 0.1
        await right.receive()
        assert clock.now == began + 0.1


@pytest.mark.parametrize("codec", [False, True])
async def test_a_large_frame_holds_up_what_is_behind_it(codec: bool, clock: Clock) -> None:
    async with slow_pair(Route(0, bandwidth=8e7), codec=codec) as (left, right):  # 10 MB/s
        began = clock.now
        assert left.try_send(frame(1, 500_000))
        assert left.try_send(frame(2))
        assert (await right.receive()).tag == (1,)
        assert clock.now - began == pytest.approx(wire_bytes(frame(1, 500_000)) / 1e7)
        assert (await right.receive()).tag == (2,)
        began = clock.now
        await right.send(frame(3))
        await left.receive()  # the other direction is free
        assert clock.now - began == pytest.approx(wire_bytes(frame(3)) / 1e7)


async def test_many_frames_take_what_the_bandwidth_allows(clock: Clock) -> None:
    got: list[int] = []
    whole = asyncio.Event()

    def sink(each: Frame) -> None:
        got.append(each.tag[0])
        if len(got) == 100:
            whole.set()

    route = Route(0.001, bandwidth=8e8)  # 100 MB/s
    async with slow_pair(route) as (left, right), anyio.create_task_group() as group:
        group.start_soon(right.pump, sink)
        began = clock.now
        for index in range(100):
            await left.send(frame(index, 100_000))
        await whole.wait()
        nbytes = sum(wire_bytes(frame(index, 100_000)) for index in range(100))
        assert clock.now - began == pytest.approx(0.0005 + nbytes / 1e8)
        group.cancel_scope.cancel()
    assert got == list(range(100))


async def test_the_pipe_is_bounded_and_runs_on() -> None:
    size = 1 << 20
    route = Route(0.001, bandwidth=8e10)  # 10 GB/s
    async with slow_pair(route) as (left, right):
        count = 0
        while left.try_send(frame(count, size)):
            count += 1
            await asyncio.sleep(0)
            assert count < 200, "nothing held the sender back"
        inner = 64 << 20  # what memory:// holds
        assert right._held <= right._most + 2 * size
        assert PIPE_BYTES + inner <= (count + 1) * size
        for index in range(count):
            assert (await right.receive()).tag == (index,)
        await left.send(frame(count))
        assert (await right.receive()).tag == (count,)


async def test_the_end_arrives_after_what_was_sent_and_not_before(clock: Clock) -> None:
    async with slow_pair(Route(0.04)) as (left, right):
        began = clock.now
        await left.send(frame(1))
        await left.send_eof()
        with pytest.raises(TransportError, match="closed"):
            left.try_send(frame(2))
        assert (await right.receive()).tag == (1,)
        with pytest.raises(ChannelEnded, match="has finished"):
            await right.receive()
        assert clock.now == began + 0.02
        await right.send(frame(3))
        assert (await left.receive()).tag == (3,)


async def test_frames_to_a_side_that_has_left_are_lost_until_the_news_comes(clock: Clock) -> None:
    async with slow_pair(Route(0.04)) as (left, right):
        await left.aclose()
        assert right.try_send(frame())
        await right.send(frame())
        with pytest.raises(ChannelEnded):
            await right.receive()
        for send in (right.try_send, right.send):
            with pytest.raises(TransportError, match="other side has closed"):
                sent = send(frame())
                assert not isinstance(sent, bool)
                await sent


async def test_own_close_drops_what_is_on_its_way() -> None:
    async with slow_pair(Route(10)) as (left, right):
        await left.send(frame())
        async with anyio.create_task_group() as group:

            async def pump() -> None:
                with pytest.raises(TransportError, match="this side has closed"):
                    await right.pump(lambda each: pytest.fail("it was to take 5 s"))

            group.start_soon(pump)
            await settled()
            assert right._flying
            await right.aclose()
        with pytest.raises(TransportError, match="this side has closed"):
            await right.receive()


async def test_a_failing_sink_ends_the_pump_and_not_the_loop() -> None:
    async with slow_pair(Route(0.002)) as (left, right):
        await left.send(frame(1))
        await left.send(frame(2))

        def sink(each: Frame) -> None:
            raise RemoteProtocolError("nonsense")

        with pytest.raises(RemoteProtocolError, match="nonsense"):
            await right.pump(sink)
        assert not right._flying
        await right.send(frame(3))
        assert (await left.receive()).tag == (3,)


async def test_malformed_frames_are_told_as_by_the_inner_channel() -> None:
    one, two = memory_pair(codec=True)
    async with DelayedChannel(two, Line(Route(0.002))) as right:
        one._out.queue.fail(RemoteProtocolError("not a frame"))
        with pytest.raises(RemoteProtocolError, match="not a frame"):
            await right.receive()


# -- alarm -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", [False, True])
async def test_alarm_keeps_times_and_order(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if plain:
        monkeypatch.setattr("puma_actors.transports.delay.alarm._timer", _LoopTimer)
    alarm = Alarm.acquire()
    assert Alarm.acquire() is alarm
    called: list[tuple[float, float]] = []
    done = asyncio.Event()
    now = time.monotonic()

    def ring(when: float) -> None:
        called.append((when, time.monotonic()))
        if len(called) == 6:
            done.set()

    for ms in (30, 0.2, 5, 5, 1.5, -1):
        when = now + ms / 1000
        alarm.at(when, lambda when=when: ring(when))  # type: ignore[misc]
    with in_time():
        await done.wait()
    assert [when for when, _ in called] == sorted(when for when, _ in called)
    assert all(when <= actual for when, actual in called)
    alarm.at(time.monotonic(), lambda: pytest.fail("it was released"))
    alarm.release()
    alarm.release()
    fresh, later = Alarm.acquire(), asyncio.Event()
    assert fresh is not alarm
    fresh.at(time.monotonic() + 0.005, later.set)
    with in_time():
        await later.wait()
    fresh.release()


# -- sessions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
async def test_programs_give_the_same_behind_a_network(program) -> None:
    route = Route(0.002, 1e9, jitter=0.001)
    plain = await run(schedulers(), dict.fromkeys(COMPUTING, on_lane(program)))
    slow = schedulers(wrap=lambda channel: DelayedChannel(channel, Line(route)))
    began = time.monotonic()
    delayed = await run(slow, dict.fromkeys(COMPUTING, on_lane(program)))
    assert time.monotonic() - began >= route.latency
    assert len(asyncio.all_tasks()) == 1
    for role in COMPUTING:
        (result, clock, traffic), (expected, rounds, counted) = delayed[role], plain[role]
        assert (result, clock) == (expected, rounds)
        assert traffic.online_bytes == counted.online_bytes


async def test_links_differ_by_pair_of_roles(clock: Clock) -> None:
    network = Network("far", Route(0.001), ((("*", "dealer"), Route(0.06)),))
    actors = [Actor(role) for role in (A, B, D)]
    before = asyncio.all_tasks()
    await connect_all(actors, network=network)
    seconds: dict[Role, float] = {}

    async def party(actor: Actor) -> None:
        async with actor, actor.scheduler.link(1) as link:
            if actor.role is A:
                for peer in (B, D):
                    began = clock.now
                    await link.send(peer, (peer is D, 1), [b"x"], online=True)
                    await link.receive(peer, (peer is D, 1))
                    seconds[peer] = clock.now - began
            else:
                tag = (actor.role is D, 1)
                await link.receive(A, tag)
                await link.send(A, tag, [b"y"], online=True)

    async with anyio.create_task_group() as group:
        for actor in actors:
            group.start_soon(party, actor)
    assert seconds == {B: pytest.approx(0.001), D: pytest.approx(0.06)}
    assert asyncio.all_tasks() == before


async def test_a_cluster_answers_the_same_behind_a_network(tmp_path, monkeypatch) -> None:
    standing(monkeypatch, requests)
    folder = save_tokenizer(save_model(tmp_path, seed=3))
    answers, prefill = [], []
    for network in (None, "10ms,1gbit,jitter=2ms"):
        async with LocalCluster.from_pretrained(folder, network=network) as cluster:
            async for _ in cluster.generate(PROMPT, max_new_tokens=2):
                pass
            answers.append(cluster.usage.token_ids)
            prefill.append(cluster.usage.seconds["prefill"])
    assert answers[0] == answers[1]
    assert cluster.network is not None
    assert prefill[1] >= 0.005 * cluster.usage.steps[0].rounds  # one way each
