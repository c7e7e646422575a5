"""The round scheduler against the lockstep driver."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import anyio
import numpy as np
import pytest
from scheduling import PROGRAMS, SESSION, A, B, D, forked, hostile, on_lane, run, schedulers
from waiting import HANG, until

from protocols.base.cost import Cost
from protocols.base.lane import Lane, Settings
from protocols.base.shares import COMPUTING, EVALUATORS, Role
from protocols.drivers.lockstep import run_parties
from protocols.errors import LocalProtocolError
from puma_actors.base.compute import Compute
from puma_actors.session.handshake import Peer
from puma_actors.session.session import RoundScheduler
from puma_actors.transports.memory import memory_pair


@pytest.mark.parametrize("codec", [False, True])
@pytest.mark.parametrize("program", PROGRAMS)
async def test_same_as_lockstep(program: Callable[[Lane], Any], codec: bool) -> None:
    clocks: dict[Role, int] = {}

    async def noted(lane: Lane) -> Any:
        result = await program(lane)
        clocks[lane.role] = lane.clock
        return result

    expected = run_parties(dict.fromkeys(COMPUTING, noted))
    found = await run(schedulers(codec=codec), dict.fromkeys(COMPUTING, on_lane(program)))
    total = Cost()
    for role in COMPUTING:
        result, clock, traffic = found[role]
        assert clock == clocks[role]
        total += Cost(0, traffic.online_bytes, traffic.offline_bytes)
        if role is not D:
            assert result == expected.results[role]
    assert total == Cost(0, expected.cost.online, expected.cost.offline)
    assert max(clock for _, clock, _ in found.values()) == expected.cost.rounds


async def test_inferences_are_multiplexed() -> None:
    async def several(scheduler: RoundScheduler) -> Any:
        results: dict[int, Any] = {}

        async def one(number: int) -> None:
            results[number] = (await on_lane(forked, number)(scheduler))[0]

        async with anyio.create_task_group() as group:
            for number in (5, 2, 9):
                group.start_soon(one, number)
        assert results[5] == results[2] == results[9]
        return results[2]

    found = await run(schedulers(), dict.fromkeys(COMPUTING, several))
    assert found[A] == run_parties(dict.fromkeys(COMPUTING, forked)).results[A]


async def test_streams_differ_between_inferences_and_numbers_serve_once() -> None:
    drawn: dict[Role, list[list[int]]] = {A: [], B: []}

    async def party(scheduler: RoundScheduler) -> None:
        for number in (1, 2):
            async with scheduler.link(number) as link:
                lane = Lane(link)
                drawn[link.role].append(lane.draw(lane.peer, (4,)).tolist())
        with pytest.raises(LocalProtocolError, match="inference number 1 is used"):
            scheduler.link(1)
        with pytest.raises(LocalProtocolError, match="inference 2 has ended"):
            await link.receive(lane.peer, (1,))
        with pytest.raises(LocalProtocolError, match="inference 2 has ended"):
            await link.send(lane.peer, (1,), [b"x"], online=True)
        with pytest.raises(LocalProtocolError, match="-1"):
            scheduler.link(-1)
        with pytest.raises(LocalProtocolError, match="no channel to owner"):
            scheduler.port(Role.OWNER)

    found = await run(schedulers(EVALUATORS), {A: party, B: party})
    assert found == {A: None, B: None}
    assert drawn[A] == drawn[B]
    assert drawn[A][0] != drawn[A][1]


async def test_settings_reach_the_link() -> None:
    settings = Settings(approximation="puma")
    scheduler = schedulers(EVALUATORS, settings=settings)[A]
    assert scheduler.link(1).settings is settings
    assert scheduler.link(2, Settings(lanes=3)).settings.lanes == 3


async def test_gather_raises_the_error_itself_and_cancels_the_others() -> None:
    cancelled = []

    async def fails(lane: Lane) -> None:
        await asyncio.sleep(0)
        raise KeyError("mine")

    async def waits(lane: Lane) -> None:
        try:
            await lane.receive_bytes(B, 1)
        except asyncio.CancelledError:
            cancelled.append(lane.path)
            raise

    async def program(scheduler: RoundScheduler) -> None:
        async with scheduler.link(1) as link:
            with pytest.raises(KeyError, match="mine"):
                await Lane(link).parallel([waits, fails, waits])
            assert len(cancelled) == 2
            assert await link.gather([]) == []

    assert await hostile([], program) is None


async def test_deferred_work_is_awaited_and_its_failure_cancels_the_inference() -> None:
    done = []

    async def later() -> None:
        await asyncio.sleep(0)
        done.append(1)

    async def breaks() -> None:
        await asyncio.sleep(0)
        raise KeyError("deferred")

    async def program(scheduler: RoundScheduler) -> None:
        async with scheduler.link(1) as link:
            await link.defer(later())
        assert done == [1]
        with pytest.raises(KeyError, match="deferred"):
            async with scheduler.link(2) as link:
                await link.defer(breaks())
                await link.receive(B, (1,))
        with pytest.raises(ValueError, match="before it began"):
            async with scheduler.link(3) as link:
                await link.defer(later())
                raise ValueError("before it began")
        with pytest.raises(LocalProtocolError, match="async with"):
            await scheduler.link(4).defer(later())

    assert await hostile([], program) is None


@pytest.mark.parametrize("early", [True, False])
async def test_the_dealer_answers_first_where_the_input_comes_at_once(early: bool) -> None:
    """Otherwise it deals for what follows until then."""
    order = list[str]()

    async def answer(lane: Lane) -> None:
        await lane.receive_bytes(A, 1)
        order.append("answered")

    async def dealer(scheduler: RoundScheduler) -> None:
        async with scheduler.link(1) as link:
            link.early = early
            lane = Lane(link)
            (strand,) = lane.fork(1)
            await strand.defer(answer(strand))
            await lane.broadcast(1, np.zeros(1, np.uint8))
            order.append("dealt")

    async def evaluator(lane: Lane) -> None:
        (strand,) = lane.fork(1)
        if early:
            await lane.broadcast(1)
        if lane.role is A:
            await strand.send_bytes(D, np.zeros(1, np.uint8), online=True)
        if not early:
            await lane.broadcast(1)

    found = await run(schedulers(), {**dict.fromkeys((A, B), on_lane(evaluator)), D: dealer})
    assert not [error for error in found.values() if isinstance(error, Exception)]
    assert order == (["dealt", "answered"] if early else ["answered", "dealt"])


async def test_small_work_runs_inline_and_large_work_on_few_threads() -> None:
    running, most = 0, 0
    lock = threading.Lock()

    def work(gate: threading.Event) -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        gate.wait(HANG)
        with lock:
            running -= 1
        return threading.current_thread().name

    compute = Compute(threads=2, threshold=100)
    main = threading.current_thread().name

    async def program(scheduler: RoundScheduler) -> None:
        async with scheduler.link(1) as link:
            gate = threading.Event()
            gate.set()
            assert await link.run(99, work, gate) == main
            gate.clear()

            async def open_gate() -> None:
                await until(lambda: running == 2)
                gate.set()

            async with anyio.create_task_group() as group:
                group.start_soon(open_gate)
                names = await link.gather([link.run(100, work, gate) for _ in range(8)])
            assert main not in names

    scheduler = schedulers((A, B), compute=compute)[A]
    async with scheduler.link(1) as link:
        assert await link.run(5, sum, (1, 2)) == 3
    left, _ = memory_pair()
    alone = RoundScheduler(A, [Peer(B, "b", SESSION, left, bytes(32))], compute=compute)
    async with alone.running():
        await program(alone)
    assert most == 2
