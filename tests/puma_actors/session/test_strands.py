"""Tasks that are kept from one fork to the next."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import anyio
import pytest
from waiting import settled

from protocols.errors import PeerFailed
from puma_actors.session.strands import Strands


async def value(number: int, seen: list[Any] | None = None) -> int:
    await asyncio.sleep(0)
    if seen is not None:
        seen.append(asyncio.current_task())
    return number


async def fails(error: Exception) -> int:
    await asyncio.sleep(0)
    raise error


async def waits(ended: list[str]) -> int:
    try:
        await anyio.sleep_forever()
    finally:
        ended.append("waits")
    return 0


async def inside(*rounds: list[Coroutine[Any, Any, Any]]) -> list[list[Any]]:
    """Run forks one after the other."""
    async with anyio.create_task_group() as group:
        strands = Strands(group)
        try:
            return [await strands.gather(tasks) for tasks in rounds]
        finally:
            group.cancel_scope.cancel()


async def test_results_come_in_order_and_tasks_are_used_again() -> None:
    seen: list[Any] = []
    forks = [[value(10 * fork + place, seen) for place in range(3)] for fork in range(4)]
    assert await inside(*forks) == [[10 * fork + place for place in range(3)] for fork in range(4)]
    assert len(set(seen)) == 3
    assert await inside([]) == [[]]


async def test_forks_inside_forks() -> None:
    async with anyio.create_task_group() as group:
        strands = Strands(group)

        async def forked(number: int) -> int:
            return sum(await strands.gather([value(number), value(10 * number)]))

        for _ in range(2):
            assert await strands.gather([forked(1), forked(2), value(7)]) == [11, 22, 7]
        group.cancel_scope.cancel()


async def test_the_error_itself_is_raised_after_the_others_have_ended() -> None:
    ended: list[str] = []
    async with anyio.create_task_group() as group:
        strands = Strands(group)
        with pytest.raises(KeyError, match="mine"):
            await strands.gather([waits(ended), fails(KeyError("mine")), waits(ended)])
        assert ended == ["waits", "waits"]
        assert await strands.gather([value(1), value(2)]) == [1, 2]
        group.cancel_scope.cancel()


async def test_another_party_s_failure_does_not_hide_the_cause() -> None:
    async with anyio.create_task_group() as group:
        strands = Strands(group)
        with pytest.raises(ValueError, match="cause"):
            await strands.gather([fails(PeerFailed("other")), fails(ValueError("cause"))])
        group.cancel_scope.cancel()


@pytest.mark.parametrize("idle", [False, True])
@pytest.mark.parametrize("early", [False, True])
async def test_a_cancelled_fork_ends_its_tasks(idle: bool, early: bool) -> None:
    """Also if the tasks have not begun; whether or not their strands waited for a job."""
    ended: list[str] = []
    begun, beside = waits(ended), waits(ended)
    async with anyio.create_task_group() as group:
        strands = Strands(group)
        if idle:
            await strands.gather([value(1), value(2)])
        async with anyio.create_task_group() as inner:
            inner.start_soon(strands.gather, [begun, beside])
            if not early:
                await settled()
            inner.cancel_scope.cancel()
        assert begun.cr_frame is None and beside.cr_frame is None
        assert early or ended == ["waits", "waits"]
        assert await strands.gather([value(1), value(2)]) == [1, 2]
        group.cancel_scope.cancel()
