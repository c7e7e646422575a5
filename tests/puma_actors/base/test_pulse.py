"""Evaluators go first, and a dealer of the same process when they wait."""

import asyncio

import anyio

from puma_actors.base.compute import Compute
from puma_actors.base.pulse import Pulse


async def test_without_evaluators_nothing_is_waited_for() -> None:
    turns: list[int] = []
    asyncio.get_running_loop().call_soon(turns.append, 1)
    await Pulse().quiet()
    assert turns == []


async def test_it_is_quiet_once_the_evaluators_wait() -> None:
    pulse, order = Pulse(), list[str]()
    released = anyio.Event()

    async def evaluator() -> None:
        for number in range(5):
            pulse.beats += 1
            order.append(f"round {number}")
            await asyncio.sleep(0)
        await released.wait()
        order.append("released")

    async def dealer() -> None:
        await pulse.quiet()
        order.append("dealt")
        released.set()

    pulse.beats += 1
    async with anyio.create_task_group() as group:
        group.start_soon(dealer)
        group.start_soon(evaluator)
    assert order == [*(f"round {number}" for number in range(5)), "dealt", "released"]


async def test_who_waits_for_quiet_can_be_cancelled() -> None:
    pulse = Pulse()

    async def restless() -> None:
        while True:
            pulse.beats += 1
            await asyncio.sleep(0)

    async with anyio.create_task_group() as group:
        pulse.beats += 1
        group.start_soon(restless)
        with anyio.CancelScope() as scope:
            asyncio.get_running_loop().call_soon(scope.cancel)
            await pulse.quiet()
        assert scope.cancelled_caught
        group.cancel_scope.cancel()


def test_shares_of_a_pool_have_one_pulse() -> None:
    compute = Compute(threads=1)
    assert compute.share().pulse is compute.pulse
